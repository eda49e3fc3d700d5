"""check_engine: is everything there, what will it run on, and does it really work?

Every library is imported late and alone, so that a missing one is a line of the report.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import HyperKDError
from engine.feedback import Feedback, SilentFeedback
from engine.jobs.request import JobRequest
from engine.textfile import write_text
from engine.version import engine_version

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from engine.raster.tiles import Tiling

LOG = logging.getLogger(__name__)

GIB = 1024**3
MIN_FREE_DISK_BYTES = GIB  # a class map of 10,000 x 10,000 px with its probabilities, compressed
MIN_FREE_MEMORY_BYTES = GIB  # torch, GDAL's cache and a few strips
SET_UP_AGAIN = "Set the engine up again from its lock file; the README has the command."

# Name on the package index and name to import, where they differ.
LIBRARIES = {
    "torch": "torch",
    "rasterio": "rasterio",
    "numpy": "numpy",
    "safetensors": "safetensors",
    "pydantic": "pydantic",
    "pyogrio": "pyogrio",
    "shapely": "shapely",
    "einops": "einops",
    "torchmetrics": "torchmetrics",
    "scikit-learn": "sklearn",
    "lightning-fabric": "lightning_fabric",
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
}

# The self-test's scene: no square, so that swapped rows and columns show.
HEIGHT, WIDTH, BAND_COUNT = 24, 17, 12
SCALE = 1e-4
NODATA = -99


class Request(JobRequest):
    """The parameters: where to write the report, if anywhere."""

    report: str | None = None


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        name: what was looked at.
        text: what was found.
        remedy: what to do; empty when all is well.
    """

    name: str
    text: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing has to be done."""
        return not self.remedy


def check_engine(request: Request, feedback: Feedback) -> dict[str, Any]:
    """Look at versions, device, memory and disk, then send a tiny scene down the whole street.

    What is wrong is a finding, never a failure of this job.

    Returns:
        ``ok`` (bool), ``seconds`` that the self-test took, ``text``; ``report`` when asked for.

    Raises:
        OutputError: the report cannot be written.
    """
    sections: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("Versions", find_versions),
        ("Device", find_device),
        ("Memory and disk", find_room),
        ("Models", find_models),
        ("Self-test", find_self_test),
    ]
    findings: dict[str, list[Finding]] = {}
    seconds = 0.0
    for index, (title, find) in enumerate(sections):
        feedback.raise_if_cancelled()
        feedback.progress(index / len(sections), title)
        start_s = time.perf_counter()
        findings[title] = _careful(title, find)
        seconds = time.perf_counter() - start_s  # in the end, of the last one
    text = _text(findings)
    feedback.info(text)
    feedback.progress(1.0, "Done")
    ok = all(finding.ok for section in findings.values() for finding in section)
    result: dict[str, Any] = {"ok": ok, "seconds": seconds, "text": text}
    if request.report is not None:
        result["report"] = str(write_text(request.report, text))
    return result


def find_versions() -> list[Finding]:
    """Versions of the engine, of Python and of all libraries."""
    findings = [
        Finding("HyperKD", engine_version()),
        Finding("Python", f"{platform.python_version()}, {sys.executable}"),
        Finding("System", f"{platform.system()} {platform.release()}, {platform.machine()}"),
    ]
    for name, module in LIBRARIES.items():
        try:
            import_module(module)
            findings.append(Finding(name, metadata.version(name)))
        except (ImportError, OSError) as error:  # OSError: a library of the system is missing
            findings.append(Finding(name, f"cannot be used: {error}", SET_UP_AGAIN))
    rasterio = sys.modules.get("rasterio")
    if rasterio is not None:
        findings.append(Finding("GDAL", rasterio.__gdal_version__))
    return findings


def find_device() -> list[Finding]:
    """The device that jobs will use, and the one that they would rather use."""
    from engine.device import bfloat16_speedup, choose_device, has_native_bfloat16

    choice = choose_device()
    findings = [
        Finding("Device", f"{choice.device}: {choice.reason}"),
        Finding("Precision", f"{choice.precision}, where a model gives the same map with it"),
    ]
    if choice.device.type == "cpu" and has_native_bfloat16():
        text = f"bfloat16 multiplies {bfloat16_speedup():.1f} times as fast as float32"
        findings.append(Finding("Processor", text))
    return findings


def find_room() -> list[Finding]:
    """Free memory and free disk."""
    findings = []
    available_bytes = available_memory_bytes()
    if available_bytes is not None:
        scarce = available_bytes < MIN_FREE_MEMORY_BYTES
        remedy = "Close other programs." if scarce else ""
        findings.append(Finding("Memory", f"{available_bytes / GIB:.1f} GiB available", remedy))
    folder = tempfile.gettempdir()
    free_bytes = shutil.disk_usage(folder).free
    remedy = f"Free some space in {folder}." if free_bytes < MIN_FREE_DISK_BYTES else ""
    findings.append(
        Finding("Temporary files", f"{free_bytes / GIB:.1f} GiB free in {folder}", remedy)
    )
    return findings


def find_models() -> list[Finding]:
    """The installed model packages, each loaded once."""
    from engine.packages.installed import installed_paths
    from engine.packages.package import build_model, load_package

    findings = []
    for name, path in sorted(installed_paths().items()):
        try:
            package = load_package(str(path))
            build_model(package)
            findings.append(Finding(name, package.info.title))
        except HyperKDError as error:
            remedy = error.remedy or "Take the package from where it was published."
            findings.append(Finding(name, error.sentence, remedy))
    return findings or [Finding("None", "train one with Train classifier")]


def find_self_test() -> list[Finding]:
    """A tiny scene is read, computed and written, and must come back as it was."""
    start_s = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="hyperkd-") as folder:
        problem = _run_self_test(Path(folder))
    seconds = time.perf_counter() - start_s
    size = f"{WIDTH} by {HEIGHT} px with {BAND_COUNT} bands"
    if problem:
        return [Finding("Scene", f"{size}: {problem}", "Please report this with the log.")]
    text = f"{size} read, computed and written in {seconds:.2f} s; every pixel is right"
    return [Finding("Scene", text)]


def available_memory_bytes() -> int | None:
    """Ask the system how much memory a new job could use; None where it does not tell."""
    if sys.platform == "win32":
        return _available_on_windows()
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # macOS tells only what it has
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    sizes_kib = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
    return sizes_kib["MemAvailable"] * 1024


def _available_on_windows() -> int | None:
    """https://learn.microsoft.com/windows/win32/api/sysinfoapi/ns-sysinfoapi-memorystatusex ."""
    status = (ctypes.c_uint64 * 8)()  # two 32-bit fields, then seven 64-bit ones
    status[0] = ctypes.sizeof(status)
    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009 - only there on Windows
    available_index = 2  # after length with load, and total physical
    return int(status[available_index]) if kernel.GlobalMemoryStatusEx(status) else None


def _careful(title: str, find: Callable[[], list[Finding]]) -> list[Finding]:
    """Make a finding of whatever goes wrong in a section."""
    try:
        return find()
    except HyperKDError as error:
        return [Finding(title, error.sentence, error.remedy or "Please report this with the log.")]
    except Exception as error:
        LOG.exception("The section %s failed", title)
        return [Finding(title, f"failed ({type(error).__name__}: {error})", SET_UP_AGAIN)]


def _text(findings: dict[str, list[Finding]]) -> str:
    """Write the report: the sections, then what to do."""
    everything = [finding for section in findings.values() for finding in section]
    remedies = dict.fromkeys(f"{item.name}: {item.remedy}" for item in everything if not item.ok)
    state = "has something missing" if remedies else "is ready"
    lines = [f"The engine of HyperKD {engine_version()} {state}."]
    width = max(len(finding.name) for finding in everything)
    for title, section in findings.items():
        lines += ["", title]
        lines += [
            f"  {'' if item.ok else '! '}{item.name:<{width}}  {item.text}" for item in section
        ]
    if remedies:
        lines += ["", "What to do", *(f"  {remedy}" for remedy in remedies)]
    return "\n".join(lines) + "\n"


class _Identity:
    """A model that returns its input, so that the right answer is known."""

    def __init__(self, tiling: Tiling) -> None:
        self.tiling = tiling
        self.out_channels = BAND_COUNT

    def __call__(self, reflectance: Tensor, valid: Tensor) -> Tensor:
        return reflectance


def _run_self_test(folder: Path) -> str:
    """Send a scene through reader, device and writer.

    Returns:
        what is wrong with the result; empty when nothing is.
    """
    import numpy as np
    import rasterio

    from engine.device import choose_device
    from engine.raster.scene import open_scene
    from engine.raster.spectra import match_bands
    from engine.raster.stream import stream_scene
    from engine.raster.tiles import Tiling
    from engine.raster.writer import Grid, RasterWriter

    source, output = str(folder / "scene.tif"), str(folder / "result.tif")
    stored = _write_scene(source)
    scene = open_scene(source)
    match = match_bands(scene.require_bands(), scene.require_bands())
    grid = Grid(scene.height, scene.width, scene.transform, scene.crs)
    names = scene.require_bands().names
    with RasterWriter(output, grid, names, "float32", NODATA) as writer:
        stream_scene(
            scene,
            match,
            _Identity(Tiling(tile_size_px=8, halo_px=2)),
            lambda window, values, valid: writer.write(window, np.where(valid, values, NODATA)),
            device=choose_device().device,
            feedback=SilentFeedback(),
        )
    with rasterio.open(source) as before, rasterio.open(output) as after:
        if (after.crs, after.transform) != (before.crs, before.transform):
            return "the result lies elsewhere"
        expected = np.where(stored == NODATA, NODATA, stored * np.float32(SCALE))
        wrong = ~np.isclose(after.read(), expected, rtol=1e-6, atol=0)
    return f"{wrong.sum()} of {wrong.size} values are wrong" if wrong.any() else ""


def _write_scene(path: str) -> NDArray[np.int16]:
    """Write a scene with a corner of nodata; the stored values are returned."""
    import numpy as np
    import rasterio
    from rasterio.crs import CRS
    from rasterio.transform import Affine

    count = BAND_COUNT * HEIGHT * WIDTH
    stored = np.arange(1, count + 1, dtype=np.int16).reshape(BAND_COUNT, HEIGHT, WIDTH)
    stored[:, :3, :4] = NODATA
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=HEIGHT,
        width=WIDTH,
        count=BAND_COUNT,
        dtype="int16",
        nodata=NODATA,
        crs=CRS.from_epsg(32633),
        transform=Affine(30, 0, 380000, 0, -20, 5820000),
    ) as dataset:
        dataset.write(stored)
        dataset.scales = (SCALE,) * BAND_COUNT
        for band_number in range(1, BAND_COUNT + 1):
            centre_nm = 400 + 50 * band_number
            tags = {"wavelength": str(centre_nm), "wavelength_units": "nm", "fwhm": "10"}
            dataset.update_tags(band_number, **tags)
    return stored

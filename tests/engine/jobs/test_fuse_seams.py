"""fuse leaves no seams between tiles, and holds no more of a large pair than of a small one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from engine.feedback import SilentFeedback
from engine.jobs.fuse import fuse
from tests.engine.conftest import write_raster
from tests.engine.jobs.fusing import BERLIN_HSI, BERLIN_MSI, read, request_for, save_fuser
from tests.engine.jobs.made_pairs import HSI_NM, MSI_FWHM_NM, MSI_NM, MadePair

RATIO, HEIGHT, WIDTH, TILE_PX = 3, 40, 36, 8
ROOT = Path(__file__).parents[3]


def write_gradient(folder) -> MadePair:
    """Two images that become brighter to the lower right, without any detail."""
    paths = {}
    for kind, nm, fwhm_nm, step in (
        ("hsi", HSI_NM, np.full(len(HSI_NM), 40.0), 1.0),
        ("msi", MSI_NM, MSI_FWHM_NM, 1.0 / RATIO),
    ):
        rows = (np.arange(round(HEIGHT / step)) + 0.5)[:, None] * step
        cols = (np.arange(round(WIDTH / step)) + 0.5) * step
        slope = (2 * rows / HEIGHT + cols / WIDTH) / 3
        array = (0.1 + 0.3 * slope * (nm / 900.0)[:, None, None]).astype(np.float32)
        transform = Affine(30 * step, 0, 383_472.5, 0, -30 * step, 5_818_310.0)
        path = folder / f"gradient_{kind}.tif"
        write_raster(path, array=array, wavelength_nm=nm, fwhm_nm=fwhm_nm, transform=transform)
        paths[kind] = str(path)
    return MadePair(**paths)


@pytest.mark.parametrize("method", ["glphs", "cnmf", "csakd"])
def test_a_gradient_has_no_seams(tmp_path, method):
    model = save_fuser(tmp_path) if method == "csakd" else "auto"
    request = request_for(
        write_gradient(tmp_path), tmp_path, method=method, model=model, tile_size=TILE_PX,
        data_type="float32", shift="0,0", back_projection=True,
    )  # fmt: skip
    values = read(fuse(request, SilentFeedback())["output"])
    # A seam is a step of the slope between the last row of a tile and the first of the next.
    for axis in (1, 2):
        bend = np.abs(np.diff(values, n=2, axis=axis)).max(axis=(0, 3 - axis))
        edges = np.arange(TILE_PX * RATIO, values.shape[axis] - 1, TILE_PX * RATIO)
        inner = np.ones(len(bend), bool)
        inner[: 8 * RATIO] = inner[-8 * RATIO :] = False  # the image ends there
        at_edges = np.zeros(len(bend), bool)
        at_edges[np.concatenate([edges - 2, edges - 1])] = True
        assert at_edges[inner].any()
        assert bend[inner & at_edges].max() < bend[inner & ~at_edges].max() + 1e-4 * np.ptp(values)


def test_the_packaged_pair_is_the_same_in_tiles_by_default(tmp_path):
    berlin = MadePair(BERLIN_HSI, BERLIN_MSI)
    wanted = {"method": "csakd", "model": "auto", "ratio": 3, "data_type": "float32"}
    whole, tiled = (
        read(
            fuse(
                request_for(berlin, tmp_path, tile_size=side, **wanted),
                SilentFeedback(),
            )["output"]
        )
        for side in (128, 24)
    )
    assert np.nanmax(np.abs(tiled - whole)) < 1e-4 * np.ptp(whole[np.isfinite(whole)])


# GDAL's cache, which a small pair does not fill, is kept small, so that nothing else hides in it.
MEASURE = """
import sys
from pathlib import Path
from engine.raster import dataset, pair_stream
dataset.CACHE_BYTES = 16 * 2**20
pair_stream._GDAL_CACHE_BYTES = (16 * 2**20, 16 * 2**20)
from engine.feedback import SilentFeedback
from engine.jobs.fuse import Request, fuse
folder, = map(Path, sys.argv[1:])
request = Request.parse({
    "hyperspectral": str(folder / "hsi.tif"), "multispectral": str(folder / "msi.tif"),
    "method": "bicubic", "shift": "0,0", "tile_size": 128, "output": str(folder / "fused.tif"),
    "consistency": str(folder / "consistency.tif"),
})
fuse(request, SilentFeedback())
# Of this program alone: what getrusage tells includes the one that started it.
status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
print(status.split()[0])
"""


def peak_kib(folder: Path, side: int) -> int:
    """Largest memory of a process that fuses a square pair of so many coarse pixels."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    block = rng.integers(500, 4000, (4, 250, 250)).astype(np.int16)
    hsi = np.tile(block, (1, side // 250, side // 250))
    msi = np.tile(block[:2].repeat(2, 1).repeat(2, 2), (1, side // 250, side // 250))
    for kind, array, px in (("hsi", hsi, 30.0), ("msi", msi, 15.0)):
        write_raster(
            folder / f"{kind}.tif", array=array, wavelength_nm=[490, 560, 665, 842][: len(array)],
            fwhm_nm=[60.0] * len(array), transform=Affine(px, 0, 0, 0, -px, 0), scale=1e-4,
            tiled=True, blockxsize=256, blockysize=256, compress="deflate",
        )  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder)],
        capture_output=True, text=True, check=True, env=environment, timeout=600,
    )  # fmt: skip
    return int(done.stdout.split()[-1])


@pytest.mark.slow  # sixteen million pixels are read, fused and written
def test_memory_does_not_grow_with_the_images(tmp_path):
    small, large = peak_kib(tmp_path / "small", 500), peak_kib(tmp_path / "large", 2000)
    held_kib = 2000**2 * (4 * 2 + 4 * 2 * 2 + 4 * 4 * 2) // 1024  # both images and the result
    assert large < small + 0.4 * held_kib

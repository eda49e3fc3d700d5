"""Fusing: CSAKD's networks against plain convolutions, and `fuse` against its bare network."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.transform import Affine
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from benchmarks.memory import peak_bytes
from benchmarks.speed import DeviceName, paired
from engine.__main__ import prepare_process
from engine.device import choose_device
from engine.feedback import SilentFeedback
from engine.jobs.fuse import Request, fuse
from engine.models.fusion.dts import DTSConfig, DTSNet, multiply_adds
from engine.models.fusion.method import ImagePair
from engine.models.fusion.presets import PRESETS
from engine.packages.cache import load_model
from engine.raster.pair import Pair, open_pair
from engine.raster.pair_plan import choose_core_px, count_pair_lanes, plan_pair
from engine.raster.pair_reader import PairReader
from engine.raster.pair_sample import sample_pair
from engine.raster.spectra import BandTable
from engine.raster.threads import Lanes
from engine.training.pair_shift import estimate_shift

NETWORK_AIM = 0.8
FUSE_AIM = 1.2
# Of the published pair of sensors, whose counts are known.
HSI_CHANNELS, MSI_CHANNELS, RATIO = 172, 4, 4
Role = Literal["teacher", "student"]
ROLES: tuple[Role, ...] = ("teacher", "student")
# Fine pixels along a side, by the device and preset: seconds a run, and on a CPU tiles as `fuse`
# has them.
SIDES_PX = {
    "cpu": {"laptop": 192, "subspace": 192, "paper": 128},
    "cuda": {"laptop": 1024, "subspace": 512, "paper": 256},
}
SAMPLE = Path(__file__).resolve().parents[1] / "resources" / "sample"
NODATA = -9999


def measure_networks(pairs: int, device: DeviceName) -> list[dict[str, Any]]:
    """Measure each preset's networks against their convolutions alone.

    "Plain" runs the same convolutions, one after the other on tensors in memory, each in the
    layout that is fastest: what is beside them (joining, activations, residuals, attention, gates)
    is what the network costs on top. What a single convolution of the network's width reaches is
    told beside it.
    """
    choice = choose_device(device)
    with torch.inference_mode():
        return [
            _measure_network(preset, role, pairs, choice.device)
            | {"device": f"{choice.device} ({choice.reason})"}
            for preset in PRESETS
            for role in ROLES
        ]


def _measure_network(preset: str, role: Role, pairs: int, device: torch.device) -> dict[str, Any]:
    side_px = SIDES_PX[device.type][preset]
    config = network_config(preset, role)
    network = DTSNet(config).eval().to(device)
    images = _images(config, side_px, device)
    plain = PlainConvolutions(network, images)
    ours_s, plain_s = paired(
        _timed_on(device, lambda: network(*images)), _timed_on(device, plain.run), pairs
    )
    gmac = multiply_adds(config, side_px**2) / 1e9
    single = _single_rate(config.width, side_px, pairs, device)
    ratios = [other / mine for mine, other in zip(ours_s, plain_s, strict=True)]
    return {
        "preset": preset,
        "role": role,
        "side_px": side_px,
        "parameters": sum(p.numel() for p in network.parameters()),
        "gmac": gmac,
        "ours_s": statistics.median(ours_s),
        "ours_gmac_s": gmac / statistics.median(ours_s),
        "plain_gmac_s": gmac / statistics.median(plain_s),
        "single_gmac_s": single,
        "peak_mb": _network_peak_mb(preset, role, device),
        "share": statistics.median(ratios),
        "shares": ratios,
        "aim": NETWORK_AIM,
    }


def network_config(preset: str, role: Role) -> DTSConfig:
    """The network of a preset for the published pair of sensors."""
    sizes = PRESETS[preset]
    make = sizes.teacher if role == "teacher" else sizes.student
    return make(HSI_CHANNELS, MSI_CHANNELS, RATIO)


def _images(config: DTSConfig, side_px: int, device: torch.device) -> tuple[Tensor, Tensor]:
    coarse_px = side_px // config.ratio
    shapes = ((config.hsi_channels, coarse_px), (config.msi_channels, side_px))
    hsi, msi = (torch.rand(1, channels, px, px, device=device) for channels, px in shapes)
    return hsi, msi


@dataclass(frozen=True, eq=False)
class _Call:
    """One convolution: its weight, bias and settings, and the shape of what it got."""

    shape: torch.Size
    weight: Tensor
    bias: Tensor | None
    settings: tuple[Any, ...]


class _Recorder(TorchFunctionMode):
    """Remembers each convolution that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if function is F.conv2d:
            image, weight, *rest = args
            bias = rest[0] if rest else (kwargs or {}).get("bias")
            self.calls.append(_Call(image.shape, weight, bias, tuple(rest[1:])))
        return function(*args, **(kwargs or {}))


class PlainConvolutions:
    """A network's convolutions alone, on tensors that lie in memory.

    Args:
        network: whose they are.
        images: its inputs.
    """

    def __init__(self, network: nn.Module, images: tuple[Tensor, Tensor]) -> None:
        with _Recorder() as recorder:
            network(*images)
        device = images[0].device
        self._layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
        self._calls = recorder.calls
        self._tensors = {
            shape: torch.rand(shape, device=device).contiguous(memory_format=self._layout)
            for shape in {call.shape for call in self._calls}
        }

    def run(self) -> None:
        """Run all of them."""
        for call in self._calls:
            F.conv2d(self._tensors[call.shape], call.weight, call.bias, *call.settings)


def _single_rate(width: int, side_px: int, pairs: int, device: torch.device) -> float:
    """Billions of multiply-adds a second of one 3 x 3 convolution from width to width."""
    convolution = nn.Conv2d(width, width, 3, padding=1, device=device)
    image = torch.rand(1, width, side_px, side_px, device=device)
    if device.type == "cpu":
        image = image.contiguous(memory_format=torch.channels_last)

    def ten() -> None:
        for _ in range(10):
            convolution(image)

    times_s, _ = paired(_timed_on(device, ten), lambda: None, pairs)
    return 10 * 9 * width**2 * side_px**2 / 1e9 / statistics.median(times_s)


def _timed_on(device: torch.device, work: Callable[[], object]) -> Callable[[], None]:
    """The work with the end of what a GPU has queued."""

    def run() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def _network_peak_mb(preset: str, role: Role, device: torch.device) -> float:
    """What a run takes beyond what lies in memory before it, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.fusion_speed", preset, role, device.type]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mb"])


def _run_once(preset: str, role: Role, device: torch.device) -> float:
    """Run a network once; megabytes."""
    config = network_config(preset, role)
    network = DTSNet(config).eval().to(device)
    with torch.inference_mode():
        # What torch loads at the first convolution is none of the network's.
        network(*_images(config, 4 * config.ratio, device))
        images = _images(config, SIDES_PX[device.type][preset], device)
        if device.type == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            network(*images)
            return (torch.cuda.max_memory_allocated() - before) / 1e6
        before = peak_bytes()
        network(*images)
        return (peak_bytes() - before) / 1e6


def measure_fuse(
    folder: Path, side_px: int, pairs: int, device: DeviceName, model: str
) -> dict[str, Any]:
    """Measure the job ``fuse`` against its model on tensors that lie in memory.

    The pair is the packaged scene and its fine image, mirrored to the size, so that what is
    written can be compressed as real spectra can. The bare model computes the tiles of such a run,
    with the margin that it needs itself; a run needs some pixels more, to see how well the result
    gives back both images. It may take all cores for a tile or a core each, whichever is faster.

    Args:
        folder: for the files.
        side_px: coarse pixels along the pair.
        pairs: how often both sides are measured.
        device: to run on.
        model: name or path of the package.
    """
    choice = choose_device(device)
    loaded = load_model(model, choice.device)
    ratio = int(loaded.package.info.config["ratio"])
    hyperspectral, multispectral = make_pair(folder, side_px, ratio)
    output = folder / "fused.tif"
    parameters = {
        "hyperspectral": hyperspectral,
        "multispectral": multispectral,
        "model": model,
        "output": str(output),
        "precision": "float32",
        "device": choice.device.type,
    }
    request = Request.parse(parameters)
    bands = len(loaded.package.info.bands)
    shapes = (bands, len(loaded.package.info.fine_bands or ()))
    pair = open_pair(hyperspectral, multispectral, ratio=ratio)
    try:
        bare, lanes = _fastest_bare(loaded.module, pair, shapes, choice.device)
        bare_s, ours_s = paired(bare.run, lambda: fuse(request, SilentFeedback()), pairs)
        size_mb = output.stat().st_size / 1e6
    finally:
        for file in (*folder.glob("fused.*"), *folder.glob("pair_*")):
            file.unlink()
    ratios = [mine / other for other, mine in zip(bare_s, ours_s, strict=True)]
    fine_mpx = (side_px * ratio) ** 2 / 1e6
    return {
        "model": model,
        "bands": bands,
        "fine_px": side_px * ratio,
        "tiles": bare.tiles,
        "bare_lanes": lanes,
        "output_mb": size_mb,
        "bare_mpx_s": fine_mpx / statistics.median(bare_s),
        "ours_mpx_s": fine_mpx / statistics.median(ours_s),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "aim": FUSE_AIM,
        "device": f"{choice.device} ({choice.reason})",
    }


class BarePairs:
    """A fusion on pairs of the shapes that a run gives it, which lie in memory already.

    Args:
        model: to run.
        pair: that the run reads.
        bands: hyperspectral and multispectral ones of the model.
        device: that the tensors are on.
        lanes: tiles that are computed side by side.
    """

    def __init__(
        self,
        model: nn.Module,
        pair: Pair,
        bands: tuple[int, int],
        device: torch.device,
        lanes: int = 1,
    ) -> None:
        self._model, self._device, self._lanes = model, device, lanes
        reach_px = int(model.reach_px)  # type: ignore[arg-type]
        core_px = choose_core_px(bands[0], pair.ratio, reach_px, device.type)
        tiles = plan_pair(pair.window, pair.overlap, core_px, reach_px, pair.hsi.block_shape)
        self._shapes = [(tile.read.height, tile.read.width) for tile in tiles]
        self._pairs = {
            shape: _random_pair(bands, shape, pair.ratio, device) for shape in set(self._shapes)
        }
        self.most_lanes = count_pair_lanes(
            tiles, bands[0], pair.ratio, device.type, torch.get_num_threads()
        )

    @property
    def tiles(self) -> int:
        """How many a run computes."""
        return len(self._shapes)

    def run(self) -> None:
        """Run all tiles."""
        threads = torch.get_num_threads()
        prepare = partial(torch.set_num_threads, max(threads // self._lanes, 1))
        try:
            with Lanes(self._lanes, threading.Event(), prepare) as lanes:
                for _result in lanes.map(self._run_tile, self._shapes):
                    pass
        finally:
            torch.set_num_threads(threads)
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _run_tile(self, shape: tuple[int, int]) -> None:
        """Run a tile, in the thread of a lane."""
        with torch.inference_mode():
            self._model(self._pairs[shape])


def _fastest_bare(
    model: nn.Module, pair: Pair, bands: tuple[int, int], device: torch.device
) -> tuple[BarePairs, int]:
    """The bare model with one lane or with as many as a run has, whichever is faster."""
    one = BarePairs(model, pair, bands, device)
    if one.most_lanes == 1:
        return one, 1
    many = BarePairs(model, pair, bands, device, one.most_lanes)
    one_s, many_s = paired(one.run, many.run, 1)
    return (many, one.most_lanes) if many_s < one_s else (one, 1)


def _random_pair(
    bands: tuple[int, int], shape: tuple[int, int], ratio: int, device: torch.device
) -> ImagePair:
    height, width = shape
    fine = (height * ratio, width * ratio)
    return ImagePair(
        torch.rand(1, bands[0], *shape, device=device),
        torch.rand(1, bands[1], *fine, device=device),
        torch.ones(1, *shape, dtype=torch.bool, device=device),
        torch.ones(1, *fine, dtype=torch.bool, device=device),
    )


def make_pair(folder: Path, side_px: int, ratio: int) -> tuple[str, str]:
    """Write the packaged pair, mirrored to ``side_px`` coarse pixels a side, on grids that nest.

    The fine image is brought onto the coarse one first: in a mirror image a shift would change
    its direction.

    Returns:
        paths of the hyperspectral and the multispectral image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pair = open_pair(
        str(SAMPLE / "EnMAP_BerlinUrbanGradient.bsq"),
        str(SAMPLE / "HighResolution_BerlinUrbanGradient.tif"),
        ratio=ratio,
    )
    shift = estimate_shift(sample_pair(pair), ratio)
    with PairReader(pair.shifted(shift.x_px, shift.y_px)) as reader:
        arrays = reader.read(pair.window)
    coarse = pair.hsi.transform
    paths = []
    for name, image, valid, table, transform, side in (
        ("pair_coarse.tif", arrays.hsi, arrays.hsi_valid, pair.hsi_table, coarse, side_px),
        ("pair_fine.tif", arrays.msi, arrays.msi_valid, pair.msi_table,
         coarse * Affine.scale(1 / ratio), side_px * ratio),
    ):  # fmt: skip
        stored = np.where(valid, np.rint(image * 1e4), NODATA).astype(np.int16)
        paths.append(_write(folder / name, _mirrored(stored, side), table, transform, pair))
    return paths[0], paths[1]


def _mirrored(image: NDArray[np.int16], side_px: int) -> NDArray[np.int16]:
    """(C, side, side) of an image, its mirror images beside it."""
    rows, columns = image.shape[1:]
    pad = ((0, 0), (0, max(side_px - rows, 0)), (0, max(side_px - columns, 0)))
    return np.pad(image, pad, mode="symmetric")[:, :side_px, :side_px]


def _write(
    path: Path, image: NDArray[np.int16], table: BandTable | None, transform: Affine, pair: Pair
) -> str:
    with rasterio.open(
        path, "w", driver="GTiff", dtype="int16", count=len(image), height=image.shape[1],
        width=image.shape[2], nodata=NODATA, crs=pair.hsi.crs, transform=transform, tiled=True,
        blockxsize=256, blockysize=256, interleave="pixel", compress="deflate",
    ) as dataset:  # fmt: skip
        dataset.write(image)
        dataset.scales = [1e-4] * len(image)
        if table is None:
            return str(path)
        for i in range(len(image)):
            tags = {"wavelength": f"{table.wavelength_nm[i]:.2f}", "wavelength_units": "nm"}
            if np.isfinite(table.fwhm_nm[i]):
                tags["fwhm"] = f"{table.fwhm_nm[i]:.2f}"
            dataset.update_tags(i + 1, **tags)
    return str(path)


def _main() -> None:
    parser = argparse.ArgumentParser(description="Run one network once; print what it takes.")
    parser.add_argument("preset", choices=list(PRESETS))
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("device", choices=list(SIDES_PX))
    options = parser.parse_args()
    prepare_process()
    peak_mb = _run_once(options.preset, options.role, torch.device(options.device))
    print(json.dumps({"peak_mb": peak_mb}))


if __name__ == "__main__":
    _main()

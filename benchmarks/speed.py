"""Read rate against plain reading, and the whole street against the bare model.

Machines are shared and noisy, so both sides of a ratio are measured in turn, several times, and
the median of the ratios counts.
"""

from __future__ import annotations

import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.windows import Window as RasterioWindow
from torch import Tensor, nn

from benchmarks.scenes import LAYOUTS, make_scene, remove_scene
from engine.device import choose_device
from engine.feedback import SilentFeedback
from engine.jobs.classify import Request, classify
from engine.models.classifier import ClassifierConfig, HyperKDClassifier
from engine.packages.cache import load_model
from engine.packages.package import load_package, save_package
from engine.raster.plan import batch_size, choose_tiling, input_shape, plan_scene
from engine.raster.scene import open_scene
from engine.raster.spectra import BandMatch
from engine.raster.stream import stream_scene
from engine.raster.threads import Lanes
from engine.raster.tiles import Piece, Strip, Tiling, redundancy

READ_RATE_AIM = 0.8
END_TO_END_AIM = 1.15
TENSOR_BYTES = 128 * 2**20

DeviceName = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Sizes:
    """How large the measurement is.

    Args:
        side_px: of the scene.
        encoder_side_px: of the scene for the classifier with its encoder, which is slow.
        bands: of the scene whose reading is measured.
        pairs: how often both sides are measured.
        model: name or path of the package whose street is measured.
    """

    side_px: int = 2000
    encoder_side_px: int = 400
    bands: int = 200
    pairs: int = 5
    model: str = "berlin-enmap-landcover"


class FreeModel:
    """Costs nothing: the first band is its result."""

    tiling = Tiling(512, 0)
    out_channels = 1

    def __call__(self, reflectance: Tensor, valid: Tensor) -> Tensor:
        """(B, C, h, w) to (B, 1, h, w)."""
        return reflectance[:, :1]


def measure_read_rate(folder: Path, sizes: Sizes, device: torch.device) -> list[dict[str, Any]]:
    """Measure streaming with a free model against plain reading, for every layout."""
    return [_read_rate(folder, layout, sizes, device) for layout in LAYOUTS]


def _read_rate(folder: Path, layout: str, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    wavelength_nm = np.linspace(420, 2440, sizes.bands)
    path = make_scene(folder, layout, sizes.side_px, wavelength_nm, np.full(sizes.bands, 10.0))
    try:
        plain_s, ours_s = paired(
            lambda: _read_plainly(path), lambda: _stream(path, device), sizes.pairs
        )
    finally:
        remove_scene(path)
    pixels = sizes.side_px**2 / 1e6
    ratios = [plain / ours for plain, ours in zip(plain_s, ours_s, strict=True)]
    return {
        "layout": layout,
        "plain_mpx_s": pixels / statistics.median(plain_s),
        "ours_mpx_s": pixels / statistics.median(ours_s),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "aim": READ_RATE_AIM,
        "device": str(device),
    }


def _read_plainly(path: str) -> None:
    """Read all bands with rasterio, in rows of whole blocks, as one would."""
    with rasterio.open(path) as dataset:
        block_rows, block_cols = dataset.block_shapes[0]
        rows = block_rows if block_cols < dataset.width else 64
        for row in range(0, dataset.height, rows):
            count = min(rows, dataset.height - row)
            dataset.read(window=RasterioWindow(0, row, dataset.width, count))


def _stream(path: str, device: torch.device) -> None:
    scene = open_scene(path)
    match = BandMatch(tuple(range(len(scene.band_sources))), None, ())
    stream_scene(scene, match, FreeModel(), _forget, device=device, feedback=SilentFeedback())


def _forget(window: object, values: NDArray[np.float32], valid: NDArray[np.bool_]) -> None:
    """A sink that keeps nothing."""


def measure_end_to_end(folder: Path, sizes: Sizes, device: DeviceName) -> list[dict[str, Any]]:
    """Measure the job ``classify`` against its model on tensors that lie in memory.

    Both the packaged model, and the same with its encoder switched on, whose tiles are blended.
    """
    packaged = _end_to_end(folder, sizes.model, sizes.side_px, sizes.pairs, device)
    with_encoder = save_with_encoder(folder / "encoder", sizes.model)
    try:
        whole = _end_to_end(folder, with_encoder, sizes.encoder_side_px, sizes.pairs, device)
    finally:
        shutil.rmtree(with_encoder)
    return [packaged | {"what": "packaged model"}, whole | {"what": "with its encoder"}]


def save_with_encoder(path: Path, model: str) -> str:
    """Save a package like another, with the encoder switched on; its weights are random."""
    info = load_package(model).info
    config = dict(info.config) | {"encoder_gate": 0.5}
    module = HyperKDClassifier(ClassifierConfig(**config))
    tiling = Tiling(module.tile_size_px, module.halo_px, module.blend)
    info = replace(info, name=path.name, config=config, tiling=tiling)
    return str(save_package(str(path), info, module.state_dict()))


def _end_to_end(
    folder: Path, model: str, side_px: int, pairs: int, device: DeviceName
) -> dict[str, Any]:
    choice = choose_device(device)
    loaded = load_model(model, choice.device)
    bands = loaded.package.info.bands
    path = make_scene(folder, "tiled by pixel", side_px, bands.wavelength_nm, bands.fwhm_nm)
    output = folder / "map.tif"
    # In float32 on both sides: what bfloat16 gains is another question.
    parameters = {"input": path, "model": model, "output": str(output), "precision": "float32"}
    request = Request.parse(parameters | {"device": device})
    match = BandMatch(tuple(range(len(bands))), None, ())
    tiling = choose_tiling(loaded.package.info.tiling, match, choice.device.type)
    strips = plan_scene(open_scene(path), match, tiling)
    bare = BareModel(loaded.module, strips, len(bands), choice.device)
    try:
        bare_s, ours_s = paired(bare.run, lambda: classify(request, SilentFeedback()), pairs)
    finally:
        remove_scene(path)
        for file in folder.glob("map.*"):
            file.unlink()
    ratios = [ours / bare for bare, ours in zip(bare_s, ours_s, strict=True)]
    pixels = side_px**2 / 1e6
    return {
        "bands": len(bands),
        "side_px": side_px,
        "computed_per_pixel": redundancy(strips),
        "bare_mpx_s": pixels / statistics.median(bare_s),
        "ours_mpx_s": pixels / statistics.median(ours_s),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "aim": END_TO_END_AIM,
        "device": f"{choice.device} ({choice.reason})",
    }


class BareModel:
    """A model on tensors of the shapes that a run gives it, which lie in memory already.

    Args:
        module: of logits.
        strips: of the run.
        bands: of the model.
        device: that the tensors are on.
        lanes: batches that are computed side by side, each with its share of torch's threads; 1
            computes them one after the other with all threads.
    """

    def __init__(
        self,
        module: nn.Module,
        strips: list[Strip],
        bands: int,
        device: torch.device,
        lanes: int = 1,
    ) -> None:
        self._module = module
        self._device = device
        self._lanes = lanes
        pieces = [piece for strip in strips for piece in strip.pieces]
        self._shapes = [shape for piece in pieces for shape in _batches(piece, bands, device)]
        # Several of each shape, so that they come from memory and not from a cache.
        self._tensors = {
            shape: [torch.rand(shape, device=device) for _ in range(self._copies(shape))]
            for shape in set(self._shapes)
        }

    @property
    def tiles(self) -> int:
        """How many a run computes."""
        return sum(shape[0] for shape in self._shapes)

    def _copies(self, shape: tuple[int, int, int, int]) -> int:
        return max(1, min(TENSOR_BYTES // (4 * prod(shape)), self._shapes.count(shape)))

    def run(self) -> None:
        """Run all batches."""
        threads = torch.get_num_threads()
        prepare = partial(torch.set_num_threads, max(threads // self._lanes, 1))
        try:
            with Lanes(self._lanes, threading.Event(), prepare) as lanes:
                for _result in lanes.map(self._run_batch, range(len(self._shapes))):
                    pass
        finally:
            torch.set_num_threads(threads)
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _run_batch(self, position: int) -> None:
        """Run a batch by its number, in the thread of a lane."""
        shape = self._shapes[position]
        tensors = self._tensors[shape]
        b, _, h, w = shape
        with torch.inference_mode():
            valid = torch.ones(b, h, w, dtype=torch.bool, device=self._device)
            self._module(tensors[position % len(tensors)], valid).float().softmax(dim=1)


def _batches(piece: Piece, bands: int, device: torch.device) -> Iterator[tuple[int, int, int, int]]:
    """Shapes (B, C, h, w) of the batches that a run makes of a piece."""
    tiles = sorted(piece.tiles, key=input_shape)
    for (height, width), group in groupby(tiles, input_shape):
        same = list(group)
        size = batch_size(same[0], bands, device.type)
        for start in range(0, len(same), size):
            yield len(same[start : start + size]), bands, height, width


def paired(
    first: Callable[[], object], second: Callable[[], object], pairs: int
) -> tuple[list[float], list[float]]:
    """Time both in turn, after one run of each that fills caches."""
    first()
    second()
    times = [(seconds(first), seconds(second)) for _ in range(pairs)]
    return [a for a, _ in times], [b for _, b in times]


def seconds(work: Callable[[], object]) -> float:
    """Time one run."""
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s

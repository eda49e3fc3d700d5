"""Runs a fusion over a pair, tile by tile: tensors of both images in, the fine result out.

A reader thread, the device and a writer thread work at the same time, as in
`engine.raster.stream`. A tile is a square of coarse pixels with its margin; what a method gives
for its core does not depend on how the pair is cut.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import DeviceError, RequestError
from engine.feedback import Feedback
from engine.models.fusion.method import ImagePair
from engine.raster.model_threads import LayerWatch, make_lanes
from engine.raster.pair import Pair, fine_window
from engine.raster.pair_grid import intersection
from engine.raster.pair_plan import choose_core_px, count_pair_lanes, plan_pair, split_tile
from engine.raster.pair_reader import PairReader
from engine.raster.pair_sample import as_tensors, sample_pair, valid_in_both
from engine.raster.threads import Crew, Lanes, Relay
from engine.raster.tiles import Tile, Window

__all__ = ["PairModel", "Sink", "sample_pair", "stream_pair"]

Sink = Callable[[Window, NDArray[np.float32], NDArray[np.bool_]], None]

# Tiles that have been read and wait: one, while the next is read.
_WAITING = 1
# GDAL decodes a block for all bands or again for each; both images' blocks have to fit, but a wide
# image's need not all.
_GDAL_CACHE_BYTES = (32 * 2**20, 256 * 2**20)


class PairModel(Protocol):
    """What can be run over a pair: any `engine.models.fusion.method.FusionMethod`."""

    @property
    def ratio(self) -> int:
        """Fine pixels along a coarse one."""

    @property
    def reach_px(self) -> int:
        """How many coarse pixels around its own one a result depends on."""

    @property
    def out_channels(self) -> int:
        """K, values per fine pixel of the result."""

    def __call__(self, pair: ImagePair) -> Tensor:
        """Map a pair of any size to (B, K, h*r, w*r) values, finite everywhere."""


@dataclass(frozen=True, eq=False)
class _Loaded:
    """A tile that has been read."""

    tile: Tile
    pair: ImagePair  # of tile.read, on the CPU
    valid: NDArray[np.bool_]  # (h*r, w*r) of tile.core


@dataclass(frozen=True, eq=False)
class _Finished:
    """A tile's core on its way to the writer thread."""

    window: Window  # of fine pixels
    values: NDArray[np.float32]  # (K, h*r, w*r)
    valid: NDArray[np.bool_]


def stream_pair(
    pair: Pair,
    model: PairModel,
    sink: Sink,
    *,
    device: torch.device,
    precision: Literal["float32", "bfloat16"] = "float32",
    extent: Window | None = None,
    tile_px: int | None = None,
    hsi_index: Sequence[int] | None = None,
    msi_index: Sequence[int] | None = None,
    feedback: Feedback,
    step: str = "Fusing",
) -> None:
    """Run a fusion over a pair, tile by tile.

    What lies around a tile is read with it, so that the result depends neither on ``tile_px`` nor
    on ``extent``. Memory is bounded by a few tiles, whatever the height and width of the pair.

    Args:
        pair: to read.
        model: to run; on ``device`` already.
        sink: called in a thread of its own with windows of fine pixels that cover the extent
            once, in no particular order, their (K, h, w) values, and (h, w) valid: where both
            images have a measurement; values are 0 elsewhere.
        device: to run on.
        precision: bfloat16 runs the model under autocast.
        extent: coarse pixels that are wanted; None: the pair's window.
        tile_px: coarse pixels along a tile, without its margin; None: what suits the device.
        hsi_index: 0-based bands as for `PairReader`.
        msi_index: likewise.
        feedback: told the progress; asked about a cancel, also while a tile is computed.
        step: name of the work in the progress message.

    Raises:
        CancelledError: the user cancelled.
        RequestError: the extent lies outside the pair, or the tile is smaller than a pixel.
        SceneError: a file cannot be read to its end.
        DeviceError: a single pixel with its margin does not fit into the device's memory.
    """
    tiles = _plan(pair, model, device, extent, tile_px)
    lane_count = count_pair_lanes(
        tiles, model.out_channels, pair.ratio, device.type, torch.get_num_threads()
    )
    todo = sum(_area(tile) for tile in tiles)
    with (
        Crew() as crew,
        LayerWatch(feedback, crew.stop) as watch,
        make_lanes(lane_count, crew.stop) as lanes,
    ):
        loaded: Relay[_Loaded] = crew.relay(_WAITING)
        finished: Relay[_Finished | None] = crew.relay(_WAITING)
        reader = partial(_read, pair, tiles, hsi_index, msi_index, loaded)
        crew.start("reader", reader, abandon=True)
        crew.start("writer", partial(_write, finished, sink))
        stage = _Stage(model, device, precision, watch, max(_area(tile) for tile in tiles))
        done = 0
        for tile, result in zip(
            tiles, _compute_all(stage, lanes, len(tiles), loaded, feedback), strict=True
        ):
            feedback.progress(done / todo, step)
            finished.put(result, feedback.raise_if_cancelled)
            done += _area(tile)
        finished.put(None, feedback.raise_if_cancelled)
        crew.wait(feedback.raise_if_cancelled)
    feedback.progress(1.0, step)


def _plan(
    pair: Pair, model: PairModel, device: torch.device, extent: Window | None, tile_px: int | None
) -> list[Tile]:
    """Cut what is wanted.

    Raises:
        RequestError: nothing is wanted of the pair, or the tile is smaller than a pixel.
        ValueError: the model is for another ratio.
    """
    if model.ratio != pair.ratio:
        raise ValueError(f"A model for a ratio of {model.ratio} cannot fuse one of {pair.ratio}.")
    if tile_px is not None and tile_px < 1:
        raise RequestError(f"A tile of {tile_px} px has no pixel.", "Give 1 or more, or none.")
    wanted = pair.window if extent is None else intersection(extent, pair.window)
    if wanted is None:
        raise RequestError(
            f"The extent lies outside what {pair.hsi.name} and {pair.msi.name} share.",
            "Choose an extent that both images cover.",
        )
    core_px = tile_px or choose_core_px(model.out_channels, pair.ratio, model.reach_px, device.type)
    return plan_pair(wanted, pair.overlap, core_px, model.reach_px, pair.hsi.block_shape)


def _area(tile: Tile) -> int:
    """Coarse pixels that are computed for a tile."""
    return tile.read.height * tile.read.width


def _read(
    pair: Pair,
    tiles: Sequence[Tile],
    hsi_index: Sequence[int] | None,
    msi_index: Sequence[int] | None,
    loaded: Relay[_Loaded],
) -> None:
    """Work of the reader thread."""
    with (
        rasterio.Env(GDAL_CACHEMAX=_cache_bytes(pair, tiles)),
        PairReader(pair, hsi_index, msi_index) as reader,
    ):
        for tile in tiles:
            arrays = reader.read(tile.read)
            core = fine_window(tile.core, pair.ratio).slices_in(fine_window(tile.read, pair.ratio))
            valid = valid_in_both(arrays, pair.ratio)[core]
            loaded.put(_Loaded(tile, as_tensors(arrays), valid))


def _cache_bytes(pair: Pair, tiles: Sequence[Tile]) -> int:
    """What GDAL's cache needs so that the tiles of one row decode each block once."""
    block_rows, block_cols = pair.hsi.block_shape
    rows = max(tile.read.height for tile in tiles) + 2 * block_rows
    bands = len(pair.hsi_index) * pair.hsi.dtype.itemsize
    smallest, largest = _GDAL_CACHE_BYTES
    return min(max(rows * block_cols * bands, smallest), largest)


def _write(finished: Relay[_Finished | None], sink: Sink) -> None:
    """Work of the writer thread."""
    while (area := finished.get()) is not None:
        sink(area.window, area.values, area.valid)


def _compute_all(
    stage: _Stage, lanes: Lanes, count: int, loaded: Relay[_Loaded], feedback: Feedback
) -> Iterator[_Finished]:
    """Compute tiles as they arrive from the reader; their results come in order."""
    arriving = (loaded.get(feedback.raise_if_cancelled) for _ in range(count))
    yield from lanes.map(stage.compute, arriving, feedback.raise_if_cancelled)


class _Stage:
    """Work of the device: tiles in, finished cores out.

    Args:
        model: to run.
        device: to run on.
        precision: of the model's arithmetic.
        watch: told how long a tile takes.
        largest_px: coarse pixels of the largest tile.
    """

    def __init__(
        self,
        model: PairModel,
        device: torch.device,
        precision: Literal["float32", "bfloat16"],
        watch: LayerWatch,
        largest_px: int,
    ) -> None:
        self._model = model
        self._device = device
        self._half = precision == "bfloat16"
        self._watch = watch
        self._largest_px = largest_px

    def compute(self, loaded: _Loaded) -> _Finished:
        """Run a tile, in the thread of a lane; one without a valid pixel is not run."""
        tile, ratio = loaded.tile, self._model.ratio
        window = fine_window(tile.core, ratio)
        if not loaded.valid.any():
            shape = (self._model.out_channels, window.height, window.width)
            return _Finished(window, np.zeros(shape, np.float32), loaded.valid)
        with torch.inference_mode():  # holds for one thread only, as autocast does
            start_s = time.perf_counter()
            values = self._run(tile, loaded.pair)
            taken_s = time.perf_counter() - start_s
            valid = torch.from_numpy(loaded.valid)
            values = torch.where(valid, values.cpu(), 0.0)
        self._watch.see_batch(taken_s * self._largest_px / _area(tile))
        return _Finished(window, values.numpy(), loaded.valid)

    def _run(self, tile: Tile, pair: ImagePair) -> Tensor:
        """Run a tile: (K, h*r, w*r) float32 of its core; in parts when the memory is too small.

        Raises:
            DeviceError: one coarse pixel with its margin is too much.
        """
        try:
            return self._forward(tile, pair)
        except torch.OutOfMemoryError as error:
            if tile.core.height == tile.core.width == 1:
                raise DeviceError(
                    f"The memory of {self._device} is too small for one pixel with the "
                    f"{self._model.reach_px} px around it that the model needs.",
                    "Choose the CPU.",
                ) from error
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        fine_core = fine_window(tile.core, pair.ratio)
        out = torch.empty(self._model.out_channels, fine_core.height, fine_core.width)
        for part in split_tile(tile, self._model.reach_px):
            place = fine_window(part.core, pair.ratio).slices_in(fine_core)
            out[:, *place] = self._run(part, pair.crop(*part.read.slices_in(tile.read))).cpu()
        return out

    def _forward(self, tile: Tile, pair: ImagePair) -> Tensor:
        """Run the model on all that was read; autocast lives here and nowhere else."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            values = self._model(pair.to(self._device))
        _, _, fine_rows, fine_cols = pair.msi.shape
        expected = (1, self._model.out_channels, fine_rows, fine_cols)
        if tuple(values.shape) != expected:
            raise ValueError(f"The model returned {tuple(values.shape)} instead of {expected}.")
        rows, cols = tile.core.slices_in(tile.read)
        ratio = pair.ratio
        core = values[
            0, :, rows.start * ratio : rows.stop * ratio, cols.start * ratio : cols.stop * ratio
        ]
        return core.float()

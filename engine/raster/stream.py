"""Runs a model over a scene: a reader thread, the device and a writer thread at the same time.

Stored integers travel to the device and become reflectance there. Memory is bounded by a few
pieces and strips, see `engine.raster.tiles`, whatever the size of the scene.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, groupby
from math import prod
from typing import Any, Literal, Protocol

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import DeviceError
from engine.feedback import Feedback
from engine.raster.blend import make_collector
from engine.raster.model_threads import LayerWatch, make_lanes
from engine.raster.pieces import PieceData, PieceReader, Stored, largest_piece_px
from engine.raster.plan import (
    PIECE_BYTES,
    batch_size,
    choose_tiling,
    count_lanes,
    input_shape,
    plan_scene,
)
from engine.raster.reflectance import LoadedPiece, Reflectance, Scratch
from engine.raster.scene import Scene, SceneReader
from engine.raster.spectra import BandMatch
from engine.raster.threads import Crew, Lanes, Relay
from engine.raster.tiles import Piece, Strip, Tile, Tiling, Window

log = logging.getLogger(__name__)

Sink = Callable[[Window, NDArray[np.float32], NDArray[np.bool_]], None]
ValidMask = Callable[[Window], NDArray[np.bool_]]

_BUFFERS = 3  # pieces that are held: one is read, one waits, one is computed
# GDAL's own cache has to hold one block of all bands, or it decodes blocks again for each band.
# Its default, 5 % of the machine's memory, would grow with the scene.
_GDAL_CACHE_BYTES = (32 * 2**20, 512 * 2**20)


class StripModel(Protocol):
    """What can be run over a scene."""

    @property
    def tiling(self) -> Tiling:
        """How the input is to be cut."""

    @property
    def out_channels(self) -> int:
        """K, values per pixel of the result."""

    def __call__(self, reflectance: Tensor, valid: Tensor) -> Tensor:
        """Map reflectance to finished values.

        Args:
            reflectance: (B, C, h, w) float32, 0 to 1, any h and w from 1; 0 where not valid.
            valid: (B, h, w) bool, True = use.

        Returns:
            (B, K, h, w) values that may be averaged: probabilities, not classes.
        """


@dataclass(frozen=True, eq=False)
class _Finished:
    """A finished area on its way to the writer thread."""

    window: Window
    values: Tensor  # (K, h, w) float32, on the device
    valid: NDArray[np.bool_]  # (h, w)


def stream_scene(
    scene: Scene,
    match: BandMatch,
    model: StripModel,
    sink: Sink,
    *,
    device: torch.device,
    precision: Literal["float32", "bfloat16"] = "float32",
    extent: Window | None = None,
    valid_mask: ValidMask | None = None,
    tile_size_px: int | None = None,
    feedback: Feedback,
    step: str = "Running the model",
    piece_bytes: int = PIECE_BYTES,
) -> None:
    """Run a model over a scene.

    Pixels outside ``valid_mask`` are still shown to the model as neighbours; only their results
    are left out. A result does not depend on ``piece_bytes`` and ``extent``, of a blended model
    but for twice the halo along the extent's border, and for models with an exact halo not on
    ``tile_size_px`` either.

    Args:
        scene: to read.
        match: which bands to read, and how they become the model's.
        model: to run; on ``device`` already.
        sink: called in a thread of its own with windows that cover the extent once, from top to
            bottom and left to right, their (K, h, w) values, and (h, w) valid; values are 0 where
            not valid.
        device: to run on.
        precision: bfloat16 runs the model under autocast.
        extent: part of the scene that is wanted; None: all.
        valid_mask: (h, w) True where a result is wanted, for any window; called in the reader
            thread.
        tile_size_px: replaces the model's.
        feedback: told the progress; asked about a cancel between batches.
        step: name of the work in the progress message.
        piece_bytes: stored bytes that are read at a time.

    Raises:
        CancelledError: the user cancelled.
        RequestError: the tile size leaves no pixel after the model's halo.
        SceneError: the file cannot be read to its end.
        DeviceError: a single tile does not fit into the device's memory.
    """
    tiling = choose_tiling(model.tiling, match, device.type, tile_size_px)
    strips = plan_scene(scene, match, tiling, extent, piece_bytes)
    lane_count = count_lanes(strips, match, device.type, torch.get_num_threads())

    with (
        Crew() as crew,
        LayerWatch(feedback, crew.stop) as watch,
        make_lanes(lane_count, crew.stop) as lanes,
    ):
        stage = _DeviceStage(scene, match, model, tiling, device, precision, lanes, watch, feedback)
        free: Relay[Stored] = crew.relay(_BUFFERS)
        pieces: Relay[PieceData] = crew.relay(_BUFFERS)
        finished: Relay[_Finished | None] = crew.relay(1)
        for _ in range(_BUFFERS):
            size = len(match.scene_band_index) * largest_piece_px(strips)
            free.put(_new_buffer(size, scene.dtype, device))
        reader = partial(_read, scene, match, strips, valid_mask, free, pieces)
        crew.start("reader", reader, abandon=True)
        crew.start("writer", partial(_write, finished, sink))
        for position, strip in enumerate(strips):
            feedback.progress(position / len(strips), step)
            for area in stage.run(strip, pieces, free):
                finished.put(area, feedback.raise_if_cancelled)
        finished.put(None, feedback.raise_if_cancelled)
        crew.wait(feedback.raise_if_cancelled)
    feedback.progress(1.0, step)


def _new_buffer(size: int, dtype: np.dtype[Any], device: torch.device) -> Stored:
    """Allocate what a piece is read into; pinned where that lets copies to the device overlap."""
    if device.type != "cuda":
        return np.empty(size, dtype)
    pinned = torch.empty(size * dtype.itemsize, dtype=torch.uint8, pin_memory=True)
    return pinned.numpy().view(dtype)


def _read(
    scene: Scene,
    match: BandMatch,
    strips: Sequence[Strip],
    valid_mask: ValidMask | None,
    free: Relay[Stored],
    pieces: Relay[PieceData],
) -> None:
    """Work of the reader thread."""
    smallest, largest = _GDAL_CACHE_BYTES
    block_bytes = prod(scene.block_shape) * scene.dtype.itemsize * len(match.scene_band_index)
    cache = min(max(smallest, 2 * block_bytes), largest)
    with rasterio.Env(GDAL_CACHEMAX=cache), SceneReader(scene, match.scene_band_index) as source:
        reader = PieceReader(source, len(match.scene_band_index), strips, valid_mask)
        for piece in reader.pieces(free.get):
            pieces.put(piece)


def _write(finished: Relay[_Finished | None], sink: Sink) -> None:
    """Work of the writer thread."""
    while (area := finished.get()) is not None:
        values = area.values.cpu().numpy()
        np.copyto(values, 0, where=~area.valid)
        sink(area.window, values, area.valid)


class _DeviceStage:
    """Work of the device: pieces in, finished rows out."""

    def __init__(
        self,
        scene: Scene,
        match: BandMatch,
        model: StripModel,
        tiling: Tiling,
        device: torch.device,
        precision: Literal["float32", "bfloat16"],
        lanes: Lanes,
        watch: LayerWatch,
        feedback: Feedback,
    ) -> None:
        self._reflectance = Reflectance(scene, match, device)
        self._lanes = lanes
        self._watch = watch
        # In turn, so that each is used again only when its batch's result has been taken.
        self._scratches = cycle([Scratch(device) for _ in range(lanes.in_hand)])
        self._collector = make_collector(tiling, model.out_channels, device)
        self._blend = tiling.blend
        self._tile_px = tiling.tile_size_px**2
        self._model = model
        self._device = device
        self._precision = precision
        self._feedback = feedback
        self._batch_limit: int | None = None  # set when the device's memory was too small

    def run(
        self, strip: Strip, pieces: Relay[PieceData], free: Relay[Stored]
    ) -> Iterator[_Finished]:
        """Run the model over the pieces of a strip, which arrive from the reader."""
        for area in self._collector.areas(strip):
            self._collector.begin(area)
            valid = np.zeros((area.core.height, area.core.width), np.bool_)
            for _ in area.pieces if isinstance(area, Strip) else (area,):
                data = pieces.get(self._feedback.raise_if_cancelled)
                valid[data.piece.core.slices_in(area.core)] = self._run_piece(data, free)
            yield _Finished(area.core, self._collector.finish(), valid)

    def _run_piece(self, data: PieceData, free: Relay[Stored]) -> NDArray[np.bool_]:
        """Run the model over a piece; (h, w) of its core, True where there is a result."""
        with torch.inference_mode():
            loaded = self._reflectance.load(data.stored)
            valid: NDArray[np.bool_] = loaded.valid.cpu().numpy()  # on CUDA, waits for the copy
            self._run_tiles(data, loaded, valid)
        free.put(data.buffer)
        core = valid[data.piece.core.slices_in(data.piece.read)].copy()
        return core if data.wanted is None else core & data.wanted

    def _has_work(self, tile: Tile, data: PieceData, seen: NDArray[np.bool_]) -> bool:
        """Whether a tile has a valid pixel, and one that is wanted where its result goes."""
        if not seen[tile.read.slices_in(data.piece.read)].any():
            return False
        # A blended tile also adds to pixels outside its core, in other pieces: run it always.
        if self._blend or data.wanted is None:
            return True
        return bool(data.wanted[tile.core.slices_in(data.piece.core)].any())

    def _run_tiles(self, data: PieceData, loaded: LoadedPiece, valid: NDArray[np.bool_]) -> None:
        """Run the tiles of a piece, in batches of one shape; ``valid`` is its (h, w)."""
        tiles = [tile for tile in data.piece.tiles if self._has_work(tile, data, valid)]
        work = partial(self._compute, data.piece, loaded)
        while tiles:
            too_large: list[Tile] = []
            batches = self._lanes.map(work, self._batches(tiles), self._feedback.raise_if_cancelled)
            for batch, values in batches:
                if values is None:
                    too_large += batch
                    continue
                for tile, result in zip(batch, values, strict=True):
                    self._collector.add(tile, result)
            tiles = too_large

    def _batches(self, tiles: Sequence[Tile]) -> Iterator[tuple[list[Tile], Scratch]]:
        """Group tiles of one shape, each batch with what it is converted into."""
        for _, group in groupby(sorted(tiles, key=input_shape), key=input_shape):
            waiting = list(group)
            while waiting:
                batch = waiting[: self._batch_size(waiting[0])]
                yield batch, next(self._scratches)
                waiting = waiting[len(batch) :]

    def _compute(
        self, piece: Piece, loaded: LoadedPiece, item: tuple[list[Tile], Scratch]
    ) -> tuple[list[Tile], Tensor | None]:
        """Run a batch, in the thread of a lane; None: the device's memory was too small."""
        batch, scratch = item
        where = [tile.read.slices_in(piece.read) for tile in batch]
        try:
            with torch.inference_mode():  # holds for one thread only, as autocast does
                start_s = time.perf_counter()
                values = self._forward(*self._reflectance.batch(loaded, where, scratch))
                self._watch.see_batch((time.perf_counter() - start_s) * self._times_smaller(batch))
                return batch, values
        except torch.OutOfMemoryError as error:
            self._halve(batch, error)
            return batch, None

    def _forward(self, reflectance: Tensor, valid: Tensor) -> Tensor:
        """Run the model on (B, C, h, w); autocast lives here and nowhere else."""
        half = self._precision == "bfloat16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=half):
            values = self._model(reflectance, valid)
        b, _, h, w = reflectance.shape
        expected = (b, self._model.out_channels, h, w)
        if tuple(values.shape) != expected:
            raise ValueError(f"The model returned {tuple(values.shape)} instead of {expected}.")
        return values.float()

    def _times_smaller(self, batch: Sequence[Tile]) -> float:
        """How many times larger a whole tile may be than all of a batch, 1 or more."""
        return max(1.0, self._tile_px / (len(batch) * prod(input_shape(batch[0]))))

    def _batch_size(self, tile: Tile) -> int:
        size = batch_size(tile, self._reflectance.channels, self._device.type)
        return size if self._batch_limit is None else min(size, self._batch_limit)

    def _halve(self, batch: Sequence[Tile], error: torch.OutOfMemoryError) -> None:
        """Go on with half the batch after the device's memory was too small."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if len(batch) == 1:
            rows, cols = input_shape(batch[0])
            raise DeviceError(
                f"The memory of {self._device} is too small for one tile of {rows} x {cols} px.",
                "Choose a smaller tile size, or the CPU.",
            ) from error
        self._batch_limit = len(batch) // 2
        self._feedback.warning(
            f"The memory of {self._device} is too small for {len(batch)} tiles at a time: "
            f"going on with {self._batch_limit}."
        )

"""How the results of tiles become rows: cropped where that is exact, else blended.

Only finished values (probabilities) are blended, never classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from engine.raster.tiles import Piece, Strip, Tile, Tiling, Window

Area = Strip | Piece


class Collector(Protocol):
    """Takes the results of tiles and gives what is finished."""

    def areas(self, strip: Strip) -> Sequence[Area]:
        """Say which areas of a strip are begun and finished one after the other."""

    def begin(self, area: Area) -> None:
        """Make room for an area."""

    def add(self, tile: Tile, values: Tensor) -> None:
        """Take the (K, h, w) float32 values of ``tile.read``."""

    def finish(self) -> Tensor:
        """Give the (K, h, w) float32 values of the area's core."""


def make_collector(tiling: Tiling, out_channels: int, device: torch.device) -> Collector:
    """Choose how tiles are put together."""
    if tiling.blend:
        return BlendCollector(tiling, out_channels, device)
    return CropCollector(out_channels, device)


def ramp(length: int, overlap: int) -> Tensor:
    """Weights along one axis: 1 in the middle, straight ramps of ``overlap`` towards the ends.

    No weight is zero, so that a pixel that only one tile covers has a value, and the weights of
    two tiles that overlap by ``overlap`` sum to 1.

    Returns:
        (length,) float32, each in (0, 1].
    """
    rising = (torch.arange(length, dtype=torch.float32) + 0.5) / max(overlap, 1)
    return torch.minimum(rising, rising.flip(0)).clamp(max=1.0)


class CropCollector:
    """Keeps the core of each tile: exact when the halo is at least the model's reach."""

    def __init__(self, out_channels: int, device: torch.device) -> None:
        self._out_channels = out_channels
        self._device = device

    def areas(self, strip: Strip) -> Sequence[Area]:
        """Pieces: nothing waits for the rest of the strip, which may be wide."""
        return strip.pieces

    def begin(self, area: Area) -> None:
        """Make room for a piece."""
        self._core = area.core
        shape = (self._out_channels, area.core.height, area.core.width)
        self._values = torch.zeros(shape, device=self._device)

    def add(self, tile: Tile, values: Tensor) -> None:
        """Keep the core of ``values``, (K, h, w) of ``tile.read``."""
        rows, cols = tile.core.slices_in(tile.read)
        to_rows, to_cols = tile.core.slices_in(self._core)
        self._values[:, to_rows, to_cols] = values[:, rows, cols]

    def finish(self) -> Tensor:
        """Give the values of the piece's core."""
        return self._values


class BlendCollector:
    """Weighted mean of all tiles that cover a pixel; holds the rows that are not finished yet."""

    def __init__(self, tiling: Tiling, out_channels: int, device: torch.device) -> None:
        self._overlap = 2 * tiling.halo_px
        self._out_channels = out_channels
        self._device = device
        self._window: Window | None = None
        self._sums = torch.empty(0, device=device)
        self._weights = torch.empty(0, device=device)

    def areas(self, strip: Strip) -> Sequence[Area]:
        """The strip: its pieces share pixels."""
        return (strip,)

    def begin(self, area: Area) -> None:
        """Make room for a strip, below the unfinished rows of the last one."""
        window = area.read
        sums = torch.zeros((self._out_channels, window.height, window.width), device=self._device)
        weights = torch.zeros((window.height, window.width), device=self._device)
        if self._window is not None and self._window.row_stop > window.row_off:
            above = slice(window.row_off - self._window.row_off, self._window.height)
            kept = above.stop - above.start
            sums[:, :kept], weights[:kept] = self._sums[:, above], self._weights[above]
        self._window, self._core = window, area.core
        self._sums, self._weights = sums, weights

    def add(self, tile: Tile, values: Tensor) -> None:
        """Add ``values``, (K, h, w) of ``tile.read``, by their weights."""
        if self._window is None:
            raise RuntimeError("begin() makes room for the strip first.")
        rows, cols = tile.read.slices_in(self._window)
        height, width = tile.read.height, tile.read.width
        weight = torch.outer(ramp(height, self._overlap), ramp(width, self._overlap))
        weight = weight.to(self._device)
        self._sums[:, rows, cols] += values * weight
        self._weights[rows, cols] += weight

    def finish(self) -> Tensor:
        """Give the blended values of the strip's core."""
        if self._window is None:
            raise RuntimeError("begin() makes room for the strip first.")
        rows, cols = self._core.slices_in(self._window)
        return self._sums[:, rows, cols] / self._weights[rows, cols]

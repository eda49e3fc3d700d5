"""Reads the pieces of a scene into a few buffers, each pixel once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.raster.tiles import Piece, Strip, Window

Stored = NDArray[Any]


class BlockSource(Protocol):
    """What reads stored values: `engine.raster.scene.SceneReader`."""

    def read(self, window: Window, out: Stored | None = None) -> Stored:
        """Read (C, h, w) values of the scene's type, into ``out`` when given."""


@dataclass(frozen=True, eq=False)
class PieceData:
    """A piece that has been read.

    Args:
        strip: that the piece belongs to.
        piece: what was read.
        stored: (C, h, w) of ``piece.read``, the scene's type, a view of ``buffer``.
        wanted: (h, w) of ``piece.core``, True where a result is wanted; None: everywhere.
        buffer: to be given back when ``stored`` is no longer needed.
    """

    strip: Strip
    piece: Piece
    stored: Stored
    wanted: NDArray[np.bool_] | None
    buffer: Stored


def largest_piece_px(strips: Sequence[Strip]) -> int:
    """Pixels of the largest window that is held in memory."""
    return max(p.read.height * p.read.width for strip in strips for p in strip.pieces)


class PieceReader:
    """Fills buffers with pieces; keeps the pixels that the next pieces need again.

    Args:
        source: of the stored values.
        band_count: C, how many bands the source reads.
        strips: the plan.
        valid_mask: tells where results are wanted, for a window.
    """

    def __init__(
        self,
        source: BlockSource,
        band_count: int,
        strips: Sequence[Strip],
        valid_mask: Callable[[Window], NDArray[np.bool_]] | None = None,
    ) -> None:
        self._source = source
        self._band_count = band_count
        self._strips = strips
        self._valid_mask = valid_mask
        self._above: Stored | None = None  # (C, rows, strip.read.width) kept for this strip
        self._below: Stored | None = None  # the same for the next strip
        self._left: Stored | None = None  # (C, h, columns) kept for the next piece

    def pieces(self, next_buffer: Callable[[], Stored]) -> Iterator[PieceData]:
        """Read all pieces in order, each into the one-dimensional buffer that comes next."""
        for strip, below in zip(self._strips, [*self._strips[1:], None], strict=True):
            for piece, right in zip(strip.pieces, [*strip.pieces[1:], None], strict=True):
                buffer = next_buffer()
                stored = self._fill(strip, piece, buffer)
                if right is None:
                    self._above = None
                self._keep_rows(strip, below, piece, stored)
                self._keep_cols(piece, right, stored)
                wanted = None if self._valid_mask is None else self._valid_mask(piece.core)
                yield PieceData(strip, piece, stored, wanted, buffer)
            self._above, self._below = self._below, None

    def _fill(self, strip: Strip, piece: Piece, buffer: Stored) -> Stored:
        """Put a piece together from what was kept and what is read now."""
        read, fresh = piece.read, piece.fresh
        shape = (self._band_count, read.height, read.width)
        stored = buffer[: self._band_count * read.height * read.width].reshape(shape)
        top, left = fresh.row_off - read.row_off, fresh.col_off - read.col_off
        if left:
            stored[:, :, :left] = self._left
        if top:
            if self._above is None:
                raise RuntimeError("The rows above this piece were not kept.")
            _, cols = fresh.slices_in(strip.read)
            stored[:, :top, left:] = self._above[:, -top:, cols]
        self._source.read(fresh, out=stored[:, top:, left:])
        return stored

    def _keep_rows(self, strip: Strip, below: Strip | None, piece: Piece, stored: Stored) -> None:
        """Keep the lowest rows of the fresh columns for the next strip."""
        rows = 0 if below is None else strip.read.row_stop - below.read.row_off
        if rows <= 0:
            return
        if self._below is None:
            shape = (self._band_count, rows, strip.read.width)
            self._below = np.empty(shape, stored.dtype)
        _, cols = piece.fresh.slices_in(strip.read)
        self._below[:, :, cols] = stored[:, -rows:, -piece.fresh.width :]

    def _keep_cols(self, piece: Piece, right: Piece | None, stored: Stored) -> None:
        """Keep the last columns for the piece to the right."""
        cols = 0 if right is None else piece.read.col_stop - right.read.col_off
        self._left = stored[:, :, -cols:].copy() if cols > 0 else None

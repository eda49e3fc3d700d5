"""Which windows to read, to compute and to keep: integers only.

A scene is worked on in *strips*, full-width groups of rows, from top to bottom. A strip consists
of *pieces*, what is read in one go and bounds the memory: the whole strip when the file is stored
by rows, a few of its blocks when it is stored in blocks. A piece is computed in *tiles*.
Neighbouring pieces need some of the same pixels around their borders; those are kept, so that
every pixel is read once (`Piece.fresh`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import lcm, sqrt


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels, rows before columns.

    Raises:
        ValueError: an offset is negative or a side is shorter than one pixel.
    """

    row_off: int
    col_off: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.row_off < 0 or self.col_off < 0 or self.height < 1 or self.width < 1:
            raise ValueError(f"{self} is not a rectangle inside an image.")

    @property
    def row_stop(self) -> int:
        """First row below the window."""
        return self.row_off + self.height

    @property
    def col_stop(self) -> int:
        """First column right of the window."""
        return self.col_off + self.width

    def slices_in(self, outer: Window) -> tuple[slice, slice]:
        """Rows and columns of this window in an array that covers ``outer``."""
        row, col = self.row_off - outer.row_off, self.col_off - outer.col_off
        return slice(row, row + self.height), slice(col, col + self.width)


@dataclass(frozen=True)
class Tiling:
    """How a model wants its input cut.

    Args:
        tile_size_px: side of what the model is given; with ``blend=False`` a tile may have any
            shape of at most this many pixels squared.
        halo_px: margin per side. With ``blend=False`` at least the model's reach, so that cropping
            it away is exact; with ``blend=True`` neighbouring tiles overlap by twice as much.
        blend: the model sees further than any halo, so overlapping probabilities are averaged.
        align_px: with ``blend=False``, tiles start at multiples of this row and column of the
            image; for models that make tokens of several pixels.

    Raises:
        ValueError: nothing would be left of a tile without its halo.
    """

    tile_size_px: int
    halo_px: int
    blend: bool = False
    align_px: int = 1

    def __post_init__(self) -> None:
        if self.halo_px < 0 or self.align_px < 1 or self.tile_size_px < self.smallest_tile_px:
            raise ValueError(
                f"A tile of {self.tile_size_px} px has no core with a margin of "
                f"{self.halo_px} px per side (steps of {self.align_px} px); it needs at least "
                f"{self.smallest_tile_px} px."
            )

    @property
    def margin_px(self) -> int:
        """The halo, rounded up to whole tokens."""
        return -(-self.halo_px // self.align_px) * self.align_px

    @property
    def smallest_tile_px(self) -> int:
        """Side of the smallest tile that leaves a core."""
        return 2 * self.margin_px + self.align_px

    @property
    def stride_px(self) -> int:
        """Distance between the cores of neighbouring square tiles."""
        return (self.tile_size_px - 2 * self.margin_px) // self.align_px * self.align_px


@dataclass(frozen=True)
class Tile:
    """Unit of work of the model: ``read`` goes in, ``core`` is its share of the result.

    Every pixel is in the core of exactly one tile. With ``blend=True`` the core is the part of the
    tile above and left of its next neighbours, while the whole of ``read`` is blended.
    """

    core: Window
    read: Window


@dataclass(frozen=True)
class Piece:
    """Unit of reading: ``fresh`` is read from the file, the rest of ``read`` was read before."""

    core: Window
    read: Window
    fresh: Window
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Strip:
    """Pieces side by side: all columns of the rows in ``core`` are finished after them."""

    core: Window
    read: Window
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class _Span:
    """A piece along one axis; `tiles` are (core start, core stop, read start, read stop)."""

    core: tuple[int, int]
    read: tuple[int, int]
    fresh_start: int
    tiles: tuple[tuple[int, int, int, int], ...] = ()


def plan_strips(
    extent: Window,
    tiling: Tiling,
    height: int,
    width: int,
    piece_shape: tuple[int, int],
) -> list[Strip]:
    """Plan the whole run: strips from top to bottom, pieces and tiles from left to right.

    With ``blend=False`` the result of a model whose reach is at most the halo depends neither on
    ``extent`` nor on ``piece_shape``.

    Args:
        extent: pixels that are wanted.
        tiling: how the model wants its input cut.
        height: rows of the image.
        width: columns of the image.
        piece_shape: rows and columns that are read at a time, see `choose_piece_shape`.
    """
    rows = _plan_axis(extent.row_off, extent.row_stop, height, piece_shape[0], tiling)
    cols = _plan_axis(extent.col_off, extent.col_stop, width, piece_shape[1], tiling)
    return [_strip(row, cols, tiling, (height, width)) for row in rows]


def choose_piece_shape(
    tiling: Tiling, block_shape: tuple[int, int], width: int, piece_px: int
) -> tuple[int, int]:
    """Choose how many rows and columns are read at a time.

    Files stored by rows are read in whole rows. Others are read in whole blocks, each only once.
    Pieces are higher than ``piece_px`` asks when a thin strip would consist mostly of halo, up to
    four times of it: then memory comes first.

    Args:
        tiling: how the model wants its input cut.
        block_shape: rows and columns of a block of the file.
        width: columns that are read.
        piece_px: how many pixels a piece should have; bounds the memory.

    Returns:
        Rows and columns, multiples of the blocks where these are not too large.
    """
    block_rows, block_cols = block_shape
    unit_rows, unit_cols = lcm(block_rows, tiling.align_px), lcm(block_cols, tiling.align_px)
    largest_px = 4 * piece_px
    # A strip of twelve halos computes 1 + 2 / 12 times its pixels: under the aim of 1.2.
    wanted_rows = tiling.tile_size_px if tiling.blend else 12 * tiling.margin_px
    if block_cols >= width or block_rows == 1:
        cols = width
        kept_rows = 2 * tiling.margin_px
        rows = max(piece_px // cols - kept_rows, min(wanted_rows, largest_px // cols))
    else:
        if unit_rows * unit_cols > largest_px:  # such blocks have to be decoded more than once
            unit_rows = unit_cols = tiling.align_px
        side = int(sqrt(piece_px))
        rows = min(max(unit_rows, min(wanted_rows, side)), largest_px // unit_cols)
        cols = max(round(piece_px / max(rows, 1) / unit_cols), 1) * unit_cols
        if cols >= width:  # the image is narrow, so that its strips can be higher
            cols = width
            rows = max(rows, piece_px // cols)
    if unit_rows * cols > largest_px:
        unit_rows = tiling.align_px
    return max(_round_down(rows, unit_rows), tiling.smallest_tile_px), cols


def redundancy(strips: list[Strip]) -> float:
    """Pixels that are computed for every pixel that is kept."""
    tiles = [tile for strip in strips for piece in strip.pieces for tile in piece.tiles]
    computed = sum(tile.read.height * tile.read.width for tile in tiles)
    return computed / sum(strip.core.height * strip.core.width for strip in strips)


def _round_down(value: int, unit: int) -> int:
    """Round to a multiple of ``unit``, downwards, but at least to one of it."""
    return max(value // unit, 1) * unit


def _plan_axis(start: int, stop: int, size: int, piece: int, tiling: Tiling) -> list[_Span]:
    """Cut rows or columns ``start`` to ``stop`` of an image with ``size`` of them into pieces."""
    if tiling.blend:
        return _plan_blended_axis(start, stop, size, piece, tiling)
    return _plan_exact_axis(start, stop, size, piece, tiling)


def _plan_exact_axis(start: int, stop: int, size: int, piece: int, tiling: Tiling) -> list[_Span]:
    """Cut into pieces whose cores lie one margin back from what has been read.

    What has been read ends at multiples of ``piece``, so that blocks are read once; the pixels of
    the last margin wait for their neighbours in the next piece.
    """
    margin, align = tiling.margin_px, tiling.align_px
    piece = _round_down(max(piece, tiling.smallest_tile_px) + align - 1, align)
    first = max(0, (start - margin) // align * align)
    last = min(size, stop + margin + (-(stop + margin)) % align)
    cuts = [
        cut
        for cut in range((first // piece + 1) * piece, last, piece)
        if start < cut - margin < stop
    ]
    spans = []
    for cut, next_cut in pairwise([first, *cuts, last]):
        core_start = start if cut == first else cut - margin
        core_stop = stop if next_cut == last else next_cut - margin
        read_start = max(first, (core_start - margin) // align * align)
        spans.append(_Span((core_start, core_stop), (read_start, next_cut), cut))
    return spans


def _plan_blended_axis(start: int, stop: int, size: int, piece: int, tiling: Tiling) -> list[_Span]:
    """Cut into pieces of whole tiles; the image's last tile moves inwards to keep its size.

    Tiles lie on a grid of the image, not of what is wanted of it, so that a pixel is seen in the
    same surroundings whatever the extent. Left out are tiles that reach the extent with their last
    margin only. What has been read ends at multiples of ``piece`` here too; a piece has the tiles
    that are complete by then.
    """
    side = min(tiling.tile_size_px, size)
    starts = _blended_starts(size - side, side, 2 * tiling.halo_px)
    cores = pairwise([0, *starts[1:], size])
    tiles = [
        (max(core_start, start), min(core_stop, stop), at, at + side)
        for at, (core_start, core_stop) in zip(starts, cores, strict=True)
        if core_start < stop and core_stop > start
    ]
    first, last = tiles[0][2], tiles[-1][3]
    spans: list[_Span] = []
    for cut in [*range((first // piece + 1) * piece, last, piece), last]:
        group = tuple(tile for tile in tiles if tile[3] <= cut)
        tiles = tiles[len(group) :]
        if group:
            fresh = spans[-1].read[1] if spans else first
            core = (group[0][0], group[-1][1])
            spans.append(_Span(core, (group[0][2], cut), fresh, group))
    return spans


def _blended_starts(way: int, side: int, overlap: int) -> list[int]:
    """Where tiles begin; the last one at ``way``, which the image ends with.

    They lie apart by their size less the overlap, or by an eighth of the overlap more where that
    saves the last tile: for a few rows it would compute as many as any other.
    """
    stride = max(1, side - overlap)
    steps = -(-way // stride)
    if steps > 1 and way <= (steps - 1) * (stride + overlap // 8):
        return [round(step * way / (steps - 1)) for step in range(steps)]
    return [*range(0, way, stride), way]


def _strip(row: _Span, cols: list[_Span], tiling: Tiling, shape: tuple[int, int]) -> Strip:
    """Combine one piece of rows with all pieces of columns."""
    pieces = tuple(
        Piece(
            core=_window(row.core, col.core),
            read=_window(row.read, col.read),
            fresh=_window((row.fresh_start, row.read[1]), (col.fresh_start, col.read[1])),
            tiles=_tiles(row, col, tiling, shape),
        )
        for col in cols
    )
    core_cols, read_cols = (cols[0].core[0], cols[-1].core[1]), (cols[0].read[0], cols[-1].read[1])
    return Strip(_window(row.core, core_cols), _window(row.read, read_cols), pieces)


def _tiles(row: _Span, col: _Span, tiling: Tiling, shape: tuple[int, int]) -> tuple[Tile, ...]:
    """Cut a piece into tiles."""
    rows, cols = row.tiles, col.tiles
    if not tiling.blend:
        limit_rows, limit_cols = _largest_tile(row.core, col.core, tiling)
        rows = _exact_tiles(row.core, shape[0], limit_rows, tiling)
        cols = _exact_tiles(col.core, shape[1], limit_cols, tiling)
    return tuple(Tile(_window(r[:2], c[:2]), _window(r[2:], c[2:])) for r in rows for c in cols)


def _largest_tile(
    row_core: tuple[int, int], col_core: tuple[int, int], tiling: Tiling
) -> tuple[int, int]:
    """Choose rows and columns of the cores of a piece's tiles: multiples of whole tokens.

    A tile may be lower than the square and then wider: fewer seams, fewer halos. Without a halo,
    whole rows are best, because they lie side by side in memory.
    """
    area, margin, align = tiling.tile_size_px**2, tiling.margin_px, tiling.align_px
    core_rows, core_cols = row_core[1] - row_core[0], col_core[1] - col_core[0]
    rows = tiling.stride_px if margin else min(area // core_cols, core_rows)
    rows = _round_down(rows, align)
    highest = -(-core_rows // -(-core_rows // rows))  # of tiles of nearly equal height
    cols = _round_down(area // (highest + 2 * margin) - 2 * margin, align)
    return rows, max(cols, tiling.stride_px)


def _exact_tiles(
    core: tuple[int, int], size: int, limit: int, tiling: Tiling
) -> tuple[tuple[int, int, int, int], ...]:
    """Cut a core into tiles of nearly equal size, at most ``limit``, and give each its margin."""
    margin, align = tiling.margin_px, tiling.align_px
    start, stop = core
    origin = start // align * align
    count = -(-(stop - origin) // limit)
    step = -(-(stop - origin) // (count * align)) * align
    bounds = [start, *range(origin + step, stop, step), stop]
    return tuple(
        (
            core_start,
            core_stop,
            max(0, (core_start - margin) // align * align),
            min(size, core_stop + margin + (-(core_stop + margin)) % align),
        )
        for core_start, core_stop in pairwise(bounds)
    )


def _window(
    rows: tuple[int, int] | tuple[int, ...], cols: tuple[int, int] | tuple[int, ...]
) -> Window:
    """Make a window of start and stop per axis."""
    return Window(rows[0], cols[0], rows[1] - rows[0], cols[1] - cols[0])

"""How a pair is cut for a model: which coarse pixels to read, to compute and to keep."""

from __future__ import annotations

from itertools import pairwise
from math import isqrt

from engine.raster.tiles import Tile, Window

# Float32 bytes of a tile's result with its margin. A model holds a few times as much.
_RESULT_BYTES = {"cpu": 64 * 2**20, "cuda": 2**30}
# Results of all tiles that a CPU computes at a time.
_LANES_BYTES = 512 * 2**20
_LARGEST_CORE_PX = 512
_SMALLEST_CORE_PX = 8
# A core of two reaches computes four times its pixels; smaller ones would be worse still.
_SMALLEST_REACHES = 2


def choose_core_px(channels: int, ratio: int, reach_px: int, device_type: str) -> int:
    """Choose the side of a tile's core so that its result is of a size that memory likes.

    Args:
        channels: K, values per fine pixel of the result.
        ratio: fine pixels along a coarse one.
        reach_px: coarse pixels around one that its result depends on.
        device_type: as torch names it.
    """
    result_bytes = _RESULT_BYTES.get(device_type, _RESULT_BYTES["cpu"])
    side = isqrt(result_bytes // (4 * channels * ratio**2))
    smallest = max(_SMALLEST_CORE_PX, _SMALLEST_REACHES * reach_px)
    return min(max(side - 2 * reach_px, smallest), _LARGEST_CORE_PX)


def plan_pair(
    window: Window, bounds: Window, core_px: int, reach_px: int, block_shape: tuple[int, int]
) -> list[Tile]:
    """Cut a window into cores, each with the margin that its result depends on.

    Cores lie in groups, each a storage block of the file or a few, so that a block is decoded
    about once; a group is worked on row by row.

    Args:
        window: of coarse pixels that is wanted.
        bounds: that is read at most.
        core_px: side of a core.
        reach_px: margin on each side.
        block_shape: rows and columns of the hyperspectral image that are stored together.

    Returns:
        Tiles whose cores cover the window once.
    """
    rows_unit, cols_unit = (_group_px(side, core_px) for side in block_shape)
    tiles = []
    for rows in _groups(window.row_off, window.row_stop, rows_unit):
        for cols in _groups(window.col_off, window.col_stop, cols_unit):
            for row in _spans(*rows, core_px):
                for col in _spans(*cols, core_px):
                    core = Window(row[0], col[0], row[1] - row[0], col[1] - col[0])
                    tiles.append(Tile(core, _with_margin(core, bounds, reach_px)))
    return tiles


def count_pair_lanes(
    tiles: list[Tile], channels: int, ratio: int, device_type: str, cores: int
) -> int:
    """How many tiles are computed at a time: on a CPU one a core, as far as memory goes."""
    if device_type != "cpu":
        return 1
    largest_px = max(tile.read.height * tile.read.width for tile in tiles)
    fitting = _LANES_BYTES // (4 * channels * ratio**2 * largest_px)
    return max(1, min(cores, fitting, len(tiles)))


def split_tile(tile: Tile, reach_px: int) -> list[Tile]:
    """Cut a tile into two to four of half its core, for a device with little memory."""
    core, half = tile.core, max(1, -(-max(tile.core.height, tile.core.width) // 2))
    one_group = core.row_stop, core.col_stop
    return plan_pair(core, tile.read, half, reach_px, one_group)


def _group_px(block_px: int, core_px: int) -> int:
    """The side of a group: a block, or as many whole ones as a core has."""
    return block_px if block_px >= core_px else core_px // block_px * block_px


def _groups(start: int, stop: int, unit: int) -> list[tuple[int, int]]:
    """Cut an interval at the multiples of ``unit``."""
    cuts = range((start // unit + 1) * unit, stop, unit)
    return list(pairwise([start, *cuts, stop]))


def _spans(start: int, stop: int, step: int) -> list[tuple[int, int]]:
    """Cut an interval into nearly equal parts of at most ``step``."""
    count = -(-(stop - start) // step)
    bounds = [start + (stop - start) * part // count for part in range(count + 1)]
    return list(pairwise(bounds))


def _with_margin(core: Window, bounds: Window, reach_px: int) -> Window:
    row, col = (
        max(core.row_off - reach_px, bounds.row_off),
        max(core.col_off - reach_px, bounds.col_off),
    )
    row_stop = min(core.row_stop + reach_px, bounds.row_stop)
    col_stop = min(core.col_stop + reach_px, bounds.col_stop)
    return Window(row, col, row_stop - row, col_stop - col)

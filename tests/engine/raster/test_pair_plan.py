"""How a pair is cut: every coarse pixel in one core, each with the margin it needs."""

from itertools import product

import pytest

from engine.raster.pair_plan import choose_core_px, count_pair_lanes, plan_pair, split_tile
from engine.raster.tiles import Tile, Window

BOUNDS = Window(2, 1, 29, 23)


def pixels_of(window):
    rows, cols = window.row_off, window.col_off
    return product(range(rows, window.row_stop), range(cols, window.col_stop))


@pytest.mark.parametrize(
    ("core_px", "reach_px", "block"),
    list(product((1, 4, 7, 50), (0, 2, 9), ((1, 40), (8, 8), (16, 5), (100, 100)))),
)
def test_cores_cover_the_window_once_with_their_margin(core_px, reach_px, block):
    window = Window(5, 3, 22, 17)
    times = {}
    for tile in plan_pair(window, BOUNDS, core_px, reach_px, block):
        assert max(tile.core.height, tile.core.width) <= core_px
        for pixel in product(
            range(tile.core.row_off, tile.core.row_stop),
            range(tile.core.col_off, tile.core.col_stop),
        ):
            times[pixel] = times.get(pixel, 0) + 1
        assert tile.read.row_off == max(tile.core.row_off - reach_px, BOUNDS.row_off)
        assert tile.read.col_off == max(tile.core.col_off - reach_px, BOUNDS.col_off)
        assert tile.read.row_stop == min(tile.core.row_stop + reach_px, BOUNDS.row_stop)
        assert tile.read.col_stop == min(tile.core.col_stop + reach_px, BOUNDS.col_stop)
    assert times == dict.fromkeys(pixels_of(window), 1)


def test_a_block_of_the_file_is_left_before_the_next_begins():
    tiles = plan_pair(Window(0, 0, 64, 64), Window(0, 0, 64, 64), 10, 0, (32, 32))
    blocks = [(tile.core.row_off // 32, tile.core.col_off // 32) for tile in tiles]
    assert blocks == sorted(blocks)
    assert all(
        tile.core.row_off // 32 == (tile.core.row_stop - 1) // 32
        and tile.core.col_off // 32 == (tile.core.col_stop - 1) // 32
        for tile in tiles
    )


def test_a_file_of_rows_is_worked_on_in_rows_of_tiles():
    tiles = plan_pair(Window(0, 0, 30, 500), Window(0, 0, 30, 500), 10, 0, (1, 500))
    corners = [(tile.core.row_off, tile.core.col_off) for tile in tiles]
    assert corners == sorted(corners) and len(tiles) == 150


def test_a_tile_s_result_is_bounded():
    side = choose_core_px(224, 3, 8, "cpu") + 16
    assert 2**25 < 4 * 224 * 9 * side**2 <= 2**26


def test_a_small_core_still_pays_for_its_margin():
    assert choose_core_px(224, 10, 30, "cpu") == 60


def test_the_core_of_few_bands_does_not_grow_without_end():
    assert choose_core_px(1, 2, 0, "cuda") == 512


@pytest.mark.parametrize(
    ("device", "cores", "lanes"), [("cpu", 4, 4), ("cpu", 100, 9), ("cuda", 4, 1)]
)
def test_lanes_are_bounded_by_cores_and_memory(device, cores, lanes):
    tile = Tile(Window(0, 0, 40, 40), Window(0, 0, 85, 85))  # 55.5 MiB of results at 224 bands
    assert count_pair_lanes([tile] * 50, 224, 3, device, cores) == lanes


def test_a_tile_is_split_into_parts_with_the_same_margin():
    tile = Tile(Window(10, 10, 7, 3), Window(8, 8, 11, 7))
    parts = split_tile(tile, 2)
    assert [part.core for part in parts] == [Window(10, 10, 3, 3), Window(13, 10, 4, 3)]
    assert [part.read for part in parts] == [Window(8, 8, 7, 7), Window(11, 8, 8, 7)]

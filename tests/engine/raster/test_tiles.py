"""Tiles: every pixel once, every read inside the image, halos whole; over all small sizes."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.raster.tiles import (
    Strip,
    Tiling,
    Window,
    choose_piece_shape,
    plan_strips,
    redundancy,
)

BOTH = st.booleans()
SIDES = st.integers(1, 40)
PIECES = st.tuples(st.integers(1, 50), st.integers(1, 50))


@st.composite
def tilings(draw, blend=BOTH):
    halo, align = draw(st.integers(0, 6)), draw(st.integers(1, 5))
    smallest = Tiling(10**6, halo, align_px=align).smallest_tile_px
    return Tiling(smallest + draw(st.integers(0, 30)), halo, draw(blend), align)


@st.composite
def extents(draw, height, width):
    row, col = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return Window(row, col, draw(st.integers(1, height - row)), draw(st.integers(1, width - col)))


@st.composite
def plans(draw, blend=BOTH):
    height, width, tiling = draw(SIDES), draw(SIDES), draw(tilings(blend))
    extent = draw(st.one_of(st.just(Window(0, 0, height, width)), extents(height, width)))
    strips = plan_strips(extent, tiling, height, width, draw(PIECES))
    return height, width, tiling, extent, strips


def pixels(window):
    return {
        (row, col)
        for row in range(window.row_off, window.row_stop)
        for col in range(window.col_off, window.col_stop)
    }


def is_inside(inner, outer):
    return pixels(inner) <= pixels(outer)


def assert_partition(windows, whole):
    seen = [pixel for window in windows for pixel in pixels(window)]
    assert len(seen) == len(set(seen)), "a pixel is in two windows"
    assert set(seen) == pixels(whole), "a pixel is in no window"


@given(plans())
def test_every_pixel_is_in_exactly_one_core(plan):
    _, _, _, extent, strips = plan
    pieces = [piece for strip in strips for piece in strip.pieces]
    assert_partition([strip.core for strip in strips], extent)
    assert_partition([piece.core for piece in pieces], extent)
    assert_partition([tile.core for piece in pieces for tile in piece.tiles], extent)


@given(plans())
def test_every_read_is_inside_the_image(plan):
    height, width, _, _, strips = plan
    image = Window(0, 0, height, width)
    for strip in strips:
        assert is_inside(strip.read, image)
        for piece in strip.pieces:
            assert is_inside(piece.read, strip.read)
            assert all(is_inside(tile.read, piece.read) for tile in piece.tiles)
            assert all(is_inside(tile.core, tile.read) for tile in piece.tiles)


@given(plans())
def test_no_pixel_is_read_twice_and_none_is_missing(plan):
    _, _, _, _, strips = plan
    known = set()
    for piece in (piece for strip in strips for piece in strip.pieces):
        assert known.isdisjoint(pixels(piece.fresh))
        known |= pixels(piece.fresh)
        assert pixels(piece.read) <= known


@given(plans())
def test_what_is_kept_lies_above_and_left_of_what_is_fresh(plan):
    _, _, _, _, strips = plan
    for above, strip in zip([None, *strips], strips, strict=False):
        for left, piece in zip([None, *strip.pieces], strip.pieces, strict=False):
            assert (piece.fresh.row_stop, piece.fresh.col_stop) == (
                piece.read.row_stop,
                piece.read.col_stop,
            )
            if piece.fresh.row_off > piece.read.row_off:
                assert above.read.row_stop == piece.fresh.row_off
                assert above.read.row_off <= piece.read.row_off
            if piece.fresh.col_off > piece.read.col_off:
                assert left.read.col_stop == piece.fresh.col_off
                assert left.read.col_off <= piece.read.col_off


@given(plans(st.just(False)))
def test_halo_is_whole_except_at_the_edges_of_the_image(plan):
    height, width, tiling, _, strips = plan
    for tile in (tile for strip in strips for piece in strip.pieces for tile in piece.tiles):
        core, read = tile.core, tile.read
        assert read.row_off <= max(0, core.row_off - tiling.halo_px)
        assert read.col_off <= max(0, core.col_off - tiling.halo_px)
        assert read.row_stop >= min(height, core.row_stop + tiling.halo_px)
        assert read.col_stop >= min(width, core.col_stop + tiling.halo_px)


@given(plans(st.just(False)))
def test_exact_tiles_start_at_whole_tokens_and_end_there_or_with_the_image(plan):
    height, width, tiling, _, strips = plan
    for tile in (tile for strip in strips for piece in strip.pieces for tile in piece.tiles):
        assert tile.read.row_off % tiling.align_px == tile.read.col_off % tiling.align_px == 0
        assert tile.read.row_stop % tiling.align_px == 0 or tile.read.row_stop == height
        assert tile.read.col_stop % tiling.align_px == 0 or tile.read.col_stop == width


@given(plans(st.just(False)))
def test_exact_tiles_are_no_larger_than_asked(plan):
    _, _, tiling, _, strips = plan
    for tile in (tile for strip in strips for piece in strip.pieces for tile in piece.tiles):
        assert tile.read.height * tile.read.width <= (tiling.tile_size_px + tiling.align_px) ** 2


@given(plans(st.just(True)))
def test_blended_tiles_all_have_the_model_s_size_where_the_image_has(plan):
    height, width, tiling, _, strips = plan
    sizes = {
        (tile.read.height, tile.read.width)
        for strip in strips
        for piece in strip.pieces
        for tile in piece.tiles
    }
    assert sizes == {(min(tiling.tile_size_px, height), min(tiling.tile_size_px, width))}


@given(plans(st.just(True)))
def test_rows_of_a_blended_strip_are_covered_by_no_later_tile(plan):
    _, _, _, _, strips = plan
    for strip, later in pairwise(strips):
        for tile in (tile for piece in later.pieces for tile in piece.tiles):
            assert tile.read.row_off >= strip.core.row_stop


@pytest.mark.parametrize("blend", [False, True])
@pytest.mark.parametrize(
    "height, width",
    [(32, 32), (16, 16), (1, 300), (300, 1), (1, 1), (33, 31)],
    ids=["image=tile", "image<tile", "one row", "one column", "one pixel", "odd"],
)
def test_the_sizes_that_break_peers(height, width, blend):
    whole = Window(0, 0, height, width)
    strips = plan_strips(whole, Tiling(32, 4, blend), height, width, (32, 32))
    assert_partition(
        [tile.core for strip in strips for piece in strip.pieces for tile in piece.tiles], whole
    )


def test_without_a_halo_nothing_is_computed_twice():
    strips = plan_strips(Window(0, 0, 100, 90), Tiling(16, 0), 100, 90, (20, 90))
    assert redundancy(strips) == 1


@pytest.mark.parametrize("block_shape", [(1, 2000), (16, 2000), (256, 256), (512, 512)])
def test_overlap_costs_at_most_a_fifth(block_shape):
    whole = Window(0, 0, 2000, 2000)
    tiling = Tiling(256, 8)
    piece = choose_piece_shape(tiling, block_shape, 2000, 80_000)
    assert redundancy(plan_strips(whole, tiling, 2000, 2000, piece)) <= 1.2


@given(
    st.tuples(st.integers(1, 600), st.integers(1, 600)),
    st.integers(1, 3000),
    st.integers(1, 100_000),
    st.integers(0, 12),
)
def test_pieces_are_bounded_whatever_the_blocks(block_shape, width, piece_px, halo):
    tiling = Tiling(64, halo)
    rows, cols = choose_piece_shape(tiling, block_shape, width, piece_px)
    assert rows * cols <= max(4 * piece_px, tiling.smallest_tile_px * cols)


def test_pieces_of_a_blocked_file_are_whole_blocks():
    rows, cols = choose_piece_shape(Tiling(256, 4), (256, 256), 4000, 120_000)
    assert rows % 256 == cols % 256 == 0


def test_pieces_of_a_file_stored_by_rows_are_whole_rows():
    assert choose_piece_shape(Tiling(256, 0), (1, 4000), 4000, 120_000) == (30, 4000)


def test_a_narrow_image_in_blocks_is_read_in_high_strips():
    rows, cols = choose_piece_shape(Tiling(256, 0), (16, 16), 17, 100_000)
    assert (rows, cols) == (5872, 17)


def test_a_tile_without_a_core_is_refused():
    with pytest.raises(ValueError, match="16 px has no core with a margin of 8 px"):
        Tiling(16, 8)


def test_a_window_outside_an_image_is_refused():
    with pytest.raises(ValueError, match="not a rectangle inside an image"):
        Window(-1, 0, 4, 4)


def test_strips_are_full_width_and_in_order():
    strips = plan_strips(Window(3, 2, 30, 20), Tiling(16, 2), 40, 40, (8, 8))
    assert all(isinstance(strip, Strip) for strip in strips)
    assert [strip.core.row_off for strip in strips[1:]] == [s.core.row_stop for s in strips[:-1]]
    assert {(strip.core.col_off, strip.core.width) for strip in strips} == {(2, 20)}

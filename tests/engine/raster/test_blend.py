"""Blending: no weight is zero, and what all tiles agree on stays as it is."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.raster.blend import BlendCollector, make_collector, ramp
from engine.raster.tiles import Tiling, Window, plan_strips

CPU = torch.device("cpu")


def collect(tiling, height, width, value_of, piece_shape=(8, 8), extent=None):
    """Put an image together from ``value_of(window)`` of every tile."""
    extent = extent or Window(0, 0, height, width)
    result = np.full((1, height, width), np.nan, np.float32)
    collector = make_collector(tiling, 1, CPU)
    for strip in plan_strips(extent, tiling, height, width, piece_shape):
        for area in collector.areas(strip):
            collector.begin(area)
            pieces = area.pieces if area is strip else [area]
            for tile in (tile for piece in pieces for tile in piece.tiles):
                collector.add(tile, torch.as_tensor(value_of(tile.read), dtype=torch.float32)[None])
            rows, cols = area.core.slices_in(Window(0, 0, height, width))
            result[:, rows, cols] = collector.finish().numpy()
    return result[0]


@given(st.integers(1, 100), st.integers(0, 120))
def test_no_weight_is_zero_and_none_is_above_one(length, overlap):
    weights = ramp(length, overlap)
    assert weights.shape == (length,)
    assert weights.min() > 0 and weights.max() <= 1


@given(st.integers(1, 40), st.integers(0, 40))
def test_weights_of_neighbours_sum_to_one_in_their_overlap(length, overlap):
    weights = ramp(2 * overlap + length, overlap)
    if overlap:
        total = weights[-overlap:] + weights[:overlap]
        np.testing.assert_allclose(total, 1, rtol=1e-5)


@given(st.integers(1, 40), st.integers(1, 40), st.booleans(), st.integers(0, 4))
def test_what_tiles_agree_on_stays_as_it_is(height, width, blend, halo):
    image = np.random.default_rng(0).random((height, width), np.float32)
    tiling = Tiling(2 * halo + 9, halo, blend)
    result = collect(tiling, height, width, lambda w: image[w.slices_in(Window(0, 0, 99, 99))])
    np.testing.assert_allclose(result, image, rtol=1e-5)


def test_what_tiles_disagree_on_goes_over_without_a_seam():
    # Each tile says its own column: next to each other, blended values differ by one step a pixel.
    result = collect(Tiling(16, 4, True), 16, 40, lambda w: np.full((16, 16), w.col_off))
    assert np.abs(np.diff(result[8])).max() <= 8 / 8 + 1e-5
    assert np.all(np.diff(result[8]) >= -1e-5)


def test_without_an_overlap_tiles_lie_side_by_side():
    result = collect(Tiling(8, 0, True), 8, 16, lambda w: np.full((8, 8), w.col_off))
    np.testing.assert_array_equal(result[0], [0] * 8 + [8] * 8)


def test_a_crop_keeps_the_core_of_each_tile_only():
    def value_of(window):
        values = np.zeros((window.height, window.width))
        values[0] = values[-1] = values[:, 0] = values[:, -1] = 1  # wrong at the tile's edge
        return values

    result = collect(Tiling(12, 1), 30, 30, value_of)
    assert result[0].all() and result[:, 0].all()  # the image's own edge
    assert not result[1:-1, 1:-1].any()


def test_rows_that_wait_for_the_next_strip_are_all_that_is_kept():
    tiling = Tiling(16, 4, True)
    collector = BlendCollector(tiling, 1, CPU)
    heights = set()
    for strip in plan_strips(Window(0, 0, 400, 16), tiling, 400, 16, (16, 16)):
        collector.begin(strip)
        heights.add(collector._sums.shape[1])
        for tile in strip.pieces[0].tiles:
            collector.add(tile, torch.ones(1, 16, 16))
        collector.finish()
    assert max(heights) <= 32


@pytest.mark.parametrize("blend", [False, True])
def test_pixels_that_no_tile_was_run_for_do_no_harm(blend):
    tiling = Tiling(8, 0, blend)
    (strip,) = plan_strips(Window(0, 0, 8, 16), tiling, 8, 16, (64, 64))
    collector = make_collector(tiling, 1, CPU)
    collector.begin(strip)
    for tile in strip.pieces[0].tiles[:1]:
        collector.add(tile, torch.ones(1, tile.read.height, tile.read.width))
    rows, cols = strip.pieces[0].tiles[0].core.slices_in(strip.core)
    assert (collector.finish()[:, rows, cols] == 1).all()

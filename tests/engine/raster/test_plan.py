"""Sizes of tiles and batches, and how many are computed at a time."""

import pytest

from engine.raster.plan import batch_size, choose_tiling, count_lanes
from engine.raster.spectra import BandMatch
from engine.raster.tiles import Tiling, Window, plan_strips

MATCH = BandMatch(tuple(range(200)), None, ())


@pytest.mark.parametrize(
    "tiling, device, side_px",
    [
        (Tiling(512, 0), "cpu", 51),  # 2 MiB of 200 bands
        (Tiling(512, 8), "cpu", 192),  # 24 halos: no more than a fifth is computed twice
        (Tiling(32, 0), "cpu", 32),
        (Tiling(512, 0, blend=True), "cpu", 512),
        (Tiling(512, 0), "cuda", 512),
    ],
)
def test_tiles_are_made_smaller_for_the_cache_only_where_that_is_free(tiling, device, side_px):
    assert choose_tiling(tiling, MATCH, device).tile_size_px == side_px


@pytest.mark.parametrize(
    "tiling, device, cores, lanes",
    [
        (Tiling(20, 4, blend=True), "cpu", 4, 4),
        (Tiling(20, 4, blend=True), "cpu", 1, 1),
        (Tiling(20, 4, blend=True), "cuda", 4, 1),
        (Tiling(400, 0), "cpu", 4, 1),  # one tile in the whole scene
        (Tiling(200, 4, blend=True), "cpu", 16, 8),  # 32 MB a tile: as many as 256 MiB hold
    ],
)
def test_a_cpu_computes_a_batch_a_core_as_far_as_tiles_and_memory_go(tiling, device, cores, lanes):
    strips = plan_strips(Window(0, 0, 400, 400), tiling, 400, 400, (400, 400))
    assert count_lanes(strips, MATCH, device, cores) == lanes


def test_a_batch_has_one_tile_at_least():
    strips = plan_strips(Window(0, 0, 600, 600), Tiling(600, 0), 600, 600, (600, 600))
    (tile,) = strips[0].pieces[0].tiles
    assert batch_size(tile, 200, "cpu") == 1

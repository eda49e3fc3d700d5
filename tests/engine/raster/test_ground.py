"""Pixels on the ground: their size, and windows of one scene in another."""

import numpy as np
import pytest
from affine import Affine

from engine.raster.ground import box_in, pixel_size_m, place_of
from engine.raster.scene import open_scene
from engine.raster.tiles import Window
from tests.engine.conftest import TRANSFORM


@pytest.fixture
def scene(make_raster):
    def make(name="a.tif", **options):
        return open_scene(make_raster(name, scale=1e-4, **options).path)

    return make


def test_the_size_of_oblong_pixels_is_the_root_of_their_area(scene):
    assert pixel_size_m(scene()) == pytest.approx(np.sqrt(30 * 20))


def test_degrees_become_metres_at_their_latitude(scene):
    degrees = Affine(0.001, 0, 13.0, 0, -0.001, 60.012)
    found = pixel_size_m(scene(crs="EPSG:4326", transform=degrees))
    assert found == pytest.approx(111.32 * np.sqrt(0.5), rel=1e-3)


def test_without_a_grid_a_pixel_is_taken_to_be_enmaps(scene):
    assert pixel_size_m(scene(crs=None, transform=None)) == 30.0


def test_a_shifted_scene_of_half_the_pixel_size(scene):
    fine = scene("b.tif", transform=TRANSFORM @ Affine.translation(2, 4) @ Affine.scale(0.5))
    assert box_in(scene(), Window(4, 2, 6, 3), fine) == pytest.approx((0, 0, 12, 6))
    rows, cols = place_of(fine, np.array([2.0]), np.array([4.0]), scene())
    assert (rows[0], cols[0]) == pytest.approx((5, 4))


def test_a_box_in_another_zone_covers_the_window_and_little_more(scene):
    square = Affine(30, 0, 383472, 0, -30, 5818310)
    here = scene(transform=square)
    there = scene("b.tif", crs="EPSG:32632", transform=Affine(30, 0, 790000, 0, -30, 5830000))
    window = Window(3, 5, 10, 8)
    top, left, bottom, right = box_in(here, window, there)
    assert 10 <= bottom - top < 12 and 8 <= right - left < 10
    rows, cols = place_of(here, np.array([8.0]), np.array([9.0]), there)
    assert top < rows[0] < bottom and left < cols[0] < right

"""Areas of pixels on the ground, whatever the CRS."""

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS

from engine.raster.pixel_area import PixelAreas
from engine.raster.writer import Grid

EARTH_M2 = 510_065_621_724_088.4  # of the WGS 84 ellipsoid


def areas(crs, transform, height=10, width=10):
    grid = Grid(height, width, transform, None if crs is None else CRS.from_user_input(crs))
    return PixelAreas(grid).of_rows(0, height)


def test_utm_is_taken_by_its_word():
    found = areas("EPSG:32633", Affine(30, 0, 383_472.5, 0, -20, 5_818_310))
    np.testing.assert_array_equal(found, np.full((10, 10), 600.0))


def test_degrees_are_measured_on_the_ellipsoid():
    found = areas("EPSG:4326", Affine(1, 0, -180, 0, -1, 90), 180, 360)
    assert found.sum() == pytest.approx(EARTH_M2, rel=1e-9)
    assert found[89, 0] == pytest.approx(1.2308e10, rel=1e-4)  # beside the equator


def test_web_mercator_is_not_taken_by_its_word():
    # At 52.5 degrees north its metres are 1.64 times too short.
    found = areas("EPSG:3857", Affine(30, 0, 1.49e6, 0, -30, 6.9e6))
    np.testing.assert_allclose(found, 900 * np.cos(np.radians(52.58)) ** 2, rtol=0.01)


def test_feet_become_metres():
    found = areas("EPSG:2263", Affine(100, 0, 1e6, 0, -100, 2e5))
    np.testing.assert_allclose(found, 100**2 * 0.3048006096**2, rtol=1e-4)


def test_rotated_pixels_keep_their_area():
    transform = Affine(20, 10, 5e5, 10, -20, 5.8e6)
    np.testing.assert_allclose(areas("EPSG:32633", transform), 500.0)


def test_a_pixel_on_the_antimeridian_is_no_larger_than_its_neighbour():
    found = areas("EPSG:4326", Affine(0.5, 0, 179.75, 0, -0.5, 10), 1, 2)
    assert found[0, 0] == pytest.approx(found[0, 1], rel=1e-6)


def test_rows_far_down_a_large_grid_are_measured_there():
    grid = Grid(60_000, 4, Affine(0.001, 0, 10, 0, -0.001, 60), CRS.from_epsg(4326))
    last = PixelAreas(grid).of_rows(59_999, 1)
    alone = areas("EPSG:4326", Affine(0.001, 0, 10, 0, -0.001, 60 - 59.999), 1, 4)
    np.testing.assert_allclose(last, alone, rtol=1e-6)


def test_without_a_crs_coordinates_are_metres():
    np.testing.assert_array_equal(areas(None, Affine(2, 0, 0, 0, -3, 0)), np.full((10, 10), 6.0))

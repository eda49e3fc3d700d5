import pytest
from rasterio.transform import Affine

from engine.errors import RequestError
from engine.raster.extent import window_of_extent
from engine.raster.tiles import Window

# 24 rows and 17 columns of 30 m x 20 m, origin at (1000, 5000)
TRANSFORM = Affine(30, 0, 1000, 0, -20, 5000)


def find(*extent, transform=TRANSFORM):
    return window_of_extent(extent, transform, height=24, width=17)


def test_extent_on_pixel_edges_is_those_pixels():
    assert find(1060, 4900, 1150, 4960) == Window(2, 2, 3, 3)


def test_extent_takes_every_pixel_that_it_touches():
    assert find(1061, 4899, 1151, 4959) == Window(2, 2, 4, 4)


def test_rounding_errors_do_not_add_pixels():
    assert find(1060 - 1e-9, 4900 - 1e-9, 1150 + 1e-9, 4960 + 1e-9) == Window(2, 2, 3, 3)


def test_extent_larger_than_the_scene_is_the_scene():
    assert find(0, 0, 1e5, 1e5) == Window(0, 0, 24, 17)


def test_extent_inside_one_pixel_is_that_pixel():
    assert find(1001, 4981, 1002, 4982) == Window(0, 0, 1, 1)


def test_extent_thinner_than_the_tolerance_is_one_pixel():
    assert find(1030, 4900, 1030.001, 4960).width == 1


def test_upward_rows_are_understood():
    upward = Affine(30, 0, 1000, 0, 20, 4520)
    assert find(1060, 4540, 1150, 4600, transform=upward) == Window(1, 2, 3, 3)


@pytest.mark.parametrize(
    "extent", [(0, 4900, 900, 4960), (1060, 5000, 1150, 5100), (1510, 4900, 1600, 4960)]
)
def test_extent_beside_the_scene_is_refused_with_both(extent):
    with pytest.raises(RequestError, match=r"outside the scene, which covers 1000, 4520, 1510"):
        find(*extent)


@pytest.mark.parametrize(
    "extent", [(1150, 4900, 1060, 4960), (1060, 4960, 1150, 4960), (float("nan"), 0, 1, 1)]
)
def test_empty_extent_is_refused(extent):
    with pytest.raises(RequestError, match="is empty"):
        find(*extent)

"""Labels on a scene's grid: shares of area from polygons, points and rasters."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.crs import CRS
from rasterio.transform import Affine

from engine.errors import LabelError
from engine.raster.labels import GroundBlocks, as_field_value, open_labels
from engine.raster.scene import open_scene
from engine.raster.tiles import Window
from tests.engine.conftest import HEIGHT, TRANSFORM, WIDTH
from tests.engine.raster.test_vector import pixel_box, write_layer

WHOLE = Window(0, 0, HEIGHT, WIDTH)


@pytest.fixture
def scene(make_raster):
    return open_scene(make_raster().path)


def shares_of(source, scene, values, window=WHOLE, field="class"):
    return open_labels(source, field, scene.crs).on(scene).shares(window, values)


def write_labels(path, array, transform=TRANSFORM, crs="EPSG:32633", nodata=None):
    with rasterio.open(
        path, "w", driver="GTiff", count=1, dtype=array.dtype, height=array.shape[0],
        width=array.shape[1], transform=transform, crs=crs, nodata=nodata,
    ) as dataset:  # fmt: skip
        dataset.write(array, 1)
    return str(path)


def test_a_polygon_over_half_a_pixel_is_half_of_its_label(tmp_path, scene):
    boxes = [pixel_box(2, 3, 1.5, 1, TRANSFORM), pixel_box(6, 3, 1, 1, TRANSFORM)]
    source = write_layer(tmp_path / "l.gpkg", boxes, values=["wood", "roof"])
    shares = shares_of(source, scene, ["roof", "wood"])
    assert shares.shape == (3, HEIGHT, WIDTH)
    np.testing.assert_allclose(shares[1, 3, 2:5], [1, 0.5, 0], atol=0.01)
    np.testing.assert_allclose(shares[0, 3, 6], 1)
    assert shares[1].sum() == pytest.approx(1.5, abs=0.01)


def test_values_that_were_not_asked_for_are_in_the_last_channel(tmp_path, scene):
    boxes = [pixel_box(2, 3, 1, 1, TRANSFORM), pixel_box(6, 3, 1, 1, TRANSFORM)]
    source = write_layer(tmp_path / "l.gpkg", boxes, values=[5, 9])
    shares = shares_of(source, scene, [5])
    assert shares[:, 3, 2].tolist() == [1, 0]
    assert shares[:, 3, 6].tolist() == [0, 1]


def test_a_window_has_the_same_shares_as_the_whole(tmp_path, scene):
    boxes = [pixel_box(2.3, 3.4, 5.5, 4.2, TRANSFORM), pixel_box(9, 7, 3, 3, TRANSFORM)]
    source = write_layer(tmp_path / "l.gpkg", boxes, values=[1, 2])
    whole = shares_of(source, scene, [1, 2])
    part = shares_of(source, scene, [1, 2], Window(5, 4, 6, 7))
    np.testing.assert_array_equal(part, whole[:, 5:11, 4:11])


def test_a_point_labels_its_whole_pixel(tmp_path, scene):
    points = [shapely.Point(TRANSFORM @ (4.5, 10.5)), shapely.Point(TRANSFORM @ (5.9, 10.1))]
    shares = shares_of(write_layer(tmp_path / "p.gpkg", points, values=[2, 3]), scene, [2, 3])
    assert np.argwhere(shares[0]).tolist() == [[10, 4]]
    assert np.argwhere(shares[1]).tolist() == [[10, 5]]
    assert shares.max() == 1


def test_labels_in_another_crs_come_to_the_same_pixels(tmp_path, scene):
    box = pixel_box(3, 4, 6, 5, TRANSFORM)
    moved = shapely.transform(
        box,
        lambda xy: np.column_stack(
            rasterio.warp.transform("EPSG:32633", "EPSG:4326", xy[:, 0], xy[:, 1])
        ),
    )
    source = write_layer(tmp_path / "l.gpkg", [moved], values=[1], crs="EPSG:4326")
    shares = shares_of(source, scene, [1])
    np.testing.assert_allclose(shares[0, 4:9, 3:9], 1, atol=0.02)
    assert shares[0].sum() == pytest.approx(30, abs=0.1)


def test_a_raster_on_the_grid_is_taken_pixel_by_pixel(tmp_path, scene):
    array = np.zeros((HEIGHT, WIDTH), np.uint8)
    array[3, 5], array[20, 16] = 1, 4
    source = write_labels(tmp_path / "labels.tif", array)
    assert open_labels(source, None, scene.crs).values == (1, 4)
    shares = shares_of(source, scene, [4, 1])
    assert np.argwhere(shares[0]).tolist() == [[20, 16]]
    assert np.argwhere(shares[1]).tolist() == [[3, 5]]


def test_a_finer_raster_gives_shares(tmp_path, scene):
    fine = np.zeros((HEIGHT * 4, WIDTH * 4), np.uint8)
    fine[12:16, 20:23] = 1  # three quarters of pixel (3, 5)
    fine[12:16, 23] = 2
    source = write_labels(tmp_path / "fine.tif", fine, TRANSFORM @ Affine.scale(0.25))
    shares = shares_of(source, scene, [1, 2])
    assert shares[:, 3, 5].tolist() == [0.75, 0.25, 0]
    assert shares.sum() == pytest.approx(1)


def test_a_raster_elsewhere_in_another_crs_gives_nothing(tmp_path, scene):
    array = np.ones((5, 7), np.uint8)
    grid = Affine(0.001, 0, 20.0, 0, -0.001, 50.0)
    source = write_labels(tmp_path / "far.tif", array, grid, crs="EPSG:4326")
    assert not shares_of(source, scene, [1]).any()


@pytest.mark.parametrize("values", [[None, None], ["", "  "], [0, 0]])
def test_an_empty_class_field_is_refused(tmp_path, scene, values):
    boxes = [pixel_box(2, 3, 1, 1, TRANSFORM), pixel_box(6, 3, 1, 1, TRANSFORM)]
    kept = np.asarray(values, dtype=object if values[0] != 0 else np.int32)
    source = write_layer(tmp_path / "l.gpkg", boxes, values=kept)
    with pytest.raises(LabelError, match="empty"):
        open_labels(source, "class", scene.crs)


def test_a_field_of_measurements_is_refused(tmp_path, scene):
    source = write_layer(tmp_path / "l.gpkg", [pixel_box(2, 3, 1, 1)], values=[0.37])
    with pytest.raises(LabelError, match=r"0\.37.*measurement"):
        open_labels(source, "class", scene.crs)


def test_a_field_with_more_values_than_a_map_has_classes_is_refused(tmp_path, scene):
    boxes = [pixel_box(1, 1, 0.1, 0.1) for _index in range(256)]
    source = write_layer(tmp_path / "l.gpkg", boxes, values=np.arange(1, 257))
    with pytest.raises(LabelError, match="256 different values"):
        open_labels(source, "class", scene.crs)


def test_a_vector_without_a_field_is_refused(tmp_path, scene):
    source = write_layer(tmp_path / "l.gpkg", [pixel_box(2, 3, 1, 1)], values=[1])
    with pytest.raises(LabelError, match="class field"):
        open_labels(source, None, scene.crs)


def test_labels_somewhere_else_are_refused(tmp_path, scene):
    source = write_layer(tmp_path / "l.gpkg", [pixel_box(500, 3, 4, 4)], values=[1])
    with pytest.raises(LabelError, match="does not overlap"):
        open_labels(source, "class", scene.crs).on(scene)


def test_a_raster_of_measurements_or_of_nothing_is_refused(tmp_path, scene):
    measured = write_labels(tmp_path / "m.tif", np.ones((5, 4), np.float32))
    with pytest.raises(LabelError, match="float32"):
        open_labels(measured, None, scene.crs)
    nothing = write_labels(tmp_path / "n.tif", np.full((5, 4), 9, np.uint8), nodata=9)
    with pytest.raises(LabelError, match="no value"):
        open_labels(nothing, None, scene.crs)


def test_labels_that_are_not_there_are_named(tmp_path, scene):
    with pytest.raises(LabelError, match=r"gone\.gpkg"):
        open_labels(str(tmp_path / "gone.gpkg"), "class", scene.crs)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, 3), (3.0, 3), (" roof ", "roof"), ("", None), (np.nan, None), (None, None), (0, None)],
)  # fmt: skip
def test_field_values_have_one_form(value, expected):
    assert as_field_value(value) == expected


def test_ground_blocks_are_squares_of_the_first_scene(scene):
    blocks = GroundBlocks(scene.crs, scene.transform, 10)
    rows, cols = np.asarray([0, 9, 10, 23]), np.asarray([0, 9, 9, 16])
    assert blocks.block_of(scene, rows, cols).tolist() == [[0, 0], [0, 0], [1, 0], [2, 1]]


def test_scenes_that_overlap_share_their_ground_blocks(make_raster, scene):
    shifted = TRANSFORM @ Affine.translation(-7, 5)
    other = open_scene(make_raster("other.tif", transform=shifted).path)
    blocks = GroundBlocks(scene.crs, scene.transform, 10)
    here = blocks.block_of(scene, np.asarray([12]), np.asarray([3]))
    there = blocks.block_of(other, np.asarray([7]), np.asarray([10]))
    assert here.tolist() == there.tolist()


def test_ground_blocks_hold_across_crs(make_raster, scene):
    x, y = TRANSFORM @ (12.5, 13.5)
    (lon,), (lat,) = rasterio.warp.transform("EPSG:32633", "EPSG:4326", [x], [y])
    grid = Affine(1e-4, 0, lon - 2.5e-4, 0, -1e-4, lat + 3.5e-4)
    other = open_scene(make_raster("degrees.tif", transform=grid, crs="EPSG:4326").path)
    blocks = GroundBlocks(CRS.from_epsg(32633), scene.transform, 10)
    assert blocks.block_of(other, np.asarray([3]), np.asarray([2])).tolist() == [[1, 1]]

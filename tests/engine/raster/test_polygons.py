"""Polygons of a class map: the same patches however the map arrives, whole or not at all."""

from pathlib import Path

import numpy as np
import pyogrio
import pytest
import shapely
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.crs import CRS
from rasterio.features import rasterize

from engine.errors import CancelledError, OutputError
from engine.feedback import SilentFeedback
from engine.raster import polygons as polygons_module
from engine.raster.polygons import FIELDS, PolygonWriter
from engine.raster.style import ClassInfo
from engine.raster.tiles import Window
from engine.raster.unfinished import remove_unfinished
from engine.raster.writer import Grid

TRANSFORM = Affine(30, 0, 383_460, 0, -20, 5_818_320)  # one pixel has 600 m²
UTM = CRS.from_epsg(32633)
CLASSES = (ClassInfo(1, "Wald", "#117733"), ClassInfo(2, "See ö", "#1e78b4"))

class_maps = arrays(
    np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 2)
)


def write(folder, classes, confidence=None, *, rows=None, cols=None, crs=UTM, **options):
    """Write a map in windows of so many rows and columns; the features as they were read."""
    height, width = classes.shape
    if confidence is None:
        confidence = np.full(classes.shape, 0.5, np.float32)
    path = Path(folder) / "patches.gpkg"
    grid = Grid(height, width, TRANSFORM, crs)
    with PolygonWriter(str(path), grid, CLASSES, **options) as writer:
        for row in range(0, height, rows or height):
            for col in range(0, width, cols or width):
                window = Window(
                    row, col, min(rows or height, height - row), min(cols or width, width - col)
                )
                where = window.slices_in(Window(0, 0, height, width))
                writer.write(window, classes[where], confidence[where])
    return features(path)


def features(path):
    _meta, _fids, wkb, columns = pyogrio.raw.read(path, layer=0)
    return shapely.from_wkb(wkb), dict(zip(FIELDS, columns, strict=True))


def comparable(found):
    geometries, columns = found
    numbers = [columns["class_value"], columns["area_m2"].round(3)]
    shapes = [geometry.normalize().wkt for geometry in geometries]
    return sorted(zip(shapes, *numbers, columns["mean_confidence"].round(6), strict=True))


@pytest.fixture
def lake():
    """A forest around a lake with an island, and nothing in a corner."""
    classes = np.ones((8, 10), np.uint8)
    classes[2:6, 3:8] = 2
    classes[3, 5] = 1
    classes[7, 9] = 0
    return classes


def test_each_patch_is_a_polygon_with_class_area_and_confidence(tmp_path, lake):
    confidence = np.where(lake == 2, 0.9, 0.6).astype(np.float32)
    confidence[2, 3:8] = 0.7
    geometries, columns = write(tmp_path, lake, confidence)
    assert sorted(columns["class_name"]) == ["See ö", "Wald", "Wald"]
    water = columns["class_value"].tolist().index(2)
    assert columns["area_m2"][water] == 19 * 600
    assert columns["mean_confidence"][water] == pytest.approx((14 * 0.9 + 5 * 0.7) / 19)
    assert geometries[water].area == pytest.approx(19 * 600)
    assert len(geometries[water].interiors) == 1


def test_the_crs_and_the_place_are_the_maps(tmp_path, lake):
    geometries, _columns = write(tmp_path, lake)
    assert pyogrio.read_info(tmp_path / "patches.gpkg", layer=0)["crs"] == "EPSG:32633"
    left, bottom, right, top = shapely.total_bounds(geometries)
    assert (left, top) == TRANSFORM @ (0, 0)
    assert (right, bottom) == TRANSFORM @ (10, 8)


def test_corners_have_no_points_that_lie_on_straight_lines(tmp_path):
    geometries, _columns = write(tmp_path, np.ones((9, 7), np.uint8), rows=2)
    assert shapely.get_num_coordinates(geometries).tolist() == [5]


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(classes=class_maps, rows=st.integers(1, 5), cols=st.integers(1, 12))
def test_patches_do_not_depend_on_how_the_map_arrives(tmp_path, classes, rows, cols):
    confidence = np.random.default_rng(0).random(classes.shape).astype(np.float32)
    whole = write(tmp_path, classes, confidence)
    assert comparable(write(tmp_path, classes, confidence, rows=rows, cols=cols)) == comparable(
        whole
    )


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(classes=class_maps, rows=st.integers(1, 5))
def test_polygons_burn_back_to_the_map(tmp_path, classes, rows):
    geometries, columns = write(tmp_path, classes, rows=rows)
    assert shapely.is_valid(geometries).all()
    assert set(shapely.get_type_id(geometries)) <= {shapely.GeometryType.POLYGON}
    if len(geometries):
        shapes = zip(geometries, columns["class_value"].tolist(), strict=True)
        classes = classes - rasterize(shapes, classes.shape, transform=TRANSFORM)
    assert not classes.any()


def test_blocks_of_many_rows_are_taken_apart(tmp_path, lake, monkeypatch):
    whole = write(tmp_path, lake)
    monkeypatch.setattr(polygons_module, "_BLOCK_PX", 10)
    monkeypatch.setattr(polygons_module, "_BATCH", 1)
    assert comparable(write(tmp_path, lake)) == comparable(whole)


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_patches_below_the_smallest_area_are_left_out(tmp_path, lake, rows):
    _geometries, columns = write(tmp_path, lake, rows=rows, min_area_m2=601.0)
    assert sorted(columns["class_value"].tolist()) == [1, 2]  # the island is gone


def test_a_patch_of_just_the_smallest_area_stays(tmp_path, lake):
    assert len(write(tmp_path, lake, min_area_m2=600.0)[0]) == 3


def test_a_map_without_classes_is_a_layer_without_features(tmp_path):
    geometries, columns = write(tmp_path, np.zeros((3, 4), np.uint8))
    assert len(geometries) == 0
    assert list(columns) == list(FIELDS)


def test_a_map_without_crs_makes_a_layer_without_crs(tmp_path, lake):
    write(tmp_path, lake, crs=None)
    assert pyogrio.read_info(tmp_path / "patches.gpkg", layer=0)["layer_name"] == "patches"


def test_confidence_where_there_is_no_class_does_not_matter(tmp_path, lake):
    confidence = np.full(lake.shape, 0.5, np.float32)
    confidence[lake == 0] = np.nan
    assert np.isfinite(write(tmp_path, lake, confidence)[1]["mean_confidence"]).all()


def test_an_older_file_is_replaced_whole(tmp_path, lake):
    write(tmp_path, np.ones((3, 3), np.uint8))
    assert len(write(tmp_path, lake)[0]) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["patches.gpkg"]


def test_nothing_is_left_after_an_error(tmp_path, lake):
    writer = PolygonWriter(str(tmp_path / "patches.gpkg"), Grid(8, 10, TRANSFORM, UTM), CLASSES)
    with pytest.raises(KeyError), writer:
        writer.write(Window(0, 0, 8, 10), lake, np.ones(lake.shape, np.float32))
        raise KeyError("elsewhere")
    assert list(tmp_path.iterdir()) == []


def test_a_cancel_while_the_file_is_finished_is_heard(tmp_path, lake):
    class Cancelled(SilentFeedback):
        def raise_if_cancelled(self):
            raise CancelledError

    with pytest.raises(CancelledError):
        write(tmp_path, lake, feedback=Cancelled())
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_lost_features_is_refused(tmp_path, lake, monkeypatch):
    monkeypatch.setattr(polygons_module.pyogrio, "read_info", lambda *_, **__: {"features": 2})
    with pytest.raises(OutputError, match="reads back with 2 polygons instead of 3"):
        write(tmp_path, lake)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_is_a_sentence(tmp_path, lake, monkeypatch):
    def full(*args, **options):
        raise OSError("no space left")

    monkeypatch.setattr(polygons_module.pyogrio.raw, "write", full)
    with pytest.raises(OutputError, match=r"patches\.gpkg cannot be written: no space left"):
        write(tmp_path, lake)


def test_a_process_that_is_ended_hard_removes_what_it_made(tmp_path, lake):
    writer = PolygonWriter(str(tmp_path / "a.gpkg"), Grid(8, 10, TRANSFORM, UTM), CLASSES)
    writer.__enter__()
    writer.write(Window(0, 0, 8, 10), lake, np.ones(lake.shape, np.float32))
    remove_unfinished()
    assert list(tmp_path.iterdir()) == []

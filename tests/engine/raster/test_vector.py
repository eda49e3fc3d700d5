"""Vector layers: read as QGIS names them, reprojected, burned into pixels."""

from __future__ import annotations

import json

import numpy as np
import pyogrio
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS

from engine.errors import LabelError
from engine.raster.burn import burn_mask, class_fractions
from engine.raster.tiles import Window
from engine.raster.vector import (
    Shape,
    crs_note,
    is_vector,
    parse_layer,
    read_shapes,
    require_overlap,
)

UTM33 = CRS.from_epsg(32633)
TRANSFORM = Affine(30.0, 0.0, 383472.5, 0.0, -20.0, 5818310.0)
SUFFIXES = {"GPKG": "gpkg", "ESRI Shapefile": "shp", "GeoJSON": "geojson"}


def write_layer(path, geometries, *, values=None, field="class", crs="EPSG:32633", **options):
    geometries = np.asarray(geometries, dtype=object)
    pyogrio.raw.write(
        path,
        shapely.to_wkb(geometries),
        [np.asarray(values)] if values is not None else [],
        [field] if values is not None else [],
        geometry_type=geometries[0].geom_type,
        crs=crs,
        **options,
    )
    return str(path)


def pixel_box(col, row, width, height, transform=TRANSFORM):
    """A polygon that covers whole pixels, or parts of them."""
    corners = [(col, row), (col + width, row), (col + width, row + height), (col, row + height)]
    return shapely.Polygon([transform @ corner for corner in corners])


BOXES = [pixel_box(2, 3, 4, 5), pixel_box(10, 12, 2, 3)]


@pytest.mark.filterwarnings("error:More than one layer")
def test_a_table_of_styles_is_no_second_layer(tmp_path):
    path = tmp_path / "styled.gpkg"
    text = np.array(["<qgis/>"], object)
    pyogrio.raw.write(
        path, None, [text], ["styleQML"], layer="layer_styles", driver="GPKG", geometry_type=None,
        crs=None,
    )  # fmt: skip
    write_layer(path, BOXES, values=[3, 7], layer="fields", driver="GPKG", append=True)
    assert [shape.value for shape in read_shapes(str(path), "class", None)] == [3, 7]
    assert crs_note(str(path), UTM33) == ""


@pytest.mark.parametrize("driver", SUFFIXES)
def test_polygons_are_read_with_their_field(tmp_path, driver):
    crs = "EPSG:4326" if driver == "GeoJSON" else "EPSG:32633"
    path = write_layer(
        tmp_path / f"l.{SUFFIXES[driver]}", BOXES, values=[3, 7], crs=crs, driver=driver
    )
    shapes = read_shapes(path, "class", None)
    assert [shape.value for shape in shapes] == [3, 7]
    assert all(isinstance(shape.value, int) for shape in shapes)
    assert shapely.hausdorff_distance(shapes[0].geometry, BOXES[0]) < 0.01


def test_points_and_text_values_are_read(tmp_path):
    points = [shapely.Point(383500.0, 5818300.0), shapely.Point(383600.0, 5818200.0)]
    path = write_layer(tmp_path / "p.gpkg", points, values=np.asarray(["Roof", "Tree"], object))
    assert [(s.geometry.geom_type, s.value) for s in read_shapes(path, "class", UTM33)] == [
        ("Point", "Roof"), ("Point", "Tree"),
    ]  # fmt: skip


def test_a_layer_in_another_crs_is_brought_to_the_scenes(tmp_path):
    from rasterio import warp

    def to_degrees(points):
        return np.column_stack(warp.transform(UTM33, CRS.from_epsg(4326), *points.T))

    path = write_layer(
        tmp_path / "l.gpkg", [shapely.transform(BOXES[0], to_degrees)], crs="EPSG:4326"
    )
    moved = read_shapes(path, None, UTM33)[0].geometry
    assert shapely.hausdorff_distance(moved, BOXES[0]) < 1e-3


def test_a_layer_without_a_crs_is_taken_as_the_scenes_with_a_note(tmp_path):
    with pytest.warns(UserWarning, match="crs"):
        path = write_layer(tmp_path / "l.shp", BOXES, crs=None, driver="ESRI Shapefile")
    assert read_shapes(path, None, UTM33)[0].geometry.equals(BOXES[0].normalize())
    assert "has no CRS; the scene's was taken" in crs_note(path, UTM33)


def test_there_is_no_note_for_a_layer_with_a_crs(tmp_path):
    assert crs_note(write_layer(tmp_path / "l.gpkg", BOXES), UTM33) == ""


def test_a_layer_is_named_as_qgis_does(tmp_path):
    path = write_layer(tmp_path / "two.gpkg", BOXES[:1], values=[1], layer="first")
    write_layer(path, BOXES, values=[5, 6], layer="second", append=True)
    assert [s.value for s in read_shapes(f"{path}|layername=second", "class", None)] == [5, 6]
    assert [s.value for s in read_shapes(f"{path}|layerid=0", "class", None)] == [1]
    filtered = f'{path}|layername=second|subset="class" = 6'
    assert [s.value for s in read_shapes(filtered, "class", None)] == [6]


def test_sources_are_taken_apart():
    assert parse_layer("a.gpkg|layername=x|geometrytype=Polygon") == ("a.gpkg", "x", None)
    assert parse_layer("a.gpkg|subset=n = 'a|b'").where == "n = 'a|b'"


def test_features_without_a_value_are_left_out(tmp_path):
    path = write_layer(tmp_path / "l.gpkg", BOXES, values=np.asarray([np.nan, 4.0]))
    assert [shape.value for shape in read_shapes(path, "class", None)] == [4]


def test_features_without_a_geometry_are_left_out(tmp_path):
    feature = {"type": "Feature", "properties": {"class": 1}, "geometry": None}
    box = {"type": "Feature", "properties": {"class": 2},
           "geometry": shapely.geometry.mapping(BOXES[0])}  # fmt: skip
    path = tmp_path / "l.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature, box]}))
    assert [shape.value for shape in read_shapes(str(path), "class", None)] == [2]


@pytest.mark.parametrize("values", [np.asarray([np.nan, np.nan]), np.asarray(["", "  "], object)])
def test_an_empty_field_is_refused(tmp_path, values):
    path = write_layer(tmp_path / "l.gpkg", BOXES, values=values)
    with pytest.raises(LabelError, match=r"field 'class' of .* is empty"):
        read_shapes(path, "class", None)


def test_a_field_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    path = write_layer(tmp_path / "l.gpkg", BOXES, values=[1, 2], field="kind")
    with pytest.raises(LabelError, match=r"no field 'class'.*Its fields are: kind"):
        read_shapes(path, "class", None)


def test_lines_are_refused(tmp_path):
    path = write_layer(tmp_path / "l.gpkg", [shapely.LineString([(0, 0), (1, 1)])])
    with pytest.raises(LabelError, match=r"features of type linestring.*polygons or points"):
        read_shapes(path, None, None)


def test_an_empty_layer_is_refused(tmp_path):
    path = tmp_path / "l.geojson"
    path.write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(LabelError, match="no features"):
        read_shapes(str(path), None, None)


def test_a_missing_layer_is_named():
    with pytest.raises(LabelError, match=r"There is no layer /nowhere\.gpkg"):
        read_shapes("/nowhere.gpkg|layername=x", None, None)


def test_a_layer_name_that_is_not_there_is_refused(tmp_path):
    path = write_layer(tmp_path / "l.gpkg", BOXES)
    with pytest.raises(LabelError, match=r"cannot be read as a vector layer.*'other'"):
        read_shapes(f"{path}|layername=other", None, None)


def test_a_polygon_that_crosses_itself_is_mended(tmp_path):
    bow = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    shapes = read_shapes(write_layer(tmp_path / "l.gpkg", [bow]), None, None)
    assert shapes[0].geometry.is_valid
    assert shapes[0].geometry.area == pytest.approx(2.0)


def test_overlapping_parts_of_a_multipolygon_make_no_hole(tmp_path):
    parts = shapely.MultiPolygon([pixel_box(1, 1, 4, 4), pixel_box(3, 3, 4, 4)])
    shapes = read_shapes(write_layer(tmp_path / "l.gpkg", [parts]), None, UTM33)
    mask = burn_mask(shapes, Window(0, 0, 24, 17), TRANSFORM)
    assert mask.sum() == 16 + 16 - 4


def test_rasters_are_told_from_vectors(tmp_path, make_raster):
    assert is_vector(write_layer(tmp_path / "l.gpkg", BOXES) + "|layername=l")
    assert not is_vector(make_raster().path)
    assert not is_vector(str(tmp_path / "nothing.gpkg"))


# On the grid


def test_a_layer_elsewhere_is_refused_with_both_extents():
    shapes = [Shape(shapely.box(0, 0, 10, 10), 1)]
    with pytest.raises(LabelError, match="does not overlap the scene: it covers x 0 to 10"):
        require_overlap(shapes, "l.gpkg", 24, 17, TRANSFORM)


def test_a_layer_that_overlaps_in_part_is_accepted():
    require_overlap([Shape(pixel_box(-5, -5, 6, 6), 1)], "l.gpkg", 24, 17, TRANSFORM)


def test_a_mask_holds_the_pixels_of_its_polygons():
    mask = burn_mask([Shape(box, True) for box in BOXES], Window(0, 0, 24, 17), TRANSFORM)
    expected = np.zeros((24, 17), bool)
    expected[3:8, 2:6] = expected[12:15, 10:12] = True
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    "transform",
    [TRANSFORM, Affine(20.0, 5.0, 1000.0, 4.0, -19.0, 2000.0)],
    ids=["north", "rotated"],
)
def test_a_mask_of_a_window_is_that_part_of_the_whole(transform):
    shapes = [Shape(pixel_box(2.2, 3.1, 7, 9, transform), True)]
    whole = burn_mask(shapes, Window(0, 0, 24, 17), transform)
    assert 0 < whole.sum() < whole.size
    part = burn_mask(shapes, Window(5, 3, 11, 6), transform)
    np.testing.assert_array_equal(part, whole[5:16, 3:9])


def test_a_mask_away_from_its_shapes_is_empty():
    assert not burn_mask([Shape(BOXES[0], True)], Window(20, 12, 4, 5), TRANSFORM).any()
    assert not burn_mask([], Window(0, 0, 3, 4), TRANSFORM).any()


def test_a_point_marks_the_pixel_that_it_lies_in():
    point = shapely.Point(TRANSFORM @ (4.9, 7.1))
    mask = burn_mask([Shape(point, True)], Window(0, 0, 24, 17), TRANSFORM)
    assert np.argwhere(mask).tolist() == [[7, 4]]


def test_fractions_are_shares_of_area():
    shapes = [Shape(pixel_box(2, 3, 1.5, 1), 7), Shape(pixel_box(3.5, 3, 1, 0.25), 9)]
    fractions = class_fractions(shapes, [9, 7], Window(0, 0, 24, 17), TRANSFORM)
    assert fractions.shape == (2, 24, 17)
    assert fractions[1, 3, 2:5].tolist() == [1.0, 0.5, 0.0]
    assert fractions[0, 3, 2:5].tolist() == [0.0, 0.125, 0.125]
    assert fractions.sum() == pytest.approx(1.75)


def test_where_polygons_overlap_the_later_one_counts():
    shapes = [Shape(pixel_box(0, 0, 4, 4), "below"), Shape(pixel_box(2, 2, 4, 4), "above")]
    fractions = class_fractions(shapes, ["below"], Window(0, 0, 6, 6), TRANSFORM)
    assert fractions[0].sum() == 12.0


def test_fractions_do_not_depend_on_how_the_memory_is_divided(monkeypatch):
    shapes = [Shape(pixel_box(1.3, 2.6, 9.1, 11.7), 1)]
    window = Window(2, 1, 20, 14)
    whole = class_fractions(shapes, [1], window, TRANSFORM)
    monkeypatch.setattr("engine.raster.burn.MAX_SAMPLES", 3 * 14 * 64)
    np.testing.assert_array_equal(class_fractions(shapes, [1], window, TRANSFORM), whole)
    assert whole.sum() == pytest.approx(9.1 * 11.7, rel=0.02)


def test_the_real_polygons_cover_what_was_counted(data_folder):
    path = data_folder / "berlin/LandCov_BerlinUrbanGradient.shp"
    shapes = read_shapes(str(path), "Level_2_ID", UTM33)
    grid = Affine(3.6, 0.0, 383469.97, 0.0, -3.6, 5818303.55)
    require_overlap(shapes, str(path), 660, 494, grid)
    values = sorted({shape.value for shape in shapes})
    counts = [
        int(burn_mask([s for s in shapes if s.value == v], Window(0, 0, 660, 494), grid).sum())
        for v in values
    ]
    assert counts == pytest.approx([14787, 20028, 8115, 13040, 453, 646], rel=0.01)

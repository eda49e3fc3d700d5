import re
from html import unescape

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.warp import transform as transform_points

from engine.errors import CancelledError, LabelError, OutputError, RequestError, SceneError
from engine.feedback import SilentFeedback
from engine.jobs.assess_accuracy import Request, assess_accuracy
from engine.raster.style import ClassInfo, ClassStyle
from engine.raster.tiles import Window
from engine.raster.writer import Grid, RasterWriter
from tests.engine.conftest import CRS, HEIGHT, TRANSFORM, WIDTH

CLASSES = (
    ClassInfo(1, "Roof", "#e31a1c"),
    ClassInfo(3, "Low vegetation", "#8fce5a"),
    ClassInfo(4, "Tree", "#1e7a34"),
)


class Listener(SilentFeedback):
    def __init__(self):
        self.warnings = []

    def warning(self, message):
        self.warnings.append(message)


def map_array():
    """Left third Roof, middle Low vegetation, right Tree; a row of nodata at the bottom."""
    array = np.empty((HEIGHT, WIDTH), np.uint8)
    array[:, :6], array[:, 6:12], array[:, 12:] = 1, 3, 4
    array[-1] = 0
    return array


@pytest.fixture
def class_map(tmp_path):
    path = str(tmp_path / "map.tif")
    grid = Grid(HEIGHT, WIDTH, TRANSFORM, rasterio.crs.CRS.from_string(CRS))
    with RasterWriter(path, grid, ["class"], "uint8", 0, style=ClassStyle(CLASSES)) as writer:
        writer.write(Window(0, 0, HEIGHT, WIDTH), map_array()[None])
    return path


def write_raster(path, array, *, crs=CRS, transform=TRANSFORM, nodata=None):
    profile = {
        "driver": "GTiff",
        "height": array.shape[0],
        "width": array.shape[1],
        "count": 1,
        "dtype": array.dtype.name,
        "crs": crs,
        "transform": transform,
        "nodata": nodata,
    }
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(array, 1)
    return str(path)


def box(left, top, right, bottom):
    """A polygon on the ground from (column, row) edges on the map."""
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return shapely.Polygon([TRANSFORM @ corner for corner in corners])


def write_shapes(path, geometries, values, *, crs=CRS):
    if crs != CRS:

        def project(points):
            return np.column_stack(transform_points(CRS, crs, points[:, 0], points[:, 1]))

        geometries = shapely.transform(np.asarray(geometries, object), project)
    pyogrio.raw.write(
        path,
        shapely.to_wkb(np.asarray(geometries, object)),
        [np.asarray(values)],
        ["class"],
        geometry_type=(shapely.get_type_id(geometries[0]).item() == 0 and "Point") or "Polygon",
        crs=crs,
    )
    return str(path)


def assess(class_map, reference, feedback=None, **parameters):
    request = Request.parse({"input": class_map, "reference": reference} | parameters)
    return assess_accuracy(request, feedback or SilentFeedback())


# Reference: 4 px of Roof on Roof; 6 px of Roof and 2 px of Tree on Low vegetation; 8 px of Tree
# on Tree. So 12 of 20 are right, and rows and columns of the matrix have different sums.
GEOMETRIES = (box(0, 0, 2, 2), box(6, 0, 9, 2), box(9, 4, 11, 5), box(12, 0, 16, 2))
VALUES = (1, 1, 4, 4)
ACCURACY = {
    "overall_accuracy": 12 / 20,
    "balanced_accuracy": (4 / 10 + 8 / 10) / 2,
    "pixels": 20,
}


def assert_accuracy(result):
    assert {name: result[name] for name in ACCURACY} == pytest.approx(ACCURACY)


@pytest.fixture
def polygons(tmp_path):
    return write_shapes(tmp_path / "reference.gpkg", GEOMETRIES, VALUES)


def test_polygons_are_compared_pixel_by_pixel(class_map, polygons):
    result = assess(class_map, polygons, class_field="class")
    assert_accuracy(result)
    # Worked by hand: expected agreement is 10/20 * 4/20 (Roof) + 10/20 * 8/20 (Tree).
    assert result["kappa"] == pytest.approx((0.6 - 0.3) / 0.7)
    assert result["f1_macro"] == pytest.approx((8 / 14 + 0 + 16 / 18) / 3)
    assert result["iou_macro"] == pytest.approx((4 / 10 + 0 + 8 / 10) / 3)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:25832"])
def test_reference_in_another_crs_is_reprojected(class_map, tmp_path, crs):
    reference = write_shapes(tmp_path / "other.gpkg", GEOMETRIES, VALUES, crs=crs)
    assert_accuracy(assess(class_map, reference, class_field="class"))


@pytest.mark.parametrize(
    "names",
    [
        ["Roof", "Roof", "Tree", "Tree"],
        ["roof ", " ROOF", "tree", "Tree"],
        ["1", "1", "4", "4.0"],
    ],
)
def test_text_is_matched_to_names_or_values_of_the_map(class_map, tmp_path, names):
    reference = write_shapes(tmp_path / "names.gpkg", GEOMETRIES, names)
    assert_accuracy(assess(class_map, reference, class_field="class"))


def test_raster_on_the_same_grid_is_compared(class_map, tmp_path):
    array = np.zeros((HEIGHT, WIDTH), np.uint8)
    array[:2, :2], array[:2, 6:9], array[4, 9:11], array[:2, 12:16] = 1, 1, 4, 4
    assert_accuracy(assess(class_map, write_raster(tmp_path / "reference.tif", array)))


def test_finer_raster_in_another_place_and_with_nodata_is_compared(class_map, tmp_path):
    fine = np.full((10 * HEIGHT, 10 * WIDTH), 255, np.uint8)
    for geometry, value in zip(
        [(0, 0, 2, 2), (6, 0, 9, 2), (9, 4, 11, 5), (12, 0, 16, 2)], VALUES, strict=True
    ):
        left, top, right, bottom = (10 * edge for edge in geometry)
        fine[top:bottom, left:right] = value
    transform = TRANSFORM @ Affine.scale(0.1) @ Affine.translation(-10, -10)
    moved = np.full((fine.shape[0] + 10, fine.shape[1] + 10), 255, np.uint8)
    moved[10:, 10:] = fine
    reference = write_raster(tmp_path / "fine.tif", moved, transform=transform, nodata=255)
    assert_accuracy(assess(class_map, reference))


def test_points_count_for_their_pixel(class_map, tmp_path):
    points = [shapely.Point(TRANSFORM @ place) for place in [(0.5, 0.5), (6.9, 0.1), (12.5, 3.5)]]
    reference = write_shapes(tmp_path / "points.gpkg", points, [1, 1, 4])
    result = assess(class_map, reference, class_field="class")
    assert (result["pixels"], result["overall_accuracy"]) == (3, pytest.approx(2 / 3))


def test_mixed_pixels_are_left_out(class_map, tmp_path):
    # Columns 0 and 1 whole, 70 % of column 2, 50 % of column 7 (which is wrong).
    shapes = [box(0, 0, 2.7, 1), box(7, 0, 7.5, 1)]
    reference = write_shapes(tmp_path / "edges.gpkg", shapes, [1, 1])
    result = assess(class_map, reference, class_field="class")
    assert (result["pixels"], result["overall_accuracy"]) == (3, 1)


def test_nodata_of_the_map_is_not_compared_but_told(class_map, tmp_path):
    reference = write_shapes(tmp_path / "low.gpkg", [box(0, HEIGHT - 2, 3, HEIGHT)], [1])
    listener = Listener()
    assert assess(class_map, reference, listener, class_field="class")["pixels"] == 3
    assert "3 pixels with a reference have no class in the map." in listener.warnings


def test_classes_of_one_side_only_are_named(class_map, tmp_path):
    shapes = [box(0, 0, 2, 2), box(2, 2, 4, 4)]
    reference = write_shapes(tmp_path / "water.gpkg", shapes, ["Roof", "Water"])
    listener = Listener()
    result = assess(class_map, reference, listener, class_field="class")
    assert result["overall_accuracy"] == 0.5
    text = " ".join(listener.warnings)
    assert "There is no reference for Low vegetation, Tree" in text
    assert "The map has no Water, the reference has." in text


def test_map_of_another_program_is_read_by_its_category_names(tmp_path):
    path = write_raster(tmp_path / "foreign.tif", map_array(), nodata=0)
    names = ["", "Roof", "", "Meadow", "Tree"]
    entries = "".join(f"<Category>{name}</Category>" for name in names)
    (tmp_path / "foreign.tif.aux.xml").write_text(
        f'<PAMDataset><PAMRasterBand band="1"><CategoryNames>{entries}</CategoryNames>'
        "</PAMRasterBand></PAMDataset>"
    )
    labels = ["Roof", "roof", "tree", "Tree"]
    reference = write_shapes(tmp_path / "names.gpkg", GEOMETRIES, labels)
    assert_accuracy(assess(path, reference, class_field="class"))


def test_map_without_any_names_is_compared_by_value(tmp_path, polygons):
    path = write_raster(tmp_path / "plain.tif", map_array().astype(np.uint16), nodata=0)
    report = tmp_path / "report.html"
    assert_accuracy(assess(path, polygons, class_field="class", report=str(report)))
    assert "class 4" in report.read_text("utf-8")


def test_names_that_the_map_does_not_have_are_refused(class_map, tmp_path):
    reference = write_shapes(tmp_path / "sea.gpkg", [box(0, 0, 2, 2)], ["Sea"])
    with pytest.raises(LabelError, match=r"the classes 'Sea', and the map has 'Roof', 'Low veg"):
        assess(class_map, reference, class_field="class")


def test_reference_elsewhere_is_refused(class_map, tmp_path):
    reference = write_shapes(tmp_path / "far.gpkg", [box(500, 500, 510, 510)], [1])
    with pytest.raises(LabelError, match="does not overlap"):
        assess(class_map, reference, class_field="class")


def test_reference_on_nodata_alone_is_refused(class_map, tmp_path):
    reference = write_shapes(tmp_path / "low.gpkg", [box(0, HEIGHT - 1, 3, HEIGHT)], [1])
    with pytest.raises(LabelError, match="no class at any of the 3 pixels"):
        assess(class_map, reference, class_field="class")


def test_reference_of_mixed_pixels_alone_is_refused(class_map, tmp_path):
    reference = write_shapes(tmp_path / "thin.gpkg", [box(0, 0, 0.5, 3)], [1])
    with pytest.raises(LabelError, match="All 3 pixels with a reference are mixed"):
        assess(class_map, reference, class_field="class")


def test_vector_needs_a_field(class_map, polygons):
    with pytest.raises(LabelError, match="class field"):
        assess(class_map, polygons)


def test_unknown_field_is_refused_with_those_there_are(class_map, polygons):
    with pytest.raises(LabelError, match="Its fields are: class"):
        assess(class_map, polygons, class_field="klasse")


def test_missing_reference_is_refused(class_map, tmp_path):
    with pytest.raises(LabelError, match=r"missing\.gpkg"):
        assess(class_map, str(tmp_path / "missing.gpkg"), class_field="class")


def test_raster_of_measurements_is_no_class_map(tmp_path, polygons):
    path = write_raster(tmp_path / "float.tif", map_array().astype(np.float32))
    with pytest.raises(SceneError, match="is no class map: its values are float32"):
        assess(path, polygons, class_field="class")


def test_map_itself_is_no_reference(class_map):
    with pytest.raises(LabelError, match="same file"):
        assess(class_map, class_map)


def test_report_cannot_replace_the_map(class_map, polygons):
    with pytest.raises(OutputError):
        assess(class_map, polygons, class_field="class", report=class_map)


def test_unknown_parameter_is_refused():
    with pytest.raises(RequestError, match="field"):
        Request.parse({"input": "a", "reference": "b", "field": "class"})


def test_cancel_leaves_no_report(class_map, polygons, tmp_path):
    class Cancelled(SilentFeedback):
        def raise_if_cancelled(self):
            raise CancelledError

    report = tmp_path / "report.html"
    with pytest.raises(CancelledError):
        assess(class_map, polygons, Cancelled(), class_field="class", report=str(report))
    assert not report.exists()


@pytest.fixture
def report(class_map, polygons, tmp_path):
    path = str(tmp_path / "report.html")
    result = assess(class_map, polygons, class_field="class", report=path)
    assert result["report"] == path
    return (tmp_path / "report.html").read_text("utf-8")


def rows_of(html):
    """The rows of all tables, as tuples of text."""
    rows = re.findall(r"<tr>(.*?)</tr>", html, flags=re.DOTALL)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, flags=re.DOTALL) for row in rows]
    return [
        tuple(unescape(re.sub(r"<[^>]+>", "", cell)).replace("\xa0", " ").strip() for cell in row)
        for row in cells
    ]


def test_report_has_the_reference_in_rows_and_the_map_in_columns(report):
    rows = rows_of(report)
    assert ("reference \\ map", "Roof", "Low vegetation", "Tree", "total") in rows
    assert ("Roof", "4", "6", "0", "10") in rows
    assert ("Tree", "0", "2", "8", "10") in rows


def test_report_has_the_scores_of_each_class(report):
    rows = rows_of(report)
    assert ("Roof", "40.0 %", "100.0 %", "0.571", "0.400", "10", "4") in rows
    assert ("Low vegetation", "\u2013", "0.0 %", "0.000", "0.000", "0", "8") in rows


def test_report_has_areas_in_hectares(report):
    pixel_ha = 30 * 20 / 10_000
    mapped = [6 * 23, 6 * 23, 5 * 23]
    # Of what is mapped as Low vegetation 6 of 8 are Roof and 2 Tree; the others are as mapped.
    roof_px, tree_px = mapped[0] + mapped[1] * 6 / 8, mapped[2] + mapped[1] * 2 / 8
    by_name = {row[0]: row for row in rows_of(report) if len(row) == 5}
    assert by_name["Roof"][3] == f"{mapped[0] * pixel_ha:.1f}"
    assert by_name["Roof"][4].startswith(f"{roof_px * pixel_ha:.1f} ±")
    assert by_name["Tree"][4].startswith(f"{tree_px * pixel_ha:.1f} ±")


def test_report_says_how_pixels_were_counted(report):
    assert "covers at least 60 % of it" in report
    assert "reference.gpkg" in report


def test_map_in_degrees_has_shares_and_no_hectares(tmp_path):
    transform = Affine(0.001, 0, 13, 0, -0.001, 52)
    path = write_raster(tmp_path / "degrees.tif", map_array(), crs="EPSG:4326", transform=transform)
    reference = np.zeros((HEIGHT, WIDTH), np.uint8)
    reference[:2] = map_array()[:2]
    known = write_raster(tmp_path / "known.tif", reference, crs="EPSG:4326", transform=transform)
    report = tmp_path / "report.html"
    assert assess(path, known, report=str(report))["overall_accuracy"] == 1
    html = report.read_text("utf-8")
    assert "share,<br>corrected" in html
    assert "ha,<br>corrected" not in html


def test_large_map_is_compared_in_windows(tmp_path):
    generator = np.random.default_rng(0)
    array = generator.integers(0, 4, (300, 530)).astype(np.uint8)
    known = generator.integers(0, 4, (300, 530)).astype(np.uint8)
    both = (array > 0) & (known > 0)
    result = assess(
        write_raster(tmp_path / "map.tif", array), write_raster(tmp_path / "known.tif", known)
    )
    assert result["pixels"] == np.count_nonzero(both)
    assert result["overall_accuracy"] == pytest.approx((array == known)[both].mean())


def test_berlin_polygons_against_their_own_raster(data_folder):
    folder = data_folder / "berlin"
    class_map = folder / "derived" / "landcover_L2_30m_majority60.tif"
    polygons = folder / "LandCov_BerlinUrbanGradient.shp"
    result = assess(str(class_map), str(polygons), class_field="Level_2_ID")
    assert result["overall_accuracy"] > 0.98

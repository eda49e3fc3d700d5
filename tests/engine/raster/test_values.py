import numpy as np
import pytest
import rasterio
import rasterio.warp
import shapely

from engine.errors import LabelError
from engine.raster import burn as burn_module
from engine.raster import values as values_module
from engine.raster.scene import open_scene
from engine.raster.tiles import Window
from engine.raster.values import open_values
from tests.engine.conftest import HEIGHT, TRANSFORM, WIDTH
from tests.engine.raster.test_labels import write_labels
from tests.engine.raster.test_vector import pixel_box, write_layer


@pytest.fixture
def scene(make_raster):
    return open_scene(make_raster(scale=1e-4).path)


def means(source, scene, field="class"):
    values = open_values(source, field, scene.crs)
    return values.on(scene).means(Window(0, 0, HEIGHT, WIDTH))


def point(col, row):
    return shapely.Point(TRANSFORM @ (col + 0.5, row + 0.5))


def boxes(*values):
    """Polygons of one pixel each, in a row."""
    return [pixel_box(col, 3, 1, 1) for col in range(len(values))], list(values)


def layer(tmp_path, *values, name="values.gpkg"):
    geometries, column = boxes(*values)
    return write_layer(tmp_path / name, geometries, values=column)


def test_a_polygon_gives_its_value_to_what_it_covers(tmp_path, scene):
    source = write_layer(
        tmp_path / "v.gpkg", [pixel_box(2, 3, 1.5, 1), pixel_box(6, 3, 1, 1)], values=[2.5, -4.0]
    )
    value, known = means(source, scene)
    np.testing.assert_allclose(value[3, [2, 3, 6]], [2.5, 2.5, -4.0])
    np.testing.assert_allclose(known[3, 2:5], [1, 0.5, 0], atol=0.01)
    assert known.sum() == pytest.approx(2.5, abs=0.01)


def test_two_polygons_in_a_pixel_give_their_mean_by_area(tmp_path, scene):
    source = write_layer(
        tmp_path / "v.gpkg", [pixel_box(2, 3, 0.5, 1), pixel_box(2.5, 3, 0.5, 1)], values=[1.0, 3.0]
    )
    value, known = means(source, scene)
    assert value[3, 2] == pytest.approx(2.0)
    assert known[3, 2] == 1.0


def test_points_give_their_mean_to_the_whole_pixel(tmp_path, scene):
    source = write_layer(
        tmp_path / "v.gpkg", [point(4, 7), point(4, 7), point(1, 2)], values=[1.0, 2.0, 9.0]
    )
    value, known = means(source, scene)
    assert (value[7, 4], value[2, 1]) == (1.5, 9.0)
    assert known.sum() == 2.0


def test_a_window_has_what_the_whole_has_there(tmp_path, scene):
    source = write_layer(tmp_path / "v.gpkg", [point(4, 7), point(1, 2)], values=[1.0, 2.0])
    part = open_values(source, "class", scene.crs).on(scene).means(Window(6, 3, 4, 5))
    for found, whole in zip(part, means(source, scene), strict=True):
        np.testing.assert_array_equal(found, whole[6:10, 3:8])


def test_a_finer_raster_is_averaged_and_its_gaps_are_not_known(tmp_path, scene):
    fine = np.full((HEIGHT * 2, WIDTH * 2), np.nan, np.float32)
    fine[6:8, 4:6] = [[1.0, 2.0], [3.0, 6.0]]
    fine[6, 6] = 5.0
    scaled = TRANSFORM @ rasterio.Affine.scale(0.5)
    value, known = means(write_labels(tmp_path / "v.tif", fine, scaled), scene, None)
    assert (value[3, 2], known[3, 2]) == (3.0, 1.0)
    assert (value[3, 3], known[3, 3]) == (5.0, 0.25)
    assert known.sum() == 1.25


def test_a_raster_says_with_its_nodata_where_it_knows_nothing(tmp_path, scene):
    array = np.full((HEIGHT, WIDTH), -32768, np.int16)
    array[2, :3] = [0, 10, -5]
    _value, known = means(write_labels(tmp_path / "v.tif", array, nodata=-32768), scene, None)
    assert known.sum() == 3.0


def test_a_raster_has_its_scale_and_offset(tmp_path, scene):
    array = np.arange(HEIGHT * WIDTH, dtype=np.int16).reshape(HEIGHT, WIDTH)
    source = write_labels(tmp_path / "v.tif", array)
    with rasterio.open(source, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.5,), (-3.0,)
    value, _known = means(source, scene, None)
    np.testing.assert_allclose(value, array * 0.5 - 3.0)


def test_text_is_refused_with_the_text(tmp_path, scene):
    with pytest.raises(LabelError, match=r"holds '12\.5 g', which is no number"):
        means(layer(tmp_path, "12.5 g", "7"), scene)


def test_the_same_value_everywhere_is_refused(tmp_path, scene):
    with pytest.raises(LabelError, match=r"is 2\.5 everywhere"):
        means(layer(tmp_path, 2.5, 2.5, 2.5), scene)
    constant = write_labels(tmp_path / "c.tif", np.full((HEIGHT, WIDTH), 7, np.uint8))
    with pytest.raises(LabelError, match="is 7 everywhere"):
        means(constant, scene, None)


def test_features_without_a_value_are_left_out(tmp_path, scene):
    _value, known = means(layer(tmp_path, 1.0, np.nan, 3.0), scene)
    assert known.sum() == 2.0


def test_infinite_values_are_left_out_and_counted(tmp_path, scene):
    values = open_values(layer(tmp_path, 1.0, np.inf, 3.0), "class", scene.crs)
    assert any("infinite in 1 features" in note for note in values.notes)
    assert values.on(scene).means(Window(0, 0, HEIGHT, WIDTH))[1].sum() == 2.0


def test_no_value_at_all_is_refused(tmp_path, scene):
    with pytest.raises(LabelError, match=r"field 'class' of .* is empty"):
        means(layer(tmp_path, np.nan, np.nan), scene)
    nothing = np.full((HEIGHT, WIDTH), np.nan, np.float32)
    with pytest.raises(LabelError, match="holds no finite number"):
        means(write_labels(tmp_path / "n.tif", nothing), scene, None)


def test_a_number_that_often_means_nothing_was_measured_is_warned_about(tmp_path, scene):
    suspect = open_values(layer(tmp_path, -9999.0, 3.0, 12.0), "class", scene.crs)
    assert any("-9999" in note for note in suspect.notes)
    plain = open_values(layer(tmp_path, -99.0, -120.0, 3.0, name="p.gpkg"), "class", scene.crs)
    assert plain.notes == ()


def test_a_layer_without_its_field_is_refused(tmp_path, scene):
    with pytest.raises(LabelError, match=r"value field of .* is not given"):
        means(layer(tmp_path, 1.0, 2.0), scene, None)
    with pytest.raises(LabelError, match="no field 'soc'"):
        means(layer(tmp_path, 1.0, 2.0, name="b.gpkg"), scene, "soc")


def test_values_elsewhere_are_refused(tmp_path, scene):
    far = write_layer(tmp_path / "far.gpkg", [point(900, 900), point(901, 9)], values=[1.0, 2.0])
    with pytest.raises(LabelError, match="does not overlap"):
        means(far, scene)


def test_a_layer_in_another_crs_is_brought_to_the_scene(tmp_path, scene):
    xs, ys = [], []
    for mark in (point(4, 7), point(1, 2)):
        (x,), (y,) = rasterio.warp.transform(scene.crs, "EPSG:4326", [mark.x], [mark.y])
        xs.append(x)
        ys.append(y)
    points = [shapely.Point(x, y) for x, y in zip(xs, ys, strict=True)]
    source = write_layer(tmp_path / "v.gpkg", points, values=[1.0, 2.0], crs="EPSG:4326")
    value, known = means(source, scene)
    assert (value[7, 4], value[2, 1], known.sum()) == (1.0, 2.0, 2.0)


def test_a_raster_of_complex_numbers_is_refused(tmp_path, scene):
    source = write_labels(tmp_path / "c.tif", np.ones((HEIGHT, WIDTH), np.complex64))
    with pytest.raises(LabelError, match="holds complex64 values"):
        means(source, scene, None)


@pytest.mark.parametrize("kind", ["polygons", "raster"])
def test_a_window_that_is_read_in_parts_is_the_same(tmp_path, scene, monkeypatch, kind):
    fine = np.arange(HEIGHT * WIDTH * 4, dtype=np.float32).reshape(HEIGHT * 2, WIDTH * 2)
    if kind == "raster":
        scaled = TRANSFORM @ rasterio.Affine.scale(0.5)
        source, module = write_labels(tmp_path / "v.tif", fine, scaled), values_module
    else:
        boxes_of = [pixel_box(2.3, row + 0.4, 3.2, 1) for row in range(0, HEIGHT, 2)]
        source = write_layer(tmp_path / "v.gpkg", boxes_of, values=np.arange(len(boxes_of)) + 0.5)
        module = burn_module
    whole = means(source, scene)
    monkeypatch.setattr(module, "MAX_VALUES", WIDTH * 5)
    for found, expected in zip(means(source, scene), whole, strict=True):
        np.testing.assert_array_equal(found, expected)

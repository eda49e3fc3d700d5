import json
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine

from engine.device import choose_device
from engine.errors import (
    BandMatchError,
    BandTableError,
    LabelError,
    RequestError,
)
from engine.feedback import SilentFeedback
from engine.jobs.classify import classify
from engine.jobs.shared import prediction as street
from engine.version import engine_version
from tests.engine.conftest import BANDS, CRS, FWHM_NM, HEIGHT, TRANSFORM, WAVELENGTH_NM, WIDTH
from tests.engine.jobs.brightest import CLASSES, NODATA, Listener, brightest_scene, left_in, read


def test_every_pixel_gets_its_class_and_nodata_stays(request_of, expected):
    result = classify(request_of(), SilentFeedback())
    np.testing.assert_array_equal(read(result["output"])[0], expected)
    assert result["valid_pixels"] == np.count_nonzero(expected) == HEIGHT * WIDTH - 20
    assert result["device"] == str(choose_device().device)
    assert result["seconds"] > 0


def test_map_has_the_grid_of_the_scene(request_of, scene):
    result = classify(request_of(), SilentFeedback())
    with rasterio.open(scene) as before, rasterio.open(result["output"]) as after:
        assert after.crs == before.crs
        assert after.transform == before.transform
        assert after.shape == before.shape
        assert (after.dtypes, after.nodata) == (("uint8",), 0)


def test_map_carries_names_colours_and_style(request_of):
    result = classify(request_of(), SilentFeedback())
    with rasterio.open(result["output"]) as dataset:
        assert dataset.colormap(1)[7][:3] == (0x8F, 0xCE, 0x5A)
        assert [entry["name"] for entry in json.loads(dataset.tags()["CLASSES"])] == [
            "Water",
            "Meadow",
            "Roof",
        ]
    assert "Meadow" in Path(result["output"] + ".aux.xml").read_text("utf-8")
    assert "Meadow" in Path(result["output"]).with_suffix(".qml").read_text("utf-8")


def test_tags_tell_where_the_map_comes_from(request_of, scene):
    request = request_of(tile_size=64)
    result = classify(request, SilentFeedback())
    with rasterio.open(result["output"]) as dataset:
        tags = dataset.tags()
    assert tags["MODEL"] == "brightest"
    assert len(tags["MODEL_SHA256"]) == 64
    assert tags["ENGINE_VERSION"] == engine_version()
    assert json.loads(tags["PARAMETERS"]) == request.model_dump(exclude_none=True)
    rows = json.loads(tags["BAND_MATCHING"])
    assert len(rows) == BANDS
    assert rows[0]["action"] == "same"


def test_shares_are_probabilities_with_nan_where_there_is_no_class(request_of, tmp_path, expected):
    paths = {name: str(tmp_path / f"{name}.tif") for name in ("confidence", "probabilities")}
    result = classify(request_of(**paths), SilentFeedback())
    assert {name: result[name] for name in paths} == paths
    confidence, probabilities = read(paths["confidence"]), read(paths["probabilities"])
    invalid = expected == 0
    assert np.isnan(confidence[0][invalid]).all()
    assert np.isnan(probabilities[:, invalid]).all()
    shares = probabilities[:, ~invalid]
    np.testing.assert_allclose(shares.sum(axis=0), 1, rtol=1e-5)
    np.testing.assert_array_equal(confidence[0][~invalid], shares.max(axis=0))
    values = np.array([info.value for info in CLASSES])
    np.testing.assert_array_equal(values[shares.argmax(axis=0)], expected[~invalid])
    with rasterio.open(paths["probabilities"]) as dataset:
        assert dataset.descriptions == ("Water", "Meadow", "Roof")
        assert np.isnan(dataset.nodata)


def test_outputs_not_asked_for_are_not_made(request_of, tmp_path):
    result = classify(request_of(), SilentFeedback())
    assert set(result) == {"output", "valid_pixels", "seconds", "device"}
    assert left_in(tmp_path / "out") == ["map.qml", "map.tif", "map.tif.aux.xml"]


def test_extent_crops_on_the_scenes_grid(request_of, expected):
    left, top = TRANSFORM @ (3, 2)
    right, bottom = TRANSFORM @ (9, 20)
    result = classify(request_of(extent=(left, bottom, right, top)), SilentFeedback())
    np.testing.assert_array_equal(read(result["output"])[0], expected[2:20, 3:9])
    with rasterio.open(result["output"]) as dataset:
        assert dataset.transform.almost_equals(TRANSFORM @ Affine.translation(3, 2))


def test_extent_works_with_a_model_that_sees_its_surroundings(request_of, save_model, tmp_path):
    left, top = TRANSFORM @ (8, 2)
    right, bottom = TRANSFORM @ (11, 20)
    shares = str(tmp_path / "shares.tif")
    request = request_of(
        model=save_model(gate=1.0), extent=(left, bottom, right, top), probabilities=shares
    )
    classify(request, SilentFeedback())
    assert read(shares).shape == (3, 18, 3)
    np.testing.assert_allclose(read(shares).sum(axis=0), 1, rtol=1e-5)


def test_extent_beside_the_scene_is_refused(request_of, tmp_path):
    with pytest.raises(RequestError, match="lies outside the scene"):
        classify(request_of(extent=(0, 0, 1, 1)), SilentFeedback())
    assert left_in(tmp_path / "out") == []


def write_polygon(path, corners, crs=CRS):
    geometry = shapely.Polygon([TRANSFORM @ corner for corner in corners])
    if crs != CRS:
        from rasterio.warp import transform

        xs, ys = transform(CRS, crs, *np.array(geometry.exterior.coords).T)
        geometry = shapely.Polygon(zip(xs, ys, strict=True))
    pyogrio.raw.write(
        path,
        np.array([shapely.to_wkb(geometry)]),
        [],
        [],
        geometry_type="Polygon",
        crs=crs,
    )
    return str(path)


@pytest.mark.parametrize("crs", [CRS, "EPSG:4326"])
def test_mask_keeps_the_pixels_inside(request_of, tmp_path, expected, crs):
    square = [(6, 5), (12, 5), (12, 15), (6, 15)]
    mask = write_polygon(tmp_path / "mask.gpkg", square, crs)
    result = classify(request_of(mask=mask), SilentFeedback())
    inside = np.zeros_like(expected, bool)
    inside[5:15, 6:12] = True
    np.testing.assert_array_equal(read(result["output"])[0], np.where(inside, expected, 0))
    assert result["valid_pixels"] == 60


def test_mask_beside_the_extent_is_refused(request_of, tmp_path):
    mask = write_polygon(tmp_path / "mask.gpkg", [(10, 15), (12, 15), (12, 18), (10, 18)])
    left, top = TRANSFORM @ (0, 0)
    right, bottom = TRANSFORM @ (8, 8)
    with pytest.raises(LabelError, match="does not overlap"):
        classify(request_of(mask=mask, extent=(left, bottom, right, top)), SilentFeedback())


def test_bands_are_found_by_wavelength_not_by_order(request_of, make_raster, expected):
    array, _classes = brightest_scene()
    backwards = make_raster(
        "backwards.tif",
        array=array[::-1],
        wavelength_nm=WAVELENGTH_NM[::-1],
        scale=1e-4,
        nodata=NODATA,
        nodata_corner=True,
    )
    listener = Listener()
    result = classify(request_of(input=backwards.path), listener)
    np.testing.assert_array_equal(read(result["output"])[0], expected)
    assert any("scene band(s)" in message for message in listener.infos)


def test_as_many_bands_elsewhere_in_the_spectrum_are_refused(request_of, make_raster):
    other = make_raster("swir.tif", wavelength_nm=WAVELENGTH_NM + 1000)
    with pytest.raises(BandMatchError, match="between 450 and 1000 nm"):
        classify(request_of(input=other.path), SilentFeedback())


def test_scene_without_wavelengths_is_refused(request_of, make_raster):
    plain = make_raster("plain.tif", wavelength_nm=None, fwhm_nm=None)
    with pytest.raises(BandTableError, match="has no wavelengths"):
        classify(request_of(input=plain.path), SilentFeedback())


def test_scene_without_crs_is_mapped_with_a_warning(request_of, make_raster):
    array, _classes = brightest_scene()
    nowhere = make_raster("nowhere.tif", array=array, scale=1e-4, crs=None)
    listener = Listener()
    result = classify(request_of(input=nowhere.path), listener)
    assert any("has no CRS" in message for message in listener.warnings)
    with rasterio.open(result["output"]) as dataset:
        assert dataset.crs is None


def test_several_files_are_one_scene(request_of, make_raster, expected):
    array, _classes = brightest_scene()
    files = [
        make_raster(
            f"band{i}.tif",
            array=array[i : i + 1],
            wavelength_nm=WAVELENGTH_NM[i : i + 1],
            fwhm_nm=FWHM_NM[i : i + 1],
            scale=1e-4,
            nodata=NODATA,
            nodata_corner=True,
        ).path
        for i in range(BANDS)
    ]
    result = classify(request_of(input=files), SilentFeedback())
    np.testing.assert_array_equal(read(result["output"])[0], expected)


def test_pixel_of_nodata_in_one_band_only_has_no_class(request_of, make_raster, expected):
    array, _classes = brightest_scene()
    array[7, 20, 3] = NODATA
    holes = make_raster("holes.tif", array=array, scale=1e-4, nodata=NODATA, nodata_corner=True)
    result = classify(request_of(input=holes.path), SilentFeedback())
    expected[20, 3] = 0
    np.testing.assert_array_equal(read(result["output"])[0], expected)


def test_scene_of_nothing_but_nodata_is_a_map_of_nodata_with_a_warning(request_of, make_raster):
    empty = make_raster(
        "empty.tif", array=np.full((BANDS, 1, 5), NODATA, np.int16), nodata=NODATA, scale=1e-4
    )
    listener = Listener()
    result = classify(request_of(input=empty.path), listener)
    assert result["valid_pixels"] == 0
    np.testing.assert_array_equal(read(result["output"]), np.zeros((1, 1, 5)))
    assert any("No pixel has a class" in message for message in listener.warnings)


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 1), (3, 70)])
def test_odd_sizes_are_mapped_whole(request_of, make_raster, shape):
    array = np.full((BANDS, *shape), 700, np.int16)
    array[1] = 5000
    odd = make_raster("odd.tif", array=array, scale=1e-4)
    result = classify(request_of(input=odd.path), SilentFeedback())
    assert (read(result["output"]) == 7).all()


def test_tile_size_changes_nothing(request_of, tmp_path):
    maps = [
        read(classify(request_of(tile_size=size), SilentFeedback())["output"]) for size in (16, 512)
    ]
    np.testing.assert_array_equal(*maps)


def test_log_has_the_device_first_then_model_bands_and_speed(request_of):
    listener = Listener()
    classify(request_of(device="cpu"), listener)
    assert listener.infos[0].startswith("Device: cpu (The CPU was asked for")
    text = "\n".join(listener.infos)
    for part in ("The brightest of three", "SHA-256", "Precision: ", "Mpx/s", "Meadow: "):
        assert part in text


def test_gpu_that_is_wished_for_and_missing_is_warned_about(request_of, monkeypatch):
    cpu = choose_device("cpu")
    monkeypatch.setattr(street, "choose_device", lambda *_: cpu)
    listener = Listener()
    classify(request_of(device="cuda"), listener)
    assert listener.warnings[0].startswith("Device: cpu")


@pytest.mark.parametrize(
    ("training", "wish", "used"),
    [
        ({}, "auto", "float32"),
        ({"bfloat16_agreement": 0.99}, "auto", "float32"),
        ({"bfloat16_agreement": 0.9995}, "auto", "bfloat16"),
        ({}, "bfloat16", "bfloat16"),
        ({"bfloat16_agreement": 1.0}, "float32", "float32"),
    ],
)
def test_bfloat16_is_used_where_it_was_measured_to_agree(
    request_of, save_model, monkeypatch, training, wish, used
):
    fast = choose_device("cpu", precision="bfloat16" if wish == "auto" else wish)
    monkeypatch.setattr(street, "choose_device", lambda *_: fast)
    listener = Listener()
    classify(request_of(model=save_model(training=training), precision=wish), listener)
    assert f"Precision: {used}" in listener.infos


def test_progress_moves_from_0_to_1(request_of):
    listener = Listener()
    classify(request_of(), listener)
    assert listener.fractions == sorted(listener.fractions)
    assert (listener.fractions[0], listener.fractions[-1]) == (0, 1)

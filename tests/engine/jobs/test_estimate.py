import json
from pathlib import Path

import numpy as np
import pytest
import rasterio

from engine.errors import BandMatchError, CancelledError, LabelError, OutputError, PackageError
from engine.feedback import SilentFeedback
from engine.jobs.estimate import Request, estimate
from engine.packages.metadata import Quantity
from engine.packages.package import save_package
from tests.engine.conftest import BANDS, TRANSFORM
from tests.engine.jobs.brightest import Listener, info_of, left_in, model_of
from tests.engine.jobs.regression_scene import band_model
from tests.engine.raster.test_vector import pixel_box, write_layer

NODATA = -99
HEIGHT, WIDTH = 20, 14


@pytest.fixture
def array():
    rng = np.random.default_rng(0)
    values = rng.integers(500, 6000, (BANDS, HEIGHT, WIDTH)).astype(np.int16)
    values[:, :4, :5] = NODATA
    return values


@pytest.fixture
def request_of(tmp_path, make_raster, array):
    (tmp_path / "out").mkdir()
    scene = make_raster(array=array, scale=1e-4, nodata=NODATA).path

    def make(model=None, **parameters):
        network, info = model or band_model(factor=100.0)
        package = str(save_package(str(tmp_path / "model"), info, network.state_dict()))
        given = {"input": scene, "model": package, "output": str(tmp_path / "out" / "clay.tif")}
        return Request.parse(given | {"device": "cpu"} | parameters)

    return make


def read(path):
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def test_every_pixel_gets_its_value_and_nodata_stays(request_of, array):
    result = estimate(request_of(), SilentFeedback())
    values = read(result["output"])
    assert np.isnan(values[:4, :5]).all()
    np.testing.assert_allclose(values[4:], array[0, 4:] * 1e-2, rtol=1e-5)
    assert result["valid_pixels"] == HEIGHT * WIDTH - 20
    assert result["device"] == "cpu" and result["seconds"] > 0


def test_the_map_says_what_its_numbers_are(request_of):
    result = estimate(request_of(), SilentFeedback())
    with rasterio.open(result["output"]) as dataset:
        assert (dataset.descriptions, dataset.units) == (("clay",), ("%",))
        assert dataset.dtypes == ("float32",) and np.isnan(dataset.nodata)
        tags = dataset.tags()
    assert (tags["QUANTITY"], tags["TRAINING_RANGE"]) == ("clay", "5 45")
    assert json.loads(tags["PARAMETERS"])["device"] == "cpu"
    assert len(tags["MODEL_SHA256"]) == 64


def test_the_style_spans_the_range_of_the_training(request_of):
    result = estimate(request_of(), SilentFeedback())
    style = Path(result["output"]).with_suffix(".qml").read_text("utf-8")
    assert 'classificationMin="5"' in style and 'classificationMax="45"' in style


def test_a_quantity_without_a_unit_has_none(request_of):
    model = band_model(quantity=Quantity("share", "", 0.0, 1.0))
    result = estimate(request_of(model), SilentFeedback())
    with rasterio.open(result["output"]) as dataset:
        assert not dataset.units[0]
        assert "QUANTITY_UNIT" not in dataset.tags()


def test_values_outside_the_training_range_are_kept_counted_and_warned_about(request_of, array):
    listener = Listener()
    result = estimate(request_of(), listener)
    values = read(result["output"])
    expected = np.mean((values[np.isfinite(values)] < 5) | (values[np.isfinite(values)] > 45))
    assert result["outside_share"] == pytest.approx(expected)
    assert values[np.isfinite(values)].max() > 45
    (warning,) = [text for text in listener.warnings if "outside" in text]
    assert "5 to 45 %" in warning and f"{expected:.1%}" in warning


def test_values_inside_the_training_range_are_worth_no_warning(request_of):
    listener = Listener()
    model = band_model(quantity=Quantity("clay", "%", -1.0, 100.0), factor=100.0)
    assert estimate(request_of(model), listener)["outside_share"] == 0.0
    assert not any("outside" in text for text in listener.warnings)


def test_values_beyond_what_numbers_can_hold_are_nodata_and_told(request_of, array):
    listener = Listener()
    network, info = band_model(factor=1e36)
    network.spectral.weight.data[0, 0] = 1e3
    result = estimate(request_of((network, info)), listener)
    too_large = int((array[0] * 1e-4 * 1e39 > np.finfo(np.float32).max).sum())
    assert 0 < too_large == HEIGHT * WIDTH - 20 - result["valid_pixels"]
    assert any(f"{too_large:,} pixels have spectra so far" in text for text in listener.warnings)


def test_extent_and_mask_limit_the_map(request_of, tmp_path, array):
    west, north = TRANSFORM @ (2, 5)
    east, south = TRANSFORM @ (9, 12)
    extent = (min(west, east), min(north, south), max(west, east), max(north, south))
    mask = write_layer(tmp_path / "mask.gpkg", [pixel_box(4, 6, 3, 2, TRANSFORM)])
    result = estimate(request_of(extent=extent, mask=mask), SilentFeedback())
    values = read(result["output"])
    assert values.shape == (7, 7)
    assert result["valid_pixels"] == 6
    np.testing.assert_allclose(values[1:3, 2:5], array[0, 6:8, 4:7] * 1e-2, rtol=1e-5)


def test_a_mask_elsewhere_is_refused(request_of, tmp_path):
    mask = write_layer(tmp_path / "mask.gpkg", [pixel_box(900, 6, 3, 2, TRANSFORM)])
    with pytest.raises(LabelError, match="does not overlap"):
        estimate(request_of(mask=mask), SilentFeedback())


def test_tiles_do_not_change_the_values(request_of):
    whole = read(estimate(request_of(), SilentFeedback())["output"])
    tiled = read(estimate(request_of(tile_size=16), SilentFeedback())["output"])
    np.testing.assert_array_equal(whole, tiled)


def test_a_classifier_is_refused_and_its_algorithm_named(request_of, tmp_path):
    model = model_of()
    with pytest.raises(PackageError, match="is for classification, not for estimates") as refusal:
        estimate(request_of((model, info_of(model))), SilentFeedback())
    assert "'Classify land cover' takes this one" in refusal.value.remedy
    assert left_in(tmp_path / "out") == []


def test_a_scene_without_the_models_bands_is_refused(request_of, make_raster):
    short = make_raster("short.tif", array=np.ones((3, 8, 8), np.int16), scale=1e-4).path
    with pytest.raises(BandMatchError):
        estimate(request_of(input=short), SilentFeedback())


def test_an_output_over_the_scene_is_refused(request_of):
    request = request_of()
    with pytest.raises(OutputError, match="also an input"):
        estimate(request_of(output=request.input), SilentFeedback())


@pytest.mark.parametrize("cancel_at", [0.0, 0.02, 0.95])
def test_a_cancelled_run_leaves_nothing(request_of, tmp_path, cancel_at):
    with pytest.raises(CancelledError):
        estimate(request_of(), Listener(cancel_at=cancel_at))
    assert left_in(tmp_path / "out") == []


def test_nothing_valid_is_a_warning(request_of, make_raster):
    listener = Listener()
    empty = np.full((BANDS, HEIGHT, WIDTH), NODATA, np.int16)
    source = make_raster("empty.tif", array=empty, scale=1e-4, nodata=NODATA).path
    assert estimate(request_of(input=source), listener)["valid_pixels"] == 0
    assert any("No pixel has a value" in text for text in listener.warnings)


def test_a_model_that_sees_the_neighbourhood_is_blended(request_of, array):
    network, info = band_model(factor=100.0, gate=0.5)
    network.head.classes.bias.data.fill_(0.02)  # what the encoder adds: the same everywhere
    result = estimate(request_of((network, info)), SilentFeedback())
    values = read(result["output"])
    np.testing.assert_allclose(values[4:], array[0, 4:] * 1e-2 + 1.0, rtol=1e-4)

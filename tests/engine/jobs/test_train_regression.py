"""Regression through the jobs: from rasters and values to a package, a report and a map."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import torch

from engine.errors import (
    BandMatchError,
    CancelledError,
    LabelError,
    OutputError,
    PackageError,
    RequestError,
)
from engine.feedback import SilentFeedback
from engine.jobs import estimate as estimating
from engine.jobs.train_regression import Request, train_regression
from engine.models.backbone import BackboneConfig, HyperKDBackbone
from engine.packages.package import load_package, save_package
from tests.engine.conftest import BANDS, TRANSFORM, write_raster
from tests.engine.jobs.brightest import info_of, model_of
from tests.engine.jobs.regression_scene import (
    PATCH_PX,
    SIDE_PX,
    band_model,
    clay_map,
    clay_polygons,
    clay_scene,
)
from tests.engine.jobs.test_train_classifier import Recorder
from tests.engine.raster.test_labels import write_labels
from tests.engine.raster.test_vector import pixel_box, write_layer

# Those marked as slow train a model each.
SAMPLE = Path(__file__).parents[3] / "resources" / "sample"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def scene(make_raster):
    return make_raster(array=clay_scene(), scale=1e-4, nodata=-99).path


@pytest.fixture
def train(tmp_path, scene):
    (tmp_path / "out").mkdir()

    def run(feedback=None, **parameters):
        given = {
            "input": scene,
            "training": clay_polygons(tmp_path / "clay.gpkg"),
            "value_field": "clay",
            "unit": "%",
            "epochs": 5,
            "block_size": PATCH_PX,
            "device": "cpu",
            "output": str(tmp_path / "out" / "model"),
        } | parameters
        return train_regression(Request.parse(given), feedback or SilentFeedback())

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One training for all tests that only look at what it made."""
    folder = tmp_path_factory.mktemp("trained")
    scene = write_raster(folder / "scene.tif", array=clay_scene(), scale=1e-4).path
    parameters = {
        "input": scene,
        "training": clay_polygons(folder / "clay.gpkg"),
        "value_field": "clay",
        "unit": "%",
        "epochs": 5,
        "block_size": PATCH_PX,
        "device": "cpu",
        "output": str(folder / "model"),
        "report": str(folder / "report.html"),
    }
    return train_regression(Request.parse(parameters), SilentFeedback())


def test_a_package_is_made_that_knows_its_quantity(trained):
    info = load_package(trained["output"]).info
    assert (info.task, info.architecture) == ("regression", "hyperkd-regressor")
    assert (info.quantity.name, info.quantity.unit) == ("clay", "%")
    assert clay_map().min() <= info.quantity.low < info.quantity.high <= clay_map().max()
    assert info.title == "Clay (%)"
    assert info.scores == pytest.approx({name: trained[name] for name in ("rmse", "mae", "r2")})
    assert 0 < trained["mae"] <= trained["rmse"] < 12


@pytest.mark.slow
def test_the_package_maps_what_it_learned(train, scene, tmp_path):
    model = train(epochs=40, quantity="clay content")["output"]
    output = str(tmp_path / "out" / "clay.tif")
    request = estimating.Request.parse(
        {"input": scene, "model": model, "output": output, "device": "cpu"}
    )
    estimating.estimate(request, SilentFeedback())
    with rasterio.open(output) as dataset:
        values = dataset.read(1)
        assert (dataset.descriptions, dataset.units) == (("clay content",), ("%",))
    assert np.corrcoef(values.ravel(), clay_map().ravel())[0, 1] > 0.9


def test_the_report_shows_scores_baselines_values_and_places(trained):
    html = Path(trained["report"]).read_text(encoding="utf-8")
    for text in (
        "Ridge regression",
        "Partial least squares",
        "Random forest",
        "RMSE, %",
        "clay (%)",
    ):
        assert text in html
    assert html.count("data:image/png;base64,") == 4  # scatter, values, places, curves


@pytest.mark.slow
def test_nothing_held_out_gives_a_model_and_a_report_without_scores(train, tmp_path):
    feedback = Recorder()
    result = train(feedback, validation=0.0, report=str(tmp_path / "out" / "report.html"))
    assert (result["rmse"], result["mae"], result["r2"]) == (None, None, None)
    assert any("accuracy is not known" in warning for warning in feedback.warnings)
    assert "not known" in Path(result["report"]).read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_raster_of_values_needs_no_field_and_gives_the_name(train, tmp_path):
    source = write_labels(tmp_path / "organic_carbon.tif", clay_map().astype(np.float32))
    info = load_package(train(training=source, value_field=None)["output"]).info
    assert info.quantity.name == "organic_carbon"
    assert info.training["labelled_pixels"] == SIDE_PX**2


def points(tmp_path, count, values=None):
    drawn = np.random.default_rng(0).permutation(SIDE_PX**2)[:count]
    rows, cols = np.divmod(drawn, SIDE_PX)
    marks = [shapely.Point(TRANSFORM @ (c + 0.5, r + 0.5)) for r, c in zip(rows, cols, strict=True)]
    values = clay_map()[rows, cols] if values is None else values
    return write_layer(tmp_path / "points.gpkg", marks, values=values, field="clay")


@pytest.mark.slow
def test_points_train_too_and_few_are_warned_about(train, tmp_path):
    feedback = Recorder()
    info = load_package(train(feedback, training=points(tmp_path, 30))["output"]).info
    assert info.training["labelled_pixels"] == 30
    assert any("Only 30 pixels have a value" in warning for warning in feedback.warnings)


def test_too_few_points_are_refused(train, tmp_path):
    with pytest.raises(LabelError, match="Only 6 pixels of the scene have a value"):
        train(training=points(tmp_path, 6))


@pytest.mark.slow
def test_skewed_values_are_learned_as_a_logarithm_and_the_log_says_so(train, tmp_path):
    skewed = np.exp(clay_map() / 8).astype(np.float32)
    feedback = Recorder()
    source = write_labels(tmp_path / "skewed.tif", skewed)
    package = load_package(train(feedback, training=source, value_field=None)["output"])
    assert package.info.config["log1p"] is True
    assert any("logarithm" in text for text in feedback.infos)


@pytest.mark.slow
def test_negative_values_are_learned_as_they_are(train, tmp_path):
    source = write_labels(tmp_path / "anomaly.tif", (clay_map() - 25).astype(np.float32))
    info = load_package(train(training=source, value_field=None)["output"]).info
    assert info.quantity.low < 0 < info.quantity.high
    assert info.config["log1p"] is False


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["high", "low", "high"], "holds 'high', which is no number"),
        ([3.5, 3.5, 3.5], r"is 3\.5 everywhere"),
        ([np.nan, np.nan, np.nan], "is empty"),
    ],
)
def test_values_that_cannot_be_learned_are_refused(train, tmp_path, values, message):
    boxes = [pixel_box(6 * number, 0, 6, 6, TRANSFORM) for number in range(3)]
    source = write_layer(tmp_path / "bad.gpkg", boxes, values=values, field="clay")
    with pytest.raises(LabelError, match=message):
        train(training=source)


def test_a_field_that_is_not_there_is_refused(train):
    with pytest.raises(LabelError, match="no field 'soc'"):
        train(value_field="soc")


def test_an_output_that_cannot_be_written_is_refused(train, tmp_path):
    with pytest.raises(OutputError):
        train(output=str(tmp_path / "out" / "missing" / "model"))


def save_backbone(tmp_path, **changes):
    torch.manual_seed(3)
    config = BackboneConfig(BANDS, embed_dim=8, depth=1, num_heads=2, tile_size_px=12)
    model = HyperKDBackbone(config)
    model.encoder.band_mean.fill_(0.3)
    _model, info = band_model(
        architecture="hyperkd-backbone", task="generative", quantity=None,
        config=vars(config), name="test-backbone", **changes,
    )  # fmt: skip
    return str(save_package(str(tmp_path / "backbone"), info, model.state_dict()))


def encoder_of(path):
    state = load_package(path).state
    return {name: value for name, value in state.items() if name.startswith("encoder.")}


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_backbone_stays_as_it_is_to_the_bit_and_another_does_not(train, tmp_path, frozen):
    backbone = save_backbone(tmp_path)
    result = train(backbone=backbone, freeze_backbone=frozen)
    before, after = encoder_of(backbone), encoder_of(result["output"])
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before) is frozen
    config = load_package(result["output"]).info.config
    assert (config["chip_px"], config["halo_px"], config["embed_dim"]) == (12, 2, 8)


def test_freezing_nothing_is_refused(train):
    with pytest.raises(RequestError, match="no backbone that could be left as it is"):
        train(freeze_backbone=True)


def test_a_backbone_whose_bands_the_scene_lacks_is_refused(train, tmp_path, make_raster):
    visible = make_raster("visible.tif", array=clay_scene()[:4], scale=1e-4,
                          wavelength_nm=np.linspace(450, 600, 4)).path  # fmt: skip
    with pytest.raises(BandMatchError):
        train(input=visible, backbone=save_backbone(tmp_path))


def test_a_model_without_an_encoder_of_ours_is_no_backbone(train):
    with pytest.raises(PackageError, match="no encoder to begin with: its architecture is galileo"):
        train(backbone="galileo-nano")


@pytest.mark.slow
def test_a_classifier_may_be_the_backbone(train, tmp_path):
    model = model_of()
    path = str(save_package(str(tmp_path / "classes"), info_of(model), model.state_dict()))
    config = load_package(train(backbone=path, freeze_backbone=True)["output"]).info.config
    assert (config["embed_dim"], config["chip_px"]) == (8, 8)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.6, 0.9])
def test_a_cancelled_training_leaves_nothing(train, tmp_path, fraction):
    with pytest.raises(CancelledError):
        train(Recorder(cancel_at=fraction), report=str(tmp_path / "out" / "report.html"))
    assert list((tmp_path / "out").iterdir()) == []


def test_the_package_does_not_tell_where_the_files_were(trained):
    folder = Path(trained["output"])
    text = (folder / "model.json").read_text(encoding="utf-8")
    assert str(folder.parent) not in text
    facts = json.loads(text)["properties"]["hyperkd:training"]
    assert facts["request"]["value_field"] == "clay"


@pytest.mark.slow
def test_share_of_vegetation_in_berlin(tmp_path):
    """Real spectra, and values counted from land cover polygons of 3.6 m."""
    source = SAMPLE / "LandCov_BerlinUrbanGradient.gpkg"
    meta, _, shapes, (names,) = pyogrio.raw.read(source, layer="land_cover", columns=["class_name"])
    green = np.isin(names.astype(str), ["Low vegetation", "Tree"]).astype(float)
    layer = str(tmp_path / "green.gpkg")
    pyogrio.raw.write(
        layer, shapes, [green], ["green"], geometry_type=meta["geometry_type"], crs=meta["crs"]
    )
    request = Request.parse(
        {
            "input": str(SAMPLE / "EnMAP_BerlinUrbanGradient.bsq"),
            "training": layer,
            "value_field": "green",
            "quantity": "share of vegetation",
            "device": "cpu",
            "output": str(tmp_path / "green"),
        }
    )
    result = train_regression(request, SilentFeedback())
    assert result["r2"] > 0.7
    baselines = load_package(result["output"]).info.training["baselines_rmse"]
    assert result["rmse"] < min(baselines.values())

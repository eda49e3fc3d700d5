"""Training through the job: from rasters and labels on disk to a package and a report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from engine.errors import (
    BandTableError,
    CancelledError,
    LabelError,
    OutputError,
    PackageError,
    RequestError,
)
from engine.feedback import SilentFeedback
from engine.jobs.train_classifier import Request, train_classifier
from engine.packages.build import build_model
from engine.packages.package import load_package
from tests.engine.conftest import BANDS, TRANSFORM
from tests.engine.jobs.brightest import left_in
from tests.engine.raster.test_labels import write_labels
from tests.engine.raster.test_vector import pixel_box, write_layer

# Each test trains a classifier.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

HEIGHT, WIDTH, PATCH = 36, 30, 6
NAMES = ("wood", "roof", "lake")


class Recorder(SilentFeedback):
    """Keeps what it is told; cancels at a fraction."""

    def __init__(self, cancel_at=2.0):
        self.fractions, self.messages, self.warnings, self.infos = [], [], [], []
        self._cancel_at = cancel_at

    def progress(self, fraction, message=""):
        self.fractions.append(fraction)
        self.messages.append(message)

    def warning(self, message):
        self.warnings.append(message)

    def info(self, message):
        self.infos.append(message)

    def raise_if_cancelled(self):
        if self.fractions and self.fractions[-1] >= self._cancel_at:
            raise CancelledError


def patches():
    """(H, W) class index: patches of 6 x 6 px, so that every class is in many blocks."""
    rows, cols = np.meshgrid(np.arange(HEIGHT) // PATCH, np.arange(WIDTH) // PATCH, indexing="ij")
    return (rows + 2 * cols) % 3


@pytest.fixture
def scene(make_raster):
    rng = np.random.default_rng(0)
    slopes = np.asarray([-1500, 0, 1500])[:, None] * np.linspace(-1, 1, BANDS) + 3000
    array = slopes[patches()].transpose(2, 0, 1) * rng.uniform(0.7, 1.3, (1, HEIGHT, WIDTH))
    array = (array + rng.normal(0, 60, array.shape)).round().astype(np.int16)
    return make_raster(array=array, scale=1e-4, nodata=-99, nodata_corner=True).path


@pytest.fixture
def polygons(tmp_path):
    boxes, values = [], []
    for row in range(0, HEIGHT, PATCH):
        for col in range(0, WIDTH, PATCH):
            boxes.append(pixel_box(col, row, PATCH, PATCH, TRANSFORM))
            values.append(NAMES[patches()[row, col]])
    return write_layer(tmp_path / "labels.gpkg", boxes, values=values)


@pytest.fixture
def train(tmp_path, scene, polygons):
    (tmp_path / "out").mkdir()

    def run(feedback=None, **parameters):
        given = {
            "input": scene,
            "training": polygons,
            "class_field": "class",
            "epochs": 5,
            "block_size": PATCH,
            "device": "cpu",
            "output": str(tmp_path / "out" / "model"),
        } | parameters
        return train_classifier(Request.parse(given), feedback or SilentFeedback())

    return run


def test_a_package_is_made_that_knows_its_classes_and_bands(train):
    result = train()
    package = load_package(result["output"])
    assert [item.name for item in package.info.classes] == sorted(NAMES)
    assert len(package.info.bands) == BANDS
    assert package.info.scores["overall_accuracy"] == pytest.approx(result["overall_accuracy"])
    assert result["overall_accuracy"] > 0.9
    assert result["balanced_accuracy"] > 0.9
    assert {"kappa", "f1_macro", "iou_macro"} <= set(result)


def test_the_package_predicts_what_was_learned(train, make_raster):
    model = build_model(load_package(train()["output"]))
    slope = np.linspace(-1, 1, BANDS) * 0.15 + 0.3
    spectra = torch.from_numpy(np.stack([slope, slope[::-1]], 1).astype(np.float32))
    with torch.inference_mode():
        logits = model(spectra[None, :, :, None], torch.ones(1, 2, 1, dtype=torch.bool))
    names = sorted(NAMES)
    assert [names[i] for i in logits[0, :, :, 0].argmax(dim=0)] == ["lake", "wood"]


def test_the_package_knows_what_is_familiar_and_how_sure_it_may_be(train, scene):
    result = train(validation=0.3)
    parts = load_package(result["output"]).parts
    with rasterio.open(scene) as dataset:
        array = dataset.read().astype(np.float32) * 1e-4
    valid = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
    valid[0, :4, :5] = False  # nodata
    support = parts.support(torch.from_numpy(array)[None], valid)[0, 0]
    assert float((support[valid[0]] >= 0.5).float().mean()) > 0.9
    jagged = torch.tensor([0.1, 0.5]).repeat(BANDS // 2).reshape(1, BANDS, 1, 1)
    assert float(parts.support(jagged, valid[:, 5:6, 5:6])) < 0.01
    assert parts.temperature > 0
    assert 0 <= result["ece"] < 0.3


def test_without_held_out_blocks_the_calibration_error_is_not_known(train, tmp_path):
    report = str(tmp_path / "out" / "report.html")
    result = train(validation=0.0, report=report)
    assert result["ece"] is None
    assert load_package(result["output"]).parts.support is not None  # folds give its scale
    assert "how far its confidence can be trusted is not known" in Path(report).read_text("utf-8")


def test_the_same_seed_gives_the_same_weights(train):
    first, again, other = (load_package(train(seed=seed)["output"]).sha256 for seed in (4, 4, 5))
    assert first == again != other


def test_the_report_shows_scores_baselines_curves_and_places(train, tmp_path):
    report = str(tmp_path / "out" / "report.html")
    assert train(report=report)["report"] == report
    html = Path(report).read_text(encoding="utf-8")
    for text in ("Random forest", "Support vector machine", "Logistic regression", "lake"):
        assert text in html
    assert "held out" in html
    assert "expected calibration error" in html
    assert "Where it must not be trusted" in html
    assert html.count("data:image/png;base64,") == 4  # confusion, reliability, places, curves


def test_classes_of_the_request_give_value_name_and_colour(train):
    classes = [
        {"value": 7, "name": "Forest", "color": "#117733", "field_value": "wood"},
        {"value": 9, "name": "Water", "color": "#332288", "field_value": "lake"},
    ]
    feedback = Recorder()
    info = load_package(train(feedback, classes=classes)["output"]).info
    assert [(c.value, c.name, c.color) for c in info.classes] == [
        (7, "Forest", "#117733"), (9, "Water", "#332288"),
    ]  # fmt: skip
    assert any("roof" in warning for warning in feedback.warnings)


def test_a_labelled_raster_needs_no_field(train, tmp_path):
    labels = write_labels(tmp_path / "labels.tif", (patches() + 1).astype(np.uint8))
    result = train(training=labels, class_field=None)
    assert [item.value for item in load_package(result["output"]).info.classes] == [1, 2, 3]


def test_several_scenes_train_one_model(train, scene, make_raster):
    nothing = np.full((BANDS, HEIGHT, WIDTH), -99, np.int16)
    other = make_raster("empty.tif", array=nothing, scale=1e-4, nodata=-99).path
    alone = load_package(train()["output"]).info.training
    both = load_package(train(input=[scene, scene])["output"]).info.training
    assert both["labelled_pixels"] == 2 * alone["labelled_pixels"]
    # The same ground in two scenes is one place: no block is on both sides of the split.
    assert both["blocks"] == alone["blocks"]
    without = load_package(train(input=[scene, other])["output"]).info.training
    assert without["pixels_by_class"] == alone["pixels_by_class"]


def test_a_backbone_gives_its_encoder(train, tmp_path):
    first = train(output=str(tmp_path / "out" / "first"))["output"]
    second = train(backbone=first, seed=1, output=str(tmp_path / "out" / "second"))["output"]
    states = [load_package(path).state for path in (first, second)]
    assert torch.equal(states[0]["encoder.band_mean"], states[1]["encoder.band_mean"])


def test_progress_moves_on_and_names_loss_and_accuracy(train):
    feedback = Recorder()
    train(feedback)
    steps = np.diff(feedback.fractions)
    assert steps.min() > -1e-9
    assert feedback.fractions[-1] == 1.0
    assert any("loss" in message and "accuracy" in message for message in feedback.messages)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 0.6, 0.9])
def test_a_cancelled_training_leaves_nothing(train, tmp_path, fraction):
    with pytest.raises(CancelledError):
        train(Recorder(cancel_at=fraction), report=str(tmp_path / "out" / "report.html"))
    assert left_in(tmp_path / "out") == []


def test_nothing_held_out_gives_a_model_without_scores(train):
    feedback = Recorder()
    result = train(feedback, validation=0.0)
    assert result["balanced_accuracy"] is None
    assert any("accuracy is not known" in warning for warning in feedback.warnings)


def few_of_roof(tmp_path, pixels):
    """Labels with so many pixels of one class."""
    array = np.where(patches() == 1, 0, patches() + 1).astype(np.uint8)
    array.ravel()[np.flatnonzero(patches().ravel() == 1)[-pixels:]] = 2
    return write_labels(tmp_path / "few.tif", array)


def test_a_class_with_two_pixels_is_refused_by_name(train, tmp_path):
    with pytest.raises(LabelError, match="'2' has only two labelled pixels"):
        train(training=few_of_roof(tmp_path, 2))
    assert left_in(tmp_path / "out") == []


def test_a_class_with_three_pixels_is_a_warning(train, tmp_path):
    feedback = Recorder()
    train(feedback, training=few_of_roof(tmp_path, 3))
    assert any("'2' has only 3 labelled pixels" in warning for warning in feedback.warnings)


def test_one_class_only_is_refused(train, tmp_path):
    one = write_layer(tmp_path / "one.gpkg", [pixel_box(2, 8, 9, 9, TRANSFORM)], values=["wood"])
    with pytest.raises(LabelError, match="one class only"):
        train(training=one)


def test_labels_elsewhere_are_refused(train, tmp_path):
    boxes = [pixel_box(col, 8, 9, 9, TRANSFORM) for col in (900, 950)]
    with pytest.raises(LabelError, match="does not overlap"):
        train(training=write_layer(tmp_path / "far.gpkg", boxes, values=["wood", "roof"]))


def test_labels_all_in_one_block_cannot_be_tested(train, tmp_path):
    array = np.zeros((HEIGHT, WIDTH), np.uint8)
    array[12:15, 12:18], array[15:18, 12:18] = 1, 2
    labels = write_labels(tmp_path / "one.tif", array)
    with pytest.raises(LabelError, match="one place"):
        train(training=labels)
    assert train(training=labels, validation=0.0)["kappa"] is None


def test_a_field_that_is_not_there_is_refused(train):
    with pytest.raises(LabelError, match="no field 'klass'"):
        train(class_field="klass")


def test_a_scene_without_wavelengths_is_refused(train, make_raster):
    plain = make_raster("plain.tif", wavelength_nm=None, fwhm_nm=None, tags="none").path
    with pytest.raises(BandTableError, match="no wavelengths"):
        train(input=plain)


@pytest.mark.parametrize("name", ["missing/model", "../scene.tif"])
def test_an_output_that_cannot_be_written_is_refused_before_work(train, tmp_path, name):
    feedback = Recorder()
    with pytest.raises(OutputError):
        train(feedback, output=str(tmp_path / "out" / name))
    assert not any("epoch" in message for message in feedback.messages)


def test_a_backbone_that_is_no_package_is_refused(train, tmp_path):
    with pytest.raises(PackageError):
        train(backbone=str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"validation": 0.9}, "validation"),
        ({"input": []}, "input"),
        ({"classes": [{"value": 300, "name": "x"}]}, "value"),
        ({"classes": [{"value": 3, "name": "x", "color": "red"}]}, "color"),
        ({"learning_rate": 1}, "learning_rate"),
    ],
)
def test_a_request_out_of_range_is_refused(train, parameters, message):
    with pytest.raises(RequestError, match=message):
        train(**parameters)


def test_the_package_does_not_tell_where_the_files_were(train, tmp_path):
    text = (Path(train()["output"]) / "model.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    assert json.loads(text)["properties"]["hyperkd:training"]["request"]["seed"] == 0

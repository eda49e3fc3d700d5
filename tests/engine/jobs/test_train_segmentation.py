"""Training a segmentation through the job: from rasters and labels to a package and a report."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from safetensors.torch import save_file
from sklearn.naive_bayes import GaussianNB

from engine.errors import (
    BandMatchError,
    BandTableError,
    CancelledError,
    CapacityError,
    LabelError,
    OutputError,
    PackageError,
    RequestError,
)
from engine.feedback import SilentFeedback
from engine.jobs.segment import Request as SegmentRequest
from engine.jobs.segment import segment
from engine.jobs.shared.segmenter_start import load_start
from engine.jobs.train_segmentation import Request, _settings, train_segmentation, warn_small
from engine.models.spectralx.adapted import AdaptedViT
from engine.models.spectralx.presets import PRESETS
from engine.models.spectralx.segmenter import SpectralXSegmenter
from engine.packages.build import build_model
from engine.packages.foundations import load_foundation
from engine.packages.metadata import ModelInfo, Normalisation
from engine.packages.package import load_package, save_package
from engine.raster.scene import open_scene
from engine.raster.spectra import BandTable
from engine.raster.tiles import Tiling
from engine.report import _environment
from engine.training.segmentation_chips import Light
from tests.engine.conftest import BANDS, FWHM_NM, TRANSFORM, WAVELENGTH_NM
from tests.engine.jobs.brightest import left_in
from tests.engine.jobs.test_train_classifier import (
    HEIGHT,
    NAMES,
    PATCH,
    WIDTH,
    Recorder,
    patches,
)
from tests.engine.packages.made_foundations import encoder_state
from tests.engine.raster.test_labels import write_labels
from tests.engine.raster.test_vector import pixel_box, write_layer

# Each test trains four segmenters.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

PACKAGED = Path(__file__).parents[3] / "resources" / "models"
MEMORY = "engine.jobs.shared.masked_training.available_memory_bytes"


@pytest.fixture(autouse=True)
def user_folder(monkeypatch, tmp_path):
    """Places of backbones are remembered for the user: not for the one who runs the tests."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HYPERKD_MODELS", str(tmp_path / "models"))
    (tmp_path / "models").mkdir()


@pytest.fixture(autouse=True)
def quick_classifiers(monkeypatch):
    """A forest of 500 trees takes longer than the training beside it, and has its own tests."""
    names = ("Random forest", "Support vector machine", "Logistic regression")
    monkeypatch.setattr(
        "engine.training.baselines._classifiers", lambda _seed: dict.fromkeys(names, GaussianNB())
    )


def save_backbone(path, width=64, seed=0):
    """A masked autoencoder's encoder of two blocks, on the user's disk."""
    path.parent.mkdir(exist_ok=True)
    save_file(encoder_state(seed=seed, width=width, depth=2), path)
    (path.parent / "config.json").write_text('{"num_heads": 4}')
    return str(path)


@pytest.fixture
def backbone(tmp_path):
    return save_backbone(tmp_path / "elsewhere" / "tiny.safetensors")


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
def train(tmp_path, scene, polygons, backbone):
    (tmp_path / "out").mkdir()

    def run(feedback=None, **parameters):
        given = {
            "input": scene,
            "training": polygons,
            "class_field": "class",
            "backbone": backbone,
            "epochs": 1,
            "block_size": PATCH,
            "device": "cpu",
            "output": str(tmp_path / "out" / "model.zip"),
        } | parameters
        return train_segmentation(Request.parse(given), feedback or SilentFeedback())

    return run


@pytest.fixture
def adapted(tmp_path, backbone):
    """What stage 1 would have made, without having trained."""

    def make(path="adapted.zip", file=None, **changes):
        foundation = load_foundation(file or backbone)
        config = PRESETS["laptop"].adapted(
            wavelength_nm=WAVELENGTH_NM.tolist(), vit=foundation.vit.config,
            foundation=foundation.identity, chip_px=16, **changes,
        )  # fmt: skip
        model = AdaptedViT(config, foundation.vit)
        model.band_mean.fill_(0.321)
        names = tuple(f"b{number}" for number in range(BANDS))
        bands = BandTable(names, WAVELENGTH_NM, FWHM_NM, np.ones(BANDS, bool), "made")
        info = ModelInfo(
            name="adapted", title="Adapted", description="For tests.", version="1.0.0",
            architecture="spectralx-adapted", config=asdict(config), bands=bands, classes=(),
            normalisation=Normalisation.of(model.band_mean.numpy(), model.band_std.numpy()),
            tiling=Tiling(16, 1, blend=True), licence="MIT", attribution="", task="generative",
        )  # fmt: skip
        return str(save_package(str(tmp_path / path), info, model.own_state()))

    return make


def test_a_package_of_adapters_and_head_is_made_that_names_its_backbone(train, backbone, tmp_path):
    feedback = Recorder()
    result = train(feedback, epochs=2)
    package = load_package(result["output"])
    info, foundation = package.info, load_foundation(backbone)
    assert (info.architecture, info.task) == ("spectralx-segmenter", "semantic-segmentation")
    assert [item.name for item in info.classes] == sorted(NAMES)
    assert len(info.bands) == BANDS
    assert info.config["foundation"]["sha256"] == foundation.identity.sha256
    assert info.training["backbone"]["name"] == "tiny"
    assert not any("attn" in name for name in package.state if ".vit." in name)
    model = build_model(package)  # the place of the file was remembered
    found = model.adapted.vit.blocks[1].attn.qkv.weight
    assert torch.equal(found, foundation.vit.blocks[1].attn.qkv.weight)
    assert result["trainable_parameters"] == sum(info.training["trainable_parts"].values())
    assert {"Are-adapter", "AoMoA", "norms"} <= set(info.training["trainable_parts"])
    assert info.scores["iou_macro"] == pytest.approx(result["iou_macro"])
    assert result["overall_accuracy"] > 0.9
    assert 0 <= result["ece"] <= 1
    assert result["seconds"] > 0
    assert result["device"].startswith("cpu")
    assert package.parts.support is not None
    assert package.parts.temperature == pytest.approx(info.training["temperature"])
    assert np.diff(feedback.fractions).min() > -1e-9
    assert feedback.fractions[-1] == 1.0
    assert any("fold 2 of 3, epoch 2 of 2: loss" in message for message in feedback.messages)
    assert any("values were trained" in text and "AoMoA" in text for text in feedback.infos)
    assert any("Random forest" in text for text in feedback.infos)
    assert left_in(tmp_path / "out") == ["model.zip"]


def test_the_map_of_the_package_shows_what_was_learned(train, scene, tmp_path):
    output = str(tmp_path / "out" / "map.tif")
    request = {"input": scene, "model": train(epochs=2)["output"], "output": output}
    support = str(tmp_path / "out" / "support.tif")
    segment(SegmentRequest.parse(request | {"support": support}), SilentFeedback())
    with rasterio.open(output) as dataset:
        classes = dataset.read(1)
    values = np.argsort(np.argsort(NAMES)) + 1  # text is numbered by the alphabet
    hit = classes == values[patches()]
    assert hit[classes > 0].mean() > 0.9
    with rasterio.open(support) as dataset:
        assert (dataset.read(1)[classes > 0] >= 0.5).mean() > 0.9


def test_the_same_seed_gives_the_same_weights(train):
    first, again, other = (load_package(train(seed=seed)["output"]).sha256 for seed in (4, 4, 5))
    assert first == again != other


def test_the_report_shows_scores_what_was_trained_and_how_sure_it_may_be(train, tmp_path):
    report = str(tmp_path / "out" / "report.html")
    result = train(report=report)
    assert result["report"] == report
    html = Path(report).read_text(encoding="utf-8")
    parts = load_package(result["output"]).info.training["trainable_parts"]
    for text in (
        "Random forest", "Support vector machine", "Logistic regression", "lake", "held out",
        "calibration error", "SpectralX (this model)", "tiny", "random numbers", *parts,
        f"{sum(parts.values()):,}",
    ):  # fmt: skip
        assert text.replace("'", "&#39;") in html, text
    # Confusion, reliability, places, spectral path, network.
    assert html.count("data:image/png;base64,") == 5


@pytest.mark.parametrize("adaptation", ["spectralx", "full", "frozen", "lora", "slr"])
def test_reports_know_what_every_part_does(backbone, adaptation):
    foundation = load_foundation(backbone)
    config = PRESETS["laptop"].segmenter(
        num_classes=2, wavelength_nm=WAVELENGTH_NM.tolist(), vit=foundation.vit.config,
        foundation=foundation.identity, adaptation=adaptation,
    )  # fmt: skip
    model = SpectralXSegmenter(config, foundation.vit)
    model.set_trainable()
    known = _environment().get_template("adapters.html").module.meanings
    assert set(model.trainable_counts()) <= set(known)


@pytest.mark.parametrize("adaptation", ["full", "frozen", "lora", "slr"])
def test_other_ways_of_adaptation_make_packages_that_build(train, adaptation):
    parts = load_package(train(adaptation=adaptation, spectral_path=False)["output"])
    model = build_model(parts)
    assert model.config.adaptation == adaptation
    assert model.spectral is None
    counts = parts.info.training["trainable_parts"]
    assert "Are-adapter" not in counts
    assert "AoMoA" not in counts


def test_settings_of_the_request_are_those_of_the_model(train):
    result = train(
        train_tokenizer=False, match="soft", refine=True, scaling="unit", load_balancing=0.01,
        spectral_path=False, batch_size=4, learning_rate=1e-4,
    )  # fmt: skip
    config = load_package(result["output"]).info.config
    assert (config["train_tokenizer"], config["match"], config["scaling"]) == (
        False, "soft", "unit",
    )  # fmt: skip
    assert config["load_balancing"] == 0.01
    assert config["spectral_path"] is False


@pytest.mark.parametrize(("preset", "is_published"), [("paper", True), ("large", False)])
def test_the_papers_preset_trains_by_the_published_rules(preset, is_published):
    request = Request.parse({"input": "-", "training": "-", "output": "-", "preset": preset})
    settings = _settings(request)
    ours = (settings.cosine, settings.balanced, settings.light != Light(0.0, 0.0))
    assert ours == (not is_published,) * 3
    assert (settings.learning_rate, settings.weight_decay) == (1e-4, 1e-4)


@pytest.mark.parametrize(("chip_px", "warnings"), [(WIDTH + 1, 1), (min(WIDTH, HEIGHT), 0)])
def test_scenes_that_fill_no_chip_are_named(scene, chip_px, warnings):
    log = Recorder()
    warn_small([open_scene(scene)], chip_px, log)
    assert len(log.warnings) == warnings
    assert all(f"less than a chip of {chip_px} px" in text for text in log.warnings)


def test_training_begins_with_what_stage_1_has_learned(train, adapted, backbone):
    feedback = Recorder()
    result = train(feedback, adapted=adapted(), epochs=1)
    package = load_package(result["output"])
    assert package.info.config["chip_px"] == 16
    assert float(package.state["adapted.band_mean"][0]) == pytest.approx(0.321)
    assert len(package.info.training["adapted_sha256"]) == 64
    assert any("Adapted before: Adapted" in text for text in feedback.infos)


def test_the_backbone_of_adapters_is_found_without_being_chosen(train, adapted, backbone, tmp_path):
    made = adapted()
    Path(backbone).rename(tmp_path / "models" / "tiny.safetensors")
    Path(backbone).with_name("config.json").rename(tmp_path / "models" / "config.json")
    result = train(adapted=made, backbone="galileo-nano")  # the toolbox's default
    assert load_package(result["output"]).info.training["backbone"]["name"] == "tiny"


def test_a_folder_that_happens_to_have_the_name_of_the_default_is_no_backbone_of_adapters(
    adapted, backbone, tmp_path, monkeypatch
):
    """Remembered as the adapters' backbone, it would hide the right one."""
    given = {"input": "-", "training": "-", "output": "-"}
    bands = BandTable(("b",) * BANDS, WAVELENGTH_NM, FWHM_NM, np.ones(BANDS, bool), "made")
    load_start(Request.parse({**given, "backbone": backbone}), bands, SilentFeedback())
    shutil.copytree(PACKAGED / "galileo-nano", tmp_path / "galileo-nano")
    monkeypatch.chdir(tmp_path)
    request = Request.parse({**given, "adapted": adapted()})
    for _time in range(2):
        start = load_start(request, bands, SilentFeedback())
        assert start.foundation.identity.name == "tiny"


def test_an_output_in_the_place_of_the_adapters_is_refused(train, adapted, tmp_path):
    own = adapted("adapted")
    with pytest.raises(OutputError, match="is also an input"):
        train(adapted=own, output=str(tmp_path / "adapted"))
    assert load_package(own).info.architecture == "spectralx-adapted"


def test_adapters_of_another_backbone_are_refused_with_the_right_one(train, adapted, tmp_path):
    other = save_backbone(tmp_path / "others" / "other.safetensors", seed=5)
    with pytest.raises(PackageError, match=r"made from 'tiny' .* not from 'other'.*Choose tiny"):
        train(adapted=adapted(), backbone=other)


def test_a_missing_backbone_of_adapters_is_named(train, adapted, backbone):
    made = adapted()
    Path(backbone).unlink()
    with pytest.raises(PackageError, match="tiny"):
        train(adapted=made, backbone="galileo-nano")


def test_a_model_that_is_no_adapted_backbone_is_refused(train, tmp_path):
    with pytest.raises(PackageError, match=r"'model' is a spectralx-segmenter, and no adapted"):
        train(adapted=train()["output"], output=str(tmp_path / "out" / "second.zip"))


@pytest.mark.parametrize(("setting", "value"), [("scaling", "chip"), ("adaptation", "lora")])
def test_a_setting_that_stage_1_has_decided_otherwise_is_refused(train, adapted, setting, value):
    with pytest.raises(RequestError, match=rf"made with {setting} .*{value!r} was asked for"):
        train(adapted=adapted(), **{setting: value})


def test_adapters_of_bands_that_the_scene_has_not_are_refused(train, adapted, make_raster):
    array = np.full((BANDS, HEIGHT, WIDTH), 3000, np.int16)
    wavelength_nm = np.linspace(2000.0, 2400.0, BANDS)
    other = make_raster("swir.tif", array=array, wavelength_nm=wavelength_nm, fwhm_nm=FWHM_NM).path
    with pytest.raises(BandMatchError, match="no bands near 12 of the 12"):
        train(adapted=adapted(), input=other)


def test_a_backbone_that_is_not_there_is_refused_by_name(train, tmp_path):
    with pytest.raises(PackageError, match="nothing-here"):
        train(backbone="nothing-here")
    assert left_in(tmp_path / "out") == []


def test_a_backbone_too_narrow_for_the_preset_is_refused(train, tmp_path):
    narrow = save_backbone(tmp_path / "others" / "narrow.safetensors", width=20)
    with pytest.raises(PackageError, match="narrow cannot be adapted with the preset laptop"):
        train(backbone=narrow)


def test_too_little_memory_is_said_before_work(train, monkeypatch, tmp_path):
    monkeypatch.setattr(MEMORY, lambda: 10 * 1024**2)
    with pytest.raises(CapacityError, match=r"laptop needs about .* GiB"):
        train()
    assert left_in(tmp_path / "out") == []


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.95])
def test_a_cancelled_training_leaves_nothing(train, tmp_path, fraction):
    with pytest.raises(CancelledError):
        train(Recorder(cancel_at=fraction), report=str(tmp_path / "out" / "report.html"))
    assert left_in(tmp_path / "out") == []


def test_nothing_held_out_gives_a_model_without_scores(train):
    feedback = Recorder()
    result = train(feedback, validation=0.0)
    assert result["iou_macro"] is None
    assert result["ece"] is None
    assert any("accuracy is not known" in warning for warning in feedback.warnings)


def test_a_class_that_lies_nowhere_in_the_scene_is_refused_by_name(train, tmp_path):
    boxes = [pixel_box(2, 8, 9, 9, TRANSFORM), pixel_box(14, 8, 9, 9, TRANSFORM),
             pixel_box(900, 8, 9, 9, TRANSFORM)]  # fmt: skip
    layer = write_layer(tmp_path / "some.gpkg", boxes, values=["wood", "roof", "lake"])
    with pytest.raises(LabelError, match="'lake' has no labelled pixel on the scene"):
        train(training=layer)
    assert left_in(tmp_path / "out") == []


def test_a_labelled_raster_needs_no_field(train, tmp_path):
    labels = write_labels(tmp_path / "labels.tif", (patches() + 1).astype(np.uint8))
    result = train(training=labels, class_field=None)
    assert [item.value for item in load_package(result["output"]).info.classes] == [1, 2, 3]


def test_a_scene_without_wavelengths_is_refused(train, make_raster):
    plain = make_raster("plain.tif", wavelength_nm=None, fwhm_nm=None, tags="none").path
    with pytest.raises(BandTableError, match="no wavelengths"):
        train(input=plain)


@pytest.mark.parametrize("name", ["missing/model", "../scene.tif", "../elsewhere/tiny.safetensors"])
def test_an_output_that_cannot_be_written_is_refused_before_work(train, tmp_path, name):
    feedback = Recorder()
    with pytest.raises(OutputError):
        train(feedback, output=str(tmp_path / "out" / name))
    assert not any("epoch" in message for message in feedback.messages)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"preset": "huge"}, "preset"),
        ({"adaptation": "prompt"}, "adaptation"),
        ({"match": "best"}, "match"),
        ({"load_balancing": -1}, "load_balancing"),
        ({"freeze_backbone": True}, "freeze_backbone"),
    ],
)
def test_a_request_out_of_range_is_refused(train, parameters, message):
    with pytest.raises(RequestError, match=message):
        train(**parameters)


def test_the_package_does_not_tell_where_the_files_were(train, tmp_path):
    info = load_package(train(output=str(tmp_path / "out" / "model"))["output"])
    text = (info.path / "model.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    assert json.loads(text)["properties"]["hyperkd:training"]["request"]["seed"] == 0

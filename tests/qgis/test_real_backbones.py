"""The whole street of backbones and quantities with the real engine, on scenes of a few tiles."""

from pathlib import Path

import processing
import pytest
from osgeo import gdal
from qgis.core import QgsProcessingException, QgsRasterLayer

from tests.qgis.wet_place import (
    HEIGHT,
    LANDSAT_NM,
    WAVELENGTHS_NM,
    WIDTH,
    write_samples,
    write_scene,
)

QUICK = {"PRESET": "laptop", "EPOCHS": 1, "DEVICE": "cpu"}

pytestmark = pytest.mark.usefixtures("real_plugin")


@pytest.fixture(scope="module")
def place(tmp_path_factory, qgis_app):
    folder = tmp_path_factory.mktemp("place")
    write_scene(folder / "scene.tif", WAVELENGTHS_NM)
    write_scene(folder / "landsat.tif", LANDSAT_NM)
    write_samples(folder / "samples.gpkg")
    return folder


@pytest.fixture(scope="module")
def distilled(real_plugin, place):
    return processing.run(
        "hyperkd:distillbackbone",
        {
            "INPUT": [str(place / "scene.tif")],
            "OUTPUT": str(place / "backbone.zip"),
            "REPORT": str(place / "distillation.html"),
            **QUICK,
        },
    )


@pytest.fixture(scope="module")
def regression(real_plugin, place):
    return processing.run(
        "hyperkd:trainregression",
        {
            "INPUT": [str(place / "scene.tif")],
            "TRAINING": str(place / "samples.gpkg"),
            "VALUE_FIELD": "moisture",
            "UNIT": "%",
            "EPOCHS": 10,
            "DEVICE": "cpu",
            "OUTPUT": str(place / "moisture.zip"),
            "REPORT": str(place / "moisture.html"),
        },
    )


def is_report(path):
    return "</html>" in Path(path).read_text(encoding="utf-8")


def use_of(path):
    """Which uses the plugin's list has for a package."""
    from hyperkd.hyperkd_qgis.model_catalogue import USES, read_model

    model = read_model("made", Path(path))
    assert model.task
    return {name for name, use in USES.items() if name != "any" and use.accepts(model)}


# Distillation


def test_distillation_makes_a_backbone_a_report_and_scores(distilled):
    assert use_of(distilled["OUTPUT"]) == {"backbone"}
    assert is_report(distilled["REPORT"])
    for part in ("", "_WHOLE"):
        assert 0 < distilled[f"PSNR_DB{part}"] < 100
        assert -1 <= distilled[f"SSIM{part}"] <= 1
        assert 0 < distilled[f"SPECTRAL_ANGLE_DEG{part}"] < 180


def test_no_checkpoint_is_left_after_success(distilled):
    assert list(Path(distilled["OUTPUT"]).parent.glob("*.checkpoint.safetensors")) == []


def test_a_cancelled_distillation_is_gone_on_with(real_plugin, place, tmp_path, heard):
    values = {
        "INPUT": [str(place / "scene.tif")],
        "OUTPUT": str(tmp_path / "backbone.zip"),
        **QUICK,
        "EPOCHS": 8,
    }
    with pytest.raises(QgsProcessingException, match=r"backbone\.zip\.checkpoint\.safetensors"):
        processing.run("hyperkd:distillbackbone", values, feedback=heard(cancel_at=40).feedback)
    assert not (tmp_path / "backbone.zip").exists()
    hearing = heard()
    processing.run("hyperkd:distillbackbone", {**values, "RESUME": True}, feedback=hearing.feedback)
    assert [path.name for path in tmp_path.iterdir()] == ["backbone.zip"]
    assert "Going on after step" in hearing.text


def test_other_settings_cannot_be_gone_on_with(real_plugin, place, tmp_path, heard):
    values = {
        "INPUT": [str(place / "scene.tif")],
        "OUTPUT": str(tmp_path / "backbone.zip"),
        **QUICK,
        "EPOCHS": 8,
    }
    with pytest.raises(QgsProcessingException, match="RESUME"):
        processing.run("hyperkd:distillbackbone", values, feedback=heard(cancel_at=40).feedback)
    with pytest.raises(QgsProcessingException, match=r"(?i)mask_ratio|mask ratio"):
        processing.run("hyperkd:distillbackbone", {**values, "RESUME": True, "MASK_RATIO": 0.5})


def test_a_scene_that_does_not_reach_the_teachers_bands_is_refused(real_plugin, place, tmp_path):
    path = write_scene(tmp_path / "visible.tif", WAVELENGTHS_NM[:11])
    with pytest.raises(QgsProcessingException, match=r"(?s)B11.*B12"):
        processing.run(
            "hyperkd:distillbackbone",
            {"INPUT": [path], "OUTPUT": str(tmp_path / "backbone.zip"), **QUICK},
        )
    assert not (tmp_path / "backbone.zip").exists()


# A teacher of one's own


@pytest.fixture(scope="module")
def teacher(real_plugin, place):
    return processing.run(
        "hyperkd:pretrainteacher",
        {
            "INPUT": [str(place / "landsat.tif")],
            "OUTPUT": str(place / "teacher.zip"),
            "REPORT": str(place / "teacher.html"),
            **QUICK,
        },
    )


def test_pretraining_makes_a_teacher_a_report_and_scores(teacher):
    assert use_of(teacher["OUTPUT"]) == {"teacher", "foundation"}
    assert is_report(teacher["REPORT"])
    assert 0 < teacher["PSNR_DB"] < 100


def test_ones_own_teacher_teaches(teacher, place, tmp_path):
    result = processing.run(
        "hyperkd:distillbackbone",
        {
            "INPUT": [str(place / "scene.tif")],
            "TEACHER": teacher["OUTPUT"],
            "OUTPUT": str(tmp_path / "backbone.zip"),
            **QUICK,
        },
    )
    assert use_of(result["OUTPUT"]) == {"backbone"}


# Quantities


def test_regression_makes_a_model_a_report_and_scores(regression):
    assert use_of(regression["OUTPUT"]) == {"regression", "backbone"}
    assert is_report(regression["REPORT"])
    assert 0 < regression["MAE"] <= regression["RMSE"] < 10
    assert 0.5 < regression["R2"] <= 1


def test_estimate_has_the_grid_the_unit_and_a_ramp(regression, place, tmp_path):
    output = str(tmp_path / "moisture.tif")
    processing.run(
        "hyperkd:estimate",
        {"INPUT": str(place / "scene.tif"), "MODEL": regression["OUTPUT"], "OUTPUT": output},
    )
    from hyperkd.hyperkd_qgis.layer_styles import read_quantity

    scene, layer = (QgsRasterLayer(path, "x") for path in (str(place / "scene.tif"), output))
    assert (layer.width(), layer.height(), layer.bandCount()) == (WIDTH, HEIGHT, 1)
    assert (layer.extent(), layer.crs()) == (scene.extent(), scene.crs())
    assert layer.renderer().type() == "singlebandpseudocolor"
    quantity = read_quantity(output)
    assert (quantity.title, quantity.unit) == ("Moisture", "%")
    dataset = gdal.Open(output)  # owns its bands
    least, most = dataset.GetRasterBand(1).ComputeRasterMinMax(False)
    assert 0 < least < 20
    assert 30 < most < 50


def test_a_quantity_on_a_frozen_backbone(distilled, place, tmp_path):
    result = processing.run(
        "hyperkd:trainregression",
        {
            "INPUT": [str(place / "scene.tif")],
            "TRAINING": str(place / "samples.gpkg"),
            "VALUE_FIELD": "moisture",
            "BACKBONE": distilled["OUTPUT"],
            "FREEZE_BACKBONE": True,
            "EPOCHS": 2,
            "DEVICE": "cpu",
            "OUTPUT": str(tmp_path / "moisture.zip"),
        },
    )
    assert use_of(result["OUTPUT"]) == {"regression", "backbone"}


def test_a_classifier_on_a_frozen_backbone(distilled, place, tmp_path):
    result = processing.run(
        "hyperkd:trainclassifier",
        {
            "INPUT": [str(place / "scene.tif")],
            "TRAINING": str(place / "samples.gpkg"),
            "CLASS_FIELD": "cover",
            "BACKBONE": distilled["OUTPUT"],
            "FREEZE_BACKBONE": True,
            "EPOCHS": 2,
            "DEVICE": "cpu",
            "OUTPUT": str(tmp_path / "cover.zip"),
        },
    )
    assert use_of(result["OUTPUT"]) == {"classifier", "segmenter", "backbone"}
    assert result["BALANCED_ACCURACY"] > 0.5

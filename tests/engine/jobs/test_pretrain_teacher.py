"""Pre-training of a teacher through the job, and a distillation from what it made."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from engine.errors import CancelledError, CapacityError, SceneError
from engine.feedback import SilentFeedback
from engine.jobs.distill_backbone import Request as DistilRequest
from engine.jobs.distill_backbone import distill_backbone
from engine.jobs.pretrain_teacher import Request, pretrain_teacher
from engine.packages.build import build_model
from engine.packages.package import load_package
from tests.engine.jobs.made_landscape import FWHM_NM, WAVELENGTH_NM, landscape, landscape_scene
from tests.engine.jobs.test_train_classifier import Recorder

LANDSAT_NM = np.array([485.0, 560.0, 660.0, 830.0, 1650.0, 2215.0])
LANDSAT_FWHM_NM = np.array([70.0, 80.0, 60.0, 140.0, 200.0, 270.0])


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def scene(make_raster):
    def make(name="landsat.tif", **options):
        array = landscape(LANDSAT_NM, height=70, width=101)
        return landscape_scene(make_raster, name, array, LANDSAT_NM, LANDSAT_FWHM_NM, **options)

    return make


@pytest.fixture
def pretrain(tmp_path, scene):
    (tmp_path / "out").mkdir()

    def run(feedback=None, **parameters):
        given = {
            "input": scene(),
            "epochs": 2,
            "batch_size": 2,
            "device": "cpu",
            "output": str(tmp_path / "out" / "teacher.zip"),
        } | parameters
        return pretrain_teacher(Request.parse(given), feedback or SilentFeedback())

    return run


def test_a_package_is_made_with_the_whole_network(pretrain, tmp_path):
    result = pretrain(report=str(tmp_path / "out" / "report.html"))
    package = load_package(result["output"])
    network = build_model(package)
    assert (package.info.architecture, package.info.task) == ("prithvi-mae", "generative")
    assert (network.width, network.config.in_channels) == (128, 6)
    assert {name.partition(".")[0] for name in package.state} >= {"encoder", "decoder"}
    assert result["psnr_db_whole"] > result["psnr_db"] > 5
    html = Path(result["report"]).read_text(encoding="utf-8")
    assert "Teacher of landsat" in html
    assert html.count("data:image/png;base64,") >= 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.html",
        "teacher.zip",
    ]


def test_it_teaches_a_student(pretrain, make_raster, tmp_path):
    teacher = pretrain()["output"]
    hyperspectral = make_raster(
        "hyper.tif", array=landscape(height=50, width=50), scale=1e-4, crs=None,
        wavelength_nm=WAVELENGTH_NM, fwhm_nm=FWHM_NM,
    ).path  # fmt: skip
    request = {
        "input": hyperspectral, "teacher": teacher, "epochs": 1, "batch_size": 2, "device": "cpu",
        "output": str(tmp_path / "out" / "backbone.zip"), "copy_teacher": True,
    }  # fmt: skip
    result = distill_backbone(DistilRequest.parse(request), SilentFeedback())
    assert load_package(result["output"]).info.training["teacher"]["name"] == "teacher"


def test_a_cancelled_run_goes_on_to_the_same_weights(pretrain, tmp_path):
    whole = load_package(pretrain(output=str(tmp_path / "out" / "whole.zip"))["output"]).sha256
    with pytest.raises(CancelledError):
        pretrain(Recorder(cancel_at=0.4))
    assert load_package(pretrain(resume=True)["output"]).sha256 == whole


def test_a_scene_smaller_than_a_tile_is_refused(pretrain):
    with pytest.raises(SceneError, match="landsat is 101 x 70 px, smaller than a tile of 224"):
        pretrain(preset="prithvi-100m")


def test_too_little_memory_names_what_would_fit(pretrain, monkeypatch):
    monkeypatch.setattr(
        "engine.jobs.shared.masked_training.available_memory_bytes", lambda: 1024**3
    )
    with pytest.raises(CapacityError, match="prithvi-100m needs about") as caught:
        pretrain(preset="prithvi-100m", batch_size=None)
    assert "the preset small" in caught.value.remedy


@pytest.mark.slow
def test_a_teacher_of_a_real_landsat_scene(pretrain, tmp_path):
    """Slow: it reads a real scene and trains for a minute."""
    folder = Path(os.environ.get("HYPERKD_DATA", "../shared/data")) / "landsat5"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}; HYPERKD_DATA names the folder of the data")
    numbers = (1, 2, 3, 4, 5, 7)
    files = [str(folder / f"LT52240631988227CUB02_B{number}.TIF") for number in numbers]
    table = tmp_path / "bands.csv"
    lines = zip(LANDSAT_NM, LANDSAT_FWHM_NM, strict=True)
    table.write_text("wavelength_nm,fwhm_nm\n" + "".join(f"{nm},{w}\n" for nm, w in lines))
    few, many = (
        pretrain(input=[files], bands=str(table), epochs=epochs, batch_size=None)["psnr_db"]
        for epochs in (1, 15)
    )
    assert many > few + 1

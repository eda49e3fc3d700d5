"""train_fusion: the package and the report that pairs of images become, and what is refused."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from engine.errors import (
    BandMatchError,
    CancelledError,
    CapacityError,
    OutputError,
    RequestError,
    SceneError,
    TrainingError,
)
from engine.feedback import SilentFeedback
from engine.jobs.fuse import Request as FuseRequest
from engine.jobs.fuse import fuse
from engine.jobs.shared import masked_training
from engine.jobs.train_fusion import Request, train_fusion
from engine.models.fusion.fuser import Fuser
from engine.packages.build import build_model
from engine.packages.package import load_package
from engine.training.fusion_metrics import MEASURES
from tests.engine.jobs.brightest import Listener
from tests.engine.jobs.fusing import spoil
from tests.engine.jobs.made_pairs import HSI_NM, MSI_NM, RATIO, write_pair

QUICK = {"device": "cpu", "epochs": 2, "seed": 3}


def request_for(*pairs, **parameters):
    images = {
        "hyperspectral": [pair.hsi for pair in pairs],
        "multispectral": [pair.msi for pair in pairs],
    }
    return Request.parse(images | QUICK | parameters)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), height=36, width=30)


@pytest.fixture(scope="module")
def run(pair, tmp_path_factory):
    """One training: its result, package, page and what was said."""
    folder = tmp_path_factory.mktemp("training")
    feedback = Listener()
    request = request_for(
        pair,
        output=str(folder / "made.zip"),
        report=str(folder / "report.html"),
        title="Made fusion",
        licence="CC-BY-4.0",
        attribution="Nobody",
    )
    result = train_fusion(request, feedback)
    page = (folder / "report.html").read_text(encoding="utf-8")
    text = re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", page)))
    return result, load_package(result["output"]), text, feedback


def test_the_result_has_paths_scores_shift_and_size(run):
    result, package, _text, _feedback = run
    assert Path(result["output"]).is_file()
    assert Path(result["report"]).is_file()
    for name in ("psnr_db", "teacher_psnr_db", "best_classical_psnr_db"):
        assert 10 < result[name] < 120
    assert 0 < result["sam_deg"] < 20
    assert 0 < result["ergas"] < 50
    assert abs(result["shift_x"]) < 0.2
    assert abs(result["shift_y"]) < 0.2
    assert result["parameters"] == package.info.training["parameters"]["student"] > 1000
    assert result["seconds"] > 0
    assert result["device"].startswith("cpu")


def test_the_package_says_which_two_images_it_fuses(run):
    info = run[1].info
    assert (info.task, info.architecture, info.ratio) == ("super-resolution", "csakd-fuser", RATIO)
    np.testing.assert_allclose(info.bands.wavelength_nm, HSI_NM)
    np.testing.assert_allclose(info.fine_bands.wavelength_nm, MSI_NM)


def test_the_package_carries_what_was_asked_for(run):
    info = run[1].info
    assert (info.title, info.licence, info.attribution) == ("Made fusion", "CC-BY-4.0", "Nobody")
    assert info.training_area is not None


def test_the_request_in_the_package_names_no_folder(run):
    used = run[1].info.training["request"]
    assert used["hyperspectral"] == ["pair_hsi.tif"]
    assert used["multispectral"] == ["pair_msi.tif"]
    assert used["output"] == "made.zip"


def test_the_scores_in_the_package_are_those_of_the_result(run):
    result, package, *_ = run
    assert package.info.scores["psnr_db"] == pytest.approx(result["psnr_db"])
    others = package.info.training["scores_of_others"]
    assert set(others) == {"teacher", "start", "bicubic", "gsa", "glphs", "cnmf"}


def test_the_student_is_not_worse_than_what_it_begins_with(run):
    result, package, *_ = run
    start = package.info.training["scores_of_others"]["start"]["psnr_db"]
    assert result["psnr_db"] > start - 0.2
    assert result["psnr_db"] > package.info.training["scores_of_others"]["bicubic"]["psnr_db"]


def test_the_built_model_is_the_student(run):
    model = build_model(run[1])
    assert isinstance(model, Fuser)
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
    tiling = run[1].info.tiling
    assert tiling.halo_px == model.reach_px


def test_the_report_compares_with_all_classical_methods(run):
    text = run[2]
    for expected in ("CSAKD, the student (this model)", "its teacher", "GSA", "MTF-GLP-HS", "CNMF"):
        assert expected in text
    for measure in MEASURES:
        assert measure.title in text


def test_the_report_shows_what_was_found_out_about_the_pair(run):
    text = run[2]
    for expected in ("estimated", "pair_hsi", "pair_msi", "coarse px", "left unexplained"):
        assert expected in text
    assert "Consistency at full resolution" in text


def test_the_report_says_what_was_held_out_and_what_that_said(run):
    text = run[2]
    assert re.search(r"\d+ of \d+ places of \d+ x \d+ coarse pixels were held out", text)
    assert "The networks learn what a regression leaves" in text


def test_the_report_carries_its_pictures_in_itself(run):
    page = Path(run[0]["report"]).read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 5
    assert not re.search(r'src="(?!data:)', page)


def test_no_checkpoint_is_left(run):
    folder = Path(run[0]["output"]).parent
    assert {path.name for path in folder.iterdir()} == {"made.zip", "report.html"}


def test_fuse_takes_the_package(run, pair, tmp_path):
    request = {
        "hyperspectral": pair.hsi, "multispectral": pair.msi, "model": run[0]["output"],
        "output": str(tmp_path / "fused.tif"), "device": "cpu",
    }  # fmt: skip
    assert fuse(FuseRequest.parse(request), SilentFeedback())["method"] == "csakd"


def test_several_pairs_train_one_model(pair, tmp_path):
    other = write_pair(tmp_path, "other", seed=1, height=30, width=33, msi_order=(2, 0, 3, 1))
    request = request_for(
        pair, other, output=str(tmp_path / "both"), report=str(tmp_path / "report.html"), epochs=1
    )
    result = train_fusion(request, SilentFeedback())
    info = load_package(result["output"]).info
    assert [row["hyperspectral"] for row in info.training["pairs"]] == ["pair_hsi", "other_hsi"]
    page = Path(result["report"]).read_text(encoding="utf-8")
    assert "pair_hsi and other_hsi show the same ground" in page
    assert page.count("Spectra at the points") == 4  # as a caption and as a text for each pair


def test_clouds_in_either_image_are_left_out_of_the_training(tmp_path):
    made = write_pair(tmp_path, height=36, width=33)
    spoil(made.hsi, slice(0, 6), slice(0, 9), -32768)
    spoil(made.msi, slice(60, 80), slice(50, 70), -32768)
    result = train_fusion(request_for(made, output=str(tmp_path / "m"), epochs=1), SilentFeedback())
    package = load_package(result["output"])
    assert package.info.normalisation.mean.min() > 0
    assert 10 < result["psnr_db"] < 60


def test_the_package_knows_when_its_images_were_taken(tmp_path):
    made = write_pair(tmp_path, height=30, width=30)
    with rasterio.open(made.hsi, "r+") as dataset:
        dataset.update_tags(ns="IMAGERY", ACQUISITIONDATETIME="2024-06-12T10:20:30Z")
    result = train_fusion(request_for(made, output=str(tmp_path / "m"), epochs=1), SilentFeedback())
    taken = datetime(2024, 6, 12, 10, 20, 30, tzinfo=UTC)
    assert load_package(result["output"]).info.training_period == (taken, taken)


def test_one_panchromatic_band_is_enough(tmp_path):
    made = write_pair(tmp_path, msi_order=(2,), msi_nm=None, height=30, width=30)
    feedback = Listener()
    result = train_fusion(request_for(made, output=str(tmp_path / "pan"), epochs=1), feedback)
    assert load_package(result["output"]).info.fine_bands.names == ("panchromatic",)
    assert any("panchromatic" in text for text in feedback.warnings)


def test_a_shift_is_corrected_and_told(tmp_path):
    made = write_pair(tmp_path, shift_coarse_px=(1, -2), height=36, width=33)
    result = train_fusion(
        request_for(made, output=str(tmp_path / "moved"), epochs=1), SilentFeedback()
    )
    assert result["shift_x"] == pytest.approx(1, abs=0.2)
    assert result["shift_y"] == pytest.approx(-2, abs=0.2)


def test_a_shift_that_is_given_wrong_is_warned_about_in_the_report(tmp_path):
    made = write_pair(tmp_path, shift_coarse_px=(1, 0), height=36, width=33)
    report = tmp_path / "report.html"
    request = request_for(
        made, output=str(tmp_path / "m"), report=str(report), shift="0,0", epochs=1
    )
    train_fusion(request, SilentFeedback())
    assert "let the shift be estimated" in report.read_text(encoding="utf-8")


def test_a_model_that_a_classical_method_beats_is_warned_about(pair, tmp_path):
    feedback = Listener()
    request = request_for(pair, output=str(tmp_path / "bare"), start=False, epochs=1)
    train_fusion(request, feedback)
    assert any("is better than the model" in text for text in feedback.warnings)


# What is refused


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"ratio": 1}, "ratio: .* greater than or equal to 2"),
        ({"shift": "left"}, "'left' is no shift"),
        ({"preset": "huge"}, "preset: .*'laptop'"),
        ({"validation": 0.0}, "validation: "),
        ({"distillation": "much"}, "distillation: "),
        ({"fusion": "sum"}, "fusion: "),
        ({"hyperspectral": []}, "hyperspectral: "),
        ({"speed": 3}, "speed: Extra"),
    ],
)
def test_requests_out_of_range_are_refused(pair, tmp_path, parameters, message):
    with pytest.raises(RequestError, match=message):
        request_for(pair, **{"output": str(tmp_path / "m")} | parameters)


def test_as_many_images_of_both_kinds_are_needed(pair, tmp_path):
    request = request_for(pair, output=str(tmp_path / "m"), multispectral=[pair.msi, pair.msi])
    with pytest.raises(RequestError, match="1 hyperspectral and 2 multispectral images"):
        train_fusion(request, SilentFeedback())


def test_pairs_of_other_sensors_are_refused(pair, tmp_path):
    other = write_pair(tmp_path, "other", hsi_order=range(8))
    with pytest.raises(BandMatchError, match="other_hsi does not have the bands"):
        train_fusion(request_for(pair, other, output=str(tmp_path / "m")), SilentFeedback())


def test_images_of_different_places_are_refused(pair, tmp_path):
    far = write_pair(tmp_path, "far", shift_coarse_px=(500, 0))
    request = request_for(pair, output=str(tmp_path / "m"), multispectral=[far.msi])
    with pytest.raises(SceneError, match="overlap"):
        train_fusion(request, SilentFeedback())


def test_a_shift_beyond_the_limit_is_refused(tmp_path):
    made = write_pair(tmp_path, shift_coarse_px=(2, 0), height=36, width=33)
    request = request_for(made, output=str(tmp_path / "m"), max_shift=1.0)
    with pytest.raises(SceneError, match="further than the limit of 1 px"):
        train_fusion(request, SilentFeedback())


def test_an_image_is_never_overwritten(pair):
    request = request_for(pair, output=pair.msi)
    with pytest.raises(OutputError, match=r"pair_msi\.tif"):
        train_fusion(request, SilentFeedback())
    assert Path(pair.msi).stat().st_size > 1000


def test_too_few_bands_for_the_published_width_are_refused(tmp_path):
    made = write_pair(tmp_path, hsi_order=(1, 4, 8), msi_order=(0, 1))
    request = request_for(made, output=str(tmp_path / "m"), preset="paper")
    with pytest.raises(RequestError, match="too few"):
        train_fusion(request, SilentFeedback())


def test_too_little_memory_is_said_before_the_training(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(masked_training, "available_memory_bytes", lambda: 400 * 1024**2)
    request = request_for(pair, output=str(tmp_path / "m"), preset="subspace")
    with pytest.raises(
        CapacityError, match=r"The preset subspace needs about .* laptop: that fits"
    ):
        train_fusion(request, SilentFeedback())


# Interrupted and resumed


def test_a_cancelled_run_goes_on_to_the_same_weights(pair, tmp_path):
    def request(name, **parameters):
        return request_for(pair, output=str(tmp_path / name), epochs=6, **parameters)

    whole = load_package(train_fusion(request("whole.zip"), SilentFeedback())["output"])
    with pytest.raises(CancelledError):
        train_fusion(request("cut.zip"), Listener(cancel_at=0.4))
    assert not (tmp_path / "cut.zip").exists()
    assert (tmp_path / "cut.zip.checkpoint.safetensors").is_file()
    feedback = Listener()
    resumed = train_fusion(request("cut.zip", resume=True), feedback)
    assert any(text.startswith("Going on after step") for text in feedback.infos)
    assert load_package(resumed["output"]).sha256 == whole.sha256
    assert not (tmp_path / "cut.zip.checkpoint.safetensors").exists()


def test_a_run_with_other_settings_does_not_go_on(pair, tmp_path):
    output = str(tmp_path / "cut.zip")
    with pytest.raises(CancelledError):
        train_fusion(request_for(pair, output=output), Listener(cancel_at=0.2))
    with pytest.raises(TrainingError, match="seed was 3 and is 4"):
        train_fusion(request_for(pair, output=output, seed=4, resume=True), SilentFeedback())


def test_without_a_checkpoint_the_run_begins_anew(pair, tmp_path):
    feedback = Listener()
    train_fusion(
        request_for(pair, output=str(tmp_path / "new.zip"), resume=True, epochs=1), feedback
    )
    assert any("begins anew" in text for text in feedback.warnings)

"""Distillation through the job: from rasters and a teacher to a package and a report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from engine.errors import (
    BandMatchError,
    BandTableError,
    CancelledError,
    CapacityError,
    DeviceError,
    OutputError,
    PackageError,
    RequestError,
    SceneError,
    TrainingError,
)
from engine.feedback import SilentFeedback
from engine.jobs.distill_backbone import Request, distill_backbone
from engine.models.mae import PRESETS
from engine.packages.build import build_model
from engine.packages.package import load_package
from tests.engine.jobs.brightest import left_in
from tests.engine.jobs.made_landscape import WAVELENGTH_NM, landscape, landscape_scene
from tests.engine.jobs.test_train_classifier import Recorder

TILE_PX = PRESETS["laptop"].tile_size_px
CHECKPOINT = "backbone.zip.checkpoint.safetensors"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def scene(make_raster):
    def make(name="scene.tif", array=None, wavelength_nm=WAVELENGTH_NM, **options):
        array = landscape(wavelength_nm) if array is None else array
        return landscape_scene(make_raster, name, array, wavelength_nm, **options)

    return make


@pytest.fixture
def distil(tmp_path, scene):
    (tmp_path / "out").mkdir()

    def run(feedback=None, **parameters):
        given = {
            "epochs": 2,
            "batch_size": 2,
            "device": "cpu",
            "output": str(tmp_path / "out" / "backbone.zip"),
        } | parameters
        if "input" not in given:
            given["input"] = scene()
        return distill_backbone(Request.parse(given), feedback or SilentFeedback())

    return run


def test_a_package_is_made_with_the_encoder_and_nothing_else(distil, tmp_path):
    feedback = Recorder()
    result = distil(feedback)
    package = load_package(result["output"])
    backbone = build_model(package)
    info = package.info
    assert (info.architecture, info.task) == ("hyperkd-backbone", "generative")
    assert {name.partition(".")[0] for name in package.state} == {"encoder"}
    assert (backbone.config.embed_dim, backbone.tile_size_px) == (128, TILE_PX)
    assert 1400 not in info.bands.wavelength_nm  # in the ranges that are dropped
    assert len(info.bands) == len(WAVELENGTH_NM) - 1
    assert info.training["teacher"]["name"] == "galileo-nano"
    assert info.training["request"]["input"] == ["scene.tif"]
    assert info.scores["psnr_db"] == pytest.approx(result["psnr_db"])
    assert result["psnr_db_whole"] > result["psnr_db"] > 5
    assert {"ssim", "spectral_angle_deg", "ssim_whole", "seconds", "device"} <= set(result)
    assert feedback.fractions == sorted(feedback.fractions)
    assert any("tiles a second" in text for text in feedback.infos)
    assert left_in(tmp_path / "out") == ["backbone.zip"]


def test_the_report_shows_reconstructions_curves_and_the_teachers_bands(distil, tmp_path):
    report = str(tmp_path / "out" / "report.html")
    result = distil(report=report)
    assert result["report"] == report
    held_out = load_package(result["output"]).info.training["held_out_tiles"]
    html = Path(report).read_text(encoding="utf-8")
    for text in ("galileo-nano", "PSNR", "held-out", "B8A", "guided share", "training<br>tiles"):
        assert text in html
    # Some of the held-out tiles, spectra, curves.
    assert html.count("data:image/png;base64,") == min(held_out, 4) + 2


def test_a_seed_repeats_a_run(distil):
    first, again, other = (
        load_package(distil(seed=seed, epochs=1)["output"]).sha256 for seed in (3, 3, 4)
    )
    assert first == again != other


def test_without_a_weight_no_teacher_is_read(distil):
    result = distil(feature_weight=0, teacher="nowhere", epochs=1)
    assert load_package(result["output"]).info.training["teacher"] is None


def test_every_setting_of_the_method_is_taken(distil, tmp_path, scene):
    responses = tmp_path / "responses.csv"
    responses.write_text("wavelength_nm,B2\n450,0\n480,1\n530,0\n")
    result = distil(
        alignment="response", responses=str(responses), feature_layers="quarters",
        feature_loss="mse", hide="plain", guided_share=1.0, spectral_weight=0.1, ssim_weight=0,
        mask_ratio=0.5, drop_ranges="none", copy_teacher=True, learning_rate=1e-4, epochs=1,
        validation=0.0,
    )  # fmt: skip
    info = load_package(result["output"]).info
    assert set(info.training["final_losses"]) == {"loss", "mse", "features", "spectral"}
    assert len(info.bands) == len(WAVELENGTH_NM)
    assert info.config["num_heads"] == 8  # those of the copied blocks
    assert result["psnr_db"] is None


def test_a_scene_of_another_sensor_takes_part_with_what_it_has(distil, scene):
    keep = np.delete(np.arange(len(WAVELENGTH_NM)), [3, 10, 11])
    some_nm = WAVELENGTH_NM[keep]
    other = scene("other.tif", landscape(some_nm, seed=1), some_nm, crs="EPSG:32734")
    empty = landscape(seed=2)
    empty[10] = -99
    third = scene("third.tif", empty, crs="EPSG:32735")
    feedback = Recorder()
    result = distil(feedback, input=[scene(), other, third], epochs=1)
    assert len(load_package(result["output"]).info.bands) == len(WAVELENGTH_NM) - 1
    assert any("other has no measurements for 3 of 16 bands" in w for w in feedback.warnings)
    assert any("third has no measurements for 1 of 16 bands" in w for w in feedback.warnings)


def test_a_cancelled_run_leaves_a_checkpoint_and_goes_on_to_the_same_weights(distil, tmp_path):
    whole = load_package(distil(output=str(tmp_path / "out" / "whole.zip"))["output"]).sha256
    with pytest.raises(CancelledError):
        distil(Recorder(cancel_at=0.4))
    assert left_in(tmp_path / "out") == [CHECKPOINT, "whole.zip"]
    feedback = Recorder()
    assert load_package(distil(feedback, resume=True)["output"]).sha256 == whole
    assert any("Going on after step" in text for text in feedback.infos)
    assert left_in(tmp_path / "out") == ["backbone.zip", "whole.zip"]


def test_resuming_without_a_checkpoint_begins_anew_and_says_so(distil):
    feedback = Recorder()
    distil(feedback, resume=True, epochs=1)
    assert any("to resume from: the run begins anew" in text for text in feedback.warnings)


def test_beginning_anew_over_a_checkpoint_is_said(distil):
    with pytest.raises(CancelledError):
        distil(Recorder(cancel_at=0.4))
    feedback = Recorder()
    distil(feedback, epochs=1)
    assert any("of an interrupted run will be replaced" in text for text in feedback.warnings)


def test_resuming_with_other_settings_is_refused_by_their_names(distil, scene):
    with pytest.raises(CancelledError):
        distil(Recorder(cancel_at=0.4))
    with pytest.raises(TrainingError, match=r"mask_ratio was 0\.75 and is 0\.5"):
        distil(resume=True, mask_ratio=0.5)
    with pytest.raises(TrainingError, match=r"input was .*scene 75x62 17"):
        distil(resume=True, input=[scene(), scene("b.tif", crs=None)])


# Bad input


def test_a_teacher_of_no_known_layout_is_refused_with_the_missing_keys(distil, tmp_path):
    path = tmp_path / "unknown.safetensors"
    save_file({"encoder.cls_token": torch.zeros(1, 1, 8)}, path)
    with pytest.raises(PackageError, match="pos_embed"):
        distil(teacher=str(path))


def test_a_teacher_that_would_run_code_is_refused(distil, tmp_path):
    class Harmful:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"x": Harmful()}, tmp_path / "harmful.pt")
    with pytest.raises(PackageError, match="print"):
        distil(teacher=str(tmp_path / "harmful.pt"))


def test_a_scene_that_does_not_cover_the_teachers_bands_gets_the_list(distil, scene):
    short_nm = WAVELENGTH_NM[:11]
    with pytest.raises(BandMatchError, match=r"B11 .*, B12 \(2112.9 to 2286.5 nm\)"):
        distil(input=scene("short.tif", landscape(short_nm), short_nm))


def test_a_second_scene_that_does_not_is_named(distil, scene):
    short_nm = WAVELENGTH_NM[:11]
    short = scene("short.tif", landscape(short_nm), short_nm, crs=None)
    with pytest.raises(BandMatchError, match=r"short: .*B11"):
        distil(input=[scene(), short])


def test_a_scene_without_wavelengths_is_refused(distil, scene):
    with pytest.raises(BandTableError, match="bare has no wavelengths"):
        distil(input=scene("bare.tif", tags="none"))


def test_a_scene_mostly_without_data_is_refused(distil, scene):
    array = landscape()
    array[:, TILE_PX // 3 :] = -99
    with pytest.raises(SceneError, match=f"tiles of {TILE_PX} px to train on has enough"):
        distil(input=scene(array=array))


def test_a_scene_smaller_than_a_tile_is_refused(distil, scene):
    low = TILE_PX - 2
    expected = f"small is 75 x {low} px, smaller than a tile of {TILE_PX} x {TILE_PX} px"
    with pytest.raises(SceneError, match=expected):
        distil(input=scene("small.tif", landscape()[:, :low]))


def test_too_little_memory_names_what_would_fit(distil, monkeypatch):
    monkeypatch.setattr(
        "engine.jobs.shared.masked_training.available_memory_bytes", lambda: 1024**3
    )
    with pytest.raises(CapacityError, match=r"vit_b needs about .* has 1\.0 GiB free") as caught:
        distil(preset="vit_b", batch_size=None)
    assert caught.value.remedy == "Choose the preset small64: that fits."


def test_no_memory_for_anything_says_to_make_room(distil, monkeypatch):
    monkeypatch.setattr("engine.jobs.shared.masked_training.available_memory_bytes", lambda: 1024)
    with pytest.raises(CapacityError, match="Close other programs"):
        distil()


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"mse_weight": 0, "ssim_weight": 0, "feature_weight": 0}, RequestError, "All weights"),
        ({"responses": "r.csv"}, RequestError, "Responses are given, but the alignment is 'mean'"),
        ({"drop_ranges": "400-3000"}, BandTableError, "None of the first scene's 17 bands is left"),
        ({"drop_ranges": "many"}, BandTableError, "'many' is not a range"),
        ({"gpus": 2}, DeviceError, "2 GPUs were asked for, and none can be used"),
        ({"mask_ratio": 1.0}, RequestError, "mask_ratio"),
        ({"teacher": "nobody"}, PackageError, "nobody"),
        ({"preset": "huge"}, RequestError, "preset"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(distil, parameters, error, message):
    with pytest.raises(error, match=message):
        distil(**parameters)


def test_a_teacher_of_another_width_cannot_be_copied(distil, scene):
    large = scene("large.tif", landscape(height=70, width=66))
    with pytest.raises(TrainingError, match="are 128 wide and do not fit a student of 256"):
        distil(preset="small64", copy_teacher=True, input=large)


def test_an_output_that_is_an_input_is_refused(distil, scene):
    path = scene()
    with pytest.raises(OutputError, match=r"is a file, not a folder|is also an input"):
        distil(input=path, output=path)

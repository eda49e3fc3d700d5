"""Adapting a backbone through the job: from rasters to a package that names its backbone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from engine.errors import (
    BandTableError,
    CancelledError,
    CapacityError,
    OutputError,
    PackageError,
    RequestError,
    SceneError,
    TrainingError,
)
from engine.feedback import SilentFeedback
from engine.jobs.adapt_backbone import Request, adapt_backbone
from engine.models.spectralx.presets import PRESETS
from engine.packages.build import build_model
from engine.packages.foundations import load_foundation
from engine.packages.package import load_package
from tests.engine.jobs.brightest import left_in
from tests.engine.jobs.made_landscape import WAVELENGTH_NM, landscape, landscape_scene
from tests.engine.jobs.test_train_classifier import Recorder

PACKAGED = Path(__file__).parents[3] / "resources" / "models"

CHIP_PX = PRESETS["laptop"].chip_px
SIDE_PX = 2 * CHIP_PX + 6  # four tiles, one of which is held out
CHECKPOINT = "adapted.zip.checkpoint.safetensors"
MEMORY = "engine.jobs.shared.masked_training.available_memory_bytes"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def user_folder(monkeypatch, tmp_path):
    """Places of backbones are remembered for the user: not for the one who runs the tests."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HYPERKD_MODELS", str(tmp_path / "models"))


@pytest.fixture
def scene(make_raster):
    def make(name="scene.tif", array=None, wavelength_nm=WAVELENGTH_NM, **options):
        array = landscape(wavelength_nm, SIDE_PX, SIDE_PX) if array is None else array
        return landscape_scene(make_raster, name, array, wavelength_nm, **options)

    return make


@pytest.fixture
def adapt(tmp_path, scene):
    (tmp_path / "out").mkdir()

    def run(feedback=None, **parameters):
        given = {
            "epochs": 2,
            "batch_size": 2,
            "device": "cpu",
            "output": str(tmp_path / "out" / "adapted.zip"),
        } | parameters
        if "input" not in given:
            given["input"] = scene()
        return adapt_backbone(Request.parse(given), feedback or SilentFeedback())

    return run


def test_a_package_holds_what_was_added_and_names_its_backbone(adapt, tmp_path):
    feedback = Recorder()
    result = adapt(feedback)
    package = load_package(result["output"])
    info, backbone = package.info, load_foundation("galileo-nano")
    assert (info.architecture, info.task) == ("spectralx-adapted", "generative")
    assert info.config["foundation"]["sha256"] == backbone.identity.sha256
    assert info.training["backbone"]["licence"] == "MIT"
    assert info.config["wavelength_nm"] == pytest.approx(WAVELENGTH_NM)
    assert len(info.bands) == len(WAVELENGTH_NM)
    assert not any("attn" in name for name in package.state if name.startswith("vit."))
    model = build_model(package)
    assert torch.equal(model.vit.blocks[0].attn.qkv.weight, backbone.vit.blocks[0].attn.qkv.weight)
    in_package = sum(info.training["trainable_parts"].values())
    assert result["trainable_parameters"] == info.training["trainable_parameters"] == in_package
    assert result["psnr_db_whole"] > result["psnr_db"] > 5
    assert info.scores["psnr_db"] == pytest.approx(result["psnr_db"])
    assert {"ssim", "spectral_angle_deg", "ssim_whole", "seconds", "device"} <= set(result)
    assert feedback.fractions == sorted(feedback.fractions)
    assert any("galileo-nano" in text and "licence MIT" in text for text in feedback.infos)
    assert any("AoMoA" in text for text in feedback.infos)
    assert left_in(tmp_path / "out") == ["adapted.zip"]


def test_the_report_shows_reconstructions_what_was_trained_and_whose_backbone(adapt, tmp_path):
    report = str(tmp_path / "out" / "report.html")
    result = adapt(report=report, scaling="unit", epochs=1)
    assert result["report"] == report
    html = Path(report).read_text(encoding="utf-8")
    sha256 = load_foundation("galileo-nano").identity.sha256
    parts = load_package(result["output"]).info.training["trainable_parts"]
    for text in ("galileo-nano", sha256, "MIT", "PSNR", "held-out", "AoMoA", "decoder", "norms"):
        assert text in html
    assert all(f"{count:,}" in html for count in [*parts.values(), sum(parts.values())])
    assert result["trainable_parameters"] == sum(parts.values())
    assert "the brightness of hidden pixels is given to it" in html
    assert html.count("data:image/png;base64,") == 3  # the held-out tile, spectra, curves


def test_a_seed_repeats_a_run(adapt):
    first, again, other = (
        load_package(adapt(seed=seed, epochs=1)["output"]).sha256 for seed in (3, 3, 4)
    )
    assert first == again != other


def test_every_setting_of_the_method_is_taken(adapt):
    result = adapt(
        mask_input=False, train_tokenizer=False, scaling="chip", load_balancing=0.01,
        mask_ratio=0.5, learning_rate=1e-4, validation=0.0, epochs=1,
    )  # fmt: skip
    info = load_package(result["output"]).info
    assert set(info.training["final_losses"]) == {"loss", "mse", "balance"}
    assert "tokenizer's core" not in info.training["trainable_parts"]
    config = info.config
    assert (config["scaling"], config["train_tokenizer"]) == ("chip", False)
    assert config["load_balancing"] == 0.01
    assert result["psnr_db"] is None


def test_the_preset_says_what_is_left_out(adapt):
    info = load_package(adapt(epochs=1)["output"]).info
    assert (info.config["scaling"], info.config["train_tokenizer"]) == ("standard", True)
    assert "mask_input" not in info.training["request"]


def test_targets_are_trained_on_but_give_no_scores(adapt, scene, tmp_path):
    target = scene(
        "target.tif", landscape(WAVELENGTH_NM, CHIP_PX + 4, 40, seed=1), crs="EPSG:32734"
    )
    report = tmp_path / "out" / "report.html"
    alone = load_package(adapt(epochs=1)["output"]).info.training
    result = adapt(targets=target, report=str(report), epochs=1)
    with_target = load_package(result["output"]).info.training
    assert with_target["held_out_tiles"] == alone["held_out_tiles"]
    assert with_target["training_tiles"] > alone["training_tiles"]
    assert with_target["request"]["targets"] == ["target.tif"]
    assert "Trained on without scores" in report.read_text(encoding="utf-8")


def test_a_cancelled_run_leaves_a_checkpoint_and_goes_on_to_the_same_weights(adapt, tmp_path):
    whole = load_package(adapt(output=str(tmp_path / "out" / "whole.zip"))["output"])
    with pytest.raises(CancelledError):
        adapt(Recorder(cancel_at=0.4))
    assert left_in(tmp_path / "out") == [CHECKPOINT, "whole.zip"]
    feedback = Recorder()
    resumed = load_package(adapt(feedback, resume=True)["output"])
    assert resumed.sha256 == whole.sha256
    assert resumed.info.scores == whole.info.scores
    assert any("Going on after step" in text for text in feedback.infos)
    assert left_in(tmp_path / "out") == ["adapted.zip", "whole.zip"]


def test_resuming_with_another_backbone_is_refused(adapt, tmp_path):
    with pytest.raises(CancelledError):
        adapt(Recorder(cancel_at=0.4))
    with pytest.raises(TrainingError, match=r"backbone was .* and is "):
        adapt(resume=True, backbone=made_backbone(tmp_path))


def test_resuming_with_a_source_that_has_become_a_target_is_refused(adapt, scene):
    """Its ground was held out, and would now be trained on."""
    first, second = scene(), scene("second.tif")
    with pytest.raises(CancelledError):
        adapt(Recorder(cancel_at=0.4), input=[first, second])
    with pytest.raises(TrainingError, match='targets was "0" and is "1"'):
        adapt(resume=True, input=[first], targets=[second])


def test_a_backbone_from_a_file_is_found_again_without_asking(adapt, tmp_path):
    path = made_backbone(tmp_path)
    package = load_package(adapt(backbone=path, epochs=1)["output"])
    assert package.info.config["foundation"]["name"] == "plain"
    assert build_model(package).config.vit.embed_dim == 64
    Path(path).rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(PackageError, match="plain") as caught:
        build_model(package)
    assert package.info.config["foundation"]["sha256"][:12] in caught.value.sentence


def made_backbone(folder, width=64, depth=2, patch_px=4, grid=8):
    """A file as a plain masked autoencoder's, of random weights."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator) * 0.05

    state = {
        "cls_token": draw(1, 1, width),
        "pos_embed": draw(1, 1 + grid**2, width),
        "patch_embed.proj.weight": draw(width, 3, patch_px, patch_px),
        "patch_embed.proj.bias": draw(width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    for block in range(depth):
        for name, out, inner in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            state[f"blocks.{block}.{name}.weight"] = draw(out, inner)
            state[f"blocks.{block}.{name}.bias"] = draw(out)
        for norm in ("norm1", "norm2"):
            state[f"blocks.{block}.{norm}.weight"] = torch.ones(width)
            state[f"blocks.{block}.{norm}.bias"] = torch.zeros(width)
    (folder / "config.json").write_text(json.dumps({"embed_dim": width, "num_heads": 4}))
    path = folder / "plain.safetensors"
    save_file(state, path)
    return str(path)


# Bad input


def test_a_backbone_that_is_not_there_is_refused(adapt):
    with pytest.raises(PackageError, match="nobody"):
        adapt(backbone="nobody")


def test_a_backbone_of_no_known_layout_is_refused(adapt, tmp_path):
    path = tmp_path / "unknown.safetensors"
    save_file({"something.weight": torch.zeros(8, 8)}, path)
    with pytest.raises(PackageError, match=r"unknown\.safetensors"):
        adapt(backbone=str(path))


def test_a_backbone_that_would_run_code_is_refused(adapt, tmp_path):
    class Harmful:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"x": Harmful()}, tmp_path / "harmful.pt")
    with pytest.raises(PackageError, match="print"):
        adapt(backbone=str(tmp_path / "harmful.pt"))


def test_a_package_that_is_no_backbone_is_refused(adapt, tmp_path):
    other = adapt(epochs=1, output=str(tmp_path / "out" / "other.zip"))["output"]
    with pytest.raises(PackageError, match="is a spectralx-adapted, and no backbone"):
        adapt(backbone=other)


def test_a_scene_without_wavelengths_is_refused(adapt, scene):
    with pytest.raises(BandTableError, match="bare has no wavelengths"):
        adapt(input=scene("bare.tif", tags="none"))


def test_a_target_of_another_sensor_is_said(adapt, scene):
    keep = np.delete(np.arange(len(WAVELENGTH_NM)), [3, 10, 11])
    some_nm = WAVELENGTH_NM[keep]
    other = scene("other.tif", landscape(some_nm, SIDE_PX, SIDE_PX), some_nm, crs="EPSG:32734")
    feedback = Recorder()
    adapt(feedback, targets=other, epochs=1)
    assert any("other has no measurements for 3 of 17 bands" in w for w in feedback.warnings)


def test_a_scene_mostly_without_data_is_refused(adapt, scene):
    array = landscape(WAVELENGTH_NM, SIDE_PX, SIDE_PX)
    array[:, CHIP_PX // 3 :] = -99
    with pytest.raises(SceneError, match=f"tiles of {CHIP_PX} px to train on has enough"):
        adapt(input=scene(array=array))


def test_a_scene_smaller_than_a_chip_is_refused(adapt, scene):
    small = scene("small.tif", landscape(WAVELENGTH_NM, CHIP_PX - 2, 40))
    with pytest.raises(SceneError, match=f"small is 40 x {CHIP_PX - 2} px, smaller than a tile"):
        adapt(input=small)


def test_too_little_memory_names_what_would_fit(adapt, monkeypatch):
    monkeypatch.setattr(MEMORY, lambda: 400 * 1024**2)
    with pytest.raises(CapacityError, match=r"large needs about .* has 0\.4 GiB free") as caught:
        adapt(preset="large", batch_size=16)
    assert "the preset laptop" in caught.value.remedy


def test_no_memory_for_anything_says_to_make_room(adapt, monkeypatch):
    monkeypatch.setattr(MEMORY, lambda: 1024)
    with pytest.raises(CapacityError, match="Close other programs"):
        adapt()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"preset": "huge"}, "preset"),
        ({"scaling": "minmax"}, "scaling"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"load_balancing": -1}, "load_balancing"),
        ({"input": []}, "input"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(adapt, parameters, message):
    with pytest.raises(RequestError, match=message):
        adapt(**parameters)


def test_an_output_that_is_the_backbone_is_refused(adapt, tmp_path):
    path = Path(made_backbone(tmp_path))
    own = path.rename(tmp_path / "plain.zip.safetensors")
    with pytest.raises(OutputError, match=r"is a file, not a folder|is also an input"):
        adapt(backbone=str(own), output=str(own))


@pytest.mark.parametrize("given", ["", "model.json", "weights.safetensors"])
def test_the_package_of_the_backbone_is_not_replaced_by_its_adapters(adapt, tmp_path, given):
    own = tmp_path / "galileo"
    shutil.copytree(PACKAGED / "galileo-nano", own)
    before = (own / "model.json").read_bytes()
    with pytest.raises(OutputError, match="is also an input: the package that training begins"):
        adapt(backbone=str(own / given), output=str(own))
    assert (own / "model.json").read_bytes() == before

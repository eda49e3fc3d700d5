"""Packages that hold only what was added to a foundation: saved, and built again around it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.errors import PackageError
from engine.models.spectralx.adapted import AdaptedConfig, AdaptedViT
from engine.models.spectralx.presets import PRESETS
from engine.models.spectralx.segmenter import SegmenterConfig, SpectralXSegmenter
from engine.packages import installed
from engine.packages.build import build_model
from engine.packages.cache import ModelCache
from engine.packages.foundations import load_foundation, remember_foundation
from engine.packages.package import load_info, load_package, save_package
from tests.engine.packages.factory import BAND_COUNT, tiny_bands, tiny_info
from tests.engine.packages.made_foundations import DEPTH, encoder_state

PACKAGED = Path(__file__).parents[3] / "resources" / "models"
CPU = torch.device("cpu")
WIDTH = 64


@pytest.fixture
def foundation_file(tmp_path):
    """A small MAE encoder in a file, where nothing looks for it."""
    path = tmp_path / "elsewhere" / "mae_small.safetensors"
    path.parent.mkdir()
    save_file(encoder_state(width=WIDTH), path)
    return path


@pytest.fixture
def foundation(foundation_file):
    return load_foundation(str(foundation_file), num_heads=4)


def fields(foundation) -> dict:
    return {
        "in_channels": BAND_COUNT,
        "wavelength_nm": tuple(tiny_bands().wavelength_nm.tolist()),
        "vit": foundation.vit.config,
        "foundation": foundation.identity,
        "chip_px": 16,
        "patch_px": 4,
    }


def made(foundation, architecture: str, **changes):
    if architecture == "spectralx-adapted":
        return AdaptedViT(AdaptedConfig(**fields(foundation), **changes), foundation.vit).eval()
    small = {"num_classes": 3, "neck_channels": 8, "head_channels": 8} | changes
    config = SegmenterConfig(**fields(foundation), **small)
    model = SpectralXSegmenter(config, foundation.vit)
    torch.nn.init.normal_(model.head.classes.weight)
    return model.eval()


def save(path, model, architecture: str):
    other = {"task": "generative", "classes": ()} if architecture == "spectralx-adapted" else {}
    info = tiny_info(architecture=architecture, config=asdict(model.config), **other)
    return save_package(str(path), info, model.own_state())


@pytest.fixture
def saved(foundation, tmp_path):
    """A segmenter and its package, far from its foundation."""
    model = made(foundation, "spectralx-segmenter")
    return model, save(tmp_path / "packages" / "model", model, "spectralx-segmenter")


def answer(model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, BAND_COUNT, 16, 16, generator=generator)
    with torch.inference_mode():
        if isinstance(model, AdaptedViT):
            return model(pixels).tokens
        return model(pixels, torch.ones(2, 16, 16, dtype=torch.bool))


@pytest.mark.parametrize("adaptation", ["spectralx", "full", "frozen", "lora", "slr"])
@pytest.mark.parametrize("architecture", ["spectralx-adapted", "spectralx-segmenter"])
def test_the_built_model_answers_as_the_saved_one_did(
    foundation, foundation_file, tmp_path, architecture, adaptation
):
    remember_foundation(foundation.identity, foundation_file)
    model = made(foundation, architecture, adaptation=adaptation)
    built = build_model(load_package(str(save(tmp_path / "model", model, architecture))))
    assert built.config == model.config
    assert torch.equal(answer(built), answer(model))


def test_the_package_does_not_hold_the_foundation(saved):
    model, path = saved
    stored = load_package(str(path)).state
    assert not model.foundation_names & set(stored)
    assert model.foundation_names | set(stored) == set(model.state_dict())
    linears = [name for name in model.foundation_names if name.endswith("weight")]
    assert len(linears) == DEPTH * 4  # qkv, proj, fc1, fc2


def test_the_laptop_model_on_the_packaged_backbone_takes_a_few_megabytes(
    monkeypatch, model_folders, tmp_path
):
    monkeypatch.setattr(installed, "plugin_models_folder", lambda: PACKAGED)
    foundation = load_foundation("galileo-nano")
    config = PRESETS["laptop"].segmenter(
        num_classes=3,
        wavelength_nm=tiny_bands().wavelength_nm.tolist(),
        vit=foundation.vit.config,
        foundation=foundation.identity,
    )
    model = SpectralXSegmenter(config, foundation.vit)
    path = save(tmp_path / "model.zip", model, "spectralx-segmenter")
    assert path.stat().st_size < 8e6
    assert build_model(load_package(str(path))).config == config


def test_what_a_model_says_about_itself_needs_no_foundation(saved):
    assert load_info(str(saved[1])).config["foundation"]["name"] == "mae_small"


def test_a_foundation_beside_the_package_is_found(saved, foundation_file):
    model, path = saved
    foundation_file.rename(path.parent / foundation_file.name)
    assert torch.equal(answer(build_model(load_package(str(path)))), answer(model))


def test_a_foundation_in_the_users_folder_is_found_under_any_name(
    saved, foundation_file, model_folders
):
    model, path = saved
    foundation_file.rename(model_folders[1] / "renamed.safetensors")
    assert torch.equal(answer(build_model(load_package(str(path)))), answer(model))


def test_a_missing_foundation_is_named_with_where_to_get_it(saved, foundation):
    identity = foundation.identity
    with pytest.raises(PackageError, match="needs the backbone 'mae_small'") as caught:
        build_model(load_package(str(saved[1])))
    for part in (identity.sha256[:12], identity.licence, identity.source):
        assert part in str(caught.value)


def test_another_file_of_that_name_is_told_apart(saved, foundation_file, model_folders):
    save_file(encoder_state(seed=1, width=WIDTH), model_folders[1] / foundation_file.name)
    with pytest.raises(PackageError, match="is not the backbone 'mae_small' of the model"):
        build_model(load_package(str(saved[1])))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"embed_dim": 128}, "embed_dim|width"), ({"depth": DEPTH + 1}, "depth|blocks")],
)
def test_a_foundation_of_other_sizes_than_the_settings_is_refused(
    saved, foundation, foundation_file, tmp_path, changes, message
):
    remember_foundation(foundation.identity, foundation_file)
    model, _path = saved
    config = asdict(replace(model.config, vit=replace(model.config.vit, **changes)))
    info = tiny_info(architecture="spectralx-segmenter", config=config)
    path = save_package(str(tmp_path / "wrong"), info, model.own_state())
    with pytest.raises(PackageError, match=message):
        build_model(load_package(str(path)))


def test_weights_of_another_adaptation_are_refused(foundation, foundation_file, tmp_path):
    remember_foundation(foundation.identity, foundation_file)
    model = made(foundation, "spectralx-adapted", aomoa=False)
    config = asdict(replace(model.config, aomoa=True))
    info = tiny_info(architecture="spectralx-adapted", config=config, task="generative", classes=())
    path = save_package(str(tmp_path / "wrong"), info, model.own_state())
    with pytest.raises(PackageError, match=r"missing \(vit\.blocks\.0\.mlp\.fc1\."):
        build_model(load_package(str(path)))


def test_foundation_weights_in_a_package_are_refused(saved, foundation, foundation_file, tmp_path):
    remember_foundation(foundation.identity, foundation_file)
    model, _path = saved
    info = tiny_info(architecture="spectralx-segmenter", config=asdict(model.config))
    path = save_package(str(tmp_path / "whole"), info, model.state_dict())
    with pytest.raises(PackageError, match="not of this model"):
        build_model(load_package(str(path)))


def test_settings_that_contradict_each_other_are_refused(saved, tmp_path):
    config = asdict(saved[0].config) | {"patch_px": 5}
    info = tiny_info(architecture="spectralx-segmenter", config=config)
    path = save_package(str(tmp_path / "wrong"), info, saved[0].own_state())
    with pytest.raises(PackageError, match="cannot be cut into tokens of 5 px"):
        build_model(load_package(str(path)))


def test_a_model_on_a_foundation_is_kept_in_memory(saved, foundation, foundation_file):
    remember_foundation(foundation.identity, foundation_file)
    model, path = saved
    cache = ModelCache()
    loaded = cache.load(str(path), CPU)
    assert cache.load(str(path), CPU) is loaded
    assert torch.equal(answer(loaded.module), answer(model))

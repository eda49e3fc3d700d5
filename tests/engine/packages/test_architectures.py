"""Each of our own architectures through a package: saved, loaded and built, to the bit."""

from dataclasses import asdict

import pytest
import torch

from engine.errors import PackageError
from engine.models.backbone import BackboneConfig, HyperKDBackbone
from engine.models.classifier import ClassifierConfig, HyperKDClassifier
from engine.models.regressor import HyperKDRegressor, RegressorConfig
from engine.packages.build import build_model
from engine.packages.metadata import Quantity
from engine.packages.package import load_package, save_package
from tests.engine.packages.factory import BAND_COUNT, tiny_info

SMALL = {"embed_dim": 8, "depth": 1, "num_heads": 2}
PIXELS = SMALL | {"chip_px": 8, "halo_px": 1, "head_channels": 4, "heads": 2, "heads_hidden": 8}
CASES = {
    "hyperkd-classifier": (HyperKDClassifier(ClassifierConfig(BAND_COUNT, 3, **PIXELS)), {}),
    "hyperkd-regressor": (
        HyperKDRegressor(RegressorConfig(BAND_COUNT, value_mean=2.0, log1p=True, **PIXELS)),
        {"task": "regression", "classes": (), "quantity": Quantity("clay", "%", 0.0, 60.0)},
    ),
    "hyperkd-backbone": (
        HyperKDBackbone(BackboneConfig(BAND_COUNT, tile_size_px=8, **SMALL)),
        {"task": "generative", "classes": ()},
    ),
}


@pytest.fixture(params=CASES, ids=str)
def case(request, tmp_path):
    model, changes = CASES[request.param]
    info = tiny_info(architecture=request.param, config=asdict(model.config), **changes)
    return model.eval(), save_package(str(tmp_path / "model"), info, model.state_dict())


def test_the_built_model_answers_as_the_saved_one_did(case):
    model, path = case
    built = build_model(load_package(str(path)))
    assert built.config == model.config
    pixels = torch.rand(2, BAND_COUNT, 5, 3)
    valid = torch.ones(2, 5, 3, dtype=torch.bool)
    with torch.inference_mode():
        assert torch.equal(built(pixels, valid), model(pixels, valid))


def test_a_model_for_other_bands_than_the_package_lists_is_refused(tmp_path):
    model, changes = CASES["hyperkd-regressor"]
    config = asdict(model.config) | {"in_channels": BAND_COUNT + 1}
    info = tiny_info(architecture="hyperkd-regressor", config=config, **changes)
    save_package(str(tmp_path / "model"), info, model.state_dict())
    with pytest.raises(PackageError, match="lists 12 bands, but its setting in_channels is 13"):
        build_model(load_package(str(tmp_path / "model")))


def test_weights_are_named_as_in_the_first_packages():
    names = set(CASES["hyperkd-classifier"][0].state_dict())
    heads = {f"heads.{part}{n}" for part in ("weight", "bias") for n in (1, 2, 3)}
    head = {
        f"head.{part}.{kind}"
        for part in ("tokens", "spectra", "mix", "classes")
        for kind in ("weight", "bias")
    }
    buffers = ("band_mean", "band_std", "unit_mean", "unit_std", "weight", "bias")
    spectral = {f"spectral.{part}" for part in buffers}
    assert {name for name in names if not name.startswith("encoder.")} == (
        heads | {"heads.scale", "heads.shift"} | head | spectral
    )

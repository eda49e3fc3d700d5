"""Support and temperature travel in a package; without them it is as good as ever."""

from __future__ import annotations

import json

import pytest
import torch

from engine.errors import PackageError
from engine.packages.cache import ModelCache
from engine.packages.package import build_model, load_package, save_package
from engine.packages.parts import ModelParts
from engine.training.support_fit import fit_support
from tests.engine.packages.factory import BAND_COUNT, tiny_info, tiny_state

CPU = torch.device("cpu")


@pytest.fixture
def support():
    generator = torch.Generator().manual_seed(0)
    spectra = torch.rand(60, BAND_COUNT, generator=generator)
    return fit_support(spectra, torch.arange(60) % 3, spectra)


@pytest.fixture
def save(tmp_path):
    def save_state(extra):
        return str(save_package(str(tmp_path / "tiny"), tiny_info(), tiny_state() | extra))

    return save_state


def test_what_was_saved_is_loaded(save, support):
    loaded = ModelCache().load(save(ModelParts(support, 1.75).state()), CPU)
    assert loaded.temperature == 1.75
    for name, tensor in support.state_dict().items():
        assert torch.equal(loaded.support.state_dict()[name], tensor)


def test_the_model_is_built_of_its_own_weights(save, support):
    package = load_package(save(ModelParts(support, 1.75).state()))
    assert package.state.keys() == tiny_state().keys()
    assert build_model(package).state_dict().keys() == tiny_state().keys()


def test_a_package_of_before_has_neither(save):
    loaded = ModelCache().load(save({}), CPU)
    assert (loaded.support, loaded.temperature) == (None, 1.0)


def test_a_temperature_needs_no_support(save):
    loaded = ModelCache().load(save(ModelParts(temperature=0.5).state()), CPU)
    assert (loaded.support, loaded.temperature) == (None, 0.5)


def test_they_are_not_counted_as_parameters(save, support, tmp_path):
    save(ModelParts(support, 1.5).state())
    properties = json.loads((tmp_path / "tiny" / "model.json").read_text())["properties"]
    assert properties["mlm:total_parameters"] == sum(t.numel() for t in tiny_state().values())


def damaged(support, **changes):
    state = ModelParts(support, 1.0).state() | changes
    return {name: tensor for name, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"support.basis": None}, "cannot be read: these are missing or unknown: basis"),
        ({"support.band_std": torch.zeros(BAND_COUNT)}, "band_std that is not above 0"),
        ({"support.distance_95": torch.tensor(-1.0)}, "distance_95 that is not above 0"),
        ({"support.usual_outside": torch.ones(9)}, r"usual_outside is \(9,\) instead of \(3,\)"),
        ({"calibration.temperature": torch.tensor(0.0)}, "temperature of the model is 0.0"),
        ({"calibration.temperature": torch.ones(2)}, "not one number above 0"),
    ],
)
def test_damaged_parts_are_refused(save, support, changes, match):
    with pytest.raises(PackageError, match=match):
        load_package(save(damaged(support, **changes)))


def test_a_support_for_other_bands_is_refused(save):
    spectra = torch.rand(20, 5, generator=torch.Generator().manual_seed(0))
    other = fit_support(spectra, torch.zeros(20, dtype=torch.int64), spectra)
    with pytest.raises(PackageError, match="is for 5 bands, the model for 12"):
        load_package(save(ModelParts(other).state()))

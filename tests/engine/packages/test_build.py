from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from engine.errors import PackageError
from engine.packages.package import build_model, load_package, save_package
from tests.engine.packages.factory import (
    BAND_COUNT,
    TinyConfig,
    TinyModel,
    tiny_info,
    tiny_state,
)


@pytest.fixture
def package(tmp_path):
    save_package(str(tmp_path / "tiny"), tiny_info(), tiny_state())
    return load_package(str(tmp_path / "tiny"))


def with_config(package, **settings):
    return replace(package, info=replace(package.info, config=package.info.config | settings))


def test_a_built_model_predicts_what_the_saved_one_did(package):
    original = TinyModel(TinyConfig(BAND_COUNT, 3))
    original.load_state_dict(tiny_state())
    pixels = torch.rand(2, BAND_COUNT, 5, 3)
    valid = torch.ones(2, 5, 3, dtype=torch.bool)
    assert torch.equal(build_model(package)(pixels, valid), original(pixels, valid))


def test_a_built_model_is_ready_to_predict(package):
    model = build_model(package)
    assert not model.training


def test_lists_of_json_become_the_tuples_of_the_settings(package):
    assert build_model(package).config.kernel_px == (1, 1)


@pytest.mark.parametrize("architecture", ["os.system", "torch.nn.Linear", "hyperkd-next", ""])
def test_an_unknown_architecture_is_refused(package, architecture):
    package = replace(package, info=replace(package.info, architecture=architecture))
    with pytest.raises(
        PackageError, match=f"architecture '{architecture}', which this engine does"
    ):
        build_model(package)


def test_an_unknown_setting_is_refused(package):
    with pytest.raises(PackageError, match="setting 'gears', which its architecture does not know"):
        build_model(with_config(package, gears=5))


def test_a_missing_setting_is_named(package):
    config = {"num_classes": 3}
    package = replace(package, info=replace(package.info, config=config))
    with pytest.raises(PackageError, match="in_channels: Field required"):
        build_model(package)


def test_a_setting_of_the_wrong_kind_is_named(package):
    with pytest.raises(PackageError, match="num_classes: Input should be a valid integer"):
        build_model(with_config(package, num_classes="many"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_channels": 6}, "lists 12 bands, but its setting in_channels is 6"),
        ({"num_classes": 4}, "lists 3 classes, but its setting num_classes is 4"),
    ],
)
def test_settings_for_other_bands_or_classes_are_refused(package, settings, message):
    with pytest.raises(PackageError, match=message):
        build_model(with_config(package, **settings))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("head.bias"), r"1 missing \(head\.bias\)"),
        (
            lambda state: state.update({"extra": torch.zeros(1)}),
            r"1 not of this model \(extra\)",
        ),
        (
            lambda state: state.update({"head.bias": torch.zeros(9)}),
            r"1 of another shape \(head\.bias \(9,\) instead of \(3,\)\)",
        ),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_weights_of_another_model_are_named(package, change, message):
    change(package.state)
    with pytest.raises(PackageError, match=message):
        build_model(package)


def test_many_wrong_weights_are_counted_and_the_first_named(package):
    package.state.update({f"layer.{index}": torch.zeros(1) for index in range(9)})
    with pytest.raises(PackageError, match=r"9 not of this model \(layer\.0, .*layer\.3, …\)"):
        build_model(package)


def test_building_does_not_touch_the_packages_weights(package):
    model = build_model(package)
    with torch.no_grad():
        model.head.bias += 1
    assert torch.equal(package.state["head.bias"], tiny_state()["head.bias"])
    assert isinstance(model, nn.Module)

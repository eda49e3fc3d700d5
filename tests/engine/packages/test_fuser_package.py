"""The architecture of fusions through a package: saved, loaded and built, to the bit."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

from engine.errors import PackageError
from engine.models.fusion.dts import DTSConfig
from engine.models.fusion.fuser import Fuser, FuserConfig, network_channels
from engine.models.fusion.injection import InjectionConfig
from engine.models.fusion.method import ImagePair
from engine.packages.build import build_model
from engine.packages.package import load_package, save_package
from tests.engine.packages.factory import BAND_COUNT, fine_bands, tiny_info

MSI_BANDS, RATIO = 2, 3


def fuser_config(start, basis_size):
    coarse, fine = network_channels(BAND_COUNT, MSI_BANDS, basis_size, start)
    network = DTSConfig(
        hsi_channels=coarse, msi_channels=fine, ratio=RATIO, width=8, growth=4,
        blocks=(0, 1, 1, 1), h_groups=4, fusion_width=8, heads=2,
    )  # fmt: skip
    sizes = InjectionConfig(BAND_COUNT, MSI_BANDS, RATIO, spread_size_px=7)
    injection = sizes if start == "injection" else None
    return FuserConfig(BAND_COUNT, MSI_BANDS, RATIO, network, basis_size, start, injection)


def fusion_info(config, **changes):
    return tiny_info(
        architecture="csakd-fuser",
        config=asdict(config),
        task="super-resolution",
        classes=(),
        fine_bands=fine_bands(),
        **changes,
    )


def random_fuser(start, basis_size):
    """A fuser as if its start had been fitted: no spread is 0."""
    torch.manual_seed(0)
    model = Fuser(fuser_config(start, basis_size)).eval()
    for name, buffer in model.named_buffers():
        if name.startswith("start.") and "kernel" not in name:
            buffer.uniform_(0.1, 0.2)
    return model


def random_pair():
    generator = torch.Generator().manual_seed(0)
    return ImagePair(
        torch.rand(1, BAND_COUNT, 5, 4, generator=generator),
        torch.rand(1, MSI_BANDS, 5 * RATIO, 4 * RATIO, generator=generator),
        torch.ones(1, 5, 4, dtype=torch.bool),
        torch.ones(1, 5 * RATIO, 4 * RATIO, dtype=torch.bool),
    )


@pytest.mark.parametrize("basis_size", [None, 4])
@pytest.mark.parametrize("start", ["none", "bicubic", "injection"])
def test_the_built_fuser_answers_as_the_saved_one_did(start, basis_size, tmp_path):
    model = random_fuser(start, basis_size)
    path = save_package(str(tmp_path / "fuser"), fusion_info(model.config), model.state_dict())
    built = build_model(load_package(str(path)))
    assert built.config == model.config
    with torch.inference_mode():
        answer = model(random_pair())
        assert torch.isfinite(answer).all()
        assert torch.equal(built(random_pair()), answer)


def test_a_network_that_does_not_fit_the_fuser_is_refused(tmp_path):
    config = fuser_config("injection", 4)
    values = asdict(config)
    values["network"] |= {"hsi_channels": 5}
    info = replace(fusion_info(config), config=values)
    path = save_package(str(tmp_path / "fuser"), info, Fuser(config).state_dict())
    with pytest.raises(PackageError, match=r"settings are not valid.*does not fit"):
        build_model(load_package(str(path)))

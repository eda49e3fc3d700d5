"""Teachers from model packages."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from engine.errors import PackageError
from engine.models.galileo import GalileoConfig, GalileoEncoder
from engine.models.prithvi import PrithviMAE
from engine.packages.metadata import Normalisation
from engine.packages.package import save_package
from engine.packages.teachers import load_teacher
from engine.raster.alignment import RangeBand
from engine.raster.spectra import BandTable
from tests.engine.packages.factory import tiny_info, tiny_state
from tests.engine.packages.made_teachers import describe, prithvi_config


def own_teacher(tmp_path, name="mine", bands=4):
    """A package as pre-training writes it: other bands, one date."""
    torch.manual_seed(3)
    config = prithvi_config(in_channels=bands)
    model = PrithviMAE(config)
    model.band_mean.uniform_(0.1, 0.3)
    model.band_std.uniform_(0.05, 0.1)
    info = tiny_info(
        name="my-teacher",
        architecture="prithvi-mae",
        task="generative",
        config=dataclasses.asdict(config),
        classes=(),
        bands=BandTable(
            names=tuple(f"L{index}" for index in range(bands)),
            wavelength_nm=np.array([480.0, 560.0, 655.0, 865.0])[:bands],
            fwhm_nm=np.array([60.0, 57.0, 37.0, 28.0])[:bands],
            good=np.ones(bands, dtype=np.bool_),
        ),
        normalisation=Normalisation.of(model.band_mean, model.band_std),
        licence="CC-BY-4.0",
        attribution="Me",
    )
    return model, save_package(str(tmp_path / name), info, model.state_dict())


@pytest.mark.parametrize("name", ["mine", "mine.zip"])
def test_a_teacher_of_ones_own_comes_from_its_package(tmp_path, name):
    model, path = own_teacher(tmp_path, name)
    teacher = load_teacher(str(path))
    assert torch.equal(describe(teacher, bands=4), describe(
        dataclasses.replace(teacher, network=model.eval()), bands=4))  # fmt: skip
    assert teacher.bands[0] == RangeBand("L0", 450.0, 510.0, 480.0, 60.0)
    assert (teacher.name, teacher.licence, teacher.source) == ("my-teacher", "CC-BY-4.0", "Me")


def test_a_packages_weights_stand_for_the_package(tmp_path):
    _model, path = own_teacher(tmp_path)
    assert load_teacher(str(path / "weights.safetensors")).name == "my-teacher"


def test_an_installed_teacher_is_found_by_its_name(model_folders):
    own_teacher(model_folders[1], "mine")
    assert load_teacher("mine").name == "my-teacher"


def test_a_classifier_is_no_teacher(tmp_path, model_folders):
    own_teacher(model_folders[1], "mine")
    path = save_package(str(tmp_path / "classes"), tiny_info(), tiny_state())
    with pytest.raises(
        PackageError, match=r"is a hyperkd-tiny, and no teacher\..*teacher \(mine\)"
    ):
        load_teacher(str(path))


def test_galileo_with_other_bands_is_refused(tmp_path):
    encoder = GalileoEncoder(GalileoConfig(embed_dim=32, depth=1, num_heads=4))
    info = tiny_info(
        architecture="galileo",
        task="generative",
        config=dataclasses.asdict(encoder.config),
        classes=(),
    )
    path = save_package(str(tmp_path / "other"), info, encoder.state_dict())
    with pytest.raises(PackageError, match=r"reads 12 bands.*reads 10: B2 "):
        load_teacher(str(path))


@pytest.mark.parametrize("name", ["nowhere.pt", "nowhere"])
def test_a_teacher_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(PackageError, match=rf"There is no .*{name}"):
        load_teacher(str(tmp_path / name))

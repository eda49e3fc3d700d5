"""The teacher that comes with the plugin: whose it is, and that it is the published one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.packages.checkpoints import read_checkpoint
from engine.packages.package import load_package
from engine.packages.teachers import load_teacher

PACKAGE = Path(__file__).parents[3] / "resources" / "models" / "galileo-nano"
PUBLISHED_SHA256 = "eab6acacf527886a508a555bc24efe4b4a2cf91b162e84cd1c4a1807e942180c"


@pytest.fixture
def published(data_folder) -> Path:
    path = data_folder / "weights" / "galileo_nano" / "encoder.pt"
    if not path.is_file():
        pytest.skip(f"Galileo's published weights are not here: {path}")
    return path


def test_it_is_no_classifier():
    info = load_package(str(PACKAGE)).info
    assert (info.task, info.architecture, info.classes) == ("generative", "galileo", ())


def test_its_licence_and_authors_are_named():
    info = load_package(str(PACKAGE)).info
    assert info.licence == "MIT"
    assert "Copyright (c) 2024 Presto Authors" in info.attribution


def test_the_licence_stands_beside_it():
    text = (PACKAGE / "LICENSE").read_text(encoding="utf-8")
    assert text.startswith("MIT License\n\nCopyright (c) 2024 Presto Authors\n")
    assert "above copyright notice and this permission notice shall be included" in text


def test_it_says_which_file_it_was_made_of():
    training = load_package(str(PACKAGE)).info.training
    assert training["sha256"].replace(" ", "") == PUBLISHED_SHA256


def test_its_weights_are_the_published_ones(published):
    checkpoint = read_checkpoint(published)
    assert checkpoint.sha256 == PUBLISHED_SHA256
    state = load_package(str(PACKAGE)).state
    assert set(state) == set(checkpoint.state)
    for name, tensor in checkpoint.state.items():
        assert torch.equal(state[name], tensor), name


def test_it_teaches_as_the_published_file_does(published):
    teachers = [load_teacher(str(path)) for path in (PACKAGE, published)]
    reflectance = torch.rand(2, 10, 24, 24, generator=torch.Generator().manual_seed(0))
    packaged, original = (
        teacher.network.features(
            reflectance,
            rows=12,
            cols=12,
            ids_keep=torch.arange(0, 144, 4).expand(2, -1),
            pixel_size_m=torch.full((2,), 30.0),
            taps=(1, 4),
        )
        for teacher in teachers
    )
    for first, second in zip(packaged, original, strict=True):
        assert torch.equal(first, second)
    assert teachers[0].bands == teachers[1].bands

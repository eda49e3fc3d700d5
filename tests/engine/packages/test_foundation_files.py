"""A backbone is found again by its hash, and what is not it is refused with the way to get it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace

import pytest
import torch

from engine.errors import PackageError
from engine.models.galileo import GalileoConfig, GalileoEncoder
from engine.models.vit import FoundationIdentity
from engine.packages import foundation_files
from engine.packages.foundation_files import MOST_REMEMBERED, REMEMBERED_NAME
from engine.packages.foundations import (
    find_foundation,
    load_foundation,
    remember_foundation,
)
from engine.packages.package import save_package
from tests.engine.packages.factory import tiny_info
from tests.engine.packages.made_foundations import HEADS, encoder_state
from tests.engine.packages.made_teachers import save


@pytest.fixture
def user_folder(model_folders):
    return model_folders[1]


@pytest.fixture
def hashed(monkeypatch):
    """The files whose content was read for their hash, in order."""
    files = []
    own = foundation_files.hashlib.file_digest

    def digest(stream, kind):
        files.append(os.path.basename(stream.name))
        return own(stream, kind)

    class Hashlib:
        file_digest = staticmethod(digest)

    monkeypatch.setattr(foundation_files, "hashlib", Hashlib)
    return files


def made(folder, name="backbone.pt", seed=0):
    """Write a backbone and load it: the foundation and its path."""
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / name
    save(folder, encoder_state(seed), name)
    return load_foundation(str(path), num_heads=HEADS), path


def galileo_package(folder, name="my-galileo", seed=0):
    config = GalileoConfig(embed_dim=32, depth=2, num_heads=4)
    torch.manual_seed(seed)
    info = tiny_info(
        name=name, architecture="galileo", config=asdict(config), task="generative", classes=()
    )
    return save_package(str(folder / name), info, GalileoEncoder(config).state_dict())


def test_a_remembered_file_is_found_where_it_was(tmp_path):
    foundation, path = made(tmp_path)
    remember_foundation(foundation.identity, path)
    found = find_foundation(foundation.identity, foundation.vit.config)
    assert found.identity == foundation.identity
    assert torch.equal(found.vit.norm.weight, foundation.vit.norm.weight)


def test_a_remembered_file_is_not_hashed_before_it_is_read(tmp_path, hashed):
    foundation, path = made(tmp_path)
    remember_foundation(foundation.identity, path)
    find_foundation(foundation.identity, foundation.vit.config)
    assert hashed == []


def test_a_file_in_the_models_folder_is_found_without_a_note(tmp_path, user_folder):
    foundation, path = made(tmp_path)
    (user_folder / "backbones").mkdir()
    path.rename(user_folder / "backbones" / "renamed.pt")
    found = find_foundation(foundation.identity, foundation.vit.config)
    assert found.identity.sha256 == foundation.identity.sha256


def test_a_file_beside_the_model_is_found(tmp_path):
    foundation, path = made(tmp_path / "beside")
    config = foundation.vit.config
    found = find_foundation(foundation.identity, config, folders=[path.parent])
    assert found.identity.sha256 == foundation.identity.sha256
    path.unlink()
    with pytest.raises(PackageError, match="not on this computer"):
        find_foundation(foundation.identity, config, folders=[path.parent])


def test_files_of_other_names_beside_the_model_are_not_read(tmp_path, hashed):
    """It may lie in a folder of downloads, among large things."""
    foundation, path = made(tmp_path / "beside")
    made(path.parent, "another.pt", seed=1)
    config = foundation.vit.config
    find_foundation(foundation.identity, config, folders=[path.parent])
    assert hashed == ["backbone.pt"]


def test_files_of_the_models_folder_are_hashed_once(tmp_path, user_folder, hashed):
    foundation, path = made(tmp_path, "wanted.pt")
    made(user_folder, "another.pt", seed=1)
    path.rename(user_folder / "zzz.pt")
    for _time in range(2):
        find_foundation(foundation.identity, foundation.vit.config)
    assert hashed == ["another.pt", "zzz.pt"]


def test_the_file_of_the_same_name_is_looked_at_first(user_folder, hashed):
    made(user_folder, "another.pt", seed=1)
    foundation, _path = made(user_folder, "wanted.pt")
    find_foundation(foundation.identity, foundation.vit.config)
    assert hashed == ["wanted.pt"]


def test_a_touched_file_is_hashed_again(tmp_path, hashed):
    foundation, path = made(tmp_path)
    remember_foundation(foundation.identity, path)
    os.utime(path, ns=(1, 1))
    found = find_foundation(foundation.identity, foundation.vit.config)
    assert found.identity.sha256 == foundation.identity.sha256
    assert hashed == ["backbone.pt"]


def test_an_installed_package_is_found(user_folder):
    path = galileo_package(user_folder)
    foundation = load_foundation(str(path))
    path.rename(user_folder / "renamed")
    assert find_foundation(foundation.identity).identity == foundation.identity


@pytest.mark.parametrize("name", ["my-galileo", "my-galileo/model.json", "my-galileo.zip"])
def test_a_package_elsewhere_is_found_where_it_was(tmp_path, name):
    galileo_package(tmp_path / "x", name.partition("/")[0])
    path = tmp_path / "x" / name
    foundation = load_foundation(str(path))
    remember_foundation(foundation.identity, path)
    assert find_foundation(foundation.identity).identity == foundation.identity


def test_a_missing_backbone_is_named_with_where_to_get_it(tmp_path, user_folder):
    foundation, path = made(tmp_path, "mae_pretrain_vit_large.pth")
    remember_foundation(foundation.identity, path)
    path.unlink()
    with pytest.raises(PackageError) as caught:
        find_foundation(foundation.identity, foundation.vit.config)
    message = str(caught.value)
    assert "needs the backbone 'mae_pretrain_vit_large', which is not on this" in message
    assert foundation.identity.sha256[:12] in message
    assert "licence CC-BY-NC-4.0" in message
    assert "Get it from github.com/facebookresearch/mae" in message
    assert str(user_folder) in message


@pytest.mark.parametrize("is_remembered", [True, False])
def test_another_file_of_its_name_is_said_to_be_different(tmp_path, user_folder, is_remembered):
    foundation, path = made(tmp_path if is_remembered else user_folder)
    other, _path = made(path.parent, seed=1)
    if is_remembered:
        remember_foundation(other.identity, path)
    with pytest.raises(
        PackageError, match=r"backbone\.pt is not the backbone 'backbone'"
    ) as caught:
        find_foundation(foundation.identity, foundation.vit.config)
    for identity in (foundation.identity, other.identity):
        assert identity.sha256[:12] in str(caught.value)


def test_another_package_of_its_name_is_said_to_be_different(user_folder):
    foundation = load_foundation(str(galileo_package(user_folder)))
    galileo_package(user_folder, seed=1)
    with pytest.raises(PackageError, match="my-galileo is not the backbone 'my-galileo'"):
        find_foundation(foundation.identity)


def test_a_file_that_was_changed_in_secret_is_refused(tmp_path):
    foundation, path = made(tmp_path)
    remember_foundation(foundation.identity, path)
    stat = path.stat()
    made(tmp_path, seed=1)
    assert path.stat().st_size == stat.st_size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(PackageError, match="is not the backbone 'backbone' of the model"):
        find_foundation(foundation.identity, foundation.vit.config)


def test_a_backbone_of_other_sizes_than_the_model_says_is_refused(tmp_path):
    foundation, path = made(tmp_path)
    remember_foundation(foundation.identity, path)
    config = replace(foundation.vit.config, patch_px=16)
    with pytest.raises(PackageError, match="patch 8 instead of 16"):
        find_foundation(foundation.identity, config)


@pytest.mark.parametrize("content", ["{", "[1, 2]", '[{"path": 3}]', "[" * 10_000])
def test_notes_that_cannot_be_read_are_not_used(tmp_path, user_folder, caplog, content):
    (user_folder / REMEMBERED_NAME).write_text(content)
    foundation, path = made(tmp_path)
    with pytest.raises(PackageError, match="not on this computer"):
        find_foundation(foundation.identity)
    assert "cannot be read and was not used" in caplog.text
    remember_foundation(foundation.identity, path)
    assert len(json.loads((user_folder / REMEMBERED_NAME).read_text())) == 1


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HYPERKD_MODELS", str(tmp_path / "file"))
    foundation, path = made(tmp_path / "x")
    remember_foundation(foundation.identity, path)
    assert "cannot be remembered" in caplog.text


def test_a_file_that_is_gone_is_not_remembered(tmp_path, user_folder):
    foundation, path = made(tmp_path)
    path.unlink()
    remember_foundation(foundation.identity, path)
    assert not (user_folder / REMEMBERED_NAME).exists()


def test_notes_are_kept_one_a_place_and_not_without_end(tmp_path, user_folder):
    foundation, path = made(tmp_path)
    for number in range(MOST_REMEMBERED + 3):
        copy = tmp_path / f"{number}.pt"
        copy.write_bytes(b"")
        remember_foundation(foundation.identity, copy)
    for _time in range(2):
        remember_foundation(foundation.identity, path)
    notes = json.loads((user_folder / REMEMBERED_NAME).read_text())
    assert len(notes) == MOST_REMEMBERED
    assert [note["path"] for note in notes].count(str(path)) == 1
    assert notes[0]["path"] == str(path)


def test_weights_of_packages_are_no_files_of_weights(user_folder, hashed):
    """A package that is no backbone must not be hashed, or found, by its weights."""
    galileo_package(user_folder)
    identity = FoundationIdentity("weights", "0" * 64, "vit", "MIT", "nowhere")
    with pytest.raises(PackageError, match="not on this computer"):
        find_foundation(identity)
    assert hashed == []

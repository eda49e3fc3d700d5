from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import PackageError
from engine.packages import installed
from engine.packages.installed import find_package, list_packages, user_models_folder
from engine.packages.package import save_package
from tests.engine.packages.factory import tiny_info, tiny_state


def save(path, **changes):
    return save_package(str(path), tiny_info(**changes), tiny_state())


def test_a_folder_is_found_by_its_name(model_folders):
    path = save(model_folders[0] / "berlin")
    assert find_package("berlin") == path


def test_a_zip_is_found_by_its_name(model_folders):
    path = save(model_folders[1] / "my-model.zip")
    assert find_package("my-model") == path


def test_the_plugin_comes_before_the_user(model_folders):
    plugin_path = save(model_folders[0] / "berlin")
    save(model_folders[1] / "berlin.zip")
    assert find_package("berlin") == plugin_path


def test_a_path_is_found(tmp_path):
    path = save(tmp_path / "elsewhere.zip")
    assert find_package(str(path)) == path


def test_a_relative_path_becomes_absolute(tmp_path, monkeypatch):
    path = save(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert find_package("elsewhere") == path


@pytest.mark.parametrize("name", ["nowhere", "", "/no/such/package.zip", ".."])
def test_what_is_not_there_is_answered_with_what_is(model_folders, name):
    save(model_folders[0] / "berlin")
    save(model_folders[1] / "mine.zip")
    with pytest.raises(PackageError, match=f"no model package '{name}'.*installed: berlin, mine"):
        find_package(name)


def test_a_folder_without_a_model_is_no_package(tmp_path, model_folders):
    (model_folders[1] / "empty").mkdir()
    with pytest.raises(PackageError, match="installed: none"):
        find_package("empty")


def test_half_written_packages_are_not_listed(model_folders):
    save(model_folders[1] / ".berlin.k2j")
    assert list_packages() == ()


def test_packages_are_listed_with_their_titles(model_folders):
    save(model_folders[1] / "b-model", title="Second")
    save(model_folders[0] / "a-model.zip", title="First")
    assert [(item.name, item.title) for item in list_packages()] == [
        ("a-model", "First"),
        ("b-model", "Second"),
    ]


def test_a_damaged_package_is_left_out_of_the_list_and_logged(model_folders, caplog):
    save(model_folders[1] / "good")
    (model_folders[1] / "bad.zip").write_bytes(b"PK")
    assert [item.name for item in list_packages()] == ["good"]
    assert "bad.zip is left out" in caplog.text


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_DATA_HOME": "/data"}, "/data/hyperkd/models"),
        ("linux", {"XDG_DATA_HOME": "relative"}, "/home/me/.local/share/hyperkd/models"),
        ("linux", {}, "/home/me/.local/share/hyperkd/models"),
        ("darwin", {}, "/home/me/Library/Application Support/hyperkd/models"),
        ("win32", {"APPDATA": "/roaming"}, "/roaming/hyperkd/models"),
        ("win32", {}, "/home/me/AppData/Roaming/hyperkd/models"),
        ("linux", {"HYPERKD_MODELS": "~/models"}, "/home/me/models"),
    ],
)
def test_the_users_folder_is_where_the_system_keeps_data(
    monkeypatch, platform, variables, expected
):
    for name in ("HYPERKD_MODELS", "XDG_DATA_HOME", "APPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(installed.sys, "platform", platform)
    assert user_models_folder() == Path(expected)

"""The list of installed model packages, which the plugin makes without the engine."""

import json
import zipfile

import pytest

from hyperkd_qgis import model_catalogue
from hyperkd_qgis.model_catalogue import default_model, installed_models, read_title, user_folder


def metadata(title):
    return json.dumps({"type": "Feature", "properties": {"title": title}})


def make_folder(models, name, title):
    folder = models / name
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(metadata(title), encoding="utf-8")
    return folder


def make_zip(models, name, title, inner=""):
    models.mkdir(parents=True, exist_ok=True)
    path = models / f"{name}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{inner}model.json", metadata(title))
    return path


def test_folders_and_zips_are_listed_by_title(tmp_path):
    make_folder(tmp_path / "a", "berlin", "Wälder von Berlin")
    make_zip(tmp_path / "b", "alps", "Alps")
    models = installed_models(tmp_path / "a", tmp_path / "b")
    assert [(model.name, model.title) for model in models] == [
        ("alps", "Alps"),
        ("berlin", "Wälder von Berlin"),
    ]


def test_of_two_with_one_name_the_first_folder_counts(tmp_path):
    make_folder(tmp_path / "a", "berlin", "Ours")
    make_zip(tmp_path / "b", "berlin", "Theirs")
    [model] = installed_models(tmp_path / "a", tmp_path / "b")
    assert model.title == "Ours"


def test_what_is_no_package_is_left_out(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "README.md").write_text("no package")
    make_folder(tmp_path, ".half-written.x", "Half")
    assert installed_models(tmp_path, tmp_path / "missing") == []


@pytest.mark.parametrize("content", ["{", "[]", '{"properties": null}', "\udcff"])
def test_a_damaged_package_is_listed_by_its_name(tmp_path, content):
    folder = make_folder(tmp_path, "broken", "x")
    (folder / "model.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    [model] = installed_models(tmp_path)
    assert model.title == "broken"


def test_a_damaged_zip_is_listed_by_its_name(tmp_path):
    (tmp_path / "broken.zip").write_bytes(b"no zip")
    [model] = installed_models(tmp_path)
    assert model.title == "broken"


def test_a_zip_packed_by_hand_has_a_folder_inside(tmp_path):
    assert read_title(make_zip(tmp_path, "hand", "By hand", inner="hand/")) == "By hand"


def test_default_is_the_packaged_model(tmp_path):
    make_folder(tmp_path / "resources" / "models", "berlin", "Berlin")
    assert default_model(tmp_path) == "berlin"


def test_without_a_packaged_model_there_is_no_default(tmp_path):
    assert default_model(tmp_path) == ""


@pytest.mark.parametrize(
    ("platform", "variables", "ending"),
    [
        ("linux", {"HYPERKD_MODELS": "/mine"}, "/mine"),
        ("linux", {}, ".local/share/hyperkd/models"),
        ("linux", {"XDG_DATA_HOME": "/data"}, "/data/hyperkd/models"),
        ("linux", {"XDG_DATA_HOME": "relative"}, ".local/share/hyperkd/models"),
        ("darwin", {}, "Library/Application Support/hyperkd/models"),
        ("win32", {"APPDATA": "C:/Roaming"}, "C:/Roaming/hyperkd/models"),
    ],
)
def test_user_folder_of_each_system(platform, variables, ending):
    assert user_folder(variables, platform).as_posix().endswith(ending)


def test_the_engine_lists_the_same_packages(tmp_path, monkeypatch):
    installed = pytest.importorskip("engine.packages.installed")
    monkeypatch.setenv("HYPERKD_MODELS", str(tmp_path))
    make_folder(tmp_path, "one", "One")
    make_zip(tmp_path, "two", "Two")
    make_folder(tmp_path, ".three", "Half written")
    ours = installed_models(
        model_catalogue.packaged_folder(installed.plugin_models_folder().parents[1]),
        user_folder(),
    )
    assert {model.name: model.path for model in ours} == installed.installed_paths()

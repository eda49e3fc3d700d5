"""The list of installed model packages, which the plugin makes without the engine."""

import json
import zipfile
from pathlib import Path

import pytest

from hyperkd_qgis import model_catalogue
from hyperkd_qgis.model_catalogue import (
    USES,
    InstalledModel,
    default_model,
    installed_models,
    read_model,
    user_folder,
)

CLASSIFIER = ("semantic-segmentation", "hyperkd-classifier")
REGRESSOR = ("regression", "hyperkd-regressor")
BACKBONE = ("generative", "hyperkd-backbone")
GALILEO = ("generative", "galileo")
PRITHVI = ("generative", "prithvi-mae")
ADAPTED = ("generative", "spectralx-adapted")
SEGMENTER = ("semantic-segmentation", "spectralx-segmenter")
FUSER = ("super-resolution", "csakd-fuser")
UNKNOWN = ("", "")


def metadata(title, kind=None):
    properties = {"title": title}
    if kind is not None:
        properties.update({"mlm:tasks": [kind[0]], "mlm:architecture": kind[1]})
    return json.dumps({"type": "Feature", "properties": properties})


def make_folder(models, name, title, kind=None):
    folder = models / name
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(metadata(title, kind), encoding="utf-8")
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
    path = make_zip(tmp_path, "hand", "By hand", inner="hand/")
    assert read_model("hand", path).title == "By hand"


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        ("any", {CLASSIFIER, REGRESSOR, BACKBONE, GALILEO, PRITHVI, ADAPTED, SEGMENTER, FUSER}),
        ("classifier", {CLASSIFIER, SEGMENTER}),
        ("segmenter", {CLASSIFIER, SEGMENTER}),
        ("regression", {REGRESSOR}),
        ("backbone", {CLASSIFIER, REGRESSOR, BACKBONE}),
        ("teacher", {GALILEO, PRITHVI}),
        ("foundation", {GALILEO, PRITHVI}),
        ("adapted", {ADAPTED}),
        ("fusion", {FUSER}),
    ],
)
def test_each_use_has_its_models(tmp_path, use, expected):
    kinds = (CLASSIFIER, REGRESSOR, BACKBONE, GALILEO, PRITHVI, ADAPTED, SEGMENTER, FUSER)
    for number, kind in enumerate(kinds):
        make_folder(tmp_path, f"model{number}", "Model", kind)
    serving = [model for model in installed_models(tmp_path) if USES[use].accepts(model)]
    assert {(model.task, model.architecture) for model in serving} == expected


@pytest.mark.parametrize("use", sorted(USES))
def test_a_package_that_does_not_say_what_it_is_is_left_to_the_engine(tmp_path, use):
    [model] = installed_models(make_folder(tmp_path, "odd", "Odd").parent)
    assert (model.task, model.architecture) == UNKNOWN
    assert USES[use].accepts(model)


@pytest.mark.parametrize("tasks", ["[]", "null", '"regression"', "[null]", "{}"])
def test_tasks_that_make_no_sense_do_not_break_the_list(tmp_path, tasks):
    folder = make_folder(tmp_path, "odd", "Odd")
    text = f'{{"properties": {{"title": "Odd", "mlm:tasks": {tasks}}}}}'
    (folder / "model.json").write_text(text, encoding="utf-8")
    assert installed_models(tmp_path) == [InstalledModel("odd", "Odd", folder)]


def test_default_is_the_packaged_model_of_the_use(tmp_path):
    make_folder(tmp_path / "resources" / "models", "alpha", "Encoder", GALILEO)
    make_folder(tmp_path / "resources" / "models", "berlin", "Berlin", CLASSIFIER)
    assert default_model(tmp_path, USES["classifier"]) == "berlin"
    assert default_model(tmp_path, USES["teacher"]) == "alpha"


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ((CLASSIFIER, SEGMENTER), {"classifier": "alpha", "segmenter": "beta"}),
        ((SEGMENTER, CLASSIFIER), {"classifier": "beta", "segmenter": "alpha"}),
        ((CLASSIFIER, CLASSIFIER), {"classifier": "alpha", "segmenter": "alpha"}),
    ],
)
def test_of_models_that_both_make_maps_each_algorithm_has_its_favourite(tmp_path, kinds, expected):
    for name, kind in zip(("alpha", "beta"), kinds, strict=True):
        make_folder(tmp_path / "resources" / "models", name, name, kind)
    assert {use: default_model(tmp_path, USES[use]) for use in expected} == expected


def test_without_a_packaged_model_there_is_no_default(tmp_path):
    make_folder(tmp_path / "resources" / "models", "berlin", "Berlin", CLASSIFIER)
    assert default_model(tmp_path, USES["regression"]) == ""


def test_packaged_models_are_for_what_they_say():
    root = model_catalogue.packaged_folder(Path(__file__).resolve().parents[2])
    kinds = {model.name: model for model in installed_models(root)}
    assert USES["classifier"].accepts(kinds["berlin-enmap-landcover"])
    if "galileo-nano" not in kinds:
        pytest.skip("the packaged teacher is not in this checkout")
    assert USES["teacher"].accepts(kinds["galileo-nano"])
    assert not USES["classifier"].accepts(kinds["galileo-nano"])


def test_the_packaged_fusion_is_for_fusing_alone():
    root = model_catalogue.packaged_folder(Path(__file__).resolve().parents[2])
    kinds = {model.name: model for model in installed_models(root)}
    if "berlin-enmap-fusion" not in kinds:
        pytest.skip("the packaged fusion is not in this checkout")
    serves = {use for use in USES if USES[use].accepts(kinds["berlin-enmap-fusion"])}
    assert serves == {"any", "fusion"}


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


def test_both_sides_know_the_same_teachers():
    teachers = pytest.importorskip("engine.packages.teachers")
    checkpoints = pytest.importorskip("engine.packages.checkpoints")
    assert USES["teacher"].architectures == teachers.TEACHER_ARCHITECTURES
    assert model_catalogue.CHECKPOINT_SUFFIXES == checkpoints.CHECKPOINT_SUFFIXES


def test_both_sides_know_the_same_foundations():
    foundations = pytest.importorskip("engine.packages.foundations")
    assert USES["foundation"].architectures == foundations.FOUNDATION_ARCHITECTURES


def test_both_sides_know_the_same_adapters_and_segmenters():
    build = pytest.importorskip("engine.packages.build")
    named = {
        *USES["adapted"].architectures,
        USES["segmenter"].favourite,
        USES["classifier"].favourite,
    }
    assert named <= set(build.ARCHITECTURES)


def test_both_sides_know_the_same_fusers():
    build = pytest.importorskip("engine.packages.build")
    assert USES["fusion"].favourite in build.ARCHITECTURES


def test_both_sides_know_the_same_backbones():
    training = pytest.importorskip("engine.jobs.shared.training")
    assert set(USES["backbone"].architectures) == set(training.WITH_ENCODER)

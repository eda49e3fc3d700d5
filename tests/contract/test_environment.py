"""Finding the engine's interpreter, and the environment that it starts in."""

import runpy
import sys
from pathlib import Path

import pytest

from hyperkd_qgis import environment
from hyperkd_qgis.environment import EngineFinder, EngineMissingError, clean_environment

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="paths of Unix")


def make_python(environment_folder):
    python = environment_folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    return python


@pytest.fixture
def places(tmp_path):
    """Every place where an interpreter may be, each with one."""
    data = tmp_path / "data"
    return {
        "setting": make_python(tmp_path / "chosen"),
        "variable": make_python(tmp_path / "variable"),
        "plugin": make_python(tmp_path / "plugin" / ".venv"),
        "user": make_python(data / "hyperkd" / "engine"),
    }


def find(tmp_path, configured="", **variables):
    environ = {"XDG_DATA_HOME": str(tmp_path / "data"), **variables}
    return EngineFinder(tmp_path / "plugin", environ, "linux").find(configured)


@POSIX
def test_the_setting_comes_first(tmp_path, places):
    found = find(tmp_path, str(places["setting"]), HYPERKD_ENGINE_PYTHON=str(places["variable"]))
    assert found == places["setting"]


@POSIX
def test_then_the_variable(tmp_path, places):
    assert find(tmp_path, HYPERKD_ENGINE_PYTHON=str(places["variable"])) == places["variable"]


@POSIX
def test_then_the_plugin_folder(tmp_path, places):
    assert find(tmp_path) == places["plugin"]


@POSIX
def test_then_the_users_folder(tmp_path, places):
    places["plugin"].unlink()
    assert find(tmp_path) == places["user"]


def test_a_chosen_interpreter_that_is_gone_is_not_replaced_in_silence(tmp_path, places):
    with pytest.raises(EngineMissingError, match=r"The setting names .*gone.* no file"):
        find(tmp_path, str(tmp_path / "gone"))


def test_a_variable_that_leads_nowhere_is_named(tmp_path, places):
    with pytest.raises(EngineMissingError, match="The variable HYPERKD_ENGINE_PYTHON names"):
        find(tmp_path, HYPERKD_ENGINE_PYTHON=str(tmp_path / "gone"))


def test_without_any_the_message_has_commands_to_copy(tmp_path):
    with pytest.raises(EngineMissingError, match="not installed") as caught:
        find(tmp_path)
    for text in (caught.value.as_text(), caught.value.as_html()):
        assert "-m venv" in text
        assert "pip install --require-hashes -r" in text
        assert "HYPERKD_ENGINE_PYTHON" in text


def test_the_commands_lead_to_files_that_the_plugin_has():
    root = Path(__file__).resolve().parents[2]
    lock = environment.install_commands(root)[1].split('"')[-2]
    assert Path(lock).is_file()


def test_never_the_python_that_runs_qgis(tmp_path):
    with pytest.raises(EngineMissingError):
        find(tmp_path, PATH=str(Path(sys.executable).parent))


@POSIX
def test_an_engine_made_a_moment_ago_is_found(tmp_path, monkeypatch):
    finder = EngineFinder(tmp_path / "plugin", {"XDG_DATA_HOME": str(tmp_path)}, "linux")
    with pytest.raises(EngineMissingError):
        finder.find("")
    python = make_python(tmp_path / "hyperkd" / "engine")
    monkeypatch.setattr(environment, "CACHE_S", 0.0)
    assert finder.find("") == python


@pytest.mark.parametrize(
    ("platform", "variables", "ending"),
    [
        ("linux", {}, ".local/share/hyperkd"),
        ("linux", {"XDG_DATA_HOME": "/data"}, "/data/hyperkd"),
        ("darwin", {}, "Library/Application Support/hyperkd"),
        ("win32", {"LOCALAPPDATA": "C:/Local"}, "C:/Local/hyperkd"),
    ],
)
def test_user_data_folder_of_each_system(platform, variables, ending):
    folder = environment.user_data_folder(variables, platform)
    assert folder.as_posix().endswith(ending)


def test_variables_of_qgis_do_not_reach_the_engine():
    poison = {
        "PYTHONHOME": "/usr",
        "PYTHONPATH": "/usr/share/qgis/python",
        "PIP_TARGET": "x",
        "PROJ_LIB": "x",
        "PROJ_DATA": "x",
        "GDAL_DATA": "x",
        "GDAL_PAM_PROXY_DIR": "x",
        "OGR_SKIP": "x",
        "CPL_LOG": "x",
        "QGIS_PREFIX_PATH": "/usr",
        "QT_PLUGIN_PATH": "x",
        "LD_LIBRARY_PATH": "x",
        "LD_PRELOAD": "x",
        "DYLD_LIBRARY_PATH": "x",
        "GEOTIFF_CSV": "x",
    }
    kept = {"PATH": "/usr/bin", "HOME": "/home/a", "AWS_PROFILE": "me", "CUDA_VISIBLE_DEVICES": "0"}
    assert clean_environment({**poison, **kept}) == kept


def test_the_launcher_clears_the_same_variables():
    launcher = Path(__file__).resolve().parents[2] / "run_engine.py"
    names = runpy.run_path(str(launcher), run_name="launcher")
    assert set(names["FOREIGN_PREFIXES"]) == set(environment.FOREIGN_PREFIXES)

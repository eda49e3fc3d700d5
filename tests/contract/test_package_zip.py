"""The plugin's zip, opened: what the plugin site asks for, and what a user needs."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
NEEDED = (
    "__init__.py",
    "metadata.txt",
    "LICENSE",
    "run_engine.py",
    "hyperkd_qgis/plugin.py",
    "engine/__main__.py",
    "engine/lock/cpu.txt",
    "engine/lock/cuda.txt",
    "engine/templates/base.html",
)
# Folders of which every tracked file belongs to the plugin.
WHOLE_FOLDERS = ("hyperkd_qgis", "engine/jobs", "engine/templates", "resources")
FOR_DEVELOPERS = (
    "tests",
    "benchmarks",
    "build_tools",
    ".ci",
    "Makefile",
    "pyproject.toml",
    "build",
)
FORBIDDEN_SUFFIXES = {
    ".pyc", ".pyo", ".pyd", ".so", ".dll", ".dylib", ".exe",
    ".sh", ".bat", ".cmd", ".ps1", ".pkl", ".pth", ".pt", ".ckpt",
}  # fmt: skip


def pack(target):
    script = ROOT / "build_tools" / "package.py"
    subprocess.run([sys.executable, str(script), str(target)], check=True, capture_output=True)
    return target


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("zip") / "hyperkd.zip")


@pytest.fixture(scope="module")
def entries(archive):
    with zipfile.ZipFile(archive) as files:
        return files.infolist()


@pytest.fixture(scope="module")
def names(entries):
    """The names of the files below the top folder."""
    return [entry.filename.partition("/")[2] for entry in entries]


@pytest.fixture(scope="module")
def unpacked(archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(archive) as files:
        files.extractall(folder)
    return folder


def test_everything_is_in_one_folder_called_hyperkd(entries):
    assert {entry.filename.partition("/")[0] for entry in entries} == {"hyperkd"}


def test_the_folder_name_is_a_python_identifier():
    assert "hyperkd".isidentifier()


@pytest.mark.parametrize("name", NEEDED)
def test_a_needed_file_is_there(names, name):
    assert name in names


@pytest.mark.parametrize("folder", WHOLE_FOLDERS)
def test_no_product_file_is_left_behind(names, folder):
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", folder]
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    expected = {name for name in tracked.stdout.splitlines() if not name.endswith("ruff.toml")}
    assert expected
    assert expected - set(names) == set()


@pytest.mark.parametrize("name", FOR_DEVELOPERS)
def test_what_is_for_developers_stays_out(names, name):
    assert [found for found in names if found == name or found.startswith(f"{name}/")] == []


def test_no_name_leaves_the_folder(names):
    assert [name for name in names if ".." in name or name.startswith("/")] == []


def test_no_binaries_scripts_or_pickles(names):
    assert [name for name in names if Path(name).suffix in FORBIDDEN_SUFFIXES] == []


def test_no_hidden_files(names):
    assert [name for name in names if any(part.startswith(".") for part in Path(name).parts)] == []


def test_no_executable_bits_and_no_links(entries):
    modes = {entry.external_attr >> 16 for entry in entries}
    assert modes == {0o100644}


def test_it_is_smaller_than_the_plugin_site_allows(archive):
    assert archive.stat().st_size < 25_000_000


def test_the_same_files_give_the_same_zip(archive, tmp_path):
    assert pack(tmp_path / "again.zip").read_bytes() == archive.read_bytes()


def test_bandit_finds_nothing(unpacked):
    command = [str(PROGRAMS / "bandit"), "-r", str(unpacked), "-f", "json", "--quiet"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    report = json.loads(result.stdout)
    found = [
        f"{finding['filename']}:{finding['line_number']} {finding['test_id']}"
        for finding in report["results"]
    ]
    assert report["errors"] == []
    assert len(report["metrics"]) > 20
    assert found == []


def scan_for_secrets(folder):
    """Scan as the plugin site does: all files but metadata.txt, all detectors."""
    command = [str(PROGRAMS / "detect-secrets"), "scan", "--all-files"]
    command += ["--exclude-files", r"metadata\.txt", "."]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)["results"]


def test_detect_secrets_finds_nothing(unpacked):
    assert scan_for_secrets(unpacked) == {}


def test_the_scan_for_secrets_would_find_one(tmp_path):
    word = "pass" + "word"
    (tmp_path / "settings.py").write_text(f'{word} = "hunter2-and-more"\n', encoding="utf-8")
    assert "settings.py" in scan_for_secrets(tmp_path)


def test_the_unpacked_engine_answers(unpacked):
    script = unpacked / "hyperkd" / "run_engine.py"
    messages = '{"type": "hello", "protocol": 1}\n{"type": "shutdown"}\n'
    result = subprocess.run(
        [sys.executable, "-E", "-s", str(script), "serve"],
        cwd=unpacked,
        input=messages,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in events][:1] == ["hello"]
    assert result.returncode == 0

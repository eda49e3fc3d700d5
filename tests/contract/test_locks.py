"""The lock files: complete, pinned by sum, and free of places."""

import re
from pathlib import Path

import pytest

LOCKS = Path(__file__).resolve().parents[2] / "engine" / "lock"
NAMES = ("cpu.txt", "cuda.txt", "dev.txt", "qgis-tests.txt")
ENTRY = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>[^ ;\\]+)")


def entries(name):
    """Each requirement of a lock with the lines of its sums."""
    text = (LOCKS / name).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return re.split(r"\n(?=\S)", "\n".join(lines).strip())


def versions(name):
    """The versions of each package; more than one where they differ by Python."""
    found = {}
    for entry in entries(name):
        match = ENTRY.match(entry)
        found.setdefault(match["name"], set()).add(match["version"])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_package_is_pinned_with_sums(name):
    for entry in entries(name):
        first, *sums = entry.splitlines()
        assert ENTRY.match(first), first
        assert sums, first
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in sums)


@pytest.mark.parametrize("name", NAMES)
def test_no_lock_says_where_files_come_from(name):
    text = (LOCKS / name).read_text(encoding="utf-8")
    assert not re.search(r"https?:|file:|--(extra-)?index-url|--find-links| @ ", text)


def test_the_cpu_lock_has_nothing_of_cuda():
    names = versions("cpu.txt")
    assert [name for name in names if re.match(r"nvidia-|cuda-|triton", name)] == []


def test_the_cuda_lock_has_cuda():
    assert "nvidia-cudnn-cu13" in versions("cuda.txt")


def test_both_engine_locks_have_the_same_torch():
    (cuda,) = versions("cuda.txt")["torch"]
    assert versions("cpu.txt")["torch"] == {cuda, f"{cuda}+cpu"}


def test_the_tools_do_not_change_the_engine():
    engine, tools = versions("cuda.txt"), versions("dev.txt")
    shared = engine.keys() & tools.keys()
    assert shared
    assert {name for name in shared if not tools[name] <= engine[name]} == set()


def test_the_locks_hold_what_pyproject_asks_for():
    import tomllib

    project = tomllib.loads((LOCKS.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = {re.match(r"[\w.-]+", line)[0] for line in project["project"]["dependencies"]}
    assert wanted - versions("cpu.txt").keys() == set()
    groups = project["dependency-groups"]
    assert {re.match(r"[\w-]+", line)[0] for line in groups["dev"]} <= versions("dev.txt").keys()

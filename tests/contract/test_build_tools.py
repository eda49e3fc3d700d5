"""The tools that install, sum up and check: what a mistake in them would hide."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from build_tools import closing_line, install

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def archive(tmp_path):
    """A zip like the plugin's, with a version 2.0.0."""
    path = tmp_path / "hyperkd.zip"
    with zipfile.ZipFile(path, "w") as files:
        files.writestr("hyperkd/metadata.txt", "[general]\nversion=2.0.0\n")
        files.writestr("hyperkd/new.py", "")
    return path


def test_an_older_version_is_replaced_as_a_whole(archive, tmp_path):
    plugins = tmp_path / "plugins"
    (plugins / "hyperkd").mkdir(parents=True)
    (plugins / "hyperkd" / "old.py").touch()
    target = install.unpack(archive, plugins)
    assert sorted(path.name for path in target.iterdir()) == ["metadata.txt", "new.py"]
    assert [path.name for path in plugins.iterdir()] == ["hyperkd"]
    assert install.installed_version(target) == "2.0.0"


def test_a_broken_zip_leaves_the_older_version(tmp_path):
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK\x03\x04 and no more")
    old = tmp_path / "plugins" / "hyperkd" / "old.py"
    old.parent.mkdir(parents=True)
    old.touch()
    with pytest.raises(zipfile.BadZipFile):
        install.unpack(broken, tmp_path / "plugins")
    assert old.exists()


def test_a_link_to_a_checkout_goes_and_the_checkout_stays(archive, tmp_path):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "work.py").touch()
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "hyperkd").symlink_to(checkout)
    install.unpack(archive, plugins)
    assert (checkout / "work.py").exists()
    assert not (plugins / "hyperkd").is_symlink()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], ["", "[PythonPlugins]", "hyperkd=true"]),
        (["[PythonPlugins]", "other=true"], ["[PythonPlugins]", "hyperkd=true", "other=true"]),
        (["[PythonPlugins]", "hyperkd=false"], ["[PythonPlugins]", "hyperkd=true"]),
        (
            ["[qgis]", "a=@Variant(\\0)", "[PythonPlugins]", "hyperkd=true"],
            ["[qgis]", "a=@Variant(\\0)", "[PythonPlugins]", "hyperkd=true"],
        ),
    ],
)
def test_the_plugin_is_switched_on_and_other_settings_stay(before, after):
    assert install.with_plugin(before) == after


def report(folder, name, **numbers):
    attributes = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0, **numbers}
    text = " ".join(f'{key}="{value}"' for key, value in attributes.items())
    (folder / name).write_text(f"<testsuites><testsuite {text}/></testsuites>", encoding="utf-8")


def close(folder, *arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["closing_line.py", str(folder), *arguments])
    code = closing_line.main()
    return code, capsys.readouterr().out.splitlines()[-1].strip("= ")


def test_reports_are_summed_up(tmp_path, monkeypatch, capsys):
    report(tmp_path, "a.xml", tests=10, skipped=2)
    report(tmp_path, "b.xml", tests=5)
    closing = close(tmp_path, "--seconds", "7", monkeypatch=monkeypatch, capsys=capsys)
    assert closing == (0, "13 passed, 2 skipped in 7s")


def test_a_failed_test_fails_the_run(tmp_path, monkeypatch, capsys):
    report(tmp_path, "a.xml", tests=10, failures=1)
    closing = close(tmp_path, "test", monkeypatch=monkeypatch, capsys=capsys)
    assert closing == (1, "1 failed, 9 passed in 0s")


def test_a_step_that_ended_before_its_tests_fails_the_run(tmp_path, monkeypatch, capsys):
    report(tmp_path, "a.xml", tests=10)
    closing = close(tmp_path, "test-matrix", monkeypatch=monkeypatch, capsys=capsys)
    assert closing == (1, "10 passed, 1 error in 0s")


def test_a_run_without_tests_fails(tmp_path, monkeypatch, capsys):
    closing = close(tmp_path, monkeypatch=monkeypatch, capsys=capsys)
    assert closing == (1, "no tests ran in 0s")


def check_packages(lock):
    script = ROOT / "build_tools" / "check_packages.py"
    command = [sys.executable, "-I", str(script), str(lock)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_an_environment_that_lacks_a_package_is_found(tmp_path):
    lock = tmp_path / "lock.txt"
    lock.write_text("no-such-package==1.0 \\\n    --hash=sha256:00\n", encoding="utf-8")
    result = check_packages(lock)
    assert result.returncode == 1
    assert "no-such-package 1.0, found nothing" in result.stdout


def test_an_environment_with_another_version_is_found(tmp_path):
    lock = tmp_path / "lock.txt"
    lock.write_text("pytest==0.0.1 \\\n    --hash=sha256:00\n", encoding="utf-8")
    assert check_packages(lock).returncode == 1


def test_a_package_for_another_system_is_not_asked_for(tmp_path):
    lock = tmp_path / "lock.txt"
    lock.write_text("no-such-package==1.0 ; sys_platform == 'amiga'\n", encoding="utf-8")
    assert check_packages(lock).returncode == 0

import pytest

from engine import textfile
from engine.errors import OutputError
from engine.textfile import write_text


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(OutputError, match=r"missing/a\.txt cannot be written"):
        write_text(str(tmp_path / "missing" / "a.txt"), "text")


def test_failed_write_leaves_nothing_and_keeps_the_old_report(tmp_path, monkeypatch):
    path = tmp_path / "report.txt"
    path.write_text("old")

    def refuse(source, destination):
        raise PermissionError(13, "in use")

    monkeypatch.setattr(textfile.os, "replace", refuse)
    with pytest.raises(OutputError, match="in use"):
        write_text(str(path), "new")
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["report.txt"]
    assert path.read_text() == "old"


def test_text_is_utf8_with_plain_newlines(tmp_path):
    path = write_text(str(tmp_path / "report.txt"), "Straße\n")
    assert path.read_bytes() == "Straße\n".encode()

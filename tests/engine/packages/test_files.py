from __future__ import annotations

import os
import zipfile

import pytest

from engine.errors import OutputError, PackageError
from engine.packages import files
from engine.packages.files import check_place, read_file, write_files

CONTENTS = {"model.json": b"{}", "weights.safetensors": b"weights"}


def make_zip(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


@pytest.fixture(params=["model", "model.zip"])
def place(request, tmp_path):
    return tmp_path / request.param


def test_what_was_written_is_read(place):
    write_files(place, CONTENTS)
    assert {name: read_file(place, name) for name in CONTENTS} == CONTENTS


def test_nothing_is_left_beside_the_package(place):
    write_files(place, CONTENTS)
    write_files(place, CONTENTS)
    assert list(place.parent.iterdir()) == [place]


def test_a_missing_folder_is_made(tmp_path):
    write_files(tmp_path / "a" / "b" / "model", CONTENTS)
    assert (tmp_path / "a" / "b" / "model" / "model.json").is_file()


def test_an_older_package_is_replaced_and_its_readme_kept(place):
    write_files(place, {**CONTENTS, "README.md": b"read me"})
    write_files(place, {**CONTENTS, "model.json": b"[]"})
    assert read_file(place, "model.json") == b"[]"
    assert read_file(place, "README.md") == b"read me"


def test_the_older_package_stays_when_the_new_one_cannot_be_written(place, monkeypatch):
    write_files(place, CONTENTS)
    real_replace = os.replace

    def full_disk(source, destination):
        if "fresh" in str(source) or str(source).endswith("package.zip"):
            raise OSError(28, "No space left on device")
        real_replace(source, destination)

    monkeypatch.setattr(files.os, "replace", full_disk)
    with pytest.raises(OutputError, match="cannot be written: No space left on device"):
        write_files(place, {**CONTENTS, "model.json": b"[]"})
    assert read_file(place, "model.json") == b"{}"
    assert list(place.parent.iterdir()) == [place]


def test_the_same_contents_make_the_same_zip(tmp_path):
    for name in ("a.zip", "b.zip"):
        write_files(tmp_path / name, CONTENTS)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_folder_of_other_things_is_never_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(OutputError, match=r"other things in it \(holiday\.jpg\)"):
        write_files(tmp_path / "photos", CONTENTS)
    assert (tmp_path / "photos" / "holiday.jpg").is_file()


def test_a_place_is_checked_before_work_begins(tmp_path):
    write_files(tmp_path / "older", CONTENTS)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"x")
    (tmp_path / "file").write_text("x")
    check_place(tmp_path / "older")
    check_place(tmp_path / "new folder" / "new.zip")
    with pytest.raises(OutputError, match="other things in it"):
        check_place(tmp_path / "photos")
    with pytest.raises(OutputError, match="cannot be written into"):
        check_place(tmp_path / "file" / "model")


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "notes").write_text("x")
    with pytest.raises(OutputError, match="is a file, not a folder"):
        write_files(tmp_path / "notes", CONTENTS)


@pytest.mark.parametrize("missing", CONTENTS)
def test_a_missing_file_is_named(place, missing):
    write_files(place, {name: data for name, data in CONTENTS.items() if name != missing})
    with pytest.raises(PackageError, match=f"has no {missing}"):
        read_file(place, missing)


def test_a_zip_of_a_folder_is_read(tmp_path):
    path = make_zip(tmp_path / "m.zip", [(f"tiny/{name}", data) for name, data in CONTENTS.items()])
    assert read_file(path, "weights.safetensors") == b"weights"


@pytest.mark.parametrize(
    "name",
    [
        "../model.json",
        "/model.json",
        "/etc/model.json",
        "a/../../model.json",
        "a/b/model.json",
        "..\\model.json",
        "C:\\model.json",
        "C:/model.json",
        "weights.pkl",
        "weights.pt",
        "model.py",
        "__MACOSX/._model.json",
    ],
)
def test_a_zip_with_any_other_member_is_refused(tmp_path, name):
    path = make_zip(tmp_path / "m.zip", [*CONTENTS.items(), (name, b"x")])
    with pytest.raises(PackageError, match="does not belong into a model package"):
        read_file(path, "model.json")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_with_a_member_twice_is_refused(tmp_path):
    path = make_zip(tmp_path / "m.zip", [*CONTENTS.items(), ("model.json", b"[]")])
    with pytest.raises(PackageError, match="does not belong into a model package"):
        read_file(path, "model.json")


def test_a_zip_with_its_files_apart_is_refused(tmp_path):
    path = make_zip(tmp_path / "m.zip", [("a/model.json", b"{}"), ("weights.safetensors", b"x")])
    with pytest.raises(PackageError, match="stand in different folders"):
        read_file(path, "model.json")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    bomb = make_zip(
        tmp_path / "m.zip", [("weights.safetensors", bytes(2**24))], zipfile.ZIP_DEFLATED
    )
    assert bomb.stat().st_size < 2**16
    with pytest.raises(PackageError, match="zip bomb"):
        read_file(bomb, "weights.safetensors")


def test_a_model_json_beyond_its_limit_is_refused(place, monkeypatch):
    monkeypatch.setattr(files, "MAX_METADATA_BYTES", 10)
    write_files(place, {**CONTENTS, "model.json": b" " * 11})
    with pytest.raises(PackageError, match=r"model\.json .* is larger than a model can be"):
        read_file(place, "model.json")


def test_a_zip_whose_directory_understates_a_size_is_refused(tmp_path):
    path = make_zip(tmp_path / "m.zip", [("model.json", b"0123456789")])
    content = bytearray(path.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = (4).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(PackageError, match="not a whole zip file"):
        read_file(path, "model.json")


def test_a_changed_byte_in_a_zip_is_noticed(tmp_path):
    write_files(tmp_path / "m.zip", CONTENTS)
    content = (tmp_path / "m.zip").read_bytes()
    (tmp_path / "m.zip").write_bytes(content.replace(b"weights", b"wEights", 3))
    with pytest.raises(PackageError):
        read_file(tmp_path / "m.zip", "weights.safetensors")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_packed_in_a_rare_way_is_refused(tmp_path, compression):
    path = make_zip(tmp_path / "m.zip", CONTENTS.items(), compression)
    with pytest.raises(PackageError, match="packed in a way that is not known"):
        read_file(path, "model.json")


def test_a_zip_of_the_system_is_read(tmp_path):
    path = make_zip(tmp_path / "m.zip", CONTENTS.items(), zipfile.ZIP_DEFLATED)
    assert read_file(path, "weights.safetensors") == b"weights"


def test_half_a_zip_is_refused(tmp_path):
    write_files(tmp_path / "m.zip", CONTENTS)
    content = (tmp_path / "m.zip").read_bytes()
    (tmp_path / "m.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(PackageError, match="not a whole zip file"):
        read_file(tmp_path / "m.zip", "model.json")


def test_an_encrypted_zip_is_refused(tmp_path):
    path = make_zip(tmp_path / "m.zip", [("model.json", b"{}")])
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(PackageError, match="is encrypted"):
        read_file(path, "model.json")


def test_a_place_below_a_file_is_said(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        write_files(tmp_path / "file" / "model", CONTENTS)

"""The two files of a package, from and to a folder or a zip; nothing is ever unpacked to disk."""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from engine.errors import OutputError, PackageError
from engine.packages.item import WEIGHTS_NAME

METADATA_NAME = "model.json"
EXTRA_NAMES = ("README", "README.md", "README.txt", "LICENSE", "LICENSE.md", "LICENSE.txt")

# A model.json of 250 bands is 60 kB; the largest encoder in sight (600 M parameters) 2.4 GB.
MAX_METADATA_BYTES = 16 * 2**20
MAX_WEIGHTS_BYTES = 4 * 2**30
# Trained weights hardly shrink; deflate reaches 1,000 only on the empty filling of zip bombs.
MAX_COMPRESSION = 100
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what systems pack folders with
_DAMAGED = (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError)


def is_package(path: Path) -> bool:
    """Whether this looks like a package: a folder with a model.json, or a zip file."""
    if path.is_dir():
        return (path / METADATA_NAME).is_file()
    return path.suffix.lower() == ".zip" and path.is_file()


def read_file(path: Path, name: str) -> bytes:
    """Read one of a package's two files.

    Args:
        path: folder or zip file.
        name: ``model.json`` or ``weights.safetensors``; other files are never read.

    Raises:
        PackageError: the file is missing, too large or damaged, or the zip holds other things.
    """
    limit_bytes = MAX_METADATA_BYTES if name == METADATA_NAME else MAX_WEIGHTS_BYTES
    try:
        if path.is_dir():
            return _read_plain(path / name, limit_bytes)
        with zipfile.ZipFile(path) as archive:
            return _read_member(archive, path, name, limit_bytes)
    except _DAMAGED as error:
        raise PackageError(
            f"{path} is not a whole zip file: {error}.", "Copy or download the package again."
        ) from error
    except OSError as error:
        raise PackageError(
            f"The model package {path} cannot be read: {error.strerror or error}.",
            "Check that it is there and that you may read it.",
        ) from error


def _read_plain(path: Path, limit_bytes: int) -> bytes:
    """Read a file of a folder."""
    if not path.is_file():
        raise _missing(path.parent, path.name)
    if path.stat().st_size > limit_bytes:
        raise _too_large(path.parent, path.name, limit_bytes)
    return path.read_bytes()


def _read_member(archive: zipfile.ZipFile, path: Path, name: str, limit_bytes: int) -> bytes:
    """Read a file of a zip into memory, never more than its limit."""
    member = _members(archive, path).get(name)
    if member is None:
        raise _missing(path, name)
    is_bomb = member.file_size > MAX_COMPRESSION * max(member.compress_size, 1024)
    if member.file_size > limit_bytes or is_bomb:
        raise _too_large(path, name, limit_bytes)
    if member.flag_bits & 0x1 or member.compress_type not in _COMPRESSIONS:
        raise PackageError(
            f"{name} in {path} is encrypted, or packed in a way that is not known here.",
            "Pack it without a password, with the zip of your system.",
        )
    with archive.open(member) as stream:
        # The directory's size may lie: one byte more than it says shows that it did.
        content = stream.read(member.file_size + 1)
    if len(content) != member.file_size:
        raise PackageError(
            f"{name} in {path} is not as long as the zip says.", "Download the package again."
        )
    return content


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """List a zip's files by name, after checking that only those of a package are there.

    They may all stand in one folder, as they do when a folder was packed by hand.
    """
    infos = [info for info in archive.infolist() if not info.is_dir()]
    known = (METADATA_NAME, WEIGHTS_NAME, *EXTRA_NAMES)
    members: dict[str, zipfile.ZipInfo] = {}
    folders = set()
    for info in infos:
        folder, _, name = info.filename.rpartition("/")
        is_inside = folder not in ("..", ".") and not set(folder) & set("/\\:")
        is_absolute = info.filename.startswith("/")
        if name not in known or not is_inside or is_absolute or name in members:
            raise PackageError(
                f"{path} holds {info.filename!r}, which does not belong into a model package.",
                f"A package is {METADATA_NAME} and {WEIGHTS_NAME}, with a README and a LICENSE at "
                "most. Take it from where it was published.",
            )
        members[name] = info
        folders.add(folder)
    if len(folders) > 1:
        raise PackageError(
            f"The files of {path} stand in different folders.", "Pack them side by side."
        )
    return members


def _missing(path: Path, name: str) -> PackageError:
    return PackageError(
        f"The model package {path} has no {name}.",
        f"A package needs {METADATA_NAME} and {WEIGHTS_NAME} side by side.",
    )


def _too_large(path: Path, name: str, limit_bytes: int) -> PackageError:
    return PackageError(
        f"{name} in {path} is larger than a model can be ({limit_bytes} bytes), or packed like a "
        "zip bomb.",
        "Do not use a package of unknown origin.",
    )


def write_files(path: Path, contents: Mapping[str, bytes]) -> None:
    """Write a package under a temporary name beside its place, and rename it when it is whole.

    Args:
        path: a ``.zip`` file or a folder; an older package there is replaced, its README and
            LICENSE are kept.
        contents: the files by name.

    Raises:
        OutputError: the place cannot be written, or holds something that is no package.
    """
    _check_replaceable(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In one folder of its own, so that whatever fails, one removal leaves nothing behind.
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            if path.suffix.lower() == ".zip":
                _write_zip(path, contents, Path(folder))
            else:
                _write_folder(path, contents, Path(folder))
    except OSError as error:
        raise OutputError(
            f"The model package {path} cannot be written: {error.strerror or error}.",
            "Choose a folder that you may write to, on a disk with room.",
        ) from error


def check_place(path: Path) -> None:
    """Check before work begins that a package can be written.

    Raises:
        OutputError: the folder is read-only, or something that is no package is there already.
    """
    _check_replaceable(path)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OutputError(
            f"The model package {path} cannot be written into {folder}.",
            "Choose a folder that you may write to.",
        )


def _check_replaceable(path: Path) -> None:
    """Refuse to replace what is not a package: somebody's folder of other things."""
    known = {METADATA_NAME, WEIGHTS_NAME, *EXTRA_NAMES}
    if path.is_dir():
        others = sorted(entry.name for entry in path.iterdir() if entry.name not in known)
        if others or path.suffix.lower() == ".zip":
            raise OutputError(
                f"{path} is a folder with other things in it ({', '.join(others[:3])}).",
                "Choose a new name for the model package.",
            )
    elif path.exists() and path.suffix.lower() != ".zip":
        raise OutputError(
            f"{path} is a file, not a folder.",
            "End the package's name with .zip, or choose another.",
        )


def _write_zip(path: Path, contents: Mapping[str, bytes], folder: Path) -> None:
    """Write a zip; stored, not deflated, because weights do not shrink."""
    fresh = folder / "package.zip"
    with zipfile.ZipFile(fresh, "w", zipfile.ZIP_STORED) as archive:
        for name, content in {**_kept_extras(path), **contents}.items():
            # A fixed date: the same model makes the same zip.
            member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            member.external_attr = 0o644 << 16
            archive.writestr(member, content)
    os.replace(fresh, path)


def _write_folder(path: Path, contents: Mapping[str, bytes], folder: Path) -> None:
    """Write a folder; the old one steps aside, and returns when the new one cannot take its place.

    Folders cannot be exchanged in one step on every system.
    """
    fresh = folder / "fresh"
    fresh.mkdir()
    for name, content in {**_kept_extras(path), **contents}.items():
        (fresh / name).write_bytes(content)
    if not path.exists():
        os.replace(fresh, path)
        return
    old = folder / "old"
    os.replace(path, old)
    try:
        os.replace(fresh, path)
    except OSError:
        os.replace(old, path)
        raise


def _kept_extras(path: Path) -> dict[str, bytes]:
    """Read README and LICENSE of the package that is about to be replaced."""
    if path.is_dir():
        return {
            entry.name: entry.read_bytes() for entry in path.iterdir() if entry.name in EXTRA_NAMES
        }
    extras: dict[str, bytes] = {}
    if path.is_file():
        with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            extras = {
                name: archive.read(name)
                for name in archive.namelist()
                if name in EXTRA_NAMES and archive.getinfo(name).file_size <= MAX_METADATA_BYTES
            }
    return extras

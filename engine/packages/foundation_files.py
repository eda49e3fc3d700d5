"""Where the files of backbones are: places that were used before, and the user's models folder.

A file is known by its SHA-256. Hashing a gigabyte takes seconds, so what was hashed once is kept
in a small JSON file with size and modification time, and hashed again only when these changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from engine.packages.checkpoints import CHECKPOINT_SUFFIXES
from engine.packages.files import METADATA_NAME
from engine.packages.installed import user_models_folder

REMEMBERED_NAME = "foundations.json"
"""In the user's models folder, beside the packages."""

MOST_REMEMBERED = 64
"""Places; those used longest ago go first."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HashedFile:
    """A file whose content was hashed.

    Args:
        path: absolute.
        size_bytes: when it was hashed.
        mtime_ns: when it was hashed.
        sha256: 64 hexadecimal digits.
    """

    path: str
    size_bytes: int
    mtime_ns: int
    sha256: str

    def is_current(self) -> bool:
        """Whether the file is there and looks as it did when it was hashed."""
        with suppress(OSError):
            stat = os.stat(self.path)
            return (stat.st_size, stat.st_mtime_ns) == (self.size_bytes, self.mtime_ns)
        return False


_FILES = TypeAdapter(list[HashedFile])


def remember_file(path: Path, sha256: str) -> None:
    """Note where a file with this hash is, so that it is found without asking.

    Args:
        path: of a checkpoint.
        sha256: of the whole file, 64 hexadecimal digits.
    """
    try:
        stat = path.stat()
    except OSError as error:
        _logger.warning("%s cannot be remembered: %s", path, error)
        return
    _remember([HashedFile(str(path.absolute()), stat.st_size, stat.st_mtime_ns, sha256)])


def find_file(sha256: str, name: str, folders: Sequence[Path] = ()) -> Path | None:
    """Find the checkpoint with a hash.

    Args:
        sha256: 64 hexadecimal digits.
        name: it had when the model was trained, without its ending; files of this name are hashed
            first.
        folders: where to look for a file of this name too; they may be large.
    """
    places = [file for file in _remembered() if file.sha256 == sha256]
    for file in places:
        if file.is_current():
            return Path(file.path)
    # A place whose file was touched may still hold the same.
    touched = {Path(file.path) for file in places if Path(file.path).is_file()}
    others = touched.union(_checkpoints(name, folders))
    paths = sorted(others, key=lambda path: (path.stem != name, str(path)))
    return next((path for path, found in _hashed(paths) if found == sha256), None)


def files_named(name: str, folders: Sequence[Path] = ()) -> list[HashedFile]:
    """Find the checkpoints of a name, whatever they hold, with their hashes.

    Args:
        name: without its ending.
        folders: as `find_file`.
    """
    places = [Path(file.path) for file in _remembered() if file.is_current()]
    paths = [path for path in (*places, *_checkpoints(name, folders)) if path.stem == name]
    return [HashedFile(str(path), 0, 0, sha256) for path, sha256 in _hashed(sorted(set(paths)))]


def _checkpoints(name: str, folders: Sequence[Path]) -> Iterator[Path]:
    """Files of weights: all of the user's models folder, those of a name in other folders.

    A package's weights stand beside a model.json and are found by it.
    """
    user = user_models_folder()
    for folder, pattern in ((user, "*"), (user, "*/*"), *((other, "*") for other in folders)):
        with suppress(OSError):
            for path in folder.glob(pattern):
                is_wanted = folder == user or path.stem == name
                is_packaged = (path.parent / METADATA_NAME).is_file()
                if path.suffix.lower() in CHECKPOINT_SUFFIXES and is_wanted and not is_packaged:
                    yield path.absolute()


def _hashed(paths: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Give each file with its hash, from memory where it did not change."""
    known = {file.path: file for file in _remembered()}
    for path in paths:
        file = known.get(str(path))
        if file is not None and file.is_current():
            yield path, file.sha256
            continue
        try:
            with path.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            _logger.warning("%s was left out: %s", path, error)
            continue
        remember_file(path, sha256)
        yield path, sha256


def _remembered() -> list[HashedFile]:
    """Read the places, the one used last first; what cannot be read is no place."""
    path = user_models_folder() / REMEMBERED_NAME
    try:
        return _FILES.validate_python(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError, ValidationError) as error:
        _logger.warning("%s cannot be read and was not used: %s", path, error)
        return []


def _remember(files: list[HashedFile]) -> None:
    """Put places before those that are remembered, in a file that is whole at every moment."""
    paths = {file.path for file in files}
    others = [file for file in _remembered() if file.path not in paths]
    content = json.dumps([asdict(file) for file in (*files, *others)[:MOST_REMEMBERED]], indent=1)
    folder = user_models_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{REMEMBERED_NAME}.", dir=folder) as own:
            fresh = Path(own) / REMEMBERED_NAME
            fresh.write_text(content, encoding="utf-8")
            os.replace(fresh, folder / REMEMBERED_NAME)
    except OSError as error:
        _logger.warning("Where the backbone is cannot be remembered in %s: %s", folder, error)

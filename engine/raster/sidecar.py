"""Text files beside a raster: plain ones, and those inside the archives that GDAL reads."""

from __future__ import annotations

import logging
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

logger = logging.getLogger(__name__)

# An EnMAP METADATA.XML has about 2 MB; what is much larger is no metadata.
MAX_TEXT_BYTES = 64 * 1024**2
_ZIP_PREFIX = "/vsizip/"
_TAR_PREFIX = "/vsitar/"


def read_text(path: str) -> str | None:
    """Read a text file, or a member of a zip or tar archive named as GDAL names it.

    Returns:
        Its text; None when there is no such file, it is too large, or it lies on a server.
    """
    try:
        data = _read_bytes(path)
    except (OSError, KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
        logger.debug("%s is not read: %s", path, error)
        return None
    return None if data is None else data.decode("utf-8-sig", errors="replace")


def list_beside(path: str) -> list[str]:
    """List the files in the folder of a file, itself included, in order of name."""
    archive = _split_archive(path)
    try:
        if archive is not None:
            container, member = archive
            folder = PurePosixPath(member).parent
            prefix = path[: len(path) - len(member)]
            names = [name for name in _members(container) if PurePosixPath(name).parent == folder]
            return sorted(prefix + name for name in names)
        if path.startswith("/vsi"):
            return []
        return sorted(str(file) for file in Path(path).parent.iterdir() if file.is_file())
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        logger.debug("the folder of %s is not listed: %s", path, error)
        return []


def list_zip(path: str) -> list[str]:
    """List the files in a zip archive as GDAL names them; none when it is not one."""
    try:
        return [f"{_ZIP_PREFIX}{path}/{name}" for name in _members(path)]
    except (OSError, zipfile.BadZipFile) as error:
        logger.debug("%s is not listed: %s", path, error)
        return []


def _read_bytes(path: str) -> bytes | None:
    archive = _split_archive(path)
    if archive is None:
        if path.startswith("/vsi") or Path(path).stat().st_size > MAX_TEXT_BYTES:
            return None
        return Path(path).read_bytes()
    container, member = archive
    if container.lower().endswith(".zip"):
        with zipfile.ZipFile(container) as zip_file:
            if zip_file.getinfo(member).file_size > MAX_TEXT_BYTES:
                return None
            return zip_file.read(member)
    with tarfile.open(container) as tar_file:
        info = tar_file.getmember(member)
        stream = tar_file.extractfile(info) if info.size <= MAX_TEXT_BYTES else None
        return None if stream is None else stream.read()


def _members(container: str) -> list[str]:
    """Files in an archive, folders left out."""
    if container.lower().endswith(".zip"):
        with zipfile.ZipFile(container) as zip_file:
            return [info.filename for info in zip_file.infolist() if not info.is_dir()]
    with tarfile.open(container) as tar_file:
        return [info.name for info in tar_file.getmembers() if info.isfile()]


def _split_archive(path: str) -> tuple[str, str] | None:
    """``/vsizip/a.zip/b/c.xml`` as ``(a.zip, b/c.xml)``; None when it is not in an archive."""
    for prefix in (_ZIP_PREFIX, _TAR_PREFIX):
        if not path.startswith(prefix):
            continue
        # /vsizip/{a.zip}/b is GDAL's other spelling of the same.
        rest = path[len(prefix) :].replace("{", "").replace("}", "")
        parts = PurePosixPath(rest).parts
        for count in range(1, len(parts)):
            container = Path(*parts[:count])
            if container.is_file():
                return str(container), "/".join(parts[count:])
    return None

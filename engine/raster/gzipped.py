"""ENVI files with ``file compression = 1``: gzip streams, checked and unpacked before use.

GDAL reads them where they are, but it gives zeros where the stream is cut or damaged, and goes
through the stream from its start for every strip of a band sequential file.
"""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

from rasterio.io import DatasetReader

from engine.errors import SceneError

_CHUNK_BYTES = 4 * 1024**2
_REMEDY = "Copy or download the file again."


def is_gzipped(dataset: DatasetReader) -> bool:
    """True for a local ENVI file whose header says that its pixels are compressed."""
    stated = dataset.tags(ns="ENVI").get("file_compression", "0").strip()
    return dataset.driver == "ENVI" and stated == "1" and Path(dataset.name).is_file()


def check_gzip_length(path: Path, expected_bytes: int) -> None:
    """Check that a stream holds as many bytes as its header asks for.

    The last four bytes of a stream are its length; only when they say something else (a cut file,
    or a stream of several members) is it unpacked to count.

    Raises:
        SceneError: it is shorter, or damaged.
    """
    with path.open("rb") as stream:
        stream.seek(-min(4, path.stat().st_size), 2)
        length = int.from_bytes(stream.read(4), "little")
    if length != expected_bytes % 2**32:
        _unpack(path, None, expected_bytes)


def unpack_envi(dataset: DatasetReader, folder: Path, expected_bytes: int) -> str:
    """Unpack an ENVI file, with its header, into a folder.

    Returns:
        The path of the unpacked file.

    Raises:
        SceneError: the stream is cut or damaged, or the folder's disk is full.
    """
    source = Path(dataset.name)
    header = next(Path(name) for name in dataset.files if name.lower().endswith(".hdr"))
    target = folder / f"{source.stem}.img"
    try:
        _unpack(source, target, expected_bytes)
        text = header.read_text(encoding="utf-8", errors="replace")
        plain = re.sub(r"(?im)^\s*file compression\s*=.*$", "", text)
        target.with_suffix(".hdr").write_text(plain, encoding="utf-8")
    except OSError as error:
        if isinstance(error, SceneError):
            raise
        raise SceneError(
            f"{source} cannot be unpacked into {folder}: {error}.",
            "Make space there, or unpack the file yourself (gunzip) and set 'file compression = 0' "
            "in its header.",
        ) from error
    return str(target)


def _unpack(source: Path, target: Path | None, expected_bytes: int) -> None:
    """Go through a stream, checking its sums; write it to ``target`` when there is one."""
    done = 0
    try:
        with gzip.open(source, "rb") as stream:
            if target is None:
                while chunk := stream.read(_CHUNK_BYTES):
                    done += len(chunk)
            else:
                with target.open("wb") as out:
                    while chunk := stream.read(_CHUNK_BYTES):
                        done += out.write(chunk)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SceneError(
            f"{source} is truncated or damaged: its compressed pixels break off in the block that "
            f"starts at byte {done:,} of {expected_bytes:,} ({error}).",
            _REMEDY,
        ) from error
    if done < expected_bytes:
        raise SceneError(
            f"{source} is truncated: it holds {done:,} of the {expected_bytes:,} bytes that its "
            "header asks for.",
            _REMEDY,
        )

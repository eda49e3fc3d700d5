"""What is checked of outputs before work begins: a run of hours should not fail at its end."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from engine.errors import OutputError

log = logging.getLogger(__name__)

RASTER_SUFFIXES = (".tif", ".tiff")


def check_outputs(
    paths: Sequence[str | None],
    inputs: Sequence[str],
    *,
    suffixes: Sequence[str] = RASTER_SUFFIXES,
    needed_bytes: int = 0,
) -> None:
    """Check before work begins that outputs can be written.

    Args:
        paths: of the outputs; None: not wanted.
        inputs: that must not be overwritten: files or any GDAL sources.
        suffixes: that an output may have.
        needed_bytes: free space that the outputs need, roughly.

    Raises:
        OutputError: an output is no GeoTIFF by its name, is named twice, is an input or part of
            one, or its folder is missing, read-only or full.
    """
    wanted = [Path(path) for path in paths if path]
    sources = {file for source in inputs for file in _files_of(source)}
    for position, path in enumerate(wanted):
        _check_name(path, suffixes)
        if any(_is_same(path, other) for other in wanted[:position]):
            raise OutputError(f"Two outputs have the same path {path}.", "Give each its own.")
        if any(_is_same(path, Path(source)) for source in sources):
            raise OutputError(
                f"The output {path} is also an input, or a part of one.", "Choose another path."
            )
        _check_folder(path, needed_bytes)


def _check_name(path: Path, suffixes: Sequence[str]) -> None:
    if path.suffix.lower() not in suffixes:
        kind = "GeoTIFF" if ".tif" in suffixes else suffixes[0]
        raise OutputError(
            f"The output {path} would have to be a {path.suffix or 'file without suffix'}, but "
            f"only {kind} is written.",
            f"Let its name end with {suffixes[0]}.",
        )
    if path.is_dir():
        raise OutputError(f"The output {path} is a folder.", "Choose the path of a file.")


def _files_of(source: str) -> set[str]:
    """The files behind a source: of a VRT, also those that it refers to."""
    files = {source.split("|", maxsplit=1)[0]}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(source) as dataset:
                files.update(dataset.files)
    except RasterioError:  # a vector file, or a source that its reader will complain about
        log.debug("No raster: %s", source)
    return files


def _is_same(path: Path, other: Path) -> bool:
    """Whether two paths are one file, through links too, whether it exists or not."""
    try:
        return path.samefile(other)
    except OSError:
        return os.path.realpath(path) == os.path.realpath(other)


def _check_folder(path: Path, needed_bytes: int) -> None:
    folder = path.absolute().parent
    if not folder.is_dir():
        raise OutputError(
            f"The folder {folder} of the output {path.name} does not exist.",
            "Create it, or choose another.",
        )
    try:
        # Asking for permission is not enough: network folders and containers answer wrongly.
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")
    except OSError as error:
        raise OutputError(
            f"Nothing can be written into the folder {folder}: {error.strerror}.",
            "Choose another folder, or make room in it.",
        ) from error
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise OutputError(
            f"The folder {folder} has {free / 1e6:.0f} MB left, the output {path.name} needs about "
            f"{needed_bytes / 1e6:.0f} MB while it is written.",
            "Make room, or choose another folder.",
        )

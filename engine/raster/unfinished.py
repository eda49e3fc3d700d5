"""Outputs in the making: temporary folders beside their destinations, and what an error says.

Everything is made in such a folder and renamed when it is whole, so that an output appears
complete or not at all, and an older one stays until then.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyogrio.errors import DataLayerError, DataSourceError
from rasterio.errors import RasterioError

from engine.errors import OutputError

# The other errors of pyogrio are kinds of DataLayerError.
_ERRORS = (
    RasterioError,
    OSError,
    DataLayerError,
    DataSourceError,
)
# Of the writers at work, for `remove_unfinished`.
_folders: set[Path] = set()


def remove_unfinished() -> None:
    """Remove what the writers at work have made: the process is about to be ended hard."""
    for folder in list(_folders):
        shutil.rmtree(folder, ignore_errors=True)


def begin_output(path: Path) -> Path:
    """Make the temporary folder of an output, on the same disk."""
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.absolute().parent))
    _folders.add(folder)
    return folder


def end_output(folder: Path) -> None:
    """Remove the temporary folder of an output, with what is left in it."""
    shutil.rmtree(folder, ignore_errors=True)
    _folders.discard(folder)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Say which output it was that could not be written."""
    try:
        yield
    except _ERRORS as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"The output {path} cannot be written: {error}",
            "Look for a full disk, or for another program that has the file open.",
        ) from error

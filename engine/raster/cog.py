"""From a plain GeoTIFF to a Cloud Optimized one that is known to hold the same."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader
from rasterio.windows import Window

from engine.errors import OutputError
from engine.raster.cube import LARGEST_BLOCK_PX, overview_factors
from engine.raster.threads import Crew

# Deflate is what every GDAL reads, Debian's 3.6 in QGIS 3.22 among them.
_COG = {
    "driver": "COG",
    "COMPRESS": "DEFLATE",
    "LEVEL": "5",  # on noisy class maps six times as fast as 6, and 1.4 % larger
    "BIGTIFF": "IF_SAFER",
    "NUM_THREADS": str(min(4, os.cpu_count() or 1)),  # each holds a block of all bands
    "OVERVIEWS": "AUTO",
}
# On noisy reflectance of 177 bands twice as fast as 5, and 1 % larger.
_CUBE_LEVEL = "1"
_COMPARED = (
    "shape", "count", "dtypes", "transform", "crs", "descriptions", "units", "scales", "offsets",
)  # fmt: skip
_CHECKED_ROWS = 64
_CHECKED_BYTES = 4 * 2**20  # of a cube, which decodes whole blocks of all bands for them
# Enough for the blocks that the copy works on. GDAL's default, 5 % of the machine's memory, would
# fill up with large outputs.
_GDAL_CACHE_BYTES = 32 * 2**20

Kind = Literal["classes", "numbers", "spectra"]


def copy_to_cog(
    rows: Path, cog: Path, kind: Kind, block_px: int, watch: Callable[[], None]
) -> None:
    """Copy a plain GeoTIFF to a Cloud Optimized one.

    The work is done in a thread, so that a cancel need not wait for the end of it.

    Args:
        rows: the plain file; a cube gets its overviews first.
        cog: to be made.
        kind: of its values: overviews have the most frequent class, or the mean.
        block_px: side of the blocks; below 512 px it is a cube.
        watch: called meanwhile, and may raise.
    """
    if block_px < LARGEST_BLOCK_PX:
        _in_thread(lambda: _add_overviews(rows), rows.parent, watch)
    options = _options(rows, kind, block_px)
    _in_thread(lambda: rasterio.shutil.copy(rows, cog, **options), cog.parent, watch)


def check_copy(rows: Path, cog: Path, path: Path, tags: Mapping[str, str]) -> None:
    """Compare both files: grid, type, nodata, names, units, tags, and values here and there.

    Args:
        rows: the plain file.
        cog: the copy.
        path: that the copy will have, for messages.
        tags: that it must have.

    Raises:
        OutputError: they differ.
    """
    with open_quietly(rows) as first, open_quietly(cog) as second:
        for name in _COMPARED:
            if getattr(first, name) != getattr(second, name):
                raise OutputError(f"The output {path} reads back with another {name}.")
        if not _is_equal(first.nodata, second.nodata):
            raise OutputError(f"The output {path} reads back with another nodata value.")
        if not tags.items() <= second.tags().items():
            raise OutputError(f"The output {path} reads back without its tags.")
        for number in first.indexes:
            if not first.tags(number).items() <= second.tags(number).items():
                raise OutputError(f"The output {path} reads back without the tags of its bands.")
        for window in _checked_windows(first):
            if not _is_equal(first.read(window=window), second.read(window=window)):
                raise OutputError(
                    f"The output {path} reads back with other values from row {window.row_off}.",
                    "Look for a full or damaged disk.",
                )


def open_quietly(path: Path, mode: Literal["r", "r+"] = "r") -> Any:
    """Open a raster that may have no position."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # images without a position
        return rasterio.open(path, mode)


def _options(rows: Path, kind: Kind, block_px: int) -> dict[str, str]:
    """Creation options of the copy."""
    options = _COG | {"BLOCKSIZE": str(block_px)}
    # Neighbouring classes do not predict each other, neighbouring numbers do.
    predictor = "NO" if kind == "classes" else "YES"
    if block_px < LARGEST_BLOCK_PX:
        return options | {
            "LEVEL": _CUBE_LEVEL, "OVERVIEWS": "FORCE_USE_EXISTING", "PREDICTOR": predictor,
        }  # fmt: skip
    # The most frequent class stands for a group of pixels: a mean of classes is no class.
    with open_quietly(rows) as dataset:
        is_number = kind == "spectra" or np.dtype(dataset.dtypes[0]).kind == "f"
    resampling = "MODE" if kind == "classes" else "AVERAGE" if is_number else "NEAREST"
    return options | {"OVERVIEW_RESAMPLING": resampling, "PREDICTOR": predictor}


def _add_overviews(rows: Path) -> None:
    """Give a cube its overviews before it is compressed.

    The driver for COGs would compress, decompress and compress them again for each band, and take
    five times as long for all of the output.
    """
    with open_quietly(rows, "r+") as dataset:
        factors = overview_factors(*dataset.shape)
        if factors:
            dataset.build_overviews(factors, Resampling.average)


def _in_thread(work: Callable[[], Any], folder: Path, watch: Callable[[], None]) -> None:
    """Work in a thread, whose files in ``folder`` are removed when nobody waits for it."""

    def run() -> None:
        try:
            with rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE_BYTES):
                work()
        finally:
            if crew.stop.is_set():  # nobody waits any more: what was made since goes too
                shutil.rmtree(folder, ignore_errors=True)

    with Crew() as crew:
        crew.start("COG writer", run, abandon=True)
        crew.wait(watch)


def _checked_windows(dataset: DatasetReader) -> list[Window]:
    """Rows at the top, in the middle and at the end; of wide cubes, parts of them."""
    rows = min(_CHECKED_ROWS, dataset.height)
    row_bytes = rows * dataset.count * np.dtype(dataset.dtypes[0]).itemsize
    cols = min(max(_CHECKED_BYTES // row_bytes, 1), dataset.width)
    down, across = dataset.height - rows, dataset.width - cols
    places = {(0, 0), (down // 2, across // 2), (down, across)}
    return [Window(col, row, cols, rows) for row, col in sorted(places)]


def _is_equal(first: Any, second: Any) -> bool:
    """Equal numbers or arrays; NaN equals NaN."""
    if first is None or second is None:
        return first is second
    return bool(np.array_equal(first, second, equal_nan=np.asarray(first).dtype.kind == "f"))

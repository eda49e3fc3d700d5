"""Rows to a Cloud Optimized GeoTIFF that appears whole or not at all."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader, DatasetWriter
from rasterio.windows import Window as RasterioWindow

from engine.errors import OutputError
from engine.feedback import Feedback
from engine.raster.outputs import check_outputs
from engine.raster.style import ClassStyle, RampStyle, check_classes
from engine.raster.threads import Crew
from engine.raster.tiles import Window
from engine.raster.unfinished import begin_output, end_output, output_errors, remove_unfinished

__all__ = ["Grid", "RasterWriter", "check_outputs", "remove_unfinished"]

log = logging.getLogger(__name__)

_COG_BLOCK_PX = 512
# Deflate is what every GDAL reads, Debian's 3.6 in QGIS 3.22 among them.
_COG = {
    "driver": "COG",
    "COMPRESS": "DEFLATE",
    "LEVEL": "5",  # on noisy class maps six times as fast as 6, and 1.4 % larger
    "BLOCKSIZE": str(_COG_BLOCK_PX),
    "BIGTIFF": "IF_SAFER",
    "NUM_THREADS": str(min(4, os.cpu_count() or 1)),  # each holds a block of all bands
    "OVERVIEWS": "AUTO",
}
_CHECKED_ROWS = 64
# Enough for the blocks that the copy works on. GDAL's default, 5 % of the machine's memory, would
# fill up with large outputs.
_GDAL_CACHE_BYTES = 32 * 2**20


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the pixels of a raster lie.

    Args:
        height: rows.
        width: columns.
        transform: of pixel (column, row) to (x, y).
        crs: None when unknown.
        row_off: first row, when the raster is a part of a scene and is written in its windows.
        col_off: first column, likewise.
    """

    height: int
    width: int
    transform: Affine
    crs: CRS | None
    row_off: int = 0
    col_off: int = 0

    def crop(self, window: Window) -> Grid:
        """The part of this grid in a window, which is still written in this grid's windows."""
        row, col = window.row_off - self.row_off, window.col_off - self.col_off
        transform = self.transform @ Affine.translation(col, row)
        return Grid(
            window.height, window.width, transform, self.crs, window.row_off, window.col_off
        )


class RasterWriter:
    """Writes a raster in rows and makes it a Cloud Optimized GeoTIFF with its side files.

    Everything is made in a temporary folder beside the destination and renamed on a clean exit
    from the context; on an exception, nothing of it is left, and an older output stays.

    Args:
        path: of the GeoTIFF; ``.aux.xml`` and ``.qml`` appear beside it.
        grid: of the raster.
        band_names: one description a band.
        dtype: of the values.
        nodata: value of pixels without a result.
        tags: provenance, in the file's metadata.
        style: how it looks.
        unit: of the values of all bands; empty for none.
        feedback: asked about a cancel while the file is made; the copy of a large one takes long.

    Raises:
        OutputError: the file cannot be written, or reads back differently.
    """

    def __init__(
        self,
        path: str,
        grid: Grid,
        band_names: Sequence[str],
        dtype: str,
        nodata: float | None,
        *,
        tags: Mapping[str, str] | None = None,
        style: ClassStyle | RampStyle | None = None,
        unit: str = "",
        feedback: Feedback | None = None,
    ) -> None:
        if isinstance(style, ClassStyle):
            check_classes(style.classes, np.iinfo(dtype).max)
        self._path = Path(path)
        self._grid = grid
        self._band_names = tuple(band_names)
        self._dtype = np.dtype(dtype)
        self._nodata = nodata
        self._tags = dict(tags or {}) | (style.tags() if isinstance(style, ClassStyle) else {})
        self._style = style
        self._unit = unit
        self._is_finished = False
        self._watch = feedback.raise_if_cancelled if feedback else lambda: None

    def __enter__(self) -> Self:
        with output_errors(self._path):
            self._folder = begin_output(self._path)
            try:
                self._dataset = _open_rows(self._folder / "rows.tif", self._profile())
                self._describe()
            except BaseException:
                end_output(self._folder)
                raise
        return self

    def _profile(self) -> dict[str, Any]:
        """An uncompressed file, whose size proves that all is there.

        Rows arrive, and the copy wants blocks: its blocks are as wide as the copy's and as low as
        TIFF allows, so that neither side holds many rows of a wide raster in memory.
        """
        grid = self._grid
        profile = {
            "driver": "GTiff",
            "height": grid.height,
            "width": grid.width,
            "count": len(self._band_names),
            "dtype": self._dtype,
            "nodata": self._nodata,
            "crs": grid.crs,
            "interleave": "band",
            "tiled": True,
            "blockxsize": _COG_BLOCK_PX,
            "blockysize": 16,
            "BIGTIFF": "IF_SAFER",
        }
        # GDAL takes the identity for "no position"; stating it would make rasterio warn.
        if grid.transform != Affine.identity():
            profile["transform"] = grid.transform
        return profile

    def _describe(self) -> None:
        for band_number, name in enumerate(self._band_names, start=1):
            self._dataset.set_band_description(band_number, name)
            if self._unit:
                self._dataset.set_band_unit(band_number, self._unit)
        self._dataset.update_tags(**self._tags)
        if isinstance(self._style, ClassStyle):
            self._dataset.write_colormap(1, self._style.color_table())

    def write(self, window: Window, values: NDArray[Any]) -> None:
        """Write (bands, h, w) values of the raster's type into a window of the grid."""
        where = RasterioWindow(
            window.col_off - self._grid.col_off,
            window.row_off - self._grid.row_off,
            window.width,
            window.height,
        )
        with output_errors(self._path):
            self._dataset.write(values, window=where)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.finish()
                with output_errors(self._path):
                    self._publish()
        finally:
            self._close_rows()
            end_output(self._folder)

    def finish(self) -> None:
        """Make the file and check it; then only its renaming is left for the end of the context.

        Outputs that belong together are finished one by one before the first of them appears.
        """
        if self._is_finished:
            return
        rows, cog = self._folder / "rows.tif", self._folder / "cog.tif"
        with output_errors(self._path):
            self._dataset.close()
            self._check_size(rows)
            _copy_to_cog(rows, cog, self._cog_options(), self._watch)
            self._check_copy(rows, cog)
            rows.unlink()
            self._write_side_files(cog)
        self._is_finished = True

    def _close_rows(self) -> None:
        """Close what is about to be removed; after an error, that it failed is no news."""
        try:
            self._dataset.close()
        except RasterioError:
            log.debug("%s could not be closed.", self._dataset.name, exc_info=True)

    def _check_size(self, rows: Path) -> None:
        """Compare the size: GDAL may notice a full disk only when it closes the file, silently."""
        pixels = self._grid.height * self._grid.width * len(self._band_names)
        if rows.stat().st_size < pixels * self._dtype.itemsize:
            raise OutputError(
                f"The output {self._path} was not written to its end.", "Look for a full disk."
            )

    def _cog_options(self) -> dict[str, str]:
        is_map = isinstance(self._style, ClassStyle)
        # The most frequent class stands for a group of pixels: a mean of classes is no class.
        resampling = "MODE" if is_map else "AVERAGE" if self._dtype.kind == "f" else "NEAREST"
        # Neighbouring classes do not predict each other, neighbouring numbers do.
        predictor = "NO" if is_map else "YES"
        return _COG | {"OVERVIEW_RESAMPLING": resampling, "PREDICTOR": predictor}

    def _check_copy(self, rows: Path, cog: Path) -> None:
        """Reopen the file: grid, type, nodata, names, units, tags, and rows here and there."""
        with _open_quietly(rows) as first, _open_quietly(cog) as second:
            for name in ("shape", "count", "dtypes", "transform", "crs", "descriptions", "units"):
                if getattr(first, name) != getattr(second, name):
                    raise OutputError(f"The output {self._path} reads back with another {name}.")
            if not _is_equal(first.nodata, second.nodata):
                raise OutputError(f"The output {self._path} reads back with another nodata value.")
            if not self._tags.items() <= second.tags().items():
                raise OutputError(f"The output {self._path} reads back without its tags.")
            count = min(_CHECKED_ROWS, first.height)
            for row_off in {0, (first.height - count) // 2, first.height - count}:
                window = RasterioWindow(0, row_off, first.width, count)
                if not _is_equal(first.read(window=window), second.read(window=window)):
                    raise OutputError(
                        f"The output {self._path} reads back with other values from row {row_off}.",
                        "Look for a full or damaged disk.",
                    )

    def _write_side_files(self, cog: Path) -> None:
        aux = cog.with_name("cog.tif.aux.xml")
        if isinstance(self._style, ClassStyle):
            # GDAL writes this file itself when GeoTIFF cannot hold something, such as a rare CRS.
            theirs = aux.read_text(encoding="utf-8") if aux.exists() else None
            aux.write_text(self._style.aux_xml(theirs), encoding="utf-8")
        if self._style is not None:
            cog.with_suffix(".qml").write_text(self._style.qml(), encoding="utf-8")

    def _publish(self) -> None:
        """Rename everything; what an older file of this name left beside would now be wrong."""
        cog = self._folder / "cog.tif"
        os.replace(cog, self._path)
        for suffix in (".aux.xml", ".ovr", ".msk"):
            old, new = Path(f"{self._path}{suffix}"), Path(f"{cog}{suffix}")
            if new.exists():
                os.replace(new, old)
            else:
                old.unlink(missing_ok=True)
        if self._style is not None:
            os.replace(cog.with_suffix(".qml"), self._path.with_suffix(".qml"))


def _open_rows(path: Path, profile: dict[str, Any]) -> DatasetWriter:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # images without a position
        return rasterio.open(path, "w", **profile)


def _open_quietly(path: Path) -> DatasetReader:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # images without a position
        return rasterio.open(path)


def _copy_to_cog(rows: Path, cog: Path, options: dict[str, str], watch: Callable[[], None]) -> None:
    """Copy in a thread, so that a cancel need not wait for the end of it."""

    def copy() -> None:
        try:
            with rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE_BYTES):
                rasterio.shutil.copy(rows, cog, **options)
        finally:
            if crew.stop.is_set():  # nobody waits any more: what was made since goes too
                shutil.rmtree(cog.parent, ignore_errors=True)

    with Crew() as crew:
        crew.start("COG writer", copy, abandon=True)
        crew.wait(watch)


def _is_equal(first: Any, second: Any) -> bool:
    """Equal numbers or arrays; NaN equals NaN."""
    if first is None or second is None:
        return first is second
    return bool(np.array_equal(first, second, equal_nan=np.asarray(first).dtype.kind == "f"))

"""Windows to a Cloud Optimized GeoTIFF that appears whole or not at all."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetWriter
from rasterio.windows import Window as RasterioWindow

from engine.errors import OutputError
from engine.feedback import Feedback
from engine.raster.cog import Kind, check_copy, copy_to_cog, open_quietly
from engine.raster.cube import LARGEST_BLOCK_PX, CubeInfo, block_side_px, stretch
from engine.raster.outputs import check_outputs
from engine.raster.style import ClassStyle, RampStyle, RgbStyle, check_classes
from engine.raster.tiles import Window
from engine.raster.unfinished import begin_output, end_output, output_errors, remove_unfinished

__all__ = ["Grid", "RasterWriter", "check_outputs", "remove_unfinished"]

log = logging.getLogger(__name__)

_LOOKED_AT_PX = 512  # along the longer side, to see how bright a picture is


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
    """Writes a raster in windows and makes it a Cloud Optimized GeoTIFF with its side files.

    Everything is made in a temporary folder beside the destination and renamed on a clean exit
    from the context; on an exception, nothing of it is left, and an older output stays.

    Args:
        path: of the GeoTIFF; ``.aux.xml`` and ``.qml`` appear beside it.
        grid: of the raster.
        band_names: one description a band.
        dtype: of the values.
        nodata: value of pixels without a result.
        tags: provenance, in the file's metadata.
        style: how it looks; an `RgbStyle` without limits is stretched to what was written.
        cube: wavelengths, widths, flags, scale and date, for rasters of spectra.
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
        style: ClassStyle | RampStyle | RgbStyle | None = None,
        cube: CubeInfo | None = None,
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
        self._cube = cube
        self._tags = dict(tags or {}) | (cube.dataset_tags() if cube is not None else {})
        self._tags |= style.tags() if isinstance(style, ClassStyle) else {}
        self._style = style
        self._block_px = block_side_px(len(self._band_names), self._dtype)
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

        Of a map, rows arrive, and the copy wants blocks: its blocks are as wide as the copy's and
        as low as TIFF allows, so that neither side holds many rows of a wide raster in memory. A
        cube arrives in tiles and has the copy's blocks, band by band: written in 0.4 and copied in
        0.9 of the time that it takes with low ones.
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
            "blockxsize": self._block_px,
            "blockysize": self._block_px if self._is_cube else 16,
            "BIGTIFF": "IF_SAFER",
        }
        # GDAL takes the identity for "no position"; stating it would make rasterio warn.
        if grid.transform != Affine.identity():
            profile["transform"] = grid.transform
        return profile

    @property
    def _kind(self) -> Kind:
        if isinstance(self._style, ClassStyle):
            return "classes"
        return "numbers" if self._cube is None else "spectra"

    @property
    def _is_cube(self) -> bool:
        """True when a block of all bands has to be smaller than a map's."""
        return self._block_px < LARGEST_BLOCK_PX

    def _describe(self) -> None:
        for band_number, name in enumerate(self._band_names, start=1):
            self._dataset.set_band_description(band_number, name)
            if self._unit:
                self._dataset.set_band_unit(band_number, self._unit)
        if self._cube is not None:
            self._describe_spectra(self._cube)
        self._dataset.update_tags(**self._tags)
        if isinstance(self._style, ClassStyle):
            self._dataset.write_colormap(1, self._style.color_table())

    def _describe_spectra(self, cube: CubeInfo) -> None:
        """State wavelengths, widths, flags and scale."""
        count = len(self._band_names)
        for band_index in range(count) if cube.bands is not None else ():
            number = band_index + 1
            self._dataset.update_tags(number, **cube.band_tags(band_index))
            self._dataset.update_tags(number, ns="IMAGERY", **cube.imagery_tags(band_index))
        if (cube.scale, cube.offset) != (1.0, 0.0):  # GDAL's "not stated"
            self._dataset.scales = [cube.scale] * count
            self._dataset.offsets = [cube.offset] * count

    def write(self, window: Window, values: NDArray[Any]) -> None:
        """Write (bands, h, w) values of the raster's type into a window of the grid.

        Windows may come in any order; each pixel has to come once.
        """
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
            copy_to_cog(rows, cog, self._kind, self._block_px, self._watch)
            check_copy(rows, cog, self._path, self._tags)
            if isinstance(self._style, RgbStyle) and self._style.limits is None:
                self._style = _stretched(rows, self._style, self._cube or CubeInfo())
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


def _stretched(rows: Path, style: RgbStyle, cube: CubeInfo) -> RgbStyle:
    """A style with limits from the picture, looked at from afar."""
    limits = []
    with open_quietly(rows) as dataset:
        factor = max(1, max(dataset.shape) // _LOOKED_AT_PX)
        shape = max(1, dataset.height // factor), max(1, dataset.width // factor)
        for band in style.bands:
            values = dataset.read(band, out_shape=shape).astype(np.float64)
            usable = np.isfinite(values)
            if dataset.nodata is not None:
                usable &= values != dataset.nodata
            limits.append(stretch(values[usable] * cube.scale + cube.offset))
    return replace(style, limits=tuple(limits))

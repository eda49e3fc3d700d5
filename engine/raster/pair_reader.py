"""Reading a pair: reflectance of both images for windows of coarse pixels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from rasterio import windows
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT

from engine.errors import SceneError
from engine.raster.dataset import gdal_reason
from engine.raster.nodata import Nodata
from engine.raster.pair import Pair, fine_window
from engine.raster.pair_grid import fine_transform
from engine.raster.reader import SceneReader
from engine.raster.scene import Scene
from engine.raster.tiles import Window

# Values that are converted at a time: they and their results fit into a core's cache.
_CACHED_VALUES = 2**16
# Of a full alpha: below, resampling has mixed in what is transparent.
_OPAQUE = 0.99
# Of the source's pixels: how far off the warp may be where the CRS differ, see gdalwarp's -et.
_WARP_TOLERANCE_PX = 0.05

Reflectance = NDArray[np.float32]
Mask = NDArray[np.bool_]


class PairArrays(NamedTuple):
    """Both images of a window of coarse pixels.

    Args:
        hsi: (L, h, w) float32 reflectance, 0 where not valid.
        msi: (M, h*r, w*r) float32 likewise.
        hsi_valid: (h, w) bool, True where all usable bands have a measurement.
        msi_valid: (h*r, w*r) bool, True where all bands have one.
    """

    hsi: Reflectance
    msi: Reflectance
    hsi_valid: Mask
    msi_valid: Mask


class PairReader:
    """Reads windows of a pair; open it with ``with``, use it from one thread.

    Args:
        pair: the pair.
        hsi_index: 0-based hyperspectral bands in the order in which they are wanted; None: the
            pair's.
        msi_index: multispectral bands likewise.
    """

    def __init__(
        self,
        pair: Pair,
        hsi_index: Sequence[int] | None = None,
        msi_index: Sequence[int] | None = None,
    ) -> None:
        self._ratio = pair.ratio
        hsi_bands = pair.hsi_index if hsi_index is None else tuple(hsi_index)
        msi_bands = pair.msi_index if msi_index is None else tuple(msi_index)
        usable = set(pair.usable_hsi_index)
        judged = np.array([band in usable for band in hsi_bands], np.bool_)
        self._coarse = _Stored(pair.hsi, hsi_bands, judged)
        self._opaque: float | None = None
        if pair.msi_alpha_index is not None:
            self._opaque = _OPAQUE * _full_alpha(pair.msi, pair.msi_alpha_index)
            msi_bands = (*msi_bands, pair.msi_alpha_index)
        offset = pair.nested_offset
        self._fine: _Fine = (
            _Warped(pair, msi_bands) if offset is None else _Nested(pair.msi, msi_bands, offset)
        )
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Open the files.

        Raises:
            SceneError: one is gone, truncated, or another than when the pair was opened.
        """
        with ExitStack() as stack:
            stack.enter_context(self._coarse)
            stack.enter_context(self._fine)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files."""
        self._stack.close()

    def read(self, window: Window) -> PairArrays:
        """Read a window of coarse pixels, which lies inside the hyperspectral image.

        Raises:
            SceneError: a file was removed, changed or is damaged.
        """
        hsi, hsi_valid = self._coarse.read(window)
        msi, msi_valid = self._fine.read(fine_window(window, self._ratio))
        if self._opaque is not None:
            msi_valid &= msi[-1] >= self._opaque
            msi = msi[:-1]
            np.copyto(msi, 0, where=~msi_valid)
        return PairArrays(hsi, msi, hsi_valid, msi_valid)


def _full_alpha(scene: Scene, band_index: int) -> float:
    """What an opaque pixel's alpha is, with the band's scale: the largest number, or 1."""
    largest = 1.0 if scene.dtype.kind == "f" else float(np.iinfo(scene.dtype.name).max)
    return float(largest * scene.scale[band_index] + scene.offset[band_index])


class _Fine(Protocol):
    """How the multispectral image is read on the fine grid."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def read(self, window: Window) -> tuple[Reflectance, Mask]:
        """Read (M, h, w) reflectance and (h, w) valid of a window of the fine grid."""


class _Stored:
    """Bands of a scene on its own grid.

    Args:
        scene: to read.
        bands: 0-based.
        judged: (C,) True for the bands that say whether a pixel is valid.
    """

    def __init__(self, scene: Scene, bands: Sequence[int], judged: Mask) -> None:
        index = list(bands)
        self._reader = SceneReader(scene, index)
        self._scale = scene.scale[index].astype(np.float32)[:, None, None]
        self._offset = scene.offset[index].astype(np.float32)[:, None, None]
        self._nodata = [Nodata([scene.nodata[band]], scene.dtype) for band in index]
        self._judged = judged

    def __enter__(self) -> Self:
        self._reader.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._reader.__exit__(None, None, None)

    def read(self, window: Window) -> tuple[Reflectance, Mask]:
        """Read (C, h, w) reflectance and (h, w) valid.

        A bad or empty band may lack measurements where a pixel is valid; it is 0 there.
        """
        stored = self._reader.read(window)
        out = np.empty(stored.shape, np.float32)
        valid = np.ones(stored.shape[1:], np.bool_)
        measured = np.empty_like(valid)
        for band in range(len(stored)):
            measured[:] = True
            self._nodata[band].mark(stored[band : band + 1], slice(0, 1), measured)
            np.multiply(stored[band], self._scale[band], out=out[band], casting="same_kind")
            out[band] += self._offset[band]
            if not measured.all():
                out[band][~measured] = 0
                if self._judged[band]:
                    valid &= measured
        if not valid.all():
            np.copyto(out, 0, where=~valid)
        return out, valid


class _Nested(_Stored):
    """An image whose pixels are pixels of the fine grid.

    Args:
        scene: to read.
        bands: 0-based.
        offset: row and column of the fine grid on which it begins.
    """

    def __init__(self, scene: Scene, bands: Sequence[int], offset: tuple[int, int]) -> None:
        super().__init__(scene, bands, np.ones(len(bands), np.bool_))
        self._count = len(bands)
        self._size = scene.height, scene.width
        self._row_off, self._col_off = offset

    def read(self, window: Window) -> tuple[Reflectance, Mask]:
        """Read what there is; the rest is not valid."""
        first = max(window.row_off - self._row_off, 0), max(window.col_off - self._col_off, 0)
        stop = (
            min(window.row_stop - self._row_off, self._size[0]),
            min(window.col_stop - self._col_off, self._size[1]),
        )
        shape = window.height, window.width
        if first[0] >= stop[0] or first[1] >= stop[1]:
            return np.zeros((self._count, *shape), np.float32), np.zeros(shape, np.bool_)
        there = Window(first[0], first[1], stop[0] - first[0], stop[1] - first[1])
        values, valid = super().read(there)
        if valid.shape == shape:
            return values, valid
        out, out_valid = np.zeros((self._count, *shape), np.float32), np.zeros(shape, np.bool_)
        row = there.row_off + self._row_off - window.row_off
        col = there.col_off + self._col_off - window.col_off
        place = slice(row, row + there.height), slice(col, col + there.width)
        out[:, *place], out_valid[place] = values, valid
        return out, out_valid


class _Warped:
    """An image that is resampled onto the fine grid, band by band.

    Args:
        pair: whose multispectral image it is.
        bands: 0-based.
    """

    def __init__(self, pair: Pair, bands: Sequence[int]) -> None:
        scene = self._scene = pair.msi
        index = list(bands)
        self._reader = SceneReader(scene, index)
        self._nodata = [scene.nodata[band] for band in index]
        self._scale = scene.scale[index].astype(np.float32)[:, None, None]
        self._offset = scene.offset[index].astype(np.float32)[:, None, None]
        # A place of the fine grid is read where the content of that place was found to lie.
        self._grid = {
            "transform": fine_transform(pair.hsi, pair.ratio, pair.shift_px),
            "height": pair.hsi.height * pair.ratio,
            "width": pair.hsi.width * pair.ratio,
            "resampling": Resampling.average if pair.averages else Resampling.cubic,
        }
        if pair.hsi.crs is not None and scene.crs is not None:
            self._grid |= {"crs": pair.hsi.crs, "src_crs": scene.crs}
        self._stack = ExitStack()
        self._runs: list[tuple[WarpedVRT, list[int]]] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            reader = stack.enter_context(self._reader)
            warped: dict[tuple[int, float | None], WarpedVRT] = {}
            for (dataset, number), nodata in zip(reader.open_bands(), self._nodata, strict=True):
                key = id(dataset), nodata
                if key not in warped:
                    warped[key] = stack.enter_context(self._warp(dataset, nodata))
                if self._runs and self._runs[-1][0] is warped[key]:
                    self._runs[-1][1].append(number)
                else:
                    self._runs.append((warped[key], [number]))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._runs.clear()
        self._stack.close()

    def _warp(self, dataset: DatasetReader, nodata: float | None) -> WarpedVRT:
        """The data set on the fine grid, in float32 with NaN for no measurement."""
        missing = np.nan if nodata is None and self._scene.dtype.kind == "f" else nodata
        return WarpedVRT(
            dataset,
            src_transform=self._scene.transform,
            src_nodata=missing,
            nodata=np.nan,
            dtype="float32",
            tolerance=_WARP_TOLERANCE_PX,
            # Otherwise a band's nodata number enters the mean where another band has a value.
            UNIFIED_SRC_NODATA="NO",
            **self._grid,
        )

    def read(self, window: Window) -> tuple[Reflectance, Mask]:
        """Read (M, h, w) reflectance and (h, w) valid."""
        self._reader.check_lengths(window)
        out = np.empty((len(self._nodata), window.height, window.width), np.float32)
        rectangle = windows.Window(window.col_off, window.row_off, window.width, window.height)
        start = 0
        for warped, numbers in self._runs:
            part = out[start : start + len(numbers)]
            start += len(numbers)
            try:
                warped.read(numbers, window=rectangle, out=part)
            except (RasterioError, OSError, ValueError) as error:
                raise SceneError(
                    f"{self._scene.name} cannot be resampled in rows {window.row_off} to "
                    f"{window.row_stop - 1} and columns {window.col_off} to {window.col_stop - 1} "
                    f"of the fine grid: {gdal_reason(error)}.",
                    "The file is damaged or incomplete; copy or download it again.",
                ) from error
        valid = np.asarray(np.isfinite(out).all(axis=0), np.bool_)
        np.multiply(out, self._scale, out=out)
        np.add(out, self._offset, out=out)
        if not valid.all():
            np.copyto(out, 0, where=~valid)
        return out, valid

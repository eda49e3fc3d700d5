"""How large the pixels of a grid are on the ground, in square metres."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.warp import transform

from engine.raster.writer import Grid

log = logging.getLogger(__name__)

# A cylindrical projection of the WGS 84 ellipsoid that keeps areas; metres.
_EQUAL_AREA = "EPSG:6933"
_EQUAL_AREA_WIDTH_M = 34_735_060.890323  # around the world
# A projected CRS whose areas are true to this share is taken by its word: UTM is, Web Mercator
# is not.
_TRUE_SHARE = 0.01
_SAMPLED_ROWS, _SAMPLED_COLS = 512, 32  # of the grid; areas between them are interpolated


class PixelAreas:
    """Areas of the pixels of a grid.

    By the CRS where it is projected and keeps areas, by the ellipsoid where it is geographic or
    far from keeping them. Without a CRS, coordinates are taken for metres.

    Args:
        grid: see there.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        planar_m2 = abs(grid.transform.determinant) * _metres(grid.crs) ** 2
        self._rows = np.linspace(0, grid.height - 1, min(grid.height, _SAMPLED_ROWS)).round()
        self._cols = np.linspace(0, grid.width - 1, min(grid.width, _SAMPLED_COLS)).round()
        self._sampled_m2 = np.full((len(self._rows), len(self._cols)), planar_m2)
        if grid.crs is None:
            return
        ellipsoidal_m2 = self._ellipsoidal(grid.crs)
        if ellipsoidal_m2 is not None:
            is_true = np.abs(ellipsoidal_m2 / planar_m2 - 1).max() <= _TRUE_SHARE
            if grid.crs.is_geographic or not is_true:
                self._sampled_m2 = ellipsoidal_m2

    def of_rows(self, row: int, count: int) -> NDArray[np.float64]:
        """(count, width) areas in m² from a row of the grid, 0-based."""
        rows = np.arange(row, row + count)
        by_row = np.stack([np.interp(rows, self._rows, column) for column in self._sampled_m2.T], 1)
        if np.ptp(by_row, axis=1).max() <= 1e-9 * by_row.max():  # alike along each row
            return np.broadcast_to(by_row[:, :1], (count, self._grid.width))
        cols = np.arange(self._grid.width)
        return np.stack([np.interp(cols, self._cols, values) for values in by_row])

    def _ellipsoidal(self, crs: CRS) -> NDArray[np.float64] | None:
        """(rows, cols) areas of the sampled pixels; None where the CRS has no place on Earth."""
        t = self._grid.transform
        rows, cols = np.meshgrid(self._rows, self._cols, indexing="ij")
        # (4, samples) corners of the pixels, around each of them.
        row = np.stack([rows.ravel() + down for down in (0, 0, 1, 1)])
        col = np.stack([cols.ravel() + right for right in (0, 1, 1, 0)])
        px, py = t.a * col + t.b * row + t.c, t.d * col + t.e * row + t.f
        try:
            x, y = np.reshape(transform(crs, _EQUAL_AREA, px.ravel(), py.ravel())[:2], (2, 4, -1))
        except RasterioError as error:
            log.debug("No area on the ellipsoid: %s", error)
            return None
        if not np.isfinite([x, y]).all():
            return None
        # Across the antimeridian the shorter way around the world.
        x = (x - x[0] + _EQUAL_AREA_WIDTH_M / 2) % _EQUAL_AREA_WIDTH_M
        twice = (x * np.roll(y, -1, axis=0) - np.roll(x, -1, axis=0) * y).sum(axis=0)  # shoelace
        return np.asarray(np.abs(twice) / 2).reshape(rows.shape)


def _metres(crs: CRS | None) -> float:
    """Metres of a unit of a projected CRS; 1 for every other."""
    if crs is None or not crs.is_projected:
        return 1.0
    return float(crs.linear_units_factor[1])

"""From an area on the map to pixels of a scene."""

from __future__ import annotations

import math

from rasterio.transform import Affine

from engine.errors import RequestError
from engine.raster.tiles import Window

# Extents come from map canvases and other rasters, through float arithmetic: an edge that is off
# by less than this lies on the edge of the pixel and does not touch the next one.
EDGE_TOLERANCE_PX = 1e-3

Bounds = tuple[float, float, float, float]


def window_of_extent(extent: Bounds, transform: Affine, height: int, width: int) -> Window:
    """Find the pixels that an extent touches, on the grid of the scene.

    Args:
        extent: xmin, ymin, xmax, ymax in the CRS of the transform, which may be rotated.
        transform: of the scene, (column, row) to (x, y).
        height: rows of the scene.
        width: columns of the scene.

    Raises:
        RequestError: the extent is empty, or lies outside the scene.
    """
    xmin, ymin, xmax, ymax = extent
    if not (all(map(math.isfinite, extent)) and xmin < xmax and ymin < ymax):
        raise RequestError(
            f"The extent {_text(extent)} is empty.", "Give xmin, ymin, xmax, ymax in this order."
        )
    corners = [~transform @ corner for corner in _corners(extent)]
    cols, rows = zip(*corners, strict=True)
    col_off, col_stop = _touched(min(cols), max(cols), width)
    row_off, row_stop = _touched(min(rows), max(rows), height)
    if col_off >= col_stop or row_off >= row_stop:
        scene = [transform @ corner for corner in _corners((0, 0, width, height))]
        xs, ys = zip(*scene, strict=True)
        raise RequestError(
            f"The extent {_text(extent)} lies outside the scene, which covers "
            f"{_text((min(xs), min(ys), max(xs), max(ys)))}.",
            "Choose an extent on the scene, in the scene's CRS.",
        )
    return Window(row_off, col_off, row_stop - row_off, col_stop - col_off)


def _touched(low: float, high: float, size: int) -> tuple[int, int]:
    """First pixel and the one after the last that an interval touches; empty when outside."""
    start = math.floor(low + EDGE_TOLERANCE_PX)
    stop = max(math.ceil(high - EDGE_TOLERANCE_PX), start + 1)  # thinner than a pixel: that pixel
    return max(start, 0), min(stop, size)


def _corners(bounds: Bounds) -> list[tuple[float, float]]:
    left, bottom, right, top = bounds
    return [(left, bottom), (left, top), (right, bottom), (right, top)]


def _text(bounds: Bounds) -> str:
    return ", ".join(f"{value:.10g}" for value in bounds)

"""Where pixels lie on the ground: their size in metres, and one scene's windows in another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rasterio.warp import transform as transform_points

from engine.raster.scene import Scene
from engine.raster.tiles import Window

METRES_PER_DEGREE = 111_320.0  # of latitude, and of longitude on the equator
DEFAULT_PIXEL_SIZE_M = 30.0  # EnMAP's, for a scene that does not say where it is


def pixel_size_m(scene: Scene) -> float:
    """The side of a pixel on the ground, in metres: the root of its area.

    A scene without a CRS is taken to be in metres when its transform says more than "one pixel is
    one unit", else to have EnMAP's 30 m.
    """
    a, b, _c, d, e, f = scene.transform[:6]
    area = abs(a * e - b * d)
    if scene.crs is None:
        return float(np.sqrt(area)) if area not in (0.0, 1.0) else DEFAULT_PIXEL_SIZE_M
    if scene.crs.is_geographic:
        centre_row, centre_col = scene.height / 2, scene.width / 2
        latitude = np.deg2rad(d * centre_col + e * centre_row + f)
        return float(np.sqrt(area * np.cos(latitude)) * METRES_PER_DEGREE)
    return float(np.sqrt(area) * scene.crs.linear_units_factor[1])


def place_of(
    scene: Scene, rows: NDArray[np.float64], cols: NDArray[np.float64], anchor: Scene
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bring points from the pixels of one scene to those of another.

    Scenes without a CRS are taken to be in that of the other one.

    Args:
        scene: that the points are of.
        rows: (N,) from the upper edge, in pixels.
        cols: (N,) from the left edge, in pixels.
        anchor: whose pixels are wanted.

    Returns:
        (N,) rows and (N,) columns in ``anchor``, in pixels from its corner; infinite where a
        point has no place in its CRS.
    """
    a, b, c, d, e, f = scene.transform[:6]
    xs, ys = a * cols + b * rows + c, d * cols + e * rows + f
    if scene.crs is not None and anchor.crs is not None and scene.crs != anchor.crs:
        xs, ys = (np.asarray(v) for v in transform_points(scene.crs, anchor.crs, xs, ys)[:2])
    a, b, c, d, e, f = (~anchor.transform)[:6]
    return d * xs + e * ys + f, a * xs + b * ys + c


def box_in(scene: Scene, window: Window, other: Scene) -> tuple[float, float, float, float]:
    """The rectangle of another scene's pixels around a window of this one.

    Returns:
        first row, first column, row stop and column stop in ``other``, in pixels; exact when the
        grids are parallel, a little larger when one is turned.
    """
    row, col, row_stop, col_stop = window.row_off, window.col_off, window.row_stop, window.col_stop
    middle_row, middle_col = (row + row_stop) / 2, (col + col_stop) / 2
    # The edges' middles too, because a straight edge may bend between two projections.
    rows = np.asarray([row, row, row, middle_row, middle_row, row_stop, row_stop, row_stop], float)
    cols = np.asarray([col, middle_col, col_stop, col, col_stop, col, middle_col, col_stop], float)
    rows, cols = place_of(scene, rows, cols, other)
    return float(rows.min()), float(cols.min()), float(rows.max()), float(cols.max())

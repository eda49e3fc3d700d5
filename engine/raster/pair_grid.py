"""How two images lie on each other: their ratio, what they share, and the fine grid.

Everything is counted in pixels of the hyperspectral image, the *coarse* ones, whose grid is never
changed; the fine grid is each of them split into ratio x ratio.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from rasterio.transform import Affine

from engine.errors import RequestError, SceneError
from engine.raster.ground import box_in, place_of
from engine.raster.scene import Scene
from engine.raster.tiles import Window
from engine.raster.writer import Grid

SMALLEST_RATIO = 2
# Found from the grids: 1.75 and more count as 2. Below, there is little to be gained.
_SMALLEST_FOUND = 1.75
# More than this is asked for on purpose or not at all: 400 fine pixels for a coarse one.
_LARGEST_FOUND = 20.5
# Pixels that differ in size by less are said to be as large as each other.
_SAME_SIZE = 0.05
# A ratio further than this from an integer is said: over 100 coarse pixels, a whole fine one.
_WHOLE_TOLERANCE = 0.01
# Pixels that lie so near to those of the fine grid are taken as they are.
_NEST_TOLERANCE_PX = 0.02

Shift = tuple[float, float]
NO_SHIFT: Shift = (0.0, 0.0)


def place_together(
    hsi: Scene, msi: Scene, ratio: int | None
) -> tuple[Scene, Scene, tuple[str, ...]]:
    """Say where two images lie of which one or both have no CRS.

    Args:
        hsi: the hyperspectral image.
        msi: the multispectral one.
        ratio: that the user gave.

    Returns:
        Both scenes in one CRS, or as they were when each has its own; and what was assumed.

    Raises:
        SceneError: nothing says where the images lie, and their sizes do not fit.
    """
    if hsi.crs is not None and msi.crs is not None:
        return hsi, msi, ()
    crs = hsi.crs or msi.crs
    hsi, msi = replace(hsi, crs=crs), replace(msi, crs=crs)
    unplaced = [_is_unplaced(scene.transform) for scene in (hsi, msi)]
    if not any(unplaced):
        note = (
            f"A CRS is missing: {hsi.name} and {msi.name} are taken to be in the same one, where "
            "their coordinates say."
        )
        return hsi, msi, (note,)
    fitting = _ratio_of_sizes(hsi, msi, ratio)
    if fitting is None:
        raise SceneError(
            f"Nothing says where {hsi.name} ({hsi.width} x {hsi.height} px) and {msi.name} "
            f"({msi.width} x {msi.height} px) lie on each other: a position is missing, and one "
            "image's size is no whole multiple of the other's.",
            "Give both images a position and a CRS, or cut them so that one is the other's size "
            "times the ratio.",
        )
    note = (
        f"No position is stated for both images: {hsi.name} and {msi.name} are taken to have the "
        f"same upper left corner, at a ratio of {fitting}, as their sizes say."
    )
    if unplaced[0] and not unplaced[1]:
        return replace(hsi, transform=msi.transform @ Affine.scale(fitting)), msi, (note,)
    return hsi, replace(msi, transform=fine_transform(hsi, fitting)), (note,)


def find_ratio(hsi: Scene, msi: Scene, wanted: int | None) -> tuple[int, tuple[str, ...]]:
    """Choose how many fine pixels lie along a coarse one.

    Args:
        hsi: the hyperspectral image.
        msi: the multispectral one, placed.
        wanted: by the user; None: found from the pixels' sizes.

    Returns:
        The ratio, and what has to be said of it.

    Raises:
        RequestError: the user's is below 2.
        SceneError: the pixels' sizes give one below 2, whatever the user's, as interpolating
            makes nothing finer; or one that is beyond use.
    """
    if wanted is not None and wanted < SMALLEST_RATIO:
        raise RequestError(f"A ratio of {wanted} makes nothing finer.", "Give 2 or more.")
    found = pixel_ratio(hsi, msi)
    if found < _SMALLEST_FOUND:
        raise SceneError(
            f"The pixels of {msi.name} are {_size_words(found)} those of {hsi.name}; a ratio of 2 "
            "or more is needed.",
            "The two images may have been given the wrong way round."
            if found < 1 / _SMALLEST_FOUND
            else "Choose a finer multispectral image.",
        )
    if wanted is not None:
        return wanted, _wanted_notes(found, wanted)
    if found >= _LARGEST_FOUND:
        raise SceneError(
            f"The pixels of {msi.name} are {found:.0f} times finer than those of {hsi.name}, which "
            f"would make {found * found:.0f} pixels of each one.",
            "Give the ratio that is wanted, for example 3 or 10: the multispectral image is then "
            "averaged to it.",
        )
    ratio = round(found)
    if abs(found - ratio) <= _WHOLE_TOLERANCE:
        return ratio, ()
    return ratio, (
        f"One pixel of {hsi.name} is {found:.3g} of {msi.name}: the multispectral image is "
        f"resampled to a ratio of {ratio}.",
    )


def pixel_ratio(hsi: Scene, msi: Scene) -> float:
    """How many fine pixels lie along the side of a coarse one, in the middle of what is shared.

    Raises:
        SceneError: the images cannot be brought into one CRS.
    """
    top, left, bottom, right = footprint(hsi, msi)
    middle_row = (max(top, 0.0) + min(bottom, hsi.height)) / 2
    middle_col = (max(left, 0.0) + min(right, hsi.width)) / 2
    rows = middle_row + np.asarray([-0.5, -0.5, 0.5])
    cols = middle_col + np.asarray([-0.5, 0.5, -0.5])
    fine_rows, fine_cols = place_of(hsi, rows, cols, msi)
    across = fine_rows[1] - fine_rows[0], fine_cols[1] - fine_cols[0]
    down = fine_rows[2] - fine_rows[0], fine_cols[2] - fine_cols[0]
    return math.sqrt(abs(across[0] * down[1] - across[1] * down[0]))


def footprint(
    hsi: Scene, msi: Scene, shift_px: Shift = NO_SHIFT
) -> tuple[float, float, float, float]:
    """Where the multispectral image's edges lie: top, left, bottom, right in coarse pixels.

    Raises:
        SceneError: the images cannot be brought into one CRS.
    """
    edges = box_in(msi, Window(0, 0, msi.height, msi.width), hsi)
    if not np.isfinite(edges).all():
        raise SceneError(
            f"{msi.name} cannot be brought into the CRS of {hsi.name}.",
            "Check the CRS of both, or reproject one with gdalwarp.",
        )
    x_px, y_px = shift_px
    top, left, bottom, right = edges
    return top - y_px, left - x_px, bottom - y_px, right - x_px


def overlap(hsi: Scene, msi: Scene, ratio: int, shift_px: Shift) -> Window:
    """The coarse pixels that the multispectral image covers by half a fine pixel or more.

    Raises:
        SceneError: there are none.
    """
    top, left, bottom, right = footprint(hsi, msi, shift_px)
    sliver = 0.5 / ratio
    row, row_stop = max(0, math.floor(top + sliver)), min(hsi.height, math.ceil(bottom - sliver))
    col, col_stop = max(0, math.floor(left + sliver)), min(hsi.width, math.ceil(right - sliver))
    if row < row_stop and col < col_stop:
        return Window(row, col, row_stop - row, col_stop - col)
    raise SceneError(
        f"{hsi.name} and {msi.name} do not overlap: in pixels of the first, the second covers "
        f"rows {round(top)} to {round(bottom)} and columns {round(left)} to {round(right)} of "
        f"{hsi.height} x {hsi.width}.",
        "Choose two images of one place, and check their CRS.",
    )


def overlap_note(hsi: Scene, window: Window) -> tuple[str, ...]:
    """Say so when the images share only a part of the hyperspectral one."""
    share = window.height * window.width / (hsi.height * hsi.width)
    # A border of one pixel is what two grids of one place usually differ by.
    if window.height >= hsi.height - 2 and window.width >= hsi.width - 2:
        return ()
    return (
        f"The images overlap only in part: {share:.0%} of {hsi.name}, rows {window.row_off + 1} "
        f"to {window.row_stop} and columns {window.col_off + 1} to {window.col_stop}; only this "
        "part is used.",
    )


def intersection(first: Window, second: Window) -> Window | None:
    """What two windows share; None when that is nothing."""
    row, col = max(first.row_off, second.row_off), max(first.col_off, second.col_off)
    row_stop = min(first.row_stop, second.row_stop)
    col_stop = min(first.col_stop, second.col_stop)
    if row >= row_stop or col >= col_stop:
        return None
    return Window(row, col, row_stop - row, col_stop - col)


def fine_window(window: Window, ratio: int) -> Window:
    """The fine pixels of a window of coarse ones."""
    return Window(
        window.row_off * ratio, window.col_off * ratio, window.height * ratio, window.width * ratio
    )


def fine_transform(hsi: Scene, ratio: int, shift_px: Shift = NO_SHIFT) -> Affine:
    """From fine (column, row) to the map.

    Args:
        hsi: whose pixels are split.
        ratio: into so many along each side.
        shift_px: coarse pixels to the right and down by which the whole grid is moved.
    """
    return hsi.transform @ Affine.translation(*shift_px) @ Affine.scale(1 / ratio)


def fine_grid(hsi: Scene, ratio: int) -> Grid:
    """The whole hyperspectral image's pixels, split."""
    return Grid(hsi.height * ratio, hsi.width * ratio, fine_transform(hsi, ratio), hsi.crs)


def nested_offset(hsi: Scene, msi: Scene, ratio: int, shift_px: Shift) -> tuple[int, int] | None:
    """The row and column of the fine grid on which the multispectral image begins.

    Args:
        hsi: the hyperspectral image.
        msi: the multispectral one.
        ratio: fine pixels along a coarse one.
        shift_px: where the multispectral content lies, coarse pixels right and down.

    Returns:
        None when its pixels are not pixels of the fine grid, so that it has to be resampled.
    """
    middle_row, middle_col = msi.height / 2, msi.width / 2
    rows = np.asarray([0, 0, msi.height, msi.height, middle_row], np.float64)
    cols = np.asarray([0, msi.width, 0, msi.width, middle_col], np.float64)
    coarse_rows, coarse_cols = place_of(msi, rows, cols, hsi)
    row_offs = (coarse_rows - shift_px[1]) * ratio - rows
    col_offs = (coarse_cols - shift_px[0]) * ratio - cols
    offset = round(row_offs[0]), round(col_offs[0])
    distance_px = np.hypot(row_offs - offset[0], col_offs - offset[1])
    return offset if distance_px.max() <= _NEST_TOLERANCE_PX else None


def _size_words(found: float) -> str:
    """How pixels compare that are hardly finer or not at all: "1.5 times finer than"."""
    if found >= 1 + _SAME_SIZE:
        return f"only {found:.2g} times finer than"
    if found > 1 - _SAME_SIZE:
        return "as large as"
    return f"{1 / found:.2g} times coarser than"


def _wanted_notes(found: float, wanted: int) -> tuple[str, ...]:
    if abs(found - wanted) <= _WHOLE_TOLERANCE:
        return ()
    if found < wanted / 1.1:
        return (
            f"The ratio of {wanted} asks for finer pixels than the multispectral image has "
            f"({found:.3g} for a coarse one): it is interpolated, and the result is no finer "
            "than it.",
        )
    return (
        f"The multispectral image, with {found:.3g} pixels along a coarse one, is resampled to "
        f"the ratio of {wanted}.",
    )


def _is_unplaced(transform: Affine) -> bool:
    """True for pixels counted from a corner, downwards or (as some files say it) upwards."""
    unit = (abs(transform.a), abs(transform.e)) == (1.0, 1.0) and transform.b == transform.d == 0.0
    return bool(unit and (transform.c, transform.f) == (0.0, 0.0))


def _ratio_of_sizes(hsi: Scene, msi: Scene, wanted: int | None) -> int | None:
    """The whole number by which one image has more rows and columns than the other."""
    ratio = wanted or round(msi.width / hsi.width)
    fits = (msi.height, msi.width) == (hsi.height * ratio, hsi.width * ratio)
    return ratio if fits and ratio >= 1 else None

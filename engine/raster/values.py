"""Measured values on a scene's grid: the mean over each pixel, and how much of it is known.

Polygons give their value to the share of each pixel that they cover, points to the whole pixel
that they lie in, and a raster of any grid is averaged over the pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import Affine

from engine.errors import LabelError, SceneError
from engine.raster.burn import MAX_VALUES, mean_of_blocks, mean_values, row_parts
from engine.raster.dataset import open_dataset
from engine.raster.sampled import MAX_SUPERSAMPLE, SampledRaster
from engine.raster.scene import Scene
from engine.raster.tiles import Window
from engine.raster.vector import Shape, crs_note, is_vector, read_shapes, require_overlap
from engine.raster.writer import Grid

# Numbers that producers write where they measured nothing; as a measurement each is a rarity.
SUSPECT_VALUES = (-9999.0, -999.0, -99.0, -32768.0)
LOOK_SIDE_PX = 512  # of a raster, looked at to see which values it holds


class Values(Protocol):
    """Values from anywhere, not yet on a grid."""

    source: str
    """Where they are from, for messages."""

    levels: NDArray[np.float64]
    """Values as they occur, ascending; of a large raster a sample."""

    notes: tuple[str, ...]
    """What was assumed, for the user."""

    def on(self, scene: Scene | Grid) -> SceneValues:
        """Bring them to a scene's grid.

        Raises:
            LabelError: they lie somewhere else.
        """


class SceneValues(Protocol):
    """Values on the grid of one scene."""

    def means(self, window: Window) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Tell the mean of each pixel, and which share of the pixel it is known for.

        Args:
            window: of the scene.

        Returns:
            (h, w) float64 means, 0 where nothing is known; (h, w) float32 shares, 0 to 1.
        """


def open_values(source: str, field: str | None, crs: CRS | None) -> Values:
    """Open measured values to learn from.

    Args:
        source: a vector source ("path|layername=x" too) or a raster whose first band holds them.
        field: that holds them; not needed for a raster.
        crs: of the scene that they are for; a source without a CRS is taken to be in it.

    Raises:
        LabelError: there is nothing to read, no field, text in it, or the same value everywhere.
    """
    if not is_vector(source):
        return RasterValues(source)
    if not field:
        raise LabelError(
            f"The value field of {source} is not given.",
            "Choose the field that holds the measured values.",
        )
    return VectorValues(source, field, crs)


class VectorValues:
    """Polygons or points with a field of numbers.

    Args:
        source: of the layer.
        field: that holds the numbers.
        crs: of the scene; see `open_values`.

    Raises:
        LabelError: the field is empty, holds text, or the same number everywhere.
    """

    def __init__(self, source: str, field: str, crs: CRS | None) -> None:
        self.source = source
        self._field = field
        self._crs = crs
        whose = f"The value field {field!r} of {source}"
        shapes = read_shapes(source, field, crs)
        for shape in shapes:
            _check_number(shape.value, whose)
        self._shapes = _finite(shapes)
        self.levels = np.sort([float(shape.value) for shape in self._shapes])
        _check_levels(self.levels, whose)
        note = crs_note(source, crs)
        dropped = len(shapes) - len(self._shapes)
        self.notes = (
            *([note] if note else []),
            *([f"{whose} is infinite in {dropped} features: left out."] if dropped else []),
            *suspect_notes(self.levels, whose),
        )

    def on(self, scene: Scene | Grid) -> SceneValues:
        """See `Values.on`."""
        shapes = self._shapes
        if scene.crs != self._crs:
            shapes = _finite(read_shapes(self.source, self._field, scene.crs))
        require_overlap(shapes, self.source, scene.height, scene.width, scene.transform)
        return _VectorOnScene(shapes, scene.transform)


class _VectorOnScene:
    """Features on one grid; polygons by area, points by the pixel that they lie in."""

    def __init__(self, shapes: Sequence[Shape], transform: Affine) -> None:
        geometries = np.asarray([shape.geometry for shape in shapes], dtype=object)
        values = np.asarray([float(shape.value) for shape in shapes])
        is_area = shapely.get_dimensions(geometries) == 2
        self._areas = [shape for shape, area in zip(shapes, is_area, strict=True) if area]
        self._transform = transform
        marks, owner = shapely.get_parts(geometries[~is_area], return_index=True)
        self._mark_values = values[~is_area][owner]
        a, b, c, d, e, f = (~transform)[:6]
        xs, ys = shapely.get_x(marks), shapely.get_y(marks)
        self._mark_cols = np.floor(a * xs + b * ys + c).astype(np.int64)
        self._mark_rows = np.floor(d * xs + e * ys + f).astype(np.int64)

    def means(self, window: Window) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """See `SceneValues.means`; the mean of its points is a pixel's, whatever covers it."""
        means, known = mean_values(self._areas, window, self._transform, MAX_SUPERSAMPLE)
        rows, cols = self._mark_rows - window.row_off, self._mark_cols - window.col_off
        here = (rows >= 0) & (rows < window.height) & (cols >= 0) & (cols < window.width)
        total, count = np.zeros_like(means), np.zeros_like(means)
        np.add.at(total, (rows[here], cols[here]), self._mark_values[here])
        np.add.at(count, (rows[here], cols[here]), 1)
        marked = count > 0
        means[marked], known[marked] = total[marked] / count[marked], 1.0
        return means, known


class RasterValues:
    """A raster of measured values in its first band; nodata and NaN mean "not measured".

    Args:
        source: of the raster.

    Raises:
        LabelError: it cannot be opened, holds no numbers, or the same number everywhere.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        whose = f"The value raster {source}"
        try:
            with open_dataset(source) as dataset:
                if np.dtype(dataset.dtypes[0]).kind not in "iuf":
                    raise LabelError(
                        f"{whose} holds {dataset.dtypes[0]} values.", "Convert it to Float32."
                    )
                self._scale, self._offset = dataset.scales[0], dataset.offsets[0]
                levels = _look(dataset) * self._scale + self._offset
        except SceneError as error:
            raise LabelError(
                f"The values cannot be read: {error.sentence}", error.remedy
            ) from error
        self.levels = np.sort(levels[np.isfinite(levels)])
        _check_levels(self.levels, whose)
        self.notes = suspect_notes(self.levels, whose)

    def on(self, scene: Scene | Grid) -> SceneValues:
        """See `Values.on`; a raster without values on the scene is noticed when it is read."""
        return _RasterOnScene(self.source, scene, self._scale, self._offset)


class _RasterOnScene:
    """A value raster, sampled several times in each pixel of a scene."""

    def __init__(self, source: str, scene: Scene | Grid, scale: float, offset: float) -> None:
        self._raster = SampledRaster(source, scene, nodata=math.nan, dtype="float64")
        self._scale, self._offset = scale, offset

    def means(self, window: Window) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """See `SceneValues.means`."""
        means = np.zeros((window.height, window.width))
        known = np.zeros((window.height, window.width), np.float32)
        for part in row_parts(window, self._raster.supersample, MAX_VALUES):
            here = Window(window.row_off + part.row_off, window.col_off, part.height, part.width)
            fine = self._raster.read(here) * self._scale + self._offset
            rows = np.s_[part.row_off : part.row_stop]
            means[rows], known[rows] = mean_of_blocks(fine, self._raster.supersample)
        return means, known


def suspect_notes(levels: NDArray[np.float64], whose: str) -> tuple[str, ...]:
    """Warn of numbers that look like "not measured" and lie far below all others."""
    found = [value for value in SUSPECT_VALUES if levels[0] == value and (levels > value).any()]
    rest = levels[levels > levels[0]]
    if not found or rest[0] - levels[0] < np.ptp(rest):
        return ()
    return (
        f"{whose} holds {found[0]:g}, which often means that nothing was measured; it is used as "
        "a value. Remove it if it is none.",
    )


def _check_number(value: Any, whose: str) -> None:
    """Refuse text: a number written as text sorts and averages wrongly everywhere else too."""
    if isinstance(value, int | float | np.number):
        return
    raise LabelError(
        f"{whose} holds {value!r}, which is no number.",
        "Choose a field of numbers, or convert it with the field calculator.",
    )


def _finite(shapes: Sequence[Shape]) -> list[Shape]:
    return [shape for shape in shapes if math.isfinite(shape.value)]


def _check_levels(levels: NDArray[np.float64], whose: str) -> None:
    """Refuse nothing at all, and the same number everywhere."""
    if not len(levels):
        raise LabelError(f"{whose} holds no finite number.", "Choose another, or fill it.")
    if levels[0] == levels[-1]:
        raise LabelError(
            f"{whose} is {levels[0]:g} everywhere.",
            "There is nothing to learn from a constant: choose measured values that differ.",
        )


def _look(dataset: rasterio.DatasetReader) -> NDArray[np.float64]:
    """Values of the first band, every so many pixels in a large one."""
    shape = min(dataset.height, LOOK_SIDE_PX), min(dataset.width, LOOK_SIDE_PX)
    found = dataset.read(1, out_shape=shape, masked=True)
    values: NDArray[np.float64] = found.compressed().astype(np.float64)
    return values

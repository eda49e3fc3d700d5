"""Labels on a scene's grid: how much of each pixel which class covers.

Polygons cover pixels in part, so a label is a share of area and not a class: at 30 m most pixels
are mixed, and their shares tell as much as the few pure ones. Points label the whole pixel that
they lie in. A labelled raster of any grid is sampled finer than the scene's pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points

from engine.errors import LabelError, SceneError
from engine.raster.burn import class_fractions
from engine.raster.dataset import open_dataset
from engine.raster.sampled import MAX_SUPERSAMPLE, SampledRaster
from engine.raster.scene import Scene
from engine.raster.tiles import Window
from engine.raster.vector import (
    Shape,
    crs_note,
    is_vector,
    read_shapes,
    require_overlap,
)
from engine.raster.writer import Grid

FieldValue = int | str
MAX_CLASSES = 255  # a class map is uint8 and 0 is nodata
SCAN_ROWS = 1024


class Labels(Protocol):
    """Labels from anywhere, not yet on a grid."""

    source: str
    """Where they are from, for messages."""

    values: tuple[FieldValue, ...]
    """The different values of the class field, sorted."""

    notes: tuple[str, ...]
    """What was assumed, for the user."""

    def on(self, scene: Scene | Grid) -> SceneLabels:
        """Bring them to a scene's grid.

        Raises:
            LabelError: they lie somewhere else.
        """


class SceneLabels(Protocol):
    """Labels on the grid of one scene."""

    def shares(self, window: Window, values: Sequence[FieldValue]) -> NDArray[np.float32]:
        """Tell how much of each pixel each value covers.

        Args:
            window: of the scene.
            values: K values of the class field, in the order wanted.

        Returns:
            (K + 1, h, w) float32, 0 to 1; the last is the share of all values not asked for.
        """


def open_labels(source: str, field: str | None, crs: CRS | None) -> Labels:
    """Open training or reference labels.

    Args:
        source: a vector source ("path|layername=x" too) or a raster of class values.
        field: the class field; not needed for a raster.
        crs: of the scene that they are for; labels without a CRS are taken to be in it.

    Raises:
        LabelError: there is nothing to read, or no field, or no value in it.
    """
    if not is_vector(source):
        return RasterLabels(source)
    if not field:
        raise LabelError(
            f"The class field of {source} is not given.", "Choose the field that holds the classes."
        )
    return VectorLabels(source, field, crs)


class VectorLabels:
    """Polygons or points with a class field.

    Args:
        source: of the layer.
        field: that holds the classes, whole numbers or text.
        crs: of the scene; see `open_labels`.

    Raises:
        LabelError: the field is empty or holds measurements.
    """

    def __init__(self, source: str, field: str, crs: CRS | None) -> None:
        self.source = source
        self._field = field
        self._crs = crs
        note = crs_note(source, crs)
        self.notes: tuple[str, ...] = (note,) if note else ()
        self._shapes = self._read(crs)
        counts = Counter(shape.value for shape in self._shapes)
        if not counts:
            raise LabelError(
                f"The class field {field!r} of {source} is empty in every feature.",
                "Choose another field, or fill it.",
            )
        self.values = _sorted_values(counts, f"The class field {field!r} of {source}")

    def on(self, scene: Scene | Grid) -> SceneLabels:
        """See `Labels.on`."""
        shapes = self._shapes if scene.crs == self._crs else self._read(scene.crs)
        require_overlap(shapes, self.source, scene.height, scene.width, scene.transform)
        return _VectorOnScene(shapes, scene.transform)

    def _read(self, crs: CRS | None) -> list[Shape]:
        """Parts of features that have a class, with their values in one form."""
        shapes = read_shapes(self.source, self._field, crs)
        known = ((shape.geometry, as_field_value(shape.value)) for shape in shapes)
        return [
            Shape(part, value)
            for geometry, value in known
            if value is not None
            for part in shapely.get_parts(geometry)
        ]


class _VectorOnScene:
    """Features on one grid; polygons by area, points by the pixel that they lie in."""

    def __init__(self, shapes: list[Shape], transform: Affine) -> None:
        geometries = np.asarray([shape.geometry for shape in shapes], dtype=object)
        is_area = shapely.get_dimensions(geometries) == 2
        self._areas = _Searchable([shapes[i] for i in np.flatnonzero(is_area)])
        self._marks = _Searchable([shapes[i] for i in np.flatnonzero(~is_area)])
        self._transform = transform

    def shares(self, window: Window, values: Sequence[FieldValue]) -> NDArray[np.float32]:
        """See `SceneLabels.shares`."""
        shares = np.zeros((len(values) + 1, window.height, window.width), np.float32)
        outline = _outline(window, self._transform)
        areas = self._areas.near(outline)
        if areas:
            asked = [*values, *sorted({s.value for s in areas} - set(values), key=str)]
            found = class_fractions(
                areas, asked, window, self._transform, supersample=MAX_SUPERSAMPLE
            )
            shares[:-1] = found[: len(values)]
            shares[-1] = found[len(values) :].sum(axis=0)
        marks = self._marks.near(outline)
        if marks:
            _burn_marks(shares, marks, values, window, self._transform)
        return shares


class _Searchable:
    """Shapes that can be found by place."""

    def __init__(self, shapes: list[Shape]) -> None:
        self._shapes = shapes
        self._tree = shapely.STRtree([shape.geometry for shape in shapes])

    def near(self, outline: shapely.Polygon) -> list[Shape]:
        """Shapes that intersect the outline, in the order of the layer."""
        return [self._shapes[i] for i in sorted(self._tree.query(outline, "intersects"))]


def _burn_marks(
    shares: NDArray[np.float32],
    marks: list[Shape],
    values: Sequence[FieldValue],
    window: Window,
    transform: Affine,
) -> None:
    """Give the pixels of points wholly to their class; the last point wins."""
    channel = {value: index for index, value in enumerate(values)}
    burned = rasterize(
        ((mark.geometry, 1 + channel.get(mark.value, len(values))) for mark in marks),
        out_shape=(window.height, window.width),
        transform=transform @ Affine.translation(window.col_off, window.row_off),
        dtype="uint16",
    )
    rows, cols = np.nonzero(burned)
    shares[:, rows, cols] = 0.0
    shares[burned[rows, cols] - 1, rows, cols] = 1.0


def _outline(window: Window, transform: Affine) -> shapely.Polygon:
    """The window as a polygon on the ground; the grid may be rotated."""
    corners = [
        (window.col_off, window.row_off),
        (window.col_stop, window.row_off),
        (window.col_stop, window.row_stop),
        (window.col_off, window.row_stop),
    ]
    return shapely.Polygon([transform @ corner for corner in corners])


class RasterLabels:
    """A raster of class values; 0 and its nodata mean "no label".

    Args:
        source: of the raster; its first band is read.

    Raises:
        LabelError: it cannot be opened, holds no whole numbers, or no value other than 0.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.notes: tuple[str, ...] = ()
        try:
            with open_dataset(source) as dataset:
                counts = _count_values(dataset)
        except SceneError as error:
            raise LabelError(
                f"The labels cannot be read: {error.sentence}", error.remedy
            ) from error
        if not counts:
            raise LabelError(
                f"The label raster {source} has no value other than 0 and nodata.",
                "Choose a raster of class values from 1.",
            )
        self.values = _sorted_values(counts, f"The label raster {source}")

    def on(self, scene: Scene | Grid) -> SceneLabels:
        """See `Labels.on`; a raster without labels on the scene is noticed when it is read."""
        return _RasterOnScene(self.source, scene)


class _RasterOnScene:
    """A label raster, sampled several times in each pixel of a scene."""

    def __init__(self, source: str, scene: Scene | Grid) -> None:
        self._raster = SampledRaster(source, scene, nodata=0)

    def shares(self, window: Window, values: Sequence[FieldValue]) -> NDArray[np.float32]:
        """See `SceneLabels.shares`."""
        s = self._raster.supersample
        fine = self._raster.read(window).reshape(window.height, s, window.width, s)
        shares = np.stack([(fine == value).mean(axis=(1, 3)) for value in values])
        unlisted = (fine != 0).mean(axis=(1, 3)) - shares.sum(axis=0)
        return np.concatenate([shares, unlisted[None].clip(min=0)]).astype(np.float32)


def _count_values(dataset: rasterio.DatasetReader) -> Counter[FieldValue]:
    """Count the class values of the first band, strip by strip."""
    if np.dtype(dataset.dtypes[0]).kind not in "iu":
        raise LabelError(
            f"The label raster {dataset.name} holds {dataset.dtypes[0]} values.",
            "Class values are whole numbers: convert it, for example to Byte.",
        )
    counts: Counter[FieldValue] = Counter()
    for row_off in range(0, dataset.height, SCAN_ROWS):
        rows = min(SCAN_ROWS, dataset.height - row_off)
        strip = dataset.read(1, window=rasterio.windows.Window(0, row_off, dataset.width, rows))
        found, times = np.unique(strip, return_counts=True)
        counts.update(dict(zip(found.tolist(), times.tolist(), strict=True)))
    return Counter({v: n for v, n in counts.items() if v not in (0, dataset.nodata)})


def as_field_value(value: object) -> FieldValue | None:
    """Bring a field's value to one form: whole numbers as int, text stripped.

    Nothing, empty text and 0 are "unclassified", as in class maps: None.

    Raises:
        LabelError: it is a number with a fraction, or neither number nor text.
    """
    if value is None or value != value:  # NaN is not equal to itself
        return None
    if isinstance(value, str):
        return value.strip() or None
    if not isinstance(value, int | float | np.number):
        raise LabelError(
            f"The class field holds {value!r}.", "Choose a field of whole numbers or text."
        )
    number = float(value)
    if not number.is_integer():
        raise LabelError(
            f"The class field holds {number}, which is a measurement and no class.",
            "Choose a field of whole numbers or text.",
        )
    return int(number) or None


def _sorted_values(counts: Counter[Any], whose: str) -> tuple[FieldValue, ...]:
    """The different values; numbers by size, text by alphabet.

    Raises:
        LabelError: there are more than a class map can hold.
    """
    if len(counts) > MAX_CLASSES:
        raise LabelError(
            f"{whose} has {len(counts)} different values.",
            f"A class map holds at most {MAX_CLASSES} classes: choose the field of the classes.",
        )
    values = [value for value in counts if isinstance(value, int | str)]
    return tuple(sorted(values, key=lambda value: (isinstance(value, str), value)))


@dataclass(frozen=True)
class GroundBlocks:
    """Square blocks of ground, anchored to the first scene, the same for every scene.

    Args:
        crs: of the anchor.
        transform: of the anchor, (column, row) to (x, y).
        block_px: side, in pixels of the anchor.
    """

    crs: CRS | None
    transform: Affine
    block_px: int

    def block_of(
        self, scene: Scene, rows: NDArray[np.intp], cols: NDArray[np.intp]
    ) -> NDArray[np.int64]:
        """Name the blocks of pixels.

        Args:
            scene: that the pixels are of.
            rows: (N,) of the pixels.
            cols: (N,) of the pixels.

        Returns:
            (N, 2) int64 row and column of the blocks, negative before the anchor's origin.
        """
        a, b, c, d, e, f = scene.transform[:6]
        xs, ys = a * (cols + 0.5) + b * (rows + 0.5) + c, d * (cols + 0.5) + e * (rows + 0.5) + f
        if scene.crs is not None and self.crs is not None and scene.crs != self.crs:
            xs, ys = (np.asarray(v) for v in transform_points(scene.crs, self.crs, xs, ys)[:2])
        a, b, c, d, e, f = (~self.transform)[:6]
        row, col = d * xs + e * ys + f, a * xs + b * ys + c
        return np.floor(np.stack([row, col], axis=1) / self.block_px).astype(np.int64)

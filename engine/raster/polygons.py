"""A class map becomes polygons: one for each connected patch, in a GeoPackage.

The map arrives in rows, as it is computed. What is held are the patches that may go on below: a
patch is written when a row has ended it. So memory is bounded by the rows and by the outlines of
the patches that are open, whatever the size of the map.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyogrio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import shapes

from engine.errors import OutputError
from engine.feedback import Feedback
from engine.raster.connected import Labels, label_patches
from engine.raster.geopackage_style import add_default_style
from engine.raster.pixel_area import PixelAreas
from engine.raster.style import ClassInfo, ClassStyle
from engine.raster.tiles import Window
from engine.raster.unfinished import begin_output, end_output, output_errors
from engine.raster.writer import Grid

log = logging.getLogger(__name__)

GPKG_SUFFIX = ".gpkg"
FIELDS = ("class_value", "class_name", "area_m2", "mean_confidence")
GEOMETRY_COLUMN = "geom"  # GDAL's own name for it

_BLOCK_PX = 2**19  # labelled together; a cancel waits for so many
_BATCH = 10_000  # features that are written together


@dataclass(eq=False)
class _Patch:
    """A connected patch as far as it is known.

    Args:
        value: of its class.
        area_m2: on the ground.
        pixels: that it has.
        confidence: sum over them.
        parts: its shape in rows and columns of the grid, cut where rows were taken together.
    """

    value: int
    area_m2: float = 0.0
    pixels: int = 0
    confidence: float = 0.0
    parts: list[Any] = field(default_factory=list)

    def join(self, other: _Patch) -> None:
        """Take in what turned out to be a part of this patch."""
        self.area_m2 += other.area_m2
        self.pixels += other.pixels
        self.confidence += other.confidence
        self.parts += other.parts

    def shape(self) -> Any:
        """A polygon in columns and rows; it may have points on straight lines."""
        return self.parts[0] if len(self.parts) == 1 else shapely.coverage_union_all(self.parts)


class PatchTracker:
    """Finds the connected patches of a map that arrives in rows.

    Args:
        areas: of the pixels.
        width: of the map.
        min_area_m2: smaller patches are not reported.
    """

    def __init__(self, areas: PixelAreas, width: int, min_area_m2: float) -> None:
        self._areas = areas
        self._min_area_m2 = min_area_m2
        self._row = 0
        self._last_values = np.zeros(width, np.uint8)
        self._last_group = np.zeros(width, np.int64)  # of the last row: position in _open, from 1
        self._open: list[_Patch] = []

    def take(self, classes: NDArray[np.uint8], confidence: NDArray[np.float32]) -> Iterator[_Patch]:
        """Take the next (h, w) rows, 0 = no class; gives the patches that they end."""
        values = np.concatenate([self._last_values[None], classes])
        labels = label_patches(values, self._last_group)
        patches = self._joined(labels, values)
        self._measure(patches, labels[1:], classes, confidence)
        open_labels = np.unique(labels[-1][labels[-1] > 0])
        is_open = np.zeros(len(patches), np.bool_)
        is_open[open_labels - 1] = True
        self._draw(patches, labels[1:], is_open)
        self._row += len(classes)
        self._last_values = classes[-1].copy()
        self._open = [patches[label - 1] for label in open_labels]
        group = np.zeros(len(patches) + 1, np.int64)
        group[open_labels] = np.arange(1, len(open_labels) + 1)
        self._last_group = group[labels[-1]]
        ended = [patches[position] for position in np.flatnonzero(~is_open)]
        yield from self._large_enough(ended)

    def finish(self) -> Iterator[_Patch]:
        """Give the patches that the last row ends."""
        ended, self._open = self._open, []
        yield from self._large_enough(ended)

    def _large_enough(self, patches: Iterable[_Patch]) -> Iterator[_Patch]:
        return (patch for patch in patches if patch.area_m2 >= self._min_area_m2)

    def _joined(self, labels: Labels, values: NDArray[np.uint8]) -> list[_Patch]:
        """A patch for each label, from 1; those that were open go on in them."""
        first = np.unique(labels, return_index=True)[1]
        known = labels.ravel()[first] > 0
        patches = [_Patch(int(value)) for value in values.ravel()[first[known]]]
        group, where = np.unique(self._last_group, return_index=True)
        for position, column in zip(group, where, strict=True):
            if position > 0:
                patches[labels[0, column] - 1].join(self._open[position - 1])
        return patches

    def _measure(
        self,
        patches: Sequence[_Patch],
        labels: Labels,
        classes: NDArray[np.uint8],
        confidence: NDArray[np.float32],
    ) -> None:
        """Add what new rows hold of each patch."""
        size = len(patches) + 1
        areas = self._areas.of_rows(self._row, len(classes))
        flat = labels.ravel()
        pixels = np.bincount(flat, minlength=size)
        area = np.bincount(flat, areas.ravel(), minlength=size)
        sure = np.bincount(flat, np.where(classes > 0, confidence, 0).ravel(), minlength=size)
        for label in (np.flatnonzero(pixels[1:]) + 1).tolist():
            new = _Patch(0, float(area[label]), int(pixels[label]), float(sure[label]))
            patches[label - 1].join(new)

    def _draw(self, patches: Sequence[_Patch], labels: Labels, is_open: NDArray[np.bool_]) -> None:
        """Add the outlines of what new rows hold, but of patches that are too small for good."""
        is_drawn = np.zeros(len(patches) + 1, np.bool_)
        area_m2 = np.array([patch.area_m2 for patch in patches], np.float64)
        is_drawn[1:] = is_open | (area_m2 >= self._min_area_m2)
        drawn = np.where(is_drawn[labels], labels, 0).astype(np.int32)
        below = Affine.translation(0, self._row)
        cuts = (self._row, self._row + len(labels))
        for shape, label in shapes(drawn, mask=drawn > 0, connectivity=4, transform=below):
            outer, *holes = shape["coordinates"]
            part = shapely.Polygon(_with_points_on(cuts, np.array(outer)), holes)
            patches[int(label) - 1].parts.append(part)


def _with_points_on(rows: tuple[int, int], ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add a point at every pixel where a ring runs along one of two rows.

    Parts of a patch on both sides of a row then have the same points there, which makes their
    union a matter of counting. Holes of a part never touch such a row.

    Args:
        rows: where the map was cut.
        ring: (n, 2) columns and rows, all edges along one of both.
    """
    step = np.diff(ring, axis=0)
    on_row = (step[:, 1] == 0) & np.isin(ring[:-1, 1], rows)
    if not on_row.any():
        return ring
    count = np.where(on_row, np.abs(step[:, 0]), 1).astype(np.int64)
    nth = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    dense = np.repeat(ring[:-1], count, axis=0)
    dense[:, 0] += nth * np.repeat(np.sign(step[:, 0]), count)
    return np.concatenate([dense, ring[-1:]])


class PolygonWriter:
    """Writes the connected patches of a class map; the file appears whole or not at all.

    The layer is named as the file. Its fields are ``class_value``, ``class_name``, ``area_m2`` (see
    `PixelAreas`) and ``mean_confidence``; its CRS is the map's. The classes' colours are kept in
    the file as QGIS's default style.

    Args:
        path: of the GeoPackage.
        grid: of the map.
        classes: names of the map's values.
        min_area_m2: smaller patches are left out.
        feedback: asked about a cancel while the file is finished.

    Raises:
        OutputError: the file cannot be written, or has fewer features than were written.
    """

    def __init__(
        self,
        path: str,
        grid: Grid,
        classes: Sequence[ClassInfo],
        *,
        min_area_m2: float = 0.0,
        feedback: Feedback | None = None,
    ) -> None:
        self.path = path
        self.count = 0
        self._path = Path(path)
        self._grid = grid
        self._names = {info.value: info.name for info in classes}
        self._style = ClassStyle(tuple(classes))
        self._tracker = PatchTracker(PixelAreas(grid), grid.width, min_area_m2)
        self._watch = feedback.raise_if_cancelled if feedback else lambda: None
        self._waiting: list[_Patch] = []
        self._is_begun = self._is_finished = False

    def __enter__(self) -> Self:
        with output_errors(self._path):
            self._folder = begin_output(self._path)
        return self

    def write(
        self, window: Window, classes: NDArray[np.uint8], confidence: NDArray[np.float32]
    ) -> None:
        """Take (h, w) class values, 0 = none, and confidence, 0 to 1.

        Windows cover the grid from top to bottom; those side by side have the same rows.
        """
        if window.col_off == self._grid.col_off:
            shape = (window.height, self._grid.width)
            self._classes, self._confidence = np.zeros(shape, np.uint8), np.zeros(shape, np.float32)
        left = window.col_off - self._grid.col_off
        columns = slice(left, left + window.width)
        self._classes[:, columns], self._confidence[:, columns] = classes, confidence
        if columns.stop == self._grid.width:
            self._take_rows()

    def _take_rows(self) -> None:
        rows = max(_BLOCK_PX // self._grid.width, 1)
        for row in range(0, len(self._classes), rows):
            part = slice(row, row + rows)
            self._keep(self._tracker.take(self._classes[part], self._confidence[part]))

    def _keep(self, patches: Iterable[_Patch]) -> None:
        self._waiting += patches
        if len(self._waiting) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        """Append what waits to the file."""
        patches, self._waiting = self._waiting, []
        columns = [
            np.array([patch.value for patch in patches], np.int32),
            np.array([self._names.get(patch.value, "") for patch in patches], object),
            np.array([patch.area_m2 for patch in patches], np.float64),
            np.array([patch.confidence / patch.pixels for patch in patches], np.float64),
        ]
        with output_errors(self._path), warnings.catch_warnings():
            # A map may have no CRS, and then the layer has none either.
            warnings.filterwarnings("ignore", message="'crs' was not provided")
            pyogrio.raw.write(
                self._folder / "polygons.gpkg",
                shapely.to_wkb(self._on_the_ground(patches)),
                columns,
                list(FIELDS),
                layer=self._path.stem,
                driver="GPKG",
                geometry_type="Polygon",
                crs=None if self._grid.crs is None else self._grid.crs.to_wkt(),
                append=self._is_begun,
            )
        self._is_begun = True
        self.count += len(patches)

    def _on_the_ground(self, patches: Sequence[_Patch]) -> NDArray[Any]:
        """(n,) polygons in the CRS of the map."""
        t = self._grid.transform
        outlines = shapely.simplify([patch.shape() for patch in patches], 0.0)
        return np.asarray(
            shapely.transform(
                outlines,
                lambda at: np.stack(
                    [t.a * at[:, 0] + t.b * at[:, 1] + t.c, t.d * at[:, 0] + t.e * at[:, 1] + t.f],
                    axis=1,
                ),
            )
        )

    def finish(self) -> None:
        """Write the patches that are still open, and check the file."""
        if self._is_finished:
            return
        self._watch()
        self._keep(self._tracker.finish())
        if self._waiting or not self._is_begun:
            self._flush()
        self._watch()
        file, layer = self._folder / "polygons.gpkg", self._path.stem
        with output_errors(self._path):
            add_default_style(file, layer, GEOMETRY_COLUMN, self._style.polygon_qml(FIELDS[0]))
            found = pyogrio.read_info(file, layer=layer)["features"]
        if found != self.count:
            raise OutputError(
                f"The output {self._path} reads back with {found} polygons instead of "
                f"{self.count}.",
                "Look for a full or damaged disk.",
            )
        self._is_finished = True

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
                    os.replace(self._folder / "polygons.gpkg", self._path)
                    # What an older file left beside would now be of another one.
                    for suffix in ("-wal", "-shm", "-journal"):
                        Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        finally:
            end_output(self._folder)

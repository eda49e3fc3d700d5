"""Class maps: rasters whose values are classes, with the names that they carry along."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterioWindow

from engine.errors import LabelError, SceneError
from engine.raster.labels import FieldValue
from engine.raster.sidecar import read_text
from engine.raster.style import ClassInfo
from engine.raster.tiles import Window
from engine.raster.writer import Grid
from engine.raster.xml_tree import XmlError, parse_xml

log = logging.getLogger(__name__)

MAX_CLASS_VALUE = 65535
STRIP_PX = 4 * 2**20  # rows are read together up to this many pixels: 16 MiB as int32
# For classes without a colour; told apart without colour vision. Paul Tol's "muted".
COLORS = (
    "#332288", "#88ccee", "#44aa99", "#117733", "#999933", "#ddcc77", "#cc6677", "#882255",
    "#aa4499",
)  # fmt: skip


class ClassMap:
    """The first band of a raster, as classes; a context manager.

    Args:
        source: anything that GDAL opens.

    Raises:
        SceneError: it cannot be opened, or its values are no classes.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        try:
            self._dataset: DatasetReader = rasterio.open(source)
        except RasterioError as error:
            raise SceneError(
                f"The class map {source} cannot be opened: {error}.",
                "Check that it exists and that it is a raster.",
            ) from error
        dtype = np.dtype(self._dataset.dtypes[0])
        if dtype.kind not in "ui":
            self._dataset.close()
            raise SceneError(
                f"{source} is no class map: its values are {dtype.name}.",
                "Choose a raster of whole numbers, such as the output of Classify land cover.",
            )
        dataset = self._dataset
        self.grid = Grid(dataset.height, dataset.width, dataset.transform, dataset.crs)
        self.classes = _read_classes(dataset)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._dataset.close()

    def read(self, window: Window) -> NDArray[np.int32]:
        """Read (h, w) class values; 0 where there is no class.

        Raises:
            SceneError: the file cannot be read, or has a value that is no class.
        """
        try:
            stored = self._dataset.read(1, window=_rasterio_window(window))
        except RasterioError as error:
            raise SceneError(
                f"The class map {self.source} cannot be read at rows {window.row_off} to "
                f"{window.row_stop - 1}: {error}.",
                "Check that the file is complete.",
            ) from error
        return class_values(stored, self._dataset.nodata, self.source)

    def strips(self) -> Iterator[Window]:
        """Windows of whole rows that cover the map from top to bottom."""
        height, width = self.grid.height, self.grid.width
        rows = max(1, STRIP_PX // width)
        for row_off in range(0, height, rows):
            yield Window(row_off, 0, min(rows, height - row_off), width)


def class_values(stored: NDArray[Any], nodata: float | None, source: str) -> NDArray[np.int32]:
    """Make class values of what is stored: 0 for nodata, NaN and negative numbers.

    Raises:
        SceneError: a value is not whole, or too large for a class.
    """
    wanted = np.isfinite(stored) & (stored > 0)
    if nodata is not None:
        wanted &= stored != nodata
    values = np.where(wanted, stored, 0)
    wrong = values[(values > MAX_CLASS_VALUE) | (values != np.trunc(values))]
    if wrong.size:
        raise SceneError(
            f"{source} has the value {wrong.flat[0]:g}, which is no class.",
            f"Classes are whole numbers from 1 to {MAX_CLASS_VALUE}.",
        )
    return values.astype(np.int32)


def match_field_values(
    values: Sequence[FieldValue], known: Sequence[ClassInfo]
) -> dict[FieldValue, ClassInfo]:
    """Find the class of each value of a reference's class field.

    Text is the name of a class, in upper or lower case, or a class value as text; a number is a
    class value. What the map does not know becomes a class of its own; 0 is no class.

    Args:
        values: of the class field.
        known: the map's classes.

    Raises:
        LabelError: the field holds names, of which the map knows none.
    """
    by_name = {info.name.strip().casefold(): info for info in known}
    by_value = {info.value: info for info in known}
    found: dict[FieldValue, ClassInfo] = {}
    unknown = []
    for value in values:
        number = _as_class_value(value)
        if str(value).casefold() in by_name:
            found[value] = by_name[str(value).casefold()]
        elif number:
            found[value] = by_value.get(number) or unnamed_class(number)
        elif number is None:
            unknown.append(str(value))
    if not found:
        raise LabelError(
            f"The reference has the classes {', '.join(map(repr, unknown[:5])) or '0'}, and the "
            f"map has {', '.join(repr(info.name) for info in known) or 'no class names'}.",
            "Choose a field with the class values or the class names of the map.",
        )
    first = max(info.value for info in (*known, *found.values())) + 1
    return found | {
        name: ClassInfo(value, name, _color(value)) for value, name in enumerate(unknown, first)
    }


def unnamed_class(value: int) -> ClassInfo:
    """Make a class of which only the value is known."""
    return ClassInfo(value, f"class {value}", _color(value))


def _as_class_value(value: FieldValue) -> int | None:
    """Read a number, also one that is text; None where there is none that could be a class."""
    try:
        number = float(value)
    except ValueError:
        return None
    return int(number) if number.is_integer() and 0 <= number <= MAX_CLASS_VALUE else None


def _color(value: int) -> str:
    return COLORS[(value - 1) % len(COLORS)]


def _read_classes(dataset: DatasetReader) -> tuple[ClassInfo, ...]:
    """Find names and colours: our own tag first, then GDAL's category names; none is fine."""
    try:
        entries = json.loads(dataset.tags().get("CLASSES", ""))
        return tuple(ClassInfo(int(e["value"]), str(e["name"]), str(e["color"])) for e in entries)
    except (ValueError, TypeError, KeyError):
        log.debug("%s has no tag of ours", dataset.name)
    text = read_text(f"{dataset.name}.aux.xml")
    names = _category_names(text) if text else {}
    colors = _colors(dataset)
    return tuple(
        ClassInfo(value, name, colors.get(value) or _color(value)) for value, name in names.items()
    )


def _category_names(text: str) -> dict[int, str]:
    """Names by value, of the first band that has some."""
    try:
        root = parse_xml(text)
    except XmlError as error:
        log.debug("No category names: %s", error)
        return {}
    for names in root.find_all("CategoryNames"):
        entries = enumerate(entry.text for entry in names.find_all("Category"))
        return {value: name for value, name in entries if value > 0 and name}
    return {}


def _colors(dataset: DatasetReader) -> dict[int, str]:
    try:
        table = dataset.colormap(1)
    except ValueError:  # there is none
        return {}
    return {value: "#{:02x}{:02x}{:02x}".format(*color[:3]) for value, color in table.items()}


def _rasterio_window(window: Window) -> RasterioWindow:
    return RasterioWindow(window.col_off, window.row_off, window.width, window.height)

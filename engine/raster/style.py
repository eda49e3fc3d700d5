"""How results look: colour tables, attribute tables and QGIS styles, as text.

GeoTIFF has no place for class names and attribute tables: GDAL keeps them in ``.aux.xml`` beside
the file (https://gdal.org/en/stable/drivers/raster/gtiff.html). QGIS takes its look from a
``.qml`` of the same name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from engine.errors import OutputError

Attributes = dict[str, str]

_COLOR = re.compile(r"#[0-9a-fA-F]{6}")
# Readable without colour vision and in grey: dark means sure. Colours of matplotlib's "viridis".
_RAMP = ("#fde725", "#5ec962", "#21918c", "#3b528b", "#440154")
# Of polygons, as the plugin's own style has them.
_OUTLINE_DARKER = 1.4
_OUTLINE_MM = "0.1"


@dataclass(frozen=True)
class ClassInfo:
    """A class of a map.

    Args:
        value: as stored in rasters, from 1; 0 is nodata.
        name: as shown in legends.
        color: "#rrggbb".
    """

    value: int
    name: str
    color: str

    def __post_init__(self) -> None:
        if not 1 <= self.value <= 65535:
            raise ValueError(f"Class value {self.value} of {self.name!r} is not in 1 to 65535.")
        if not _COLOR.fullmatch(self.color):
            raise ValueError(f"Colour {self.color!r} of {self.name!r} is not like '#1b9e77'.")

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green and blue, 0 to 255."""
        return (int(self.color[1:3], 16), int(self.color[3:5], 16), int(self.color[5:7], 16))


@dataclass(frozen=True)
class ClassStyle:
    """A map of classes, one band."""

    classes: tuple[ClassInfo, ...]

    def color_table(self) -> dict[int, tuple[int, int, int, int]]:
        """Class value to red, green, blue, alpha; nodata is transparent."""
        return {0: (0, 0, 0, 0)} | {info.value: (*info.rgb, 255) for info in self.classes}

    def tags(self) -> dict[str, str]:
        """Names and colours as JSON, for readers that know nothing of ``.aux.xml``."""
        classes = [{"value": c.value, "name": c.name, "color": c.color} for c in self.classes]
        return {"CLASSES": json.dumps(classes, ensure_ascii=False)}

    def aux_xml(self, theirs: str | None = None) -> str:
        """GDAL's ``.aux.xml``: category names and a raster attribute table of the first band.

        Args:
            theirs: what GDAL itself wrote there, which is kept.
        """
        by_value = {info.value: info.name for info in self.classes}
        names = [
            _tag("Category", text=by_value.get(v, "")) for v in range(max(by_value, default=0) + 1)
        ]
        band = _tag(
            "PAMRasterBand",
            _tag("CategoryNames", *names),
            _attribute_table(self.classes),
            attributes={"band": "1"},
        )
        if theirs is not None:
            return theirs.replace("</PAMDataset>", f"{band}</PAMDataset>")
        return _tag("PAMDataset", band)

    def qml(self) -> str:
        """QGIS style: one colour and label per class."""
        entries = [
            _tag(
                "paletteEntry",
                attributes={
                    "value": str(info.value),
                    "color": info.color,
                    "alpha": "255",
                    "label": info.name,
                },
            )
            for info in self.classes
        ]
        return _qml("paletted", {}, _tag("colorPalette", *entries))

    def polygon_qml(self, field: str) -> str:
        """QGIS style of polygons: one fill and label per class, by the field with its value."""
        categories = [
            _tag(
                "category",
                attributes={
                    "symbol": str(index),
                    "value": str(info.value),
                    "type": "integer",
                    "label": info.name,
                    "render": "true",
                },
            )
            for index, info in enumerate(self.classes)
        ]
        symbols = [_fill_symbol(str(index), info.rgb) for index, info in enumerate(self.classes)]
        renderer = _tag(
            "renderer-v2",
            _tag("categories", *categories),
            _tag("symbols", *symbols),
            attributes={"type": "categorizedSymbol", "attr": field},
        )
        return _document(renderer)


@dataclass(frozen=True)
class RampStyle:
    """Numbers on a sequential ramp, the first band.

    Args:
        minimum: of the ramp.
        maximum: of the ramp, its dark end.
        dark_at_minimum: for errors: dark means sure, so their dark end is the smallest.
    """

    minimum: float = 0.0
    maximum: float = 1.0
    dark_at_minimum: bool = False

    def qml(self) -> str:
        """QGIS style: straight between the ramp's colours."""
        span = self.maximum - self.minimum
        values = [
            f"{self.minimum + span * position / (len(_RAMP) - 1):g}"
            for position in range(len(_RAMP))
        ]
        colors = _RAMP[::-1] if self.dark_at_minimum else _RAMP
        items = [
            _tag("item", attributes={"value": v, "color": color, "alpha": "255", "label": v})
            for v, color in zip(values, colors, strict=True)
        ]
        shader = {
            "colorRampType": "INTERPOLATED",
            "classificationMode": "1",
            "clip": "0",
            "minimumValue": values[0],
            "maximumValue": values[-1],
        }
        limits = {"classificationMin": values[0], "classificationMax": values[-1]}
        ramp = _tag("colorrampshader", *items, attributes=shader)
        return _qml("singlebandpseudocolor", limits, _tag("rastershader", ramp))


@dataclass(frozen=True)
class RgbStyle:
    """Three bands of many as a colour picture.

    Args:
        red: band number, 1-based.
        green: likewise.
        blue: likewise.
        limits: (darkest, brightest) value of each, as QGIS sees it: scaled; None until the
            picture is there to be looked at.
    """

    red: int
    green: int
    blue: int
    limits: tuple[tuple[float, float], ...] | None = None

    @property
    def bands(self) -> tuple[int, int, int]:
        """Red, green and blue, 1-based."""
        return self.red, self.green, self.blue

    def qml(self) -> str:
        """QGIS style: each colour stretched between its limits; unstretched without any."""
        names = ("red", "green", "blue")
        bands = {f"{name}Band": str(band) for name, band in zip(names, self.bands, strict=True)}
        stretches = [
            _tag(
                f"{name}ContrastEnhancement",
                _tag("minValue", text=f"{low:.6g}"),
                _tag("maxValue", text=f"{high:.6g}"),
                _tag("algorithm", text="StretchToMinimumMaximum"),
            )
            for name, (low, high) in zip(names, self.limits or (), strict=False)
        ]
        common = {"type": "multibandcolor", "opacity": "1", "alphaBand": "-1", "nodataColor": ""}
        renderer = _tag(
            "rasterrenderer", _tag("rasterTransparency"), *stretches, attributes=common | bands
        )
        return _document(_tag("pipe", renderer))


def check_classes(classes: Sequence[ClassInfo], largest: int) -> None:
    """Check that a map can hold the classes.

    Args:
        classes: of the map.
        largest: value that the map's type can store.

    Raises:
        OutputError: two classes have one value, or a value is too large.
    """
    values = [info.value for info in classes]
    double = sorted({value for value in values if values.count(value) > 1})
    if double:
        raise OutputError(f"Two classes have the value {double[0]}.", "Give each its own value.")
    if max(values, default=0) > largest:
        raise OutputError(
            f"Class value {max(values)} does not fit into the map, which holds up to {largest}.",
            "Number the classes from 1.",
        )


def _attribute_table(classes: Sequence[ClassInfo]) -> str:
    """A raster attribute table; type and usage are GDAL's numbers (``GDALRATFieldUsage``)."""
    fields = (
        ("Value", 0, 5),  # GFT_Integer, GFU_MinMax
        ("Class", 2, 2),  # GFT_String, GFU_Name
        ("Red", 0, 6),
        ("Green", 0, 7),
        ("Blue", 0, 8),
    )
    definitions = [
        _tag(
            "FieldDefn",
            _tag("Name", text=name),
            _tag("Type", text=str(kind)),
            _tag("Usage", text=str(usage)),
            attributes={"index": str(index)},
        )
        for index, (name, kind, usage) in enumerate(fields)
    ]
    rows = [
        _tag(
            "Row",
            *(_tag("F", text=str(value)) for value in (info.value, info.name, *info.rgb)),
            attributes={"index": str(index)},
        )
        for index, info in enumerate(classes)
    ]
    table = {"tableType": "thematic"}
    return _tag("GDALRasterAttributeTable", *definitions, *rows, attributes=table)


def _qml(renderer: str, attributes: Attributes, colors: str) -> str:
    """A style that QGIS 3.22 and later read, with symbols only."""
    common = {"type": renderer, "band": "1", "opacity": "1", "alphaBand": "-1", "nodataColor": ""}
    pipe = _tag(
        "pipe",
        _tag("rasterrenderer", _tag("rasterTransparency"), colors, attributes=common | attributes),
    )
    return _document(pipe)


def _fill_symbol(name: str, rgb: tuple[int, int, int]) -> str:
    """A polygon's symbol: filled, with a thin outline that is a little darker."""
    darker = [round(part / _OUTLINE_DARKER) for part in rgb]
    properties = {
        "color": ",".join(str(part) for part in (*rgb, 255)),
        "outline_color": ",".join(str(part) for part in (*darker, 255)),
        "outline_width": _OUTLINE_MM,
        "outline_width_unit": "MM",
        "outline_style": "solid",
        "style": "solid",
    }
    options = [
        _tag("Option", attributes={"type": "QString", "name": key, "value": value})
        for key, value in properties.items()
    ]
    layer = _tag(
        "layer",
        _tag("Option", *options, attributes={"type": "Map"}),
        attributes={"class": "SimpleFill", "enabled": "1", "locked": "0"},
    )
    return _tag("symbol", layer, attributes={"type": "fill", "name": name, "alpha": "1"})


def _document(symbology: str) -> str:
    """A QGIS style of symbols only."""
    style = _tag(
        "qgis", symbology, attributes={"version": "3.22.0", "styleCategories": "Symbology"}
    )
    return f"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n{style}"


def _tag(name: str, *children: str, text: str = "", attributes: Attributes | None = None) -> str:
    """An XML element of other elements, or of a text."""
    stated = "".join(f' {key}="{_escaped(value)}"' for key, value in (attributes or {}).items())
    return f"<{name}{stated}>{_escaped(text)}{''.join(children)}</{name}>\n"


def _escaped(text: str) -> str:
    """Text for XML; control characters have no place there."""
    return escape("".join(character for character in text if character.isprintable()))

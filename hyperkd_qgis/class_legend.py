"""What a layer's legend says: classes with value, name and colour, and which field it shows."""

from __future__ import annotations

from typing import Any

from qgis.core import (
    QgsCategorizedSymbolRenderer,
    QgsGraduatedSymbolRenderer,
    QgsMapLayer,
    QgsPalettedRasterRenderer,
    QgsRasterLayer,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QVariant

MAX_CLASS_VALUE = 255
"""Class maps are uint8; 0 is nodata."""


def legend_classes(layer: QgsMapLayer, class_field: str) -> list[dict[str, Any]]:
    """Read the classes of a layer's legend.

    Args:
        layer: a vector layer with categories, or a raster layer with a palette.
        class_field: of the vector layer; categories of another field do not count.

    Returns:
        ``value``, ``name`` and ``color`` (#rrggbb) of each class, and for vectors
        ``field_value``; empty when the legend has no classes.
    """
    if isinstance(layer, QgsRasterLayer):
        return _palette_classes(layer)
    if isinstance(layer, QgsVectorLayer):
        return _category_classes(layer, class_field)
    return []


def legend_field(layer: QgsMapLayer) -> str:
    """Name the field that a vector layer's categories are made of; empty when there is none."""
    return _shown_field(layer, QgsCategorizedSymbolRenderer)


def graduated_field(layer: QgsMapLayer) -> str:
    """Name the field of numbers that a vector layer is coloured by; empty when there is none."""
    return _shown_field(layer, QgsGraduatedSymbolRenderer)


def _shown_field(layer: QgsMapLayer, renderer_class: type) -> str:
    renderer = layer.renderer() if isinstance(layer, QgsVectorLayer) else None
    if not isinstance(renderer, renderer_class):
        return ""
    name = renderer.classAttribute().strip().strip('"')
    return name if layer.fields().lookupField(name) >= 0 else ""


def _palette_classes(layer: QgsRasterLayer) -> list[dict[str, Any]]:
    renderer = layer.renderer()
    if not isinstance(renderer, QgsPalettedRasterRenderer):
        return []
    return [
        {
            "value": int(entry.value),
            "name": entry.label or f"Class {entry.value:g}",
            "color": entry.color.name(),
        }
        for entry in renderer.classes()
        if 0 < entry.value <= MAX_CLASS_VALUE
    ]


def _category_classes(layer: QgsVectorLayer, class_field: str) -> list[dict[str, Any]]:
    if not class_field or legend_field(layer) != class_field:
        return []
    # the category without a value is QGIS's "all other values"
    categories = [
        category
        for category in layer.renderer().categories()
        if not isinstance(category.value(), (QVariant, list)) and category.value() not in (None, "")
    ]
    values = _class_values([category.value() for category in categories])
    return [
        {
            "value": value,
            "name": category.label() or str(category.value()),
            "color": category.symbol().color().name(),
            "field_value": category.value(),
        }
        for value, category in zip(values, categories)
    ]


def _class_values(field_values: list[Any]) -> list[int]:
    """Keep whole numbers that a class map can hold; otherwise number the classes from 1."""
    # QGIS has the values of a real field as floats, also when they are whole
    whole = [int(value) for value in field_values if _is_class_value(value)]
    if len(whole) == len(field_values) == len(set(whole)):
        return whole
    return list(range(1, len(field_values) + 1))


def _is_class_value(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and value == int(value) and 0 < value <= MAX_CLASS_VALUE

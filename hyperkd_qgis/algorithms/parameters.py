"""Parameters that several algorithms have, made in one place so that they stay the same."""

from __future__ import annotations

from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterField,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterMapLayer,
    QgsProcessingParameterString,
)

from ..settings import DEVICES

PRECISIONS = ("auto", "float32", "bfloat16")

# as text: the widget is imported where there is a window, never in qgis_process
_GUI = f"{__name__.rsplit('.', 2)[0]}.gui"
MODEL_WIDGET = f"{_GUI}.model_widget.ModelWidgetWrapper"
FIELD_WIDGET = f"{_GUI}.field_widget.FieldWidgetWrapper"


def advanced(definition: QgsProcessingParameterDefinition) -> QgsProcessingParameterDefinition:
    """Fold a parameter away with the advanced ones."""
    definition.setFlags(definition.flags() | QgsProcessingParameterDefinition.FlagAdvanced)
    return definition


def model(name: str, title: str, default: str | None, optional: bool = False) -> Any:
    """Ask for a model package: the name of an installed one, or a path."""
    definition = QgsProcessingParameterString(
        name, title, defaultValue=default or None, optional=optional
    )
    definition.setMetadata({"widget_wrapper": {"class": MODEL_WIDGET}})
    return definition


def labels(name: str, title: str) -> QgsProcessingParameterDefinition:
    """Ask for a layer of classes: polygons, points or a raster."""
    types = [QgsProcessing.TypeVectorAnyGeometry, QgsProcessing.TypeRaster]
    return QgsProcessingParameterMapLayer(name, title, types=types)


def class_field(name: str, title: str, parent: str) -> QgsProcessingParameterDefinition:
    """Ask for the field of a vector layer that holds the classes; a raster needs none."""
    definition = QgsProcessingParameterField(
        name, title, parentLayerParameterName=parent, optional=True
    )
    definition.setMetadata({"widget_wrapper": {"class": FIELD_WIDGET}})
    return definition


def device(name: str, title: str) -> QgsProcessingParameterDefinition:
    """Ask where to compute."""
    return QgsProcessingParameterEnum(
        name, title, options=list(DEVICES), usesStaticStrings=True, defaultValue=DEVICES[0]
    )


def require_gpu(name: str, title: str) -> QgsProcessingParameterDefinition:
    """Ask whether falling back to the CPU is an error."""
    return QgsProcessingParameterBoolean(name, title, defaultValue=False)


def precision(name: str, title: str) -> QgsProcessingParameterDefinition:
    """Ask how exactly to compute."""
    return QgsProcessingParameterEnum(
        name, title, options=list(PRECISIONS), usesStaticStrings=True, defaultValue=PRECISIONS[0]
    )


def html_report(name: str, title: str) -> QgsProcessingParameterDefinition:
    """Ask for the place of a report, which QGIS shows in its results viewer."""
    return QgsProcessingParameterFileDestination(
        name, title, fileFilter="HTML (*.html)", optional=True, createByDefault=True
    )

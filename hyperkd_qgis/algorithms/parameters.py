"""Parameters that several algorithms have, made in one place so that they stay the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qgis.core import (
    QgsProcessing,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterField,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterMapLayer,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterNumber,
    QgsProcessingParameterString,
    QgsProcessingParameterVectorDestination,
)

from ..settings import DEVICES

PRECISIONS = ("auto", "float32", "bfloat16")

MAX_SEED = 2**31 - 1
MAX_EPOCHS = 10_000
MAX_BATCH = 4096
MAX_BLOCK_PX = 1000
DEFAULT_BLOCK_PX = 10
YES_OR_NO = ("yes", "no")
# digits that a number's box shows and takes; learning rates are small
DECIMALS = 4
SMALL_DECIMALS = 9

# as text: the widget is imported where there is a window, never in qgis_process
_GUI = f"{__name__.rsplit('.', 2)[0]}.gui"
MODEL_WIDGET = f"{_GUI}.model_widget.ModelWidgetWrapper"
FIELD_WIDGET = f"{_GUI}.field_widget.FieldWidgetWrapper"
WORD_WIDGET = f"{_GUI}.word_widget.WordWidgetWrapper"


def advanced(definition: QgsProcessingParameterDefinition) -> QgsProcessingParameterDefinition:
    """Fold a parameter away with the advanced ones."""
    definition.setFlags(definition.flags() | QgsProcessingParameterDefinition.FlagAdvanced)
    return definition


def model(
    name: str, title: str, default: str | None, use: str = "any", optional: bool = False
) -> QgsProcessingParameterDefinition:
    """Ask for a model package: the name of an installed one, or a path.

    Args:
        name: of the parameter.
        title: for people.
        default: name of a package.
        use: what it is for, a word of `..model_catalogue.USES`: the list offers what serves.
        optional: whether it may stay empty.
    """
    definition = QgsProcessingParameterString(
        name, title, defaultValue=default or None, optional=optional
    )
    definition.setMetadata({"widget_wrapper": {"class": MODEL_WIDGET, "use": use}})
    return definition


def scenes(name: str, title: str, optional: bool = False) -> QgsProcessingParameterDefinition:
    """Ask for one or more rasters; for any number where it is optional."""
    definition = QgsProcessingParameterMultipleLayers(
        name, title, QgsProcessing.TypeRaster, optional=optional
    )
    if not optional:
        definition.setMinimumNumberInputs(1)  # else an empty list is taken as well
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


def value_field(name: str, title: str, parent: str) -> QgsProcessingParameterDefinition:
    """Ask for the field of a vector layer that holds numbers; a raster needs none."""
    definition = QgsProcessingParameterField(
        name,
        title,
        parentLayerParameterName=parent,
        type=QgsProcessingParameterField.Numeric,
        optional=True,
    )
    definition.setMetadata({"widget_wrapper": {"class": FIELD_WIDGET}})
    return definition


def whole_number(
    name: str, title: str, default: int | None, least: int, most: int
) -> QgsProcessingParameterDefinition:
    """Ask for a whole number; one without a default may stay empty."""
    return QgsProcessingParameterNumber(
        name,
        title,
        type=QgsProcessingParameterNumber.Integer,
        defaultValue=default,
        optional=default is None,
        minValue=least,
        maxValue=most,
    )


def number(
    name: str, title: str, default: float | None, least: float, most: float
) -> QgsProcessingParameterDefinition:
    """Ask for a number; one without a default may stay empty."""
    definition = QgsProcessingParameterNumber(
        name,
        title,
        type=QgsProcessingParameterNumber.Double,
        defaultValue=default,
        optional=default is None,
        minValue=least,
        maxValue=most,
    )
    digits = SMALL_DECIMALS if default is None else DECIMALS
    definition.setMetadata({"widget_wrapper": {"decimals": digits}})
    return definition


def choice(name: str, title: str, options: Sequence[str]) -> QgsProcessingParameterDefinition:
    """Ask for one of several words; the first is the default."""
    return QgsProcessingParameterEnum(
        name, title, options=list(options), usesStaticStrings=True, defaultValue=options[0]
    )


def text(name: str, title: str, default: str | None = None) -> QgsProcessingParameterDefinition:
    """Ask for a text that may stay empty."""
    return QgsProcessingParameterString(name, title, defaultValue=default, optional=True)


def words(
    name: str, title: str, usual: Mapping[str, str], suffix: str = ""
) -> QgsProcessingParameterDefinition:
    """Ask for a text for which some words are usual; the first of them is the default.

    Args:
        name: of the parameter.
        title: for people.
        usual: words, each with its title in the dialog's list.
        suffix: of files that may be named instead, without the dot; empty for none.
    """
    definition = QgsProcessingParameterString(
        name, title, defaultValue=next(iter(usual)), optional=True
    )
    listed = [list(pair) for pair in usual.items()]
    definition.setMetadata(
        {"widget_wrapper": {"class": WORD_WIDGET, "words": listed, "suffix": suffix}}
    )
    return definition


def switch(name: str, title: str) -> QgsProcessingParameterDefinition:
    """Ask yes or no; no is the default."""
    return QgsProcessingParameterBoolean(name, title, defaultValue=False)


def choice_of_preset(
    name: str, title: str, options: Sequence[str]
) -> QgsProcessingParameterDefinition:
    """Ask for one of several words, where no answer leaves it to the preset."""
    return QgsProcessingParameterEnum(
        name, title, options=list(options), usesStaticStrings=True, optional=True
    )


def yes_or_no(name: str, title: str) -> QgsProcessingParameterDefinition:
    """Ask yes or no, where no answer leaves it to the preset; goes over as true or false."""
    return choice_of_preset(name, title, YES_OR_NO)


def polygons(name: str, title: str) -> QgsProcessingParameterDefinition:
    """Ask for the place of a layer of polygons, which is not made unless asked for."""
    return QgsProcessingParameterVectorDestination(
        name,
        title,
        type=QgsProcessing.TypeVectorPolygon,
        optional=True,
        createByDefault=False,
    )


def table(name: str, title: str) -> QgsProcessingParameterDefinition:
    """Ask for a CSV, which may be left out."""
    return QgsProcessingParameterFile(name, title, extension="csv", optional=True)


def epochs(name: str, title: str, default: int) -> QgsProcessingParameterDefinition:
    """Ask how often training goes through everything."""
    return whole_number(name, title, default, 1, MAX_EPOCHS)


def validation(name: str, title: str, default: float) -> QgsProcessingParameterDefinition:
    """Ask which share of the ground is held out for the scores."""
    return number(name, title, default, 0.05, 0.5)


def block_size(name: str, title: str) -> QgsProcessingParameterDefinition:
    """Ask for the side of the blocks of ground that are held out whole, in pixels."""
    return whole_number(name, title, DEFAULT_BLOCK_PX, 1, MAX_BLOCK_PX)


def batch_size(name: str, title: str) -> QgsProcessingParameterDefinition:
    """Ask how many tiles are looked at in one step; no answer leaves it to the preset."""
    return whole_number(name, title, None, 1, MAX_BATCH)


def learning_rate(name: str, title: str) -> QgsProcessingParameterDefinition:
    """Ask how far a step goes; no answer leaves it to the preset."""
    return number(name, title, None, 1e-7, 0.1)


def seed(name: str, title: str) -> QgsProcessingParameterDefinition:
    """Ask where the random numbers begin."""
    return whole_number(name, title, 0, 0, MAX_SEED)


def device(name: str, title: str) -> QgsProcessingParameterDefinition:
    """Ask where to compute."""
    return choice(name, title, DEVICES)


def require_gpu(name: str, title: str) -> QgsProcessingParameterDefinition:
    """Ask whether falling back to the CPU is an error."""
    return switch(name, title)


def precision(name: str, title: str) -> QgsProcessingParameterDefinition:
    """Ask how exactly to compute."""
    return choice(name, title, PRECISIONS)


def package(name: str, title: str) -> QgsProcessingParameterDefinition:
    """Ask for the place of a model package."""
    return QgsProcessingParameterFileDestination(
        name, title, fileFilter="HyperKD model package (*.zip)"
    )


def html_report(name: str, title: str) -> QgsProcessingParameterDefinition:
    """Ask for the place of a report, which QGIS shows in its results viewer."""
    return QgsProcessingParameterFileDestination(
        name, title, fileFilter="HTML (*.html)", optional=True, createByDefault=True
    )

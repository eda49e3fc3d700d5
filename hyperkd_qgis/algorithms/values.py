"""Parameter values as the engine wants them: sources, numbers, texts; read in the main thread."""

from __future__ import annotations

import math
import os
from typing import Any, Callable

from qgis.core import (
    QgsMapLayer,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingFeatureSourceDefinition,
    QgsProcessingOutputLayerDefinition,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterField,
    QgsProcessingParameterNumber,
    QgsProperty,
    QgsRasterLayer,
    QgsRectangle,
    QgsVectorLayer,
)

from ..class_legend import graduated_field, legend_classes, legend_field
from ..sources import Exports, SourceError, whole_file
from .parameters import YES_OR_NO


class ValueReader:
    """Reads the values of one run.

    Args:
        algorithm: whose parameters they are.
        parameters: as QGIS hands them over.
        context: of the run.
        exports: takes the layers that the engine cannot open; without it none may be read.
    """

    def __init__(
        self,
        algorithm: QgsProcessingAlgorithm,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        exports: Exports | None = None,
    ) -> None:
        self._algorithm = algorithm
        self._parameters = parameters
        self._context = context
        self._exports = exports

    def read_inputs(self) -> dict[str, Any]:
        """Read every parameter but the outputs; None where nothing was given."""
        definitions = self._algorithm.parameterDefinitions()
        return {item.name(): self.read(item) for item in definitions if not item.isDestination()}

    def read_outputs(self) -> dict[str, Any]:
        """Read where the outputs go; only in `processAlgorithm`.

        QGIS notes here which layers to load, and forgets what was noted before the run.
        """
        definitions = self._algorithm.destinationParameterDefinitions()
        return {item.name(): self.read(item) for item in definitions}

    def read(self, definition: QgsProcessingParameterDefinition) -> Any:
        """Read one parameter as its type asks; `SourceError` when a layer cannot be used."""
        reader = _READERS[definition.type()]
        # a destination may have a place by default, and a field may follow from the legend
        speaks_for_itself = definition.isDestination() or definition.type() == "field"
        if not speaks_for_itself and not self.is_given(definition.name()):
            return None
        return reader(self, definition)

    def is_given(self, name: str) -> bool:
        """Say whether a parameter has a value, its default included."""
        value = self._parameters.get(name, self._algorithm.parameterDefinition(name).defaultValue())
        return value is not None and value != "" and value != []

    def text(self, name: str) -> str:
        """Read a parameter as text; empty when it is not given."""
        if not self.is_given(name):
            return ""
        return self._algorithm.parameterAsString(self._parameters, name, self._context).strip()

    def number(self, name: str) -> float:
        """Read a parameter as a number."""
        return self._read_number(self._algorithm.parameterDefinition(name))

    def flag(self, name: str) -> bool:
        """Read a parameter as yes or no."""
        return self._read_boolean(self._algorithm.parameterDefinition(name))

    def layer(self, name: str) -> QgsMapLayer | None:
        """Read a parameter as a layer; of several, the first."""
        if not self.is_given(name):
            return None
        if self._algorithm.parameterDefinition(name).type() == "multilayer":
            layers = self.layers(name)
            return layers[0] if layers else None
        return self._algorithm.parameterAsLayer(self._parameters, name, self._context)

    def layers(self, name: str) -> list[QgsMapLayer]:
        """Read a parameter as several layers."""
        return self._algorithm.parameterAsLayerList(self._parameters, name, self._context)

    def label_field(self, name: str) -> str:
        """Name the field that a parameter asks for; without an answer, that of the legend."""
        definition = self._algorithm.parameterDefinition(name)
        layer = self.layer(definition.parentLayerParameterName())
        find = graduated_field if _wants_numbers(definition) else legend_field
        return self.text(name) or (find(layer) if layer is not None else "")

    def classes(self, layer_name: str, field_name: str) -> list[dict[str, Any]] | None:
        """Read the classes of a label layer's legend; None when it has none."""
        layer = self.layer(layer_name)
        if layer is None:
            return None
        return legend_classes(layer, self.label_field(field_name)) or None

    def label_problem(self, layer_name: str, field_name: str) -> str:
        """Say what is wrong with a label layer and its field; empty when nothing is."""
        layer = self.layer(layer_name)
        if not isinstance(layer, QgsVectorLayer):
            return ""
        field = self.label_field(field_name)
        wants_numbers = _wants_numbers(self._algorithm.parameterDefinition(field_name))
        names = [found.name() for found in layer.fields()]
        usable = [
            found.name() for found in layer.fields() if found.isNumeric() or not wants_numbers
        ]
        listed = ", ".join(usable) or "none"
        if not field:
            noun = "values" if wants_numbers else "classes"
            return f"{layer.name()} is a vector layer: choose the field of its {noun} ({listed})."
        if field not in names:
            return f"{layer.name()} has no field {field}. Its fields are {', '.join(names)}."
        if field not in usable:
            return (
                f"The field {field} of {layer.name()} holds no numbers. Choose one that does: "
                f"{listed}."
            )
        return ""

    def extent_problem(self, name: str) -> str:
        """Say that an extent and the scene do not meet; empty when they do, or none is given."""
        if not self.is_given(name):
            return ""
        scene = self._scene()
        try:
            box = QgsRectangle(*self._read_extent(self._algorithm.parameterDefinition(name)))
        except SourceError as error:
            return str(error)
        if scene is None or scene.extent().intersects(box):
            return ""
        return f"The extent lies outside of {scene.name()}. Choose another, or leave it out."

    def output_paths(self) -> dict[str, str]:
        """List the files that will be written, by parameter; temporary ones left out."""
        definitions = self._algorithm.destinationParameterDefinitions()
        paths = {
            item.name(): _static_path(self._parameters.get(item.name())) for item in definitions
        }
        return {name: path for name, path in paths.items() if path}

    def input_paths(self) -> dict[str, str]:
        """List the files that will be read, by parameter."""
        paths = {}
        for definition in self._algorithm.parameterDefinitions():
            if definition.type() in ("raster", "layer", "source", "multilayer"):
                layer = self.layer(definition.name())
                if layer is not None:
                    paths[definition.name()] = layer.source().split("|")[0]
        return paths

    # One reader for each type of parameter

    def _read_raster(self, definition: QgsProcessingParameterDefinition) -> str | None:
        layer = self._algorithm.parameterAsRasterLayer(
            self._parameters, definition.name(), self._context
        )
        return None if layer is None else self._exporter.raster_source(layer)

    def _read_layers(self, definition: QgsProcessingParameterDefinition) -> list[str]:
        layers = self.layers(definition.name())
        return [self._exporter.raster_source(layer) for layer in layers]

    def _read_labels(self, definition: QgsProcessingParameterDefinition) -> str | None:
        layer = self.layer(definition.name())
        if layer is None or isinstance(layer, QgsRasterLayer):
            return None if layer is None else self._exporter.raster_source(layer)
        fields = [self.label_field(name) for name in self._fields_of(definition.name())]
        return self._read_features(definition, [field for field in fields if field])

    def _read_features(
        self, definition: QgsProcessingParameterDefinition, fields: list[str] | None = None
    ) -> str | None:
        source = self._algorithm.parameterAsSource(
            self._parameters, definition.name(), self._context
        )
        if source is None:
            raise SourceError(f"{definition.description()}: this layer has no features to read.")
        layer = self.layer(definition.name())
        chosen = self._parameters.get(definition.name())
        # a definition asks for the selected features only, or for some of them
        is_part = isinstance(chosen, QgsProcessingFeatureSourceDefinition)
        if isinstance(layer, QgsVectorLayer) and not is_part:
            if path := whole_file(layer, fields or []):
                return path
        return self._exporter.vector_source(source, source.sourceName(), fields or [])

    def _read_extent(self, definition: QgsProcessingParameterDefinition) -> list[float]:
        scene = self._scene()
        arguments = (self._parameters, definition.name(), self._context)
        if scene is None or not scene.crs().isValid():
            box = self._algorithm.parameterAsExtent(*arguments)
        else:
            box = self._algorithm.parameterAsExtent(*arguments, scene.crs())
        corners = [box.xMinimum(), box.yMinimum(), box.xMaximum(), box.yMaximum()]
        if box.isEmpty() or not all(math.isfinite(corner) for corner in corners):
            raise SourceError(
                f"The extent {self.text(definition.name())} is empty, or cannot be brought to the "
                "scene's CRS. Choose another extent, or leave it out."
            )
        return corners

    def _read_number(self, definition: QgsProcessingParameterDefinition) -> float:
        is_whole = definition.dataType() == QgsProcessingParameterNumber.Integer
        read = self._algorithm.parameterAsInt if is_whole else self._algorithm.parameterAsDouble
        return read(self._parameters, definition.name(), self._context)

    def _read_boolean(self, definition: QgsProcessingParameterDefinition) -> bool:
        return self._algorithm.parameterAsBoolean(
            self._parameters, definition.name(), self._context
        )

    def _read_choice(self, definition: QgsProcessingParameterDefinition) -> str | bool:
        word = self._algorithm.parameterAsEnumString(
            self._parameters, definition.name(), self._context
        )
        return word == YES_OR_NO[0] if tuple(definition.options()) == YES_OR_NO else word

    def _read_text(self, definition: QgsProcessingParameterDefinition) -> str:
        return self.text(definition.name())

    def _read_field(self, definition: QgsProcessingParameterDefinition) -> str:
        return self.label_field(definition.name())

    def _read_output_layer(self, definition: QgsProcessingParameterDefinition) -> str:
        return self._algorithm.parameterAsOutputLayer(
            self._parameters, definition.name(), self._context
        )

    def _read_output_file(self, definition: QgsProcessingParameterDefinition) -> str:
        return self._algorithm.parameterAsFileOutput(
            self._parameters, definition.name(), self._context
        )

    def _scene(self) -> QgsRasterLayer | None:
        definitions = self._algorithm.parameterDefinitions()
        names = (definition.name() for definition in definitions if definition.type() == "raster")
        return next((self.layer(name) for name in names), None)

    @property
    def _exporter(self) -> Exports:
        if self._exports is None:
            raise RuntimeError("This reader only checks; it was given nowhere to export layers to.")
        return self._exports

    def _fields_of(self, layer_name: str) -> list[str]:
        return [
            definition.name()
            for definition in self._algorithm.parameterDefinitions()
            if definition.type() == "field" and definition.parentLayerParameterName() == layer_name
        ]


_READERS: dict[str, Callable[[ValueReader, Any], Any]] = {
    "raster": ValueReader._read_raster,
    "multilayer": ValueReader._read_layers,
    "layer": ValueReader._read_labels,
    "source": ValueReader._read_features,
    "extent": ValueReader._read_extent,
    "number": ValueReader._read_number,
    "boolean": ValueReader._read_boolean,
    "enum": ValueReader._read_choice,
    "string": ValueReader._read_text,
    "file": ValueReader._read_text,
    "field": ValueReader._read_field,
    "rasterDestination": ValueReader._read_output_layer,
    "vectorDestination": ValueReader._read_output_layer,
    "fileDestination": ValueReader._read_output_file,
}


def _wants_numbers(field: QgsProcessingParameterDefinition) -> bool:
    return field.dataType() == QgsProcessingParameterField.Numeric


def same_file(first: str, second: str) -> bool:
    """Say whether two paths lead to one file; two names of a file that exists count."""
    try:
        return os.path.samefile(first, second)
    except (OSError, ValueError):
        return os.path.normcase(os.path.abspath(first)) == os.path.normcase(os.path.abspath(second))


def _static_path(value: Any) -> str:
    if isinstance(value, QgsProcessingOutputLayerDefinition):
        value = value.sink
    if isinstance(value, QgsProperty):
        value = value.staticValue()
    is_path = isinstance(value, str) and value and value != "TEMPORARY_OUTPUT"
    return value if is_path else ""

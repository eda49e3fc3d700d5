"""How Processing's dialogs show the field of a layer that may be a raster, which has none.

QGIS's own widget cannot do that: in 3.22 it crashes QGIS when the layer is a raster.
"""

from __future__ import annotations

from typing import Any

from processing.tools import dataobjects
from qgis.core import (
    QgsFieldProxyModel,
    QgsFields,
    QgsMapLayer,
    QgsProcessingFeatureSourceDefinition,
    QgsProcessingParameterField,
    QgsProcessingUtils,
    QgsProperty,
    QgsVectorLayer,
)
from qgis.gui import QgsFieldComboBox
from qgis.PyQt.QtWidgets import QWidget

from ..class_legend import graduated_field, legend_field
from .dialog_wrapper import DialogWrapper


class FieldWidgetWrapper(DialogWrapper):
    """A list of the layer's fields; the one that its legend is made of comes first to mind."""

    def createWidget(self, **_: Any) -> QWidget:
        """Make the widget; called by QGIS."""
        self._layer_wrapper: Any = None
        self._wanted = ""
        box = QgsFieldComboBox()
        if self._wants_numbers():
            box.setFilters(QgsFieldProxyModel.Numeric)
        box.setAllowEmptyFieldName(True)
        box.setEnabled(False)
        box.setToolTip(self.parameterDefinition().toolTip())
        box.fieldChanged.connect(self._on_field)
        return box

    def postInitialize(self, wrappers: list[Any]) -> None:
        """Follow the parameter that the fields belong to; called by QGIS."""
        name = self.parameterDefinition().parentLayerParameterName()
        for wrapper in wrappers:
            if wrapper.parameterDefinition().name() == name:
                self._layer_wrapper = wrapper
                wrapper.widgetValueHasChanged.connect(self._on_layer)
        self._show_fields()

    def setValue(self, value: Any) -> None:
        """Choose a field; one that the layer does not have waits for another layer."""
        self._wanted = "" if value is None else str(value)
        self.widget.setField(self._wanted)

    def value(self) -> str | None:
        """Read the field's name; None when none is chosen."""
        return self.widget.currentField() or None

    def _on_layer(self, _: Any) -> None:
        self._show_fields()

    def _on_field(self, name: str) -> None:
        self._wanted = name or self._wanted
        self.tell_change()

    def _show_fields(self) -> None:
        layer = None
        context = dataobjects.createContext()  # owns what it has to load from a file
        if self._layer_wrapper is not None:
            layer = _find_layer(self._layer_wrapper.parameterValue(), context)
        is_vector = isinstance(layer, QgsVectorLayer)
        fields = layer.fields() if is_vector else QgsFields()
        wanted = self._wanted if fields.lookupField(self._wanted) >= 0 else ""
        self.widget.blockSignals(True)
        self.widget.setFields(fields)
        self.widget.setField(wanted or (self._field_of_legend(layer) if is_vector else ""))
        self.widget.blockSignals(False)
        self.widget.setEnabled(is_vector)
        self.tell_change()

    def _field_of_legend(self, layer: QgsVectorLayer) -> str:
        return graduated_field(layer) if self._wants_numbers() else legend_field(layer)

    def _wants_numbers(self) -> bool:
        return self.parameterDefinition().dataType() == QgsProcessingParameterField.Numeric


def _find_layer(value: Any, context: Any) -> QgsMapLayer | None:
    if isinstance(value, QgsProcessingFeatureSourceDefinition):
        value = value.source
    if isinstance(value, QgsProperty):
        value = value.staticValue()
    if isinstance(value, QgsMapLayer):
        return value
    if isinstance(value, str) and value:
        return QgsProcessingUtils.mapLayerFromString(value, context)
    return None

"""How Processing's dialogs show a model parameter: with the list of installed packages."""

from __future__ import annotations

from typing import Any

from processing.gui.wrappers import WidgetWrapper
from qgis.core import QgsProcessingParameterDefinition
from qgis.gui import QgsGui
from qgis.PyQt.QtWidgets import QWidget

from ..engine_session import PLUGIN_FOLDER
from ..model_catalogue import installed_models, packaged_folder, user_folder
from .model_box import ModelBox


class ModelWidgetWrapper(WidgetWrapper):
    """A `ModelBox` in the algorithm's dialog and in batch.

    The model designer gets QGIS's own widget for a text instead: that one also offers the
    model's inputs, expressions and the outputs of other algorithms.
    """

    def __new__(cls, parameter: QgsProcessingParameterDefinition, dialog: Any, *place: Any) -> Any:
        """Make the wrapper, or QGIS's own for the model designer."""
        if hasattr(dialog, "childId") and hasattr(dialog, "model"):
            widget = QgsGui.processingGuiRegistry().createModelerParameterWidget(
                dialog.model, dialog.childId, parameter, dialog.context
            )
            widget.setDialog(dialog)
            return widget
        return super().__new__(cls)

    def createWidget(self, **_: Any) -> QWidget:
        """Make the widget; called by QGIS."""
        flags = self.parameterDefinition().flags()
        optional = bool(flags & QgsProcessingParameterDefinition.FlagOptional)
        models = installed_models(packaged_folder(PLUGIN_FOLDER), user_folder())
        box = ModelBox(models, optional)
        box.setToolTip(self.parameterDefinition().toolTip())
        box.changed.connect(self._on_change)
        return box

    def setValue(self, value: Any) -> None:
        """Show a value."""
        self.widget.set_value(None if value is None else str(value))

    def value(self) -> str | None:
        """Read the value; None when nothing is chosen."""
        return self.widget.value() or None

    def _on_change(self) -> None:
        self.widgetValueHasChanged.emit(self)

"""Widgets of our own in the algorithm's dialog and in batch, QGIS's own in the model designer."""

from __future__ import annotations

from typing import Any

from processing.gui.wrappers import WidgetWrapper
from qgis.core import QgsProcessingParameterDefinition
from qgis.gui import QgsGui


class DialogWrapper(WidgetWrapper):
    """Base of the wrappers here.

    The model designer gets QGIS's own widget instead: that one also offers the model's inputs,
    expressions and the outputs of other algorithms.
    """

    def __new__(
        cls, parameter: QgsProcessingParameterDefinition, dialog: Any, *place: Any, **_: Any
    ) -> Any:
        """Make the wrapper, or QGIS's own for the model designer."""
        if hasattr(dialog, "childId") and hasattr(dialog, "model"):
            widget = QgsGui.processingGuiRegistry().createModelerParameterWidget(
                dialog.model, dialog.childId, parameter, dialog.context
            )
            widget.setDialog(dialog)
            return widget
        return super().__new__(cls)

    @property
    def is_optional(self) -> bool:
        """Say whether the parameter may stay empty."""
        flags = self.parameterDefinition().flags()
        return bool(flags & QgsProcessingParameterDefinition.FlagOptional)

    def tell_change(self) -> None:
        """Tell the dialog that the value has changed."""
        self.widgetValueHasChanged.emit(self)

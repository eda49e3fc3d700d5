"""How Processing's dialogs show a model parameter: with the list of installed packages."""

from __future__ import annotations

from typing import Any

from qgis.PyQt.QtWidgets import QWidget

from ..engine_session import PLUGIN_FOLDER
from ..model_catalogue import USES, installed_models, packaged_folder, user_folder
from .dialog_wrapper import DialogWrapper
from .model_box import ModelBox


class ModelWidgetWrapper(DialogWrapper):
    """A `ModelBox` in the algorithm's dialog and in batch."""

    def createWidget(self, use: str = "any", **_: Any) -> QWidget:
        """Make the widget; called by QGIS, with the parameter's use of `USES`."""
        wanted = USES[use]
        models = installed_models(packaged_folder(PLUGIN_FOLDER), user_folder())
        serving = [model for model in models if wanted.accepts(model)]
        box = ModelBox(serving, self.is_optional, wanted.takes_checkpoints, wanted.automatic)
        box.setToolTip(self.parameterDefinition().toolTip())
        box.changed.connect(self.tell_change)
        return box

    def setValue(self, value: Any) -> None:
        """Show a value."""
        self.widget.set_value(None if value is None else str(value))

    def value(self) -> str | None:
        """Read the value; None when nothing is chosen."""
        return self.widget.value() or None

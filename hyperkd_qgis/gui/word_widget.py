"""How Processing's dialogs show a text for which some words are usual, and perhaps a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qgis.PyQt.QtCore import QCoreApplication
from qgis.PyQt.QtWidgets import QFileDialog, QWidget

from .choice_box import ChoiceBox
from .dialog_wrapper import DialogWrapper


class WordBox(ChoiceBox):
    """A list of usual words by their titles, which also takes other text or the path of a file.

    Args:
        words: each with its title.
        suffix: of files that may be chosen, such as "csv"; empty for none.
        parent: of the widget.
    """

    def __init__(
        self, words: Sequence[Sequence[str]], suffix: str = "", parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self._suffix = suffix
        for word, title in words:
            self.add_choice(word, _tr(title), tooltip=word)
        if suffix:
            self.button = self.add_button(_tr("Choose a file"))
            self.button.clicked.connect(self._on_browse)

    def _on_browse(self) -> None:
        kinds = f"{self._suffix.upper()} (*.{self._suffix})"
        path, _ = QFileDialog.getOpenFileName(self, _tr("File"), self.start_folder(), kinds)
        if path:
            self.set_value(path)


class WordWidgetWrapper(DialogWrapper):
    """A `WordBox` in the algorithm's dialog and in batch."""

    def createWidget(
        self, words: Sequence[Sequence[str]] = (), suffix: str = "", **_: Any
    ) -> QWidget:
        """Make the widget; called by QGIS, with the parameter's words."""
        box = WordBox(words, suffix)
        box.setToolTip(self.parameterDefinition().toolTip())
        box.changed.connect(self.tell_change)
        return box

    def setValue(self, value: Any) -> None:
        """Show a value."""
        self.widget.set_value(None if value is None else str(value))

    def value(self) -> str | None:
        """Read the value; None when there is none."""
        return self.widget.value() or None


def _tr(text: str) -> str:
    return QCoreApplication.translate("HyperKD", text)

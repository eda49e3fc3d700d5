"""The choice of a word from a list, where each has a title, or of any text that is typed."""

from __future__ import annotations

from pathlib import Path

from qgis.PyQt.QtCore import Qt, pyqtSignal
from qgis.PyQt.QtWidgets import QComboBox, QHBoxLayout, QSizePolicy, QToolButton, QWidget

MIN_WIDTH_CHARACTERS = 24


class ChoiceBox(QWidget):
    """A list that shows titles and whose values are words; it also takes typed text.

    Args:
        parent: of the widget.
    """

    changed = pyqtSignal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.combo = QComboBox(self)
        self.combo.setEditable(True)
        self.combo.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)
        self.combo.setMinimumContentsLength(MIN_WIDTH_CHARACTERS)
        self.combo.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.combo)
        self.combo.editTextChanged.connect(self._tell_change)
        self.setFocusProxy(self.combo)

    def add_choice(self, word: str, title: str, tooltip: str = "") -> None:
        """Add an entry to the list."""
        self.combo.addItem(title, word)
        if tooltip:
            self.combo.setItemData(self.combo.count() - 1, tooltip, Qt.ItemDataRole.ToolTipRole)

    def add_button(self, tooltip: str) -> QToolButton:
        """Add a button that leads to files."""
        button = QToolButton(self)
        button.setText("…")
        button.setToolTip(tooltip)
        self.layout().addWidget(button)
        return button

    def value(self) -> str:
        """Read the chosen word, or what was typed."""
        text = self.combo.currentText().strip()
        index = self.combo.findText(text, Qt.MatchFlag.MatchFixedString)
        word = self.combo.itemData(index) if index >= 0 else None
        return text if word is None else str(word)

    def set_value(self, value: str | None) -> None:
        """Choose by a word, or show a text that is no word of the list."""
        text = value or ""
        index = self.combo.findData(text)
        if index >= 0:
            self.combo.setCurrentIndex(index)
        else:
            self.combo.setEditText(text)

    def start_folder(self) -> str:
        """Name the folder of the chosen file, for the next dialog; empty when none is chosen."""
        path = Path(self.value()).expanduser()
        return str(path.parent) if self.value() and path.exists() else ""

    def _tell_change(self) -> None:
        self.changed.emit()

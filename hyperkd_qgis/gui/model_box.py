"""The choice of a model: an installed package from a list, or any path."""

from __future__ import annotations

from pathlib import Path

from qgis.PyQt.QtCore import QCoreApplication, Qt, pyqtSignal
from qgis.PyQt.QtWidgets import (
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QMenu,
    QSizePolicy,
    QToolButton,
    QWidget,
)

from ..model_catalogue import CHECKPOINT_SUFFIXES, InstalledModel

MIN_WIDTH_CHARACTERS = 24


class ModelBox(QWidget):
    """A list of installed packages by title, which also takes a typed path, and a browse button.

    Args:
        models: installed packages.
        optional: whether the choice may stay empty.
        checkpoints: whether a file of weights without a package may be chosen too.
        parent: of the widget.
    """

    changed = pyqtSignal()

    def __init__(
        self,
        models: list[InstalledModel],
        optional: bool = False,
        checkpoints: bool = False,
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self._checkpoints = checkpoints
        self.combo = QComboBox(self)
        self.combo.setEditable(True)
        self.combo.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)
        self.combo.setMinimumContentsLength(MIN_WIDTH_CHARACTERS)
        self.combo.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self._fill(models, optional)
        self.button = QToolButton(self)
        self.button.setText("…")
        self.button.setToolTip(_tr("Choose a file or a folder"))
        self.button.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.button.setMenu(self._make_menu())
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.combo)
        layout.addWidget(self.button)
        self.combo.editTextChanged.connect(self._tell_change)
        self.setFocusProxy(self.combo)

    def value(self) -> str:
        """Read the name of an installed package, or the path that was typed."""
        text = self.combo.currentText().strip()
        index = self.combo.findText(text, Qt.MatchFlag.MatchFixedString)
        name = self.combo.itemData(index) if index >= 0 else None
        return text if name is None else str(name)

    def set_value(self, value: str | None) -> None:
        """Choose a package by its name, or show a path."""
        text = value or ""
        index = self.combo.findData(text)
        if index >= 0:
            self.combo.setCurrentIndex(index)
        else:
            self.combo.setEditText(text)

    def choose_zip(self) -> None:
        """Ask for a package that is a zip file."""
        path, _ = QFileDialog.getOpenFileName(
            self, _tr("Model package"), self._start_folder(), _tr("Model packages (*.zip)")
        )
        if path:
            self.set_value(path)

    def choose_folder(self) -> None:
        """Ask for a package that is a folder."""
        path = QFileDialog.getExistingDirectory(self, _tr("Model package"), self._start_folder())
        if path:
            self.set_value(path)

    def choose_checkpoint(self) -> None:
        """Ask for a file of weights."""
        suffixes = " ".join(f"*{suffix}" for suffix in CHECKPOINT_SUFFIXES)
        path, _ = QFileDialog.getOpenFileName(
            self, _tr("Checkpoint"), self._start_folder(), f"{_tr('Checkpoints')} ({suffixes})"
        )
        if path:
            self.set_value(path)

    def _fill(self, models: list[InstalledModel], optional: bool) -> None:
        if optional:
            self.combo.addItem("", "")
        for model in models:
            self.combo.addItem(model.title, model.name)
            tooltip = f"{model.name}\n{model.path}"
            self.combo.setItemData(self.combo.count() - 1, tooltip, Qt.ItemDataRole.ToolTipRole)
        self.combo.lineEdit().setPlaceholderText(
            _tr("[none]") if optional else _tr("Name of a model, or a path")
        )

    def _make_menu(self) -> QMenu:
        menu = QMenu(self.button)
        menu.addAction(_tr("Zip file…")).triggered.connect(self._on_zip)
        menu.addAction(_tr("Folder…")).triggered.connect(self._on_folder)
        if self._checkpoints:
            menu.addAction(_tr("Checkpoint…")).triggered.connect(self._on_checkpoint)
        return menu

    def _on_zip(self) -> None:
        self.choose_zip()

    def _on_folder(self) -> None:
        self.choose_folder()

    def _on_checkpoint(self) -> None:
        self.choose_checkpoint()

    def _tell_change(self) -> None:
        self.changed.emit()

    def _start_folder(self) -> str:
        path = Path(self.value()).expanduser()
        return str(path.parent) if self.value() and path.exists() else ""


def _tr(text: str) -> str:
    return QCoreApplication.translate("HyperKD", text)

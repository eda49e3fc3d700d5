"""The choice of a model: an installed package from a list, or any path."""

from __future__ import annotations

from qgis.PyQt.QtCore import QCoreApplication
from qgis.PyQt.QtWidgets import QFileDialog, QMenu, QToolButton, QWidget

from ..model_catalogue import AUTOMATIC, CHECKPOINT_SUFFIXES, InstalledModel
from .choice_box import ChoiceBox


class ModelBox(ChoiceBox):
    """A list of installed packages by title, which also takes a typed path, and a browse button.

    Args:
        models: installed packages.
        optional: whether the choice may stay empty.
        checkpoints: whether a file of weights without a package may be chosen too.
        automatic: title of an entry that leaves the choice to the engine; empty for none.
        parent: of the widget.
    """

    def __init__(
        self,
        models: list[InstalledModel],
        optional: bool = False,
        checkpoints: bool = False,
        automatic: str = "",
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self._checkpoints = checkpoints
        self._fill(models, optional, automatic)
        self.button = self.add_button(_tr("Choose a file or a folder"))
        self.button.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.button.setMenu(self._make_menu())

    def choose_zip(self) -> None:
        """Ask for a package that is a zip file."""
        path, _ = QFileDialog.getOpenFileName(
            self, _tr("Model package"), self.start_folder(), _tr("Model packages (*.zip)")
        )
        if path:
            self.set_value(path)

    def choose_folder(self) -> None:
        """Ask for a package that is a folder."""
        path = QFileDialog.getExistingDirectory(self, _tr("Model package"), self.start_folder())
        if path:
            self.set_value(path)

    def choose_checkpoint(self) -> None:
        """Ask for a file of weights."""
        suffixes = " ".join(f"*{suffix}" for suffix in CHECKPOINT_SUFFIXES)
        path, _ = QFileDialog.getOpenFileName(
            self, _tr("Checkpoint"), self.start_folder(), f"{_tr('Checkpoints')} ({suffixes})"
        )
        if path:
            self.set_value(path)

    def _fill(self, models: list[InstalledModel], optional: bool, automatic: str) -> None:
        if optional:
            self.add_choice("", "")
        if automatic:
            self.add_choice(AUTOMATIC, automatic)
        for model in models:
            self.add_choice(model.name, model.title, tooltip=f"{model.name}\n{model.path}")
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


def _tr(text: str) -> str:
    return QCoreApplication.translate("HyperKD", text)

"""The one engine of this QGIS, as the settings want it."""

from __future__ import annotations

import configparser
import tempfile
from pathlib import Path

from qgis.core import QgsApplication

from .engine_client import EngineClient
from .engine_process import EngineCommand
from .environment import EngineFinder, EngineMissingError, clean_environment
from .model_catalogue import (
    AUTOMATIC,
    CHECKPOINT_SUFFIXES,
    METADATA_NAME,
    USES,
    InstalledModel,
    ModelUse,
    default_model,
    installed_models,
    is_package,
    packaged_folder,
    read_model,
    user_folder,
)
from .settings import Settings

PLUGIN_FOLDER = Path(__file__).resolve().parents[1]


class EngineSession:
    """Finds, starts and keeps the engine for all algorithms.

    Args:
        plugin_folder: of the installed plugin.
    """

    def __init__(self, plugin_folder: Path = PLUGIN_FOLDER) -> None:
        self.plugin_folder = plugin_folder
        self._finder = EngineFinder(plugin_folder)
        self._version = read_version(plugin_folder)
        self.client = EngineClient(self.command, log_folder() / "engine.log")

    def settings(self) -> Settings:
        """Read the settings."""
        return Settings.read()

    def find_python(self) -> Path:
        """Find the engine's interpreter.

        Raises:
            EngineMissingError: there is none.
        """
        return self._finder.find(self.settings().engine_python)

    def command(self) -> EngineCommand:
        """Say how the engine is started.

        Raises:
            EngineMissingError: there is no interpreter for it.
        """
        launcher = self.plugin_folder / "run_engine.py"
        minutes = self.settings().idle_minutes
        python = str(self.find_python())
        return EngineCommand(
            (python, "-E", "-s", str(launcher), "serve", "--idle-minutes", str(minutes)),
            clean_environment(),
            self._version,
        )

    def default_model(self, use: str = "classifier") -> str:
        """Name the packaged model for a use of `USES`; empty when there is none."""
        return default_model(self.plugin_folder, USES[use])

    def models(self) -> list[InstalledModel]:
        """List the installed model packages."""
        return installed_models(packaged_folder(self.plugin_folder), user_folder())

    def model_problem(self, name_or_path: str, use: str = "any") -> str:
        """Say that there is no such model, or that it does not serve; empty when it does.

        Args:
            name_or_path: as a parameter has it.
            use: what for, a word of `USES`.
        """
        wanted, installed = USES[use], self.models()
        if wanted.automatic and name_or_path == AUTOMATIC:
            return ""
        names = ", ".join(model.name for model in installed if wanted.accepts(model)) or "none"
        automatic = f"{AUTOMATIC}, " if wanted.automatic else ""
        remedy = f"Choose {automatic}an installed one ({names}) or {_path_words(wanted)}."
        path = Path(name_or_path).expanduser()
        model = _find_model(name_or_path, installed, path)
        if model is None:
            is_there = path.exists()
            return "" if is_there else f"There is no model package '{name_or_path}'. {remedy}"
        if wanted.accepts(model):
            return ""
        return f"The model '{model.title}' is no {wanted.noun}: it is {model.kind}. {remedy}"

    def explain(self, missing: EngineMissingError) -> str:
        """Write what is missing as this QGIS shows it: HTML in windows, text in a terminal."""
        is_desktop = QgsApplication.platform() == "desktop"
        return missing.as_html() if is_desktop else missing.as_text()

    def close(self) -> None:
        """End the engine."""
        self.client.close()


def _find_model(
    name_or_path: str, installed: list[InstalledModel], path: Path
) -> InstalledModel | None:
    for model in installed:
        if model.name == name_or_path:
            return model
    folder = path.parent if path.name == METADATA_NAME else path
    return read_model(folder.name, folder) if is_package(folder) else None


def _path_words(use: ModelUse) -> str:
    words = "the path of a package, a .zip file or a folder with a model.json"
    if use.takes_checkpoints:
        words += f", or of a file of weights ({', '.join(CHECKPOINT_SUFFIXES)})"
    return words


def read_version(plugin_folder: Path) -> str:
    """Read the one version, which stands in metadata.txt."""
    metadata = configparser.ConfigParser(interpolation=None)
    metadata.read(plugin_folder / "metadata.txt", encoding="utf-8")
    return metadata.get("general", "version", fallback="unknown")


def log_folder() -> Path:
    """Name the folder of the log: the user's profile, or a temporary one where there is none."""
    profile = QgsApplication.qgisSettingsDirPath()
    return Path(profile or tempfile.gettempdir()) / "hyperkd"

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
    InstalledModel,
    default_model,
    installed_models,
    packaged_folder,
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

    def default_model(self) -> str:
        """Name the packaged model; empty when there is none."""
        return default_model(self.plugin_folder)

    def models(self) -> list[InstalledModel]:
        """List the installed model packages."""
        return installed_models(packaged_folder(self.plugin_folder), user_folder())

    def model_problem(self, name_or_path: str) -> str:
        """Say that there is no such model package; empty when there is."""
        names = [model.name for model in self.models()]
        if name_or_path in names or Path(name_or_path).expanduser().exists():
            return ""
        listed = ", ".join(names) or "none"
        return (
            f"There is no model package {name_or_path}. Choose an installed one ({listed}) or the "
            "path of a package, a .zip file or a folder with a model.json."
        )

    def explain(self, missing: EngineMissingError) -> str:
        """Write what is missing as this QGIS shows it: HTML in windows, text in a terminal."""
        is_desktop = QgsApplication.platform() == "desktop"
        return missing.as_html() if is_desktop else missing.as_text()

    def close(self) -> None:
        """End the engine."""
        self.client.close()


def read_version(plugin_folder: Path) -> str:
    """Read the one version, which stands in metadata.txt."""
    metadata = configparser.ConfigParser(interpolation=None)
    metadata.read(plugin_folder / "metadata.txt", encoding="utf-8")
    return metadata.get("general", "version", fallback="unknown")


def log_folder() -> Path:
    """Name the folder of the log: the user's profile, or a temporary one where there is none."""
    profile = QgsApplication.qgisSettingsDirPath()
    return Path(profile or tempfile.gettempdir()) / "hyperkd"

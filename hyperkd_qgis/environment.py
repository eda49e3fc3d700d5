"""Where the engine's interpreter is, what it is started with, and how to get one.

Never ``sys.executable``: on Windows and macOS that is QGIS, and on Linux it may be any Python.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ENGINE_PYTHON_VARIABLE = "HYPERKD_ENGINE_PYTHON"

FOREIGN_PREFIXES = (
    "CPL_",
    "DYLD_",
    "GDAL_",
    "GEOTIFF_",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "OGR_",
    "PIP_",
    "PROJ_",
    "PYTHON",
    "QGIS",
    "QT_",
)
"""Variables that lead to QGIS's own Python, GDAL, PROJ and Qt: poison for another Python."""

CACHE_S = 5.0
"""How long an answer holds: the toolbox asks once for each algorithm whenever it is drawn."""


class EngineMissingError(Exception):
    """There is no interpreter for the engine.

    Args:
        sentence: what was looked for.
        plugin_folder: of the installed plugin, for the commands that make an engine.
    """

    def __init__(self, sentence: str, plugin_folder: Path) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.commands = install_commands(plugin_folder)

    def as_text(self) -> str:
        """Write the sentence and the commands that help, for a terminal or a log."""
        commands = "\n".join(f"    {command}" for command in self.commands)
        return f"{self.sentence} {_ADVICE}\n{commands}\n{_ALTERNATIVE}"

    def as_html(self) -> str:
        """Write the same for a message box, with commands that can be copied."""
        commands = "\n".join(self.commands)
        return f"<p>{self.sentence} {_ADVICE}</p><pre>{commands}</pre><p>{_ALTERNATIVE}</p>"


_ADVICE = (
    "HyperKD computes in a Python of its own, which never touches QGIS's. "
    "To make one, run these commands in a terminal (for an NVIDIA GPU take cuda.txt instead "
    "of cpu.txt):"
)
_ALTERNATIVE = (
    "If you have such a Python already, choose it in Settings > Options > Processing > Providers "
    f"> HyperKD > Engine interpreter, or set the variable {ENGINE_PYTHON_VARIABLE}."
)


class EngineFinder:
    """Finds the engine's interpreter by looking at a few paths; starts nothing.

    Args:
        plugin_folder: of the installed plugin.
        environ: variables of this process.
        platform: as `sys.platform` names it.
    """

    def __init__(
        self,
        plugin_folder: Path,
        environ: Mapping[str, str] = os.environ,
        platform: str = sys.platform,
    ) -> None:
        self._plugin_folder = plugin_folder
        self._environ = environ
        self._platform = platform
        self._cached: tuple[tuple[str, str], float, Path | EngineMissingError] | None = None

    def find(self, configured: str) -> Path:
        """Find the interpreter: the setting, the variable, the plugin's folder, the user's.

        Args:
            configured: the interpreter of the settings; empty when there is none.

        Raises:
            EngineMissingError: none is there, or the chosen one does not exist.
        """
        key = (configured, self._environ.get(ENGINE_PYTHON_VARIABLE, ""))
        now_s = time.monotonic()
        if self._cached is None or self._cached[0] != key or now_s - self._cached[1] > CACHE_S:
            self._cached = (key, now_s, self._look(*key))
        answer = self._cached[2]
        if isinstance(answer, EngineMissingError):
            raise answer
        return answer

    def _look(self, configured: str, from_variable: str) -> Path | EngineMissingError:
        chosen = (
            ("The setting", configured),
            (f"The variable {ENGINE_PYTHON_VARIABLE}", from_variable),
        )
        for origin, value in chosen:
            if value:
                return self._check_chosen(origin, Path(value).expanduser())
        folders = (
            self._plugin_folder / ".venv",
            user_data_folder(self._environ, self._platform) / "engine",
        )
        for folder in folders:
            python = interpreter_in(folder, self._platform)
            if python.is_file():
                return python
        places = " or ".join(str(folder) for folder in folders)
        return self._missing(f"HyperKD's engine is not installed: there is no Python in {places}.")

    def _check_chosen(self, origin: str, python: Path) -> Path | EngineMissingError:
        if python.is_file():
            return python
        return self._missing(f"{origin} names {python} as HyperKD's engine, which is no file.")

    def _missing(self, sentence: str) -> EngineMissingError:
        return EngineMissingError(sentence, self._plugin_folder)


def interpreter_in(environment: Path, platform: str = sys.platform) -> Path:
    """Name the interpreter of a virtual environment."""
    if platform == "win32":
        return environment / "Scripts" / "python.exe"
    return environment / "bin" / "python"


def user_data_folder(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """Name the folder for what a user adds: the engine's environment and model packages."""
    home = Path.home()
    if platform == "win32":
        return Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "hyperkd"
    if platform == "darwin":
        return home / "Library" / "Application Support" / "hyperkd"
    return Path(environ.get("XDG_DATA_HOME") or home / ".local" / "share") / "hyperkd"


def clean_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Leave out the variables of QGIS that would break the engine."""
    return {
        name: value
        for name, value in environ.items()
        if not name.upper().startswith(FOREIGN_PREFIXES)
    }


def install_commands(
    plugin_folder: Path,
    environ: Mapping[str, str] = os.environ,
    platform: str = sys.platform,
) -> tuple[str, ...]:
    """Write the commands that make an engine where it will be found."""
    environment = user_data_folder(environ, platform) / "engine"
    python = interpreter_in(environment, platform)
    lock = plugin_folder / "engine" / "lock" / "cpu.txt"
    base = "py -3.11" if platform == "win32" else "python3.11"
    return (
        f'{base} -m venv "{environment}"',
        f'"{python}" -m pip install --require-hashes -r "{lock}"',
    )

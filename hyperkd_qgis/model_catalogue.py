"""Which model packages are installed: a look at two folders, without the engine.

The engine finds a package by the same rule (``engine/packages/installed.py``).
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METADATA_NAME = "model.json"
MODELS_VARIABLE = "HYPERKD_MODELS"


@dataclass(frozen=True)
class InstalledModel:
    """A package that can be called by its name.

    Args:
        name: of its folder, or of its zip without ``.zip``: what the parameter takes.
        title: for people; the name when the package does not say.
        path: folder or zip.
    """

    name: str
    title: str
    path: Path


def packaged_folder(plugin_folder: Path) -> Path:
    """Name the folder of the packages that come with the plugin."""
    return plugin_folder / "resources" / "models"


def user_folder(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """Name the folder of the user's own packages; it need not exist."""
    chosen = environ.get(MODELS_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    home = Path.home()
    if platform == "win32":
        data = Path(environ.get("APPDATA") or home / "AppData" / "Roaming")
    elif platform == "darwin":
        data = home / "Library" / "Application Support"
    else:
        # a relative path does not count: specifications.freedesktop.org/basedir-spec
        chosen_data = Path(environ.get("XDG_DATA_HOME") or "")
        data = chosen_data if chosen_data.is_absolute() else home / ".local" / "share"
    return data / "hyperkd" / "models"


def installed_models(*folders: Path) -> list[InstalledModel]:
    """List the packages of some folders by title; of the same name, the first folder's counts."""
    paths: dict[str, Path] = {}
    for folder in folders:
        for entry in _entries(folder):
            if is_package(entry) and not entry.name.startswith("."):  # a dot: half written
                paths.setdefault(entry.name if entry.is_dir() else entry.stem, entry)
    models = [InstalledModel(name, read_title(path) or name, path) for name, path in paths.items()]
    return sorted(models, key=lambda model: model.title.lower())


def default_model(plugin_folder: Path) -> str:
    """Name the packaged model: the first of the plugin's own; empty when there is none."""
    folder = packaged_folder(plugin_folder)
    names = (entry for entry in _entries(folder) if is_package(entry))
    return next((entry.name if entry.is_dir() else entry.stem for entry in names), "")


def is_package(path: Path) -> bool:
    """Say whether this looks like a package: a folder with a model.json, or a zip."""
    if path.is_dir():
        return (path / METADATA_NAME).is_file()
    return path.suffix.lower() == ".zip" and path.is_file()


def read_title(path: Path) -> str:
    """Read a package's title; empty when it has none that can be read."""
    try:
        item = json.loads(_read_metadata(path))
        return str(item["properties"]["title"])
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return ""  # the engine says what is wrong with it, when it is used


def _read_metadata(path: Path) -> Any:
    if path.is_dir():
        return (path / METADATA_NAME).read_bytes()
    with zipfile.ZipFile(path) as archive:
        names = (name for name in archive.namelist() if name.split("/")[-1] == METADATA_NAME)
        return archive.read(next(names, METADATA_NAME))


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # not there, or not readable: no packages in it
        return []

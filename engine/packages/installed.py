"""Where packages are: the plugin's own folder, the user's, or wherever a path points.

The plugin lists the same two folders for its choice of models; ``docs/model_package.md`` has the
rule that both sides follow.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from engine.errors import PackageError
from engine.packages.files import METADATA_NAME, is_package, read_file
from engine.packages.item import parse_item
from engine.packages.metadata import Task

USER_FOLDER_VARIABLE = "HYPERKD_MODELS"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InstalledPackage:
    """A package that can be called by its name.

    Args:
        name: of its folder, or of its zip file without ``.zip``.
        title: for people.
        path: folder or zip file.
        task: what it is for, of `engine.packages.metadata.Task`.
        architecture: key of `engine.packages.build.ARCHITECTURES`.
    """

    name: str
    title: str
    path: Path
    task: Task
    architecture: str


def plugin_models_folder() -> Path:
    """Return the folder of the packages that come with the plugin."""
    return Path(__file__).resolve().parents[2] / "resources" / "models"


def user_models_folder() -> Path:
    """Return the folder of the user's own packages; it need not exist."""
    chosen = os.environ.get(USER_FOLDER_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    return _user_data_folder() / "hyperkd" / "models"


def _user_data_folder() -> Path:
    """Return the folder for a user's data that the system's own rules name."""
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA") or home / "AppData" / "Roaming")
    if sys.platform == "darwin":
        return home / "Library" / "Application Support"
    # https://specifications.freedesktop.org/basedir-spec/latest/ : relative paths do not count
    chosen = Path(os.environ.get("XDG_DATA_HOME") or "")
    return chosen if chosen.is_absolute() else home / ".local" / "share"


def installed_paths() -> dict[str, Path]:
    """Find the installed packages by name; the plugin's come before the user's of the same name."""
    paths: dict[str, Path] = {}
    for folder in (plugin_models_folder(), user_models_folder()):
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
        for entry in entries:
            # Names that begin with a dot are packages half written.
            if is_package(entry) and not entry.name.startswith("."):
                paths.setdefault(entry.name if entry.is_dir() else entry.stem, entry)
    return paths


def list_packages() -> tuple[InstalledPackage, ...]:
    """List the installed packages by name; one that cannot be read is logged and left out."""
    packages = []
    for name, path in sorted(installed_paths().items()):
        try:
            item = parse_item(read_file(path, METADATA_NAME))
        except PackageError as error:
            _logger.warning("The model package %s is left out: %s", path, error)
            continue
        about = item.properties
        packages.append(
            InstalledPackage(name, about.title, path, about.tasks[0], about.architecture)
        )
    return tuple(packages)


def find_package(name_or_path: str) -> Path:
    """Find a package by the name of an installed one, or by its path.

    Args:
        name_or_path: a name wins over a path of the same spelling; the path of a package's
            model.json stands for its folder.

    Returns:
        the folder or zip file.

    Raises:
        PackageError: there is no such package; the message lists the installed ones.
    """
    installed = installed_paths()
    if name_or_path in installed:
        return installed[name_or_path]
    path = Path(name_or_path).expanduser()
    if path.name == METADATA_NAME:
        path = path.parent
    if name_or_path and is_package(path):
        return path.absolute()
    names = ", ".join(sorted(installed)) or "none"
    raise PackageError(
        f"There is no model package {name_or_path!r}.",
        f"Give the path of a package (a folder with a {METADATA_NAME}, or a .zip file) or the name "
        f"of an installed one; installed: {names}.",
    )

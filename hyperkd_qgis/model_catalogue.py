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
AUTOMATIC = "auto"
"""In place of a model's name: the engine takes one that fits."""


@dataclass(frozen=True)
class InstalledModel:
    """A package that can be called by its name.

    Args:
        name: of its folder, or of its zip without ``.zip``: what the parameter takes.
        title: for people; the name when the package does not say.
        path: folder or zip.
        task: of the Machine Learning Model extension; empty when the package does not say.
        architecture: key of the engine's list; empty when the package does not say.
    """

    name: str
    title: str
    path: Path
    task: str = ""
    architecture: str = ""

    @property
    def kind(self) -> str:
        """What it is, for people: "a classifier"; its task where its architecture is not known."""
        return _KINDS.get(self.architecture) or f"a model for {self.task or 'an unknown task'}"


@dataclass(frozen=True)
class ModelUse:
    """What a parameter wants a model for.

    Args:
        noun: of such a model, for messages.
        tasks: of packages that serve, whatever their architecture.
        architectures: of packages that serve, whatever their task.
        takes_checkpoints: whether a file of weights serves too, without a package around it.
        favourite: architecture that is rather taken when nothing is chosen.
        automatic: what `AUTOMATIC` is called in lists, where the engine may choose; empty where
            it may not.
    """

    noun: str
    tasks: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    takes_checkpoints: bool = False
    favourite: str = ""
    automatic: str = ""

    def accepts(self, model: InstalledModel) -> bool:
        """Say whether a package serves; of one that does not say what it is, the engine will."""
        wants_all = not self.tasks and not self.architectures
        is_unknown = not model.task
        return (
            wants_all
            or is_unknown
            or model.task in self.tasks
            or model.architecture in self.architectures
        )


# what a package is, by its architecture, for people who chose it for something else
_KINDS = {
    "csakd-fuser": "a model that fuses images",
    "galileo": "a foundation model",
    "prithvi-mae": "a foundation model",
    "hyperkd-backbone": "a distilled backbone, to train a classifier or a regression with",
    "hyperkd-classifier": "a classifier",
    "hyperkd-regressor": "a model of a quantity",
    "spectralx-adapted": "an adapted backbone, to train a segmentation with",
    "spectralx-segmenter": "a segmentation model",
}

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")

_OF_CLASSES = ("semantic-segmentation",)
_FOUNDATIONS = ("galileo", "prithvi-mae")

USES: dict[str, ModelUse] = {
    "any": ModelUse("model"),
    "adapted": ModelUse("adapted backbone", architectures=("spectralx-adapted",)),
    "foundation": ModelUse("backbone to adapt", architectures=_FOUNDATIONS, takes_checkpoints=True),
    "classifier": ModelUse("classifier", tasks=_OF_CLASSES, favourite="hyperkd-classifier"),
    "segmenter": ModelUse("model of classes", tasks=_OF_CLASSES, favourite="spectralx-segmenter"),
    "regression": ModelUse("model of a quantity", tasks=("regression",)),
    "backbone": ModelUse(
        "backbone", architectures=("hyperkd-backbone", "hyperkd-classifier", "hyperkd-regressor")
    ),
    "teacher": ModelUse("teacher", architectures=_FOUNDATIONS, takes_checkpoints=True),
    "fusion": ModelUse(
        "model that fuses images",
        tasks=("super-resolution",),
        favourite="csakd-fuser",
        automatic="Automatic: one that fits the images",
    ),
}
"""By the word that a parameter carries to its widget."""


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
                paths.setdefault(_name_of(entry), entry)
    models = [read_model(name, path) for name, path in paths.items()]
    return sorted(models, key=lambda model: model.title.lower())


def default_model(plugin_folder: Path, use: ModelUse) -> str:
    """Name the packaged model for a use: the first of the plugin's own; empty without one."""
    entries = _entries(packaged_folder(plugin_folder))
    models = [read_model(_name_of(entry), entry) for entry in entries if is_package(entry)]
    models.sort(key=lambda model: model.architecture != use.favourite)  # stable: by name else
    return next((model.name for model in models if use.accepts(model)), "")


def is_package(path: Path) -> bool:
    """Say whether this looks like a package: a folder with a model.json, or a zip."""
    if path.is_dir():
        return (path / METADATA_NAME).is_file()
    return path.suffix.lower() == ".zip" and path.is_file()


def read_model(name: str, path: Path) -> InstalledModel:
    """Read what a package says about itself; what cannot be read stays empty.

    Args:
        name: of the package, which is its title too when it has none.
        path: folder or zip.
    """
    properties = _read_properties(path)
    tasks = properties.get("mlm:tasks")
    return InstalledModel(
        name,
        str(properties.get("title") or name),
        path,
        task=str(tasks[0] or "") if isinstance(tasks, list) and tasks else "",
        architecture=str(properties.get("mlm:architecture") or ""),
    )


def _read_properties(path: Path) -> dict[str, Any]:
    try:
        properties = json.loads(_read_metadata(path))["properties"]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return {}  # the engine says what is wrong with it, when it is used
    return properties if isinstance(properties, dict) else {}


def _name_of(entry: Path) -> str:
    return entry.name if entry.is_dir() else entry.stem


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

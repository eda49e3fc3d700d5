"""Models that stay loaded from one job to the next, in a worker that stays warm."""

from __future__ import annotations

from collections import OrderedDict
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import torch
from torch import nn

from engine.models.support import Support
from engine.packages.files import METADATA_NAME
from engine.packages.installed import find_package
from engine.packages.item import WEIGHTS_NAME
from engine.packages.package import ModelPackage, build_model, load_package

MAX_MODELS = 2
"""Two let a user compare models back and forth; more would only hold memory."""

# (name, modification time in ns, bytes) of each file: differs when a file was replaced or edited.
Signature = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model ready to predict, and the package that it came from.

    Args:
        package: its state is the module's own, not a copy.
        module: in eval mode, on the device; never changed by those who use it.
        support: of its package, on the device; None when it has none.
    """

    package: ModelPackage
    module: nn.Module
    support: Support | None = None

    @property
    def temperature(self) -> float:
        """That logits are divided by before they become probabilities; 1 in older packages."""
        return self.package.parts.temperature


class ModelCache:
    """The models used last; a package that changed on disk is loaded again.

    Args:
        max_models: how many are kept; the one unused for longest goes first.
    """

    def __init__(self, max_models: int = MAX_MODELS) -> None:
        self._max_models = max_models
        self._models: OrderedDict[tuple[Path, str], tuple[Signature, LoadedModel]] = OrderedDict()
        self._lock = Lock()

    def load(self, name_or_path: str, device: torch.device) -> LoadedModel:
        """Return a model on a device, from memory when it is there and still the same.

        Raises:
            PackageError: as `load_package` and `build_model`.
        """
        path = find_package(name_or_path)
        key = (path, str(device))
        # Taken before reading: a file replaced meanwhile is then loaded again next time.
        signature = _signature(path)
        with self._lock:
            kept = self._models.pop(key, None)
            if kept is None or kept[0] != signature:
                kept = (signature, _load(path, device))
            self._models[key] = kept
            while len(self._models) > self._max_models:
                self._models.popitem(last=False)
        return kept[1]

    def clear(self) -> None:
        """Forget all models, so that their memory is free."""
        with self._lock:
            self._models.clear()


def _load(path: Path, device: torch.device) -> LoadedModel:
    package = load_package(str(path))
    module = build_model(package).to(device).requires_grad_(False)
    support = package.parts.support
    return LoadedModel(
        replace(package, state=dict(module.state_dict())),
        module,
        # A copy: the package's own stays on the CPU.
        None if support is None else deepcopy(support).to(device),
    )


def _signature(path: Path) -> Signature:
    """Return what changes when a package's files change; empty parts where a file is missing."""
    files = [path / METADATA_NAME, path / WEIGHTS_NAME] if path.is_dir() else [path]
    found = [(file.name, file.stat()) for file in files if file.is_file()]
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in found)


_worker_cache = ModelCache()


def load_model(name_or_path: str, device: torch.device) -> LoadedModel:
    """Return a model on a device; a second job with the same model does not load it again.

    Raises:
        PackageError: as `load_package` and `build_model`.
    """
    return _worker_cache.load(name_or_path, device)

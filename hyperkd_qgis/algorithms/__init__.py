"""The algorithms of the toolbox: one file each, found by being here."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from .base import EngineAlgorithm


def algorithm_classes() -> list[type[EngineAlgorithm]]:
    """Find the algorithms: every class of this folder's modules that names a command."""
    found: dict[str, type[EngineAlgorithm]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = import_module(f".{module_info.name}", __name__)
        for member in vars(module).values():
            if isinstance(member, type) and issubclass(member, EngineAlgorithm) and member.command:
                found[member.command] = member
    return [found[command] for command in sorted(found)]

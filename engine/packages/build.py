"""From a package to a model that runs: a fixed list of architectures, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from engine.errors import PackageError
from engine.packages.item import DAMAGED_REMEDY, MOST_NAMED, problems_text

if TYPE_CHECKING:
    from engine.packages.metadata import ModelInfo
    from engine.packages.package import ModelPackage

ConfigT = TypeVar("ConfigT")


class Architecture(NamedTuple):
    """Where an architecture's code is; imported only when a package asks for it."""

    module: str
    model_class: str
    config_class: str
    on_foundation: bool = False
    """Whether the package holds only what was added to a frozen network of somebody else, which
    its settings name as ``foundation`` and describe as ``vit``."""


@runtime_checkable
class OnFoundation(Protocol):
    """A model that knows which of its tensors are its own, and which its foundation's."""

    def own_state(self) -> dict[str, Tensor]:
        """Everything but the foundation's frozen tensors."""
        ...


# The only code that a package can start: a key that is not here is refused.
ARCHITECTURES: dict[str, Architecture] = {
    "csakd-fuser": Architecture("engine.models.fusion.fuser", "Fuser", "FuserConfig"),
    "galileo": Architecture("engine.models.galileo", "GalileoEncoder", "GalileoConfig"),
    "hyperkd-classifier": Architecture(
        "engine.models.classifier", "HyperKDClassifier", "ClassifierConfig"
    ),
    "hyperkd-backbone": Architecture("engine.models.backbone", "HyperKDBackbone", "BackboneConfig"),
    "hyperkd-regressor": Architecture(
        "engine.models.regressor", "HyperKDRegressor", "RegressorConfig"
    ),
    "prithvi-mae": Architecture("engine.models.prithvi", "PrithviMAE", "PrithviConfig"),
    "spectralx-adapted": Architecture(
        "engine.models.spectralx.adapted", "AdaptedViT", "AdaptedConfig", on_foundation=True
    ),
    "spectralx-segmenter": Architecture(
        "engine.models.spectralx.segmenter",
        "SpectralXSegmenter",
        "SegmenterConfig",
        on_foundation=True,
    ),
}


def build_model(package: ModelPackage) -> nn.Module:
    """Make the model of a package, with its weights, on the CPU, ready to predict.

    Raises:
        PackageError: the architecture is unknown, its settings are not valid, the weights are
            not those of the model that the settings describe, or the foundation that it was
            trained on is not here.
    """
    info = package.info
    architecture = ARCHITECTURES.get(info.architecture)
    if architecture is None:
        raise PackageError(
            f"The model {info.name!r} has the architecture {info.architecture!r}, which this "
            "engine does not have.",
            f"It has {', '.join(sorted(ARCHITECTURES))}. Update HyperKD.",
        )
    module = import_module(architecture.module)
    config = parse_config(getattr(module, architecture.config_class), info.config)
    _check_sizes(config, info)
    model_class = getattr(module, architecture.model_class)
    model: nn.Module = (
        _on_foundation(model_class, config, package.path.parent)
        if architecture.on_foundation
        else model_class(config)
    )
    load_weights(model, package.state)
    return model.eval()


def _on_foundation(model_class: Callable[..., nn.Module], config: Any, folder: Path) -> nn.Module:
    """Make a model on the foundation that its settings name.

    Raises:
        PackageError: the foundation is not here, or is of other sizes than the settings.
    """
    # Foundations may be packages themselves, so that module imports this one.
    from engine.packages.foundations import find_foundation, fitted_vit

    # A file of weights that came with the package may lie beside it.
    foundation = find_foundation(config.foundation, config.vit, folders=(folder,))
    return model_class(config, fitted_vit(foundation, config.vit))


def parse_config(config_class: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    """Make an architecture's settings of what model.json holds.

    Args:
        config_class: a dataclass.
        values: its fields by name; lists become tuples where the dataclass has tuples.

    Raises:
        PackageError: a setting is unknown, missing or of the wrong kind.
    """
    known = {field.name for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise PackageError(
            f"The model has the setting {unknown[0]!r}, which its architecture does not know.",
            "The package was made by a newer engine: update HyperKD.",
        )
    try:
        return TypeAdapter(config_class).validate_python(dict(values))
    except ValidationError as error:
        raise PackageError(
            f"The model's settings are not valid: {problems_text(error)}.",
            DAMAGED_REMEDY,
        ) from error


def _check_sizes(config: Any, info: ModelInfo) -> None:
    """Refuse settings that are for other bands or classes than the package lists."""
    fine_count = 0 if info.fine_bands is None else len(info.fine_bands)
    for setting, expected, noun in (
        ("in_channels", len(info.bands), "bands"),
        ("hsi_channels", len(info.bands), "bands"),
        ("msi_channels", fine_count, "bands of a finer image"),
        ("num_classes", len(info.classes), "classes"),
    ):
        value = getattr(config, setting, expected)
        if value != expected:
            raise PackageError(
                f"The model lists {expected} {noun}, but its setting {setting} is {value}.",
                DAMAGED_REMEDY,
            )


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put weights into a model; all of them, and no others.

    A model on a foundation wants only its own; see `OnFoundation`.

    Raises:
        PackageError: names or shapes differ; the message names the first few.
    """
    wanted = model.own_state() if isinstance(model, OnFoundation) else model.state_dict()
    differences = {
        "missing": [name for name in wanted if name not in state],
        "not of this model": [name for name in state if name not in wanted],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
            for name in wanted
            if name in state and state[name].shape != wanted[name].shape
        ],
    }
    found = [
        f"{len(names)} {kind} ({', '.join(names[:MOST_NAMED])}{', …' * (len(names) > MOST_NAMED)})"
        for kind, names in differences.items()
        if names
    ]
    if found:
        raise PackageError(
            f"The weights do not fit the model: {'; '.join(found)}.",
            "The package was put together from two models: take it as it was trained.",
        )
    try:
        model.load_state_dict(dict(state), strict=not isinstance(model, OnFoundation))
    except RuntimeError as error:
        raise PackageError(
            f"The weights cannot be loaded: {error}", "Take the package as it was trained."
        ) from error

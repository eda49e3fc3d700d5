"""The model package: what a model says about itself, and its weights; saved, loaded, checked.

The format is in ``docs/model_package.md``. Loading reads JSON and safetensors, and runs nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as bytes_from_tensors

from engine.errors import PackageError
from engine.packages.build import build_model
from engine.packages.files import METADATA_NAME, check_place, read_file, write_files
from engine.packages.installed import find_package, list_packages
from engine.packages.item import WEIGHTS_NAME, ModelItem, info_from_item, parse_item
from engine.packages.item_text import WeightsFile, item_text
from engine.packages.metadata import ModelInfo
from engine.packages.parts import ModelParts, is_part, split_parts

__all__ = [
    "ModelPackage",
    "build_model",
    "check_place",
    "find_package",
    "list_packages",
    "load_info",
    "load_package",
    "save_package",
]


@dataclass(frozen=True, eq=False)
class ModelPackage:
    """A whole model, as it was saved.

    Args:
        info: what it says about itself.
        state: its weights by name, on the CPU, without those of ``parts``.
        path: the folder or zip file that it came from.
        sha256: of the weights file, 64 hexadecimal digits; the same for a folder and a zip.
        parts: what else the weights file holds; that of a package without any changes nothing.
    """

    info: ModelInfo
    state: dict[str, torch.Tensor]
    path: Path
    sha256: str
    parts: ModelParts = field(default_factory=ModelParts)


def save_package(path: str, info: ModelInfo, state: Mapping[str, torch.Tensor]) -> Path:
    """Save a model; an older package of this name is replaced only when the new one is whole.

    Args:
        path: ends with ``.zip`` for one file, else a folder of two files.
        info: what the model says about itself.
        state: its weights by name, on any device; with those of `ModelParts.state`, if any.

    Returns:
        the folder or zip file.

    Raises:
        PackageError: there are no weights, or one is NaN or infinite.
        OutputError: the place cannot be written.
    """
    tensors = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()
    }
    _check_weights(tensors)
    weights = bytes_from_tensors(tensors)
    about_weights = WeightsFile(
        sha256=hashlib.sha256(weights).hexdigest(),
        size_bytes=len(weights),
        parameter_count=sum(t.numel() for name, t in tensors.items() if not is_part(name)),
        memory_bytes=sum(tensor.nbytes for tensor in tensors.values()),
    )
    metadata = item_text(info, about_weights)
    destination = Path(path).expanduser().absolute()
    write_files(destination, {METADATA_NAME: metadata, WEIGHTS_NAME: weights})
    return destination


def load_package(name_or_path: str) -> ModelPackage:
    """Load a model: everything is checked before anything is used.

    Args:
        name_or_path: name of an installed package, or the path of one.

    Raises:
        PackageError: there is no such package, it is damaged, of a newer format, or contradicts
            itself.
    """
    path = find_package(name_or_path)
    item = parse_item(read_file(path, METADATA_NAME))
    info = info_from_item(item)
    weights = read_file(path, WEIGHTS_NAME)
    _check_bytes(weights, item, path)
    state, parts = split_parts(_parse_weights(weights, path), len(info.bands))
    return ModelPackage(info, state, path, item.weights_sha256, parts)


def load_info(name_or_path: str) -> ModelInfo:
    """Load what a model says about itself, without its weights.

    Raises:
        PackageError: as `load_package`, the weights left aside.
    """
    path = find_package(name_or_path)
    return info_from_item(parse_item(read_file(path, METADATA_NAME)))


def _check_bytes(weights: bytes, item: ModelItem, path: Path) -> None:
    """Refuse weights that are not those that model.json was written for."""
    if len(weights) != item.weights_size_bytes:
        raise PackageError(
            f"The weights of {path} are {len(weights)} bytes long; model.json says "
            f"{item.weights_size_bytes}.",
            "The copy or the download was not complete: do it again.",
        )
    sha256 = hashlib.sha256(weights).hexdigest()
    if sha256 != item.weights_sha256:
        raise PackageError(
            f"The weights of {path} have the SHA-256 {sha256[:12]}…; model.json says "
            f"{item.weights_sha256[:12]}….",
            "They were changed or damaged: take the package from where it was published.",
        )


def _parse_weights(weights: bytes, path: Path) -> dict[str, torch.Tensor]:
    """Read safetensors, the only format: it holds numbers, and no code."""
    try:
        state: dict[str, torch.Tensor] = tensors_from_bytes(weights)
    except (SafetensorError, ValueError, KeyError) as error:
        raise PackageError(
            f"{WEIGHTS_NAME} in {path} is not a safetensors file: {error}.",
            "Take the package from where it was published.",
        ) from error
    _check_weights(state)
    return state


def _check_weights(state: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights that could only predict NaN: a training that went wrong."""
    if not state:
        raise PackageError("The model has no weights.", "Train it again.")
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise PackageError(
                f"The weights {name!r} hold NaN or infinite numbers.",
                "The training diverged: train again with other scenes or settings.",
            )

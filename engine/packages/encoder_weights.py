"""An encoder as it was read off a file: its sizes and its tensors, checked and copied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import PackageError
from engine.models.vit import ViT, ViTConfig

MOST_NAMED = 8
"""How many missing or unknown tensors a message names."""


@dataclass(frozen=True, eq=False)
class EncoderWeights:
    """What a file says about an encoder.

    Args:
        kind: key of `engine.packages.vit_layouts.KINDS`.
        config: its sizes.
        state: float32 tensors of its own memory by the names of `ViT`; all that it has.
        decoder: float32 tensors of the pre-training's decoder by their public names, may be empty.
        decoder_num_heads: its attention heads, None where not known or there is no decoder.
    """

    kind: str
    config: ViTConfig
    state: dict[str, Tensor]
    decoder: dict[str, Tensor]
    decoder_num_heads: int | None


def checked(found: Mapping[str, Tensor], config: ViTConfig, origin: str) -> dict[str, Tensor]:
    """Refuse tensors that are not those of the encoder, and return copies.

    Raises:
        PackageError: names or shapes differ, or a number is not finite.
    """
    with torch.device("meta"):
        wanted = ViT(config).state_dict()
    missing = [name for name in wanted if name not in found]
    if missing:
        raise incomplete(origin, missing)
    others = [name for name in found if name not in wanted]
    if others:
        raise PackageError(
            f"{origin} looks like a vision transformer, but {len(others)} tensors of its blocks "
            f"are of unknown use: {listed(others)}.",
            "Take the weights as they were published, without adapters.",
        )
    wrong = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted
        if found[name].shape != wanted[name].shape
    ]
    if wrong:
        raise PackageError(
            f"{origin} has {len(wrong)} tensors of another shape than its other tensors ask for: "
            f"{listed(wrong)}.",
            "Take the weights as they were published.",
        )
    return own(found, origin)


def own(tensors: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """Copy tensors as float32 into memory of their own: a file's may be on disk, or of stride 0."""
    copies = {}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise PackageError(
                f"The weights {name!r} of {origin} hold NaN or infinite numbers.",
                "Copy or download the file again.",
            )
        copies[name] = torch.empty(tensor.shape, dtype=torch.float32).copy_(tensor)
    return copies


def incomplete(origin: str, missing: list[str]) -> PackageError:
    """Say which tensors a file lacks."""
    return PackageError(
        f"{origin} looks like a vision transformer, but lacks {len(missing)} of its tensors: "
        f"{listed(missing)}.",
        "Take the weights as they were published.",
    )


def listed(names: list[str]) -> str:
    """Join the first few names for a message."""
    return ", ".join(names[:MOST_NAMED]) + ", …" * (len(names) > MOST_NAMED)

"""A student that begins with its teacher's blocks, where both are of one width."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from engine.errors import TrainingError
from engine.models.hyperkd import HyperKDEncoder
from engine.packages.teachers import Teacher


def num_heads(teacher: Teacher) -> int:
    """Attention heads of a teacher's blocks."""
    return int(_blocks(teacher)[0].attn.num_heads)  # type: ignore[union-attr, arg-type]


def copy_blocks(encoder: HyperKDEncoder, teacher: Teacher) -> int:
    """Let a student begin with its teacher's blocks, as many as both have.

    Patch embedding and prediction are of other bands, and are not copied.

    Returns:
        how many blocks were copied.

    Raises:
        TrainingError: the teacher's blocks are of another width.
    """
    theirs, ours = _blocks(teacher), encoder.blocks
    if teacher.network.width != encoder.config.embed_dim:
        raise TrainingError(
            f"The blocks of {teacher.name} are {teacher.network.width} wide and do not fit a "
            f"student of {encoder.config.embed_dim}.",
            "Choose a preset of the teacher's width, or do not copy its blocks.",
        )
    copied = min(len(theirs), len(ours))
    for number in range(copied):
        ours[number].load_state_dict(_joined_attention(theirs[number].state_dict()))
    return copied


def _blocks(teacher: Teacher) -> nn.ModuleList:
    """The transformer blocks of a teacher; some networks keep them in a part of their own."""
    inner = getattr(teacher.network, "encoder", teacher.network)
    blocks = inner.blocks
    if not isinstance(blocks, nn.ModuleList):
        raise TypeError(f"{type(teacher.network).__name__} has no list of blocks.")
    return blocks


def _joined_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a block with queries, keys and values in one matrix, as the student has them."""
    joined = dict(state)
    for kind in ("weight", "bias"):
        parts = [joined.pop(f"attn.{part}.{kind}", None) for part in "qkv"]
        present = [part for part in parts if part is not None]
        if present:
            joined[f"attn.qkv.{kind}"] = torch.cat(present)
    return joined

"""How much memory a step of training takes: found out by one sample on the CPU.

A frozen network keeps less for the way back than one that is trained, and how much depends on
where its adapters sit and what its decoder draws. So nothing is estimated by a formula: one sample
goes through, and autograd says what it keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

# Gradient and two moments of AdamW in float32, beside the value itself.
_TRAINED_BYTES = 12
# What exists for a moment beside what is kept: results on their way, gradients on theirs.
_PASSING = 1.35


@dataclass(frozen=True)
class StepMemory:
    """The memory that training takes.

    Args:
        fixed_bytes: weights and buffers, gradients and moments.
        sample_bytes: what one sample of a batch adds.
    """

    fixed_bytes: int
    sample_bytes: int

    def bytes_for(self, samples: int) -> int:
        """For a batch on one device."""
        return self.fixed_bytes + samples * self.sample_bytes


def measure_step(model: nn.Module, loss: Callable[[], Tensor]) -> StepMemory:
    """Pass one sample through a model.

    Args:
        model: on the CPU, in training mode, with what trains chosen. Its weights stay; statistics
            that it gathers change.
        loss: the loss of one sample.

    Returns:
        the memory in float32; mixed precision takes less for a sample.
    """
    own = [*model.parameters(), *model.buffers()]
    fixed = {tensor.data_ptr() for tensor in own}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in fixed:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.random.fork_rng(devices=[]), saved_tensors_hooks(keep, lambda tensor: tensor):
        # Held until all is counted: memory that is freed gives its address to another tensor.
        result = loss()
        sample_bytes = sum(kept.values())
        del result
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    fixed_bytes = sum(tensor.nbytes for tensor in own) + trained * _TRAINED_BYTES
    return StepMemory(fixed_bytes, round(sample_bytes * _PASSING))

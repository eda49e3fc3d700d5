"""What a model on a foundation owns, and what it only borrows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from engine.models.vit import ViT, ViTConfig


def count_trainable(parts: Mapping[str, Iterable[nn.Parameter]]) -> dict[str, int]:
    """Count the values that train in each part; parts without any are left out."""
    counts = {
        name: sum(p.numel() for p in parameters if p.requires_grad)
        for name, parameters in parts.items()
    }
    return {name: count for name, count in counts.items() if count}


def own_state(module: nn.Module, foundation_names: Collection[str]) -> dict[str, Tensor]:
    """The state of a module without the tensors that are named."""
    return {n: tensor for n, tensor in module.state_dict().items() if n not in foundation_names}


def load_own_state(
    module: nn.Module, foundation_names: Collection[str], state: Mapping[str, Tensor]
) -> None:
    """Put into a module exactly what `own_state` gives.

    Raises:
        ValueError: names or shapes differ; the message names the first.
    """
    wanted = own_state(module, foundation_names)
    if different := sorted(set(wanted) ^ set(state)):
        kind = "misses" if different[0] in wanted else "has too much:"
        raise ValueError(f"The state {kind} {different[0]!r} ({len(different)} names differ).")
    for name, tensor in wanted.items():
        if tensor.shape != state[name].shape:
            raise ValueError(
                f"{name!r} is {tuple(state[name].shape)}; the model has {tuple(tensor.shape)}."
            )
    module.load_state_dict(dict(state), strict=False)


def layer_norms(vit: ViT) -> dict[str, nn.Parameter]:
    """The parameters of all layer norms by name."""
    return {
        f"{module_name}.{name}": parameter
        for module_name, module in vit.named_modules()
        if isinstance(module, nn.LayerNorm)
        for name, parameter in module.named_parameters()
    }


def copy_but_share(vit: ViT, config: ViTConfig, changing: Collection[str]) -> ViT:
    """Another ViT of the same weights; only what may change takes memory of its own."""
    with torch.device("meta"):
        own = ViT(config)
    state = {
        name: tensor.clone() if name in changing else tensor
        for name, tensor in vit.state_dict().items()
    }
    own.load_state_dict(state, assign=True)
    return own

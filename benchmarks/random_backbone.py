"""A ViT of random weights in a file, for measurements: how fast it is does not depend on them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.models.vit import ViT, ViTConfig

VIT_L = ViTConfig()  # ViT-L/16 as published
VIT_L_FILE = "random_vit_l.safetensors"
COLOURS = 3  # of the patch embedding that comes with public files
SPREAD = 0.02  # of the weights, about that of trained ones


def write_random_vit(path: Path, config: ViTConfig = VIT_L) -> str:
    """Write weights as `engine.packages.foundations.load_foundation` reads them.

    Args:
        path: of the file, which is 1.2 GB for a ViT-L; nothing happens where it is.
        config: with stored positions and a prefix token.

    Returns:
        the path.
    """
    if path.exists():
        return str(path)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in ViT(config).state_dict().items()}
    shapes["cls_token"] = shapes.pop("prefix")
    kernel = (config.embed_dim, COLOURS, config.patch_px, config.patch_px)
    shapes["patch_embed.proj.weight"] = torch.Size(kernel)
    shapes["patch_embed.proj.bias"] = torch.Size(kernel[:1])
    generator = torch.Generator().manual_seed(0)
    state = {name: _draw(name, shape, generator) for name, shape in shapes.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return str(path)


def _draw(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """A tensor around 0, or around 1 where it scales."""
    drawn = torch.empty(shape).normal_(std=SPREAD, generator=generator)
    is_scale = ".norm" in f".{name}" and name.endswith(".weight")
    return drawn.add_(1.0) if is_scale else drawn

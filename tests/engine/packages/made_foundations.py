"""Small encoders made by code, with tensors named as public files name them."""

from __future__ import annotations

import torch

from engine.models.vit_positions import plain_positions

WIDTH, DEPTH, HEADS, PATCH_PX, GRID = 32, 3, 4, 8, 4


def block_state(prefix: str, width: int, draw) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}.norm1.weight": 1 + draw(width),
        f"{prefix}.norm1.bias": draw(width),
        f"{prefix}.attn.qkv.weight": draw(3 * width, width),
        f"{prefix}.attn.qkv.bias": draw(3 * width),
        f"{prefix}.attn.proj.weight": draw(width, width),
        f"{prefix}.attn.proj.bias": draw(width),
        f"{prefix}.norm2.weight": 1 + draw(width),
        f"{prefix}.norm2.bias": draw(width),
        f"{prefix}.mlp.fc1.weight": draw(4 * width, width),
        f"{prefix}.mlp.fc1.bias": draw(4 * width),
        f"{prefix}.mlp.fc2.weight": draw(width, 4 * width),
        f"{prefix}.mlp.fc2.bias": draw(width),
    }


def drawer(seed: int):
    """``draw(*shape)``: normal numbers of spread 0.2."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: 0.2 * torch.randn(*shape, generator=generator)


def encoder_state(seed=0, width=WIDTH, depth=DEPTH, grid=GRID) -> dict[str, torch.Tensor]:
    """The encoder of an MAE, without its decoder."""
    draw = drawer(seed)
    table = torch.cat([draw(1, width), plain_positions(grid, grid, width)])
    state = {
        "cls_token": draw(1, 1, width),
        "pos_embed": table[None],
        "patch_embed.proj.weight": draw(width, 3, PATCH_PX, PATCH_PX),
        "patch_embed.proj.bias": draw(width),
        "norm.weight": 1 + draw(width),
        "norm.bias": draw(width),
    }
    for index in range(depth):
        state.update(block_state(f"blocks.{index}", width, draw))
    return state


def mae_state(seed=0) -> dict[str, torch.Tensor]:
    """An MAE with a decoder of one block of half the width."""
    draw, width = drawer(seed + 100), WIDTH // 2
    return {
        **encoder_state(seed),
        "mask_token": draw(1, 1, width),
        "decoder_pos_embed": draw(1, 1 + GRID * GRID, width),
        "decoder_embed.weight": draw(width, WIDTH),
        "decoder_embed.bias": draw(width),
        **block_state("decoder_blocks.0", width, draw),
        "decoder_norm.weight": 1 + draw(width),
        "decoder_norm.bias": draw(width),
        "decoder_pred.weight": draw(PATCH_PX**2 * 3, width),
        "decoder_pred.bias": draw(PATCH_PX**2 * 3),
    }


def dinov3_state(seed=0) -> dict[str, torch.Tensor]:
    """A DINOv3 with 4 registers; the biases of keys are numbers that its masks take out."""
    draw = drawer(seed + 200)
    state = encoder_state(seed)
    del state["pos_embed"]
    quarter = WIDTH // HEADS // 4
    state["storage_tokens"] = draw(1, 4, WIDTH)
    state["mask_token"] = draw(1, WIDTH)
    state["rope_embed.periods"] = 100.0 ** (torch.arange(quarter) / quarter)
    for index in range(DEPTH):
        mask = torch.ones(3 * WIDTH)
        mask[WIDTH : 2 * WIDTH] = 0
        state[f"blocks.{index}.attn.qkv.bias_mask"] = mask
        state[f"blocks.{index}.attn.qkv.bias"][WIDTH : 2 * WIDTH] += 5
        state[f"blocks.{index}.ls1.gamma"] = 0.5 + draw(WIDTH)
        state[f"blocks.{index}.ls2.gamma"] = 0.5 + draw(WIDTH)
    return state

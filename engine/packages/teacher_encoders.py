"""Of the multispectral teachers, encoders for tokens of any bands."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.models.galileo import JULY, GalileoConfig
from engine.models.galileo_inputs import SENTINEL2_GROUP_INDEX
from engine.models.prithvi import PrithviConfig
from engine.models.vit import ViTConfig
from engine.packages.encoder_weights import EncoderWeights, checked, own
from engine.packages.teacher_layouts import with_computed_positions

# Ground size of a patch that Galileo is told, in units of 10 m; it was trained with 1 to 8.
GALILEO_STEP = 4.0
_NORM_EPS = 1e-5  # torch's own, which both left as it is


def galileo_encoder(
    state: Mapping[str, Tensor], config: GalileoConfig, origin: str
) -> EncoderWeights:
    """Make of Galileo's encoder one for tokens of any bands, at one date.

    Queries, keys and values become one layer. What its tokens are told beside their place is the
    same for all: the mean code of the five groups of Sentinel-2, the first date, and July, which
    the public evaluation takes where no month is known.

    Args:
        state: tensors by the names of `GalileoEncoder`.
        config: its sizes.
        origin: the file, for messages.
    """
    found = {
        name: tensor
        for name, tensor in state.items()
        if name.startswith(("blocks.", "norm.")) and ".attn." not in name
    }
    for index in range(config.depth):
        attention = f"blocks.{index}.attn"
        for part in ("weight", "bias"):
            joined = [state[f"{attention}.{name}.{part}"] for name in ("q", "k", "v")]
            found[f"{attention}.qkv.{part}"] = torch.cat(joined)
            found[f"{attention}.proj.{part}"] = state[f"{attention}.proj.{part}"]
    channel = state["s_t_channel_embed"][list(SENTINEL2_GROUP_INDEX)].mean(dim=0)
    code = [channel, state["pos_embed"][0], state["month_embed.weight"][JULY]]
    found["pos_embed"] = torch.cat([*code, torch.zeros_like(channel)])[None, None]
    vit_config = ViTConfig(
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        norm_eps=_NORM_EPS,
        patch_px=config.max_patch_px,
        prefix_tokens=0,
        positions="galileo",
        position_step=GALILEO_STEP,
    )
    return EncoderWeights("galileo", vit_config, checked(found, vit_config, origin), {}, None)


def prithvi_encoder(
    state: Mapping[str, Tensor], config: PrithviConfig, origin: str
) -> EncoderWeights:
    """Make of a Prithvi, or of a teacher of our own, an encoder for one date.

    Args:
        state: tensors by the names of `PrithviMAE`.
        config: its sizes.
        origin: the file, for messages.
    """
    state = with_computed_positions(state, config)
    encoder, decoder = _part(state, "encoder."), _part(state, "decoder.")
    found = {
        name: tensor for name, tensor in encoder.items() if name.startswith(("blocks.", "norm."))
    }
    _frames, grid, _cols = config.grid
    found["prefix"] = encoder["cls_token"]
    # The first date's; a network that is given one date sees it like that of one date.
    found["pos_embed"] = encoder["pos_embed"][:, : 1 + grid * grid]
    vit_config = ViTConfig(
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        norm_eps=_NORM_EPS,
        patch_px=config.patch_px,
        grid=grid,
        positions="stored",
        align_corners=True,
    )
    return EncoderWeights(
        "prithvi",
        vit_config,
        checked(found, vit_config, origin),
        own(decoder, origin),
        config.decoder_num_heads,
    )


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of one part, without its prefix."""
    return {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}

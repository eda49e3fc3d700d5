"""Whose encoder a file holds, and its tensors by the names of `engine.models.vit.ViT`.

The layouts are those of the public files: the masked autoencoders MAE, ScaleMAE and SatMAE++ with
or without their decoders, DINOv3, Prithvi, Galileo, and any vision transformer whose tensors are
named as theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from engine.errors import PackageError
from engine.models.vit import ViTConfig
from engine.models.vit_positions import plain_positions
from engine.packages.encoder_weights import (
    EncoderWeights,
    checked,
    incomplete,
    listed,
    own,
)
from engine.packages.teacher_encoders import galileo_encoder, prithvi_encoder
from engine.packages.teacher_layouts import (
    count_blocks,
    read_galileo_config,
    read_prithvi_config,
    recognise,
)


@dataclass(frozen=True)
class Kind:
    """A family of published encoders.

    Args:
        title: for people.
        licence: SPDX identifier of the published weights of this layout.
        source: where to get them.
    """

    title: str
    licence: str
    source: str


KINDS: dict[str, Kind] = {
    "scalemae": Kind(
        "ScaleMAE",
        "CC-BY-NC-4.0",
        "hf.co/torchgeo/vit_large_patch16_224_fmow_rgb_scalemae (scalemae-vitlarge-800.pth)",
    ),
    "satmaepp": Kind(
        "SatMAE++",
        "Apache-2.0",
        "hf.co/mubashir04/checkpoint_ViT-L_pretrain_fmow_rgb, or the smaller "
        "hf.co/MVRL/satmaepp_ViT-L_pretrain_fmow_rgb",
    ),
    "mae": Kind(
        "MAE",
        "CC-BY-NC-4.0",
        "github.com/facebookresearch/mae (dl.fbaipublicfiles.com/mae/pretrain/"
        "mae_pretrain_vit_large.pth)",
    ),
    "dinov3": Kind(
        "DINOv3",
        "LicenseRef-DINOv3",
        "github.com/facebookresearch/dinov3, after its licence was accepted "
        "(dinov3_vitl16_pretrain_sat493m or _lvd1689m)",
    ),
    "prithvi": Kind("Prithvi-EO", "Apache-2.0", "hf.co/ibm-nasa-geospatial"),
    "galileo": Kind("Galileo", "MIT", "github.com/nasaharvest/galileo"),
    "vit": Kind("a vision transformer", "LicenseRef-unknown", "where its file came from"),
}
"""What `FoundationIdentity.kind` can be."""

# Of encoders without a decoder, which have the same tensors, a public file's name tells the kind.
_KIND_OF_NAME = {
    "scalemae": "scalemae",
    "satmaepp": "satmaepp",
    "maepretrain": "mae",
    "maevisualize": "mae",
}
# What wrappers of training scripts leave in front of names.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "vit_backbone.", "backbone.")
_REGISTERS = ("storage_tokens", "reg_token", "register_tokens")
_DECODER = ("decoder_", "mask_token", "fpn.", "fcn_", "proj_up_", "up_block.")
# Before the blocks or after them: a tokenizer and a head of our own take their places.
_UNUSED = ("patch_embed.", "head.", "head_dist.", "fc_norm.", "mask_token", "local_cls_norm.")
_RENAMED = {"rope_embed.periods": "rope_periods"}
# Heads of attention cannot be told from tensors: public models have 64 values a head, and the
# largest MAE 80. Their decoders have 32.
_HEADS = {1280: 16}
_HEAD_DIM = 64
_SMALLEST_WIDTH = 192
_DECODER_HEAD_DIM = 32
# MAE, ScaleMAE and SatMAE++ 1e-6; DINOv3 says "layernormbf16", which is 1e-5.
_NORM_EPS = {"dinov3": 1e-5}
_MAE_NORM_EPS = 1e-6
# What frequencies in float32 instead of float64 make of a table of 14 x 14, rounded up.
_POSITION_ROUNDING = 1e-4


def read_encoder(
    state: Mapping[str, Tensor], hints: Mapping[str, Any], origin: str
) -> EncoderWeights:
    """Read an encoder off the tensors of a file.

    Args:
        state: tensors by the file's names.
        hints: ``num_heads``, ``decoder_num_heads``, ``img_size``, ``num_frames`` where somebody
            said them.
        origin: the file, for messages; its name tells the kind of encoders without a decoder.

    Raises:
        PackageError: the layout is unknown, tensors are missing, of another shape, NaN, or of
            unknown use, or the number of heads is not known.
    """
    names = {_clean(name): tensor for name, tensor in state.items()}
    if _is_prithvi(names) or any(name.startswith("space_time_embed.") for name in names):
        layout, renamed = recognise(state, origin, "Prithvi or Galileo")
        if layout.family == "galileo":
            return galileo_encoder(renamed, read_galileo_config(renamed, hints, origin), origin)
        return prithvi_encoder(renamed, read_prithvi_config(renamed, hints, origin), origin)
    if "blocks.0.attn.qkv.weight" not in names:
        titles = ", ".join(kind.title for kind in KINDS.values())
        raise PackageError(
            f"{origin} holds no encoder of a known layout: it has no tensor "
            "blocks.0.attn.qkv.weight.",
            f"A backbone is one of: {titles}.",
        )
    return _plain_encoder(names, hints, origin)


def _clean(name: str) -> str:
    """Drop what wrappers of training scripts leave in front of a name."""
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def _is_prithvi(names: Mapping[str, Tensor]) -> bool:
    """Whether the patches have an axis of dates, or the new layout's prefixes."""
    kernel = names.get("patch_embed.proj.weight")
    flat = kernel is not None and kernel.dim() == 5
    return flat or any("encoder.patch_embed.proj.weight" in name for name in names)


def kind_of(names: Iterable[str], origin: str) -> str:
    """Tell the kind of an encoder whose tensors are named as in MAE, by its other tensors."""
    heads = {name.partition(".")[0] for name in names}
    if "rope_embed" in heads:
        return "dinov3"
    for head, kind in (("fcn_high", "scalemae"), ("up_block", "satmaepp"), ("decoder_pred", "mae")):
        if head in heads:
            return kind
    return _kind_of_name(origin)


def published_by(kind: str, origin: str) -> Kind:
    """Whose weights of a kind a file holds: a plain MAE by another name may be anybody's own."""
    is_own = kind == "mae" and _kind_of_name(origin) != "mae"
    return KINDS["vit" if is_own else kind]


def _kind_of_name(origin: str) -> str:
    """The kind that a public file's name tells; "vit" for other names."""
    stem = origin.replace("\\", "/").rpartition("/")[2].lower().replace("-", "").replace("_", "")
    return next((kind for start, kind in _KIND_OF_NAME.items() if stem.startswith(start)), "vit")


def _plain_encoder(
    names: Mapping[str, Tensor], hints: Mapping[str, Any], origin: str
) -> EncoderWeights:
    """Read an encoder whose tensors are named as in MAE."""
    kind = kind_of(names, origin)
    _refuse_unknown(names, origin)
    config = _plain_config(kind, names, hints, origin)
    decoder = {name: tensor for name, tensor in names.items() if name.startswith(_DECODER)}
    has_decoder = "decoder_embed.weight" in decoder
    return EncoderWeights(
        kind,
        config,
        checked(_encoder_tensors(names, config), config, origin),
        own(decoder, origin) if has_decoder else {},
        _decoder_heads(decoder, hints) if has_decoder else None,
    )


def _encoder_tensors(names: Mapping[str, Tensor], config: ViTConfig) -> dict[str, Tensor]:
    """Name the encoder's tensors as `ViT` does; DINOv3's masks of biases are applied."""
    found = {
        _RENAMED.get(name, name): tensor
        for name, tensor in names.items()
        if name.startswith(("blocks.", "norm.")) or name in ("pos_embed", *_RENAMED)
    }
    prefix = _prefix_tokens(names)
    if prefix:
        found["prefix"] = torch.cat(prefix, dim=1)
    if "pos_embed" in found:
        found["pos_embed"] = _table(found["pos_embed"], config)
    for name in [name for name in found if name.endswith(".bias_mask")]:
        bias = name.removesuffix("_mask")
        if bias in found:
            found[bias] = found[bias] * found.pop(name)
    return found


def _prefix_tokens(names: Mapping[str, Tensor]) -> list[Tensor]:
    """CLS and registers, as they stand before the patches."""
    return [names[name] for name in ("cls_token", *_REGISTERS) if name in names]


def _refuse_unknown(names: Mapping[str, Tensor], origin: str) -> None:
    """Refuse tensors that would change the features, and whose use is not known."""
    starts = (*_UNUSED, *_DECODER, "blocks.", "norm.")
    known = ("cls_token", "pos_embed", *_REGISTERS, *_RENAMED)
    unknown = [name for name in names if not name.startswith(starts) and name not in known]
    if unknown:
        raise PackageError(
            f"{origin} looks like a vision transformer, but holds {len(unknown)} tensors of "
            f"unknown use: {listed(unknown)}.",
            "Take the weights as they were published.",
        )


def _plain_config(
    kind: str, names: Mapping[str, Tensor], hints: Mapping[str, Any], origin: str
) -> ViTConfig:
    """Read the sizes off the tensors."""
    needed = ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "blocks.0.norm1.weight")
    missing = [name for name in needed if name not in names]
    if missing:
        raise incomplete(origin, missing)
    kernel, width = names[needed[0]], names[needed[2]].shape[0]
    _check_width(names, kernel, width, origin)
    prefix_tokens = sum(token.shape[1] for token in _prefix_tokens(names))
    is_rope = "rope_embed.periods" in names
    table = names.get("pos_embed")
    grid = 14 if table is None else _grid(table, prefix_tokens, origin)
    try:
        config = ViTConfig(
            embed_dim=width,
            depth=count_blocks(names, "blocks."),
            num_heads=_heads(hints.get("num_heads"), width, origin),
            mlp_ratio=names[needed[1]].shape[0] / width,
            norm_eps=_NORM_EPS.get(kind, _MAE_NORM_EPS),
            patch_px=kernel.shape[-1],
            grid=grid,
            prefix_tokens=prefix_tokens,
            positions="rope" if is_rope else _positions(table, grid),
            layer_scale="blocks.0.ls1.gamma" in names,
            final_norm_on_taps=kind == "dinov3",
        )
    except ValueError as error:
        raise PackageError(
            f"The sizes in {origin} cannot be those of an encoder: {error}",
            "Take the weights, and their config.json, from where they were published.",
        ) from error
    return config


def _check_width(names: Mapping[str, Tensor], kernel: Tensor, width: int, origin: str) -> None:
    """Refuse patches, CLS and registers of another width than the blocks'."""
    if kernel.dim() != 4 or kernel.shape[0] != width or kernel.shape[2] != kernel.shape[3]:
        raise PackageError(
            f"{origin} has tokens of width {width}, but patches of the kernel "
            f"{tuple(kernel.shape)} instead of ({width}, bands, patch, patch).",
            "Take the weights as they were published.",
        )
    wrong = [token for token in _prefix_tokens(names) if token.shape[::2] != (1, width)]
    if wrong:
        raise PackageError(
            f"{origin} has tokens of width {width}, but CLS or registers of the shape "
            f"{tuple(wrong[0].shape)}.",
            "Take the weights as they were published.",
        )


def _positions(table: Tensor | None, grid: int) -> Any:
    """Whether a table is the fixed one, which can be computed for other grids."""
    if table is None:
        return "stored"  # and will be missed
    patches = table[0, -grid * grid :].float()
    if patches.shape[1] % 4:
        return "stored"
    fixed = plain_positions(grid, grid, patches.shape[1])
    return "sincos" if torch.allclose(patches, fixed, atol=_POSITION_ROUNDING) else "stored"


def _grid(table: Tensor, prefix_tokens: int, origin: str) -> int:
    """Tokens a side of a square table; CLS, all tokens before the patches, or none have a row."""
    count = table.shape[1] if table.dim() == 3 else 0
    for rows in (min(prefix_tokens, 1), prefix_tokens, 0):
        side = isqrt(max(count - rows, 0))
        if side and side * side == count - rows:
            return side
    raise PackageError(
        f"{origin} has a table of positions of the shape {tuple(table.shape)}, which is for no "
        "square grid of tokens.",
        "Take the weights as they were published.",
    )


def _table(table: Tensor, config: ViTConfig) -> Tensor:
    """Give each token before the patches a row, zeros where the file has none."""
    rows = table.shape[1] - config.grid**2
    zeros = table.new_zeros(1, config.prefix_tokens - rows, table.shape[2])
    return torch.cat([table[:, :rows], zeros, table[:, rows:]], dim=1)


def _heads(given: Any, width: int, origin: str) -> int:
    """Heads that were said, or those of public models of this width."""
    if given is not None:
        return int(given)
    if width < _SMALLEST_WIDTH or width % _HEAD_DIM:
        raise PackageError(
            f"{origin} has tokens of width {width}, which no public model has, and weights do not "
            "tell the number of attention heads.",
            "Put a config.json with num_heads beside the file.",
        )
    return _HEADS.get(width, width // _HEAD_DIM)


def _decoder_heads(decoder: Mapping[str, Tensor], hints: Mapping[str, Any]) -> int | None:
    """Heads of the decoder that were said, or that public decoders of its width have."""
    if hints.get("decoder_num_heads") is not None:
        return int(hints["decoder_num_heads"])
    width = decoder["decoder_embed.weight"].shape[0]
    return None if width % _DECODER_HEAD_DIM else width // _DECODER_HEAD_DIM

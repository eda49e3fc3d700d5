"""The decoder for a foundation model: its own, frozen and adapted, or a fresh one.

Published (arXiv 2508.01731, its code): the checkpoint's decoder stays frozen but for its norms and
the mask token; mixtures of adapters stand beside ``decoder_embed``, ``decoder_pred`` and both
feed-forward linears of every block; layers whose shape depends on the bands are tiled where the
bands are a multiple of the checkpoint's, and else start at random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from engine.models.mae import DecoderConfig
from engine.models.spectralx.adapted import AdaptedConfig
from engine.models.spectralx.aomoa import AdaptedLinear
from engine.models.spectralx.decoder import ChipTokens, PixelDecoder
from engine.models.spectralx.encodings import spatial_encoding
from engine.models.spectralx.low_rank import LowRankLinear
from engine.models.spectralx.plain_decoder import PlainDecoder
from engine.models.spectralx.satmaepp_decoder import SatMAEppDecoder
from engine.models.spectralx.scalemae_decoder import HIGH_PX, HeadConfig, ScaleMAEDecoder
from engine.models.vit import ViTConfig
from engine.models.vit_positions import plain_positions, resized_positions

DecoderKind = Literal["scalemae", "satmaepp", "mae", "plain"]
"""Whose decoder: ScaleMAE's, SatMAE++'s, that of MAE and Prithvi, or a fresh one of ours."""

SCALEMAE_STEP = 10.0  # published: coordinates of ScaleMAE's decoder count ten to the token
HEAD_WIDTH = 32  # of attention in every public decoder: 512 wide, 16 heads
_POSITIONS, _PRED = "decoder_pos_embed", "decoder_pred"
# The last layers of ScaleMAE's heads; their bands lie on the second axis of the kernel.
_HEADS = ("fcn_high.pred.7", "fcn_low.pred.7")
# Convolutions over the bands: the published code never loads them for other bands.
_BRANCH = ("proj_up_conv", "proj_up_norm", "up_block")


@dataclass(frozen=True, eq=False)
class DecoderSource:
    """What is known of a foundation's own decoder.

    Args:
        tensors: by public name (``decoder_embed.weight``, …), may be empty.
        num_heads: of its attention; None: one for every 32 of its width.
    """

    tensors: Mapping[str, Tensor]
    num_heads: int | None = None

    @property
    def kind(self) -> DecoderKind:
        """By the layers that only one of them has."""
        if "decoder_embed.weight" not in self.tensors or _POSITIONS not in self.tensors:
            return "plain"
        if "fcn_low.pred.7.weight" in self.tensors:
            return "scalemae"
        if f"{_PRED}.weight" not in self.tensors:
            return "plain"
        return "satmaepp" if "proj_up_conv.weight" in self.tensors else "mae"

    def fits(self, tokens: ChipTokens) -> bool:
        """Whether it is a decoder that we know, and can read this encoder's tokens."""
        if self.kind == "plain" or tokens.prefix_tokens != 1:
            return False
        if self.kind == "scalemae" and HIGH_PX % tokens.patch_px:
            return False
        return self.tensors["decoder_embed.weight"].shape[1] == tokens.embed_dim


def chip_tokens(config: AdaptedConfig) -> ChipTokens:
    """What a decoder has to know of an adapted foundation model."""
    return ChipTokens(
        in_channels=config.in_channels,
        patch_px=config.patch_px,
        grid=config.grid,
        embed_dim=config.vit.embed_dim,
        prefix_tokens=config.vit.prefix_tokens,
    )


def make_decoder(
    config: AdaptedConfig,
    source: DecoderSource,
    fresh: DecoderConfig,
    *,
    train_output: bool = True,
) -> PixelDecoder:
    """Make the decoder of a foundation model, ready to train.

    Args:
        config: of the adapted model; its kind of adaptation is the decoder's too.
        source: the foundation's own decoder, which is taken where it fits.
        fresh: sizes of the plain decoder that is made where it does not, and trained whole.
        train_output: a ``decoder_pred`` that has to start at random is trained (ours); False: it
            stays random behind its adapter, as published.

    Raises:
        ValueError: the source's tensors contradict one another.
    """
    tokens = chip_tokens(config)
    if not source.fits(tokens):
        positions = _with_prefix(plain_positions(tokens.grid, tokens.grid, fresh.embed_dim), tokens)
        return PlainDecoder(tokens, fresh, positions)
    decoder = _build(source, tokens, config.vit)
    loaded = _load(decoder, source.tensors, stored_patch_px=config.vit.patch_px)
    _set_trainable(decoder, config)
    _insert_adapters(decoder, config, with_pred=f"{_PRED}.weight" in loaded or not train_output)
    return decoder


def decoder_counts(decoder: nn.Module) -> dict[str, int]:
    """Count the values of a decoder that train, by part; parts without any are left out."""
    inserted = {
        id(parameter)
        for part in decoder.modules()
        if isinstance(part, AdaptedLinear | LowRankLinear)
        for parameter in part.parameters()
    }
    counts = {"decoder adapters": 0, "decoder": 0}
    for parameter in decoder.parameters():
        if parameter.requires_grad:
            part = "decoder adapters" if id(parameter) in inserted else "decoder"
            counts[part] += parameter.numel()
    return {name: count for name, count in counts.items() if count}


def _build(source: DecoderSource, tokens: ChipTokens, vit: ViTConfig) -> PixelDecoder:
    """The decoder with the sizes of its tensors, at random; its norms are as its encoder's."""
    tensors = source.tensors
    width = tensors["decoder_embed.weight"].shape[0]
    config = DecoderConfig(
        embed_dim=width,
        depth=_count(tensors, "decoder_blocks."),
        num_heads=source.num_heads or max(width // HEAD_WIDTH, 1),
        mlp_ratio=tensors["decoder_blocks.0.mlp.fc1.weight"].shape[0] / width,
    )
    if source.kind == "scalemae":
        positions = spatial_encoding(tokens.grid, tokens.grid, width, SCALEMAE_STEP)
        head = HeadConfig(
            width=tensors["fcn_low.proj.weight"].shape[0],
            layers=_count(tensors, "fcn_low.conv_blocks."),
        )
        return ScaleMAEDecoder(
            tokens, config, _with_prefix(positions, tokens), head, norm_eps=vit.norm_eps
        )
    positions = _stored_positions(tensors[_POSITIONS], tokens, vit.grid)
    if source.kind == "satmaepp":
        # Published: in this stage they differ from those of the encoder's file.
        return SatMAEppDecoder(tokens, config, positions)
    return PlainDecoder(tokens, config, positions, norm_eps=vit.norm_eps)


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered parts stand behind a prefix."""
    return len({name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)})


def _with_prefix(places: Tensor, tokens: ChipTokens) -> Tensor:
    """(N, W) to (P + N, W): prefix tokens stand nowhere."""
    return torch.cat([places.new_zeros(tokens.prefix_tokens, places.shape[1]), places])


def _stored_positions(table: Tensor, tokens: ChipTokens, grid: int) -> Tensor:
    """The stored table for this grid: itself, the formula where it follows one, or resized.

    Args:
        table: (1, P + T * g * g, W); of T dates the first counts (Prithvi).
        tokens: wanted.
        grid: g, tokens a side of the table.

    Returns:
        (P + N, W) float32.
    """
    prefix, width = tokens.prefix_tokens, table.shape[2]
    head, places = table[0].float()[: prefix + grid**2].tensor_split([prefix])
    if tokens.grid == grid:
        return torch.cat([head, places])
    if torch.allclose(places, plain_positions(grid, grid, width), atol=1e-4):
        return torch.cat([head, plain_positions(tokens.grid, tokens.grid, width)])
    # The only public decoders whose table follows another formula are Prithvi's.
    places = resized_positions(places, grid, tokens.grid, tokens.grid, corners=True)
    return torch.cat([head, places])


def _load(
    decoder: PixelDecoder, tensors: Mapping[str, Tensor], stored_patch_px: int
) -> frozenset[str]:
    """Copy what fits; returns the names. What depends on the bands may stay at random.

    Raises:
        ValueError: another tensor is missing or of another shape.
    """
    public = {name.replace(".ln.", "."): tensor for name, tensor in tensors.items()}
    state = {}
    for name, own in decoder.state_dict().items():
        if name == _POSITIONS:
            continue  # made for this grid already
        stored = public.get(name)
        of_bands = name.startswith((_PRED, *_HEADS, *_BRANCH))
        if of_bands and stored is not None:
            stored = _for_bands(name, stored, decoder.tokens, stored_patch_px)
        if stored is not None and stored.shape == own.shape:
            state[name] = stored
        elif not of_bands:
            found = "missing" if stored is None else f"of shape {tuple(stored.shape)}"
            raise ValueError(
                f"The decoder's tensor {name} is {found}; the others need {tuple(own.shape)}."
            )
    decoder.load_state_dict(state, strict=False)
    return frozenset(state)


def _for_bands(
    name: str, stored: Tensor, tokens: ChipTokens, stored_patch_px: int
) -> Tensor | None:
    """Repeat a tensor along its bands where ours are a multiple of them; None where they are not.

    Band c gets the weights of band c modulo the checkpoint's.
    """
    if name.startswith(_BRANCH):
        return stored
    if name.startswith(_HEADS):
        axis = min(1, stored.dim() - 1)  # kernels are (in, bands, 2, 2)
        return _tiled(stored, axis, tokens.in_channels)
    if tokens.patch_px != stored_patch_px or stored.shape[0] % stored_patch_px**2:
        return None
    by_band = stored.reshape(stored_patch_px**2, -1, *stored.shape[1:])
    tiled = _tiled(by_band, 1, tokens.in_channels)
    return None if tiled is None else tiled.flatten(0, 1)


def _tiled(stored: Tensor, axis: int, bands: int) -> Tensor | None:
    """Repeat along an axis until there are so many bands; None where that leaves a rest."""
    times, rest = divmod(bands, stored.shape[axis])
    return torch.cat([stored] * times, dim=axis) if times and not rest else None


def _set_trainable(decoder: PixelDecoder, config: AdaptedConfig) -> None:
    """As published: norms of the transformer, the mask token, and what makes bands of features.

    Where everything is trained (``full``), so is the decoder.
    """
    decoder.requires_grad_(config.adaptation == "full")
    for name, parameter in decoder.named_parameters():
        is_norm = name.startswith("decoder_blocks") and ".norm" in name
        if is_norm or name.startswith(("decoder_norm", "mask_token", _PRED, *_HEADS, *_BRANCH)):
            parameter.requires_grad_(True)


def _insert_adapters(decoder: PixelDecoder, config: AdaptedConfig, *, with_pred: bool) -> None:
    """Put adapters beside the linears that the published code adapts.

    A layer of odd width cannot be adapted in two halves and is trained as it is.
    """
    blocks = range(decoder.config.depth)
    names = [f"decoder_blocks.{index}.mlp.{fc}" for index in blocks for fc in ("fc1", "fc2")]
    names += ["decoder_embed", *([_PRED] if with_pred else [])]
    for name, module in list(decoder.named_modules()):
        if name in names and isinstance(module, nn.Linear):
            decoder.set_submodule(name, _adapted(module, config))


def _adapted(base: nn.Linear, config: AdaptedConfig) -> nn.Module:
    """A linear layer with the adapter of this kind of adaptation, or as it is."""
    if config.adaptation in ("lora", "slr"):
        return LowRankLinear(base, config.low_rank, scaled=config.adaptation == "slr")
    is_even = base.in_features % 2 == base.out_features % 2 == 0
    if config.adaptation == "spectralx" and config.aomoa and is_even:
        return AdaptedLinear(base, zero_init=config.zero_init)
    return base

"""HyperT: the tokenizer that replaces the patch embedding of an optical model.

A chip of any number of bands becomes tokens whose first half of channels is a spatial and whose
second half a spectral attribute (arXiv 2508.01731, figure of HyperT, and the published code). The
core reads the whole chip through learned queries; a low-rank path of convolutions keeps the
tokens where their patches are. Other sizes than the published 224 px, 16 px and 1,024 channels are
ours: the stem's map is always as wide as twice the grid of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.spectralx.encodings import spatial_encoding, wavelength_encoding
from engine.models.spectralx.low_rank import RANK, LowRankConv, low_rank_convs, split_patch
from engine.models.spectralx.matching import AttributeMatch
from engine.models.transformer import Block

STEM_MIN = 32  # channels at full resolution in narrow tokenizers (ours; published: 64 of 512)
FEED_FORWARD = 4  # hidden width of the last layers over the width of a token


@dataclass(frozen=True)
class TokenizerConfig:
    """The settings of a tokenizer; the defaults are the published ones.

    Args:
        in_channels: C, bands.
        wavelength_nm: their centres. The published code allows a list of another length than C.
        embed_dim: D, width of a token, divisible by 8 where ``stem_dim`` is None, else by 2.
        chip_px: side of a chip, a whole number of patches.
        patch_px: side of a token's square, a power of two.
        stem_dim: channels of the stem's map, divisible by 4; None for D / 2.
        low_rank: channels of the low-rank path.
        num_heads: of both blocks; where a width is not divisible by it, its largest divisor below.
        map_scale: side of the stem's map over the tokens'; 2 as published, 1 saves work (ours,
            and always so where a patch is one pixel).
        update_frozen_statistics: a frozen core's batch norms follow the training batches, as
            published; by default they stand still as the rest of the core.

    Raises:
        ValueError: a setting is out of range.
    """

    in_channels: int
    wavelength_nm: tuple[float, ...]
    embed_dim: int
    chip_px: int = 224
    patch_px: int = 16
    stem_dim: int | None = None
    low_rank: int = RANK
    num_heads: int = 8
    map_scale: int = 2
    update_frozen_statistics: bool = False

    def __post_init__(self) -> None:
        split_patch(self.patch_px)
        sizes = (self.in_channels, self.embed_dim, self.chip_px, self.low_rank, self.num_heads)
        if min(sizes) < 1:
            raise ValueError(f"A tokenizer needs sizes of at least 1, not {sizes}.")
        if self.chip_px % self.patch_px:
            raise ValueError(
                f"A chip of {self.chip_px} px is no whole number of {self.patch_px} px patches."
            )
        if self.map_scale not in (1, 2):
            raise ValueError(
                f"The stem's map is 1 or 2 times the tokens' grid, not {self.map_scale}."
            )
        if self.embed_dim % 2 or self.stem_width % 4:
            raise ValueError(
                f"Tokens of width {self.embed_dim} with a stem of {self.stem_width} channels: the "
                "first must be divisible by 2 and the second by 4 (two attributes, two axes)."
            )
        if self.stem_side % 2:
            raise ValueError(
                f"The stem's map is {self.stem_side} px wide, and its code needs an even number: "
                f"take a chip of an even number of {self.patch_px} px patches."
            )
        if not all(math.isfinite(nm) and nm > 0 for nm in self.wavelength_nm):
            raise ValueError(f"Wavelengths are above 0 nm, not {self.wavelength_nm}.")
        if not self.wavelength_nm:
            raise ValueError("The tokenizer needs the bands' wavelengths, and there are none.")

    @property
    def grid(self) -> int:
        """G, tokens a side."""
        return self.chip_px // self.patch_px

    @property
    def stem_side(self) -> int:
        """S, side of the stem's map."""
        return self.grid * min(self.map_scale, self.patch_px)

    @property
    def stem_width(self) -> int:
        """Channels of the stem's map."""
        return self.stem_dim if self.stem_dim is not None else self.embed_dim // 2

    @property
    def halvings(self) -> int:
        """Steps by which the stem halves the image: 3 as published."""
        return (self.chip_px // self.stem_side).bit_length() - 1


@dataclass(frozen=True, eq=False)
class LowLevel:
    """What the blocks of the tokenizer saw, codes included; the Are-adapter asks it again.

    Args:
        spatial: (B, S * S, stem) a place each.
        spectral: (B, stem, S * S) a channel each.
    """

    spatial: Tensor
    spectral: Tensor


@dataclass(frozen=True, eq=False)
class Tokens:
    """What a tokenizer gives.

    Args:
        tokens: (B, N, D) in row order, without CLS and without positions.
        low: of `HyperTokenizer`; None from a `ConvTokenizer`.
    """

    tokens: Tensor
    low: LowLevel | None


class HyperTokenizer(nn.Module):
    """HyperT with its low-rank path: s * (core(x) + up(down(x))), a scale for each channel.

    Members: ``core``, 22.2 million parameters as published, drawn at random and frozen in the
    published trainings; ``down``, ``up`` and ``scaler``, which are always trained.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.core = HyperTCore(config)
        self.down, self.up = low_rank_convs(
            config.in_channels, config.embed_dim, config.patch_px, config.low_rank
        )
        self.scaler = nn.Parameter(torch.ones(config.embed_dim))

    def forward(self, x: Tensor) -> Tokens:
        """Tokenize chips.

        Args:
            x: (B, C, chip_px, chip_px) normalised.

        Returns:
            The tokens, and what the blocks saw.

        Raises:
            ValueError: other bands or another size than the settings'.
        """
        check_chips(x, self.config)
        tokens, low = self.core(x)
        path = self.up(self.down(x)).flatten(2).transpose(1, 2)
        return Tokens((tokens + path) * self.scaler, low)

    def core_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the core, frozen in the published trainings."""
        return self.core.parameters()

    def adapter_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the low-rank path and the scaler."""
        yield from self.down.parameters()
        yield from self.up.parameters()
        yield self.scaler

    def set_core_trainable(self, trainable: bool) -> None:
        """Freeze or free the core, its batch norms included; the low-rank path always trains."""
        self.core.requires_grad_(trainable)
        self.train(self.training)

    def train(self, mode: bool = True) -> HyperTokenizer:
        """Switch to training; a frozen core keeps its statistics, unless the settings say so."""
        super().train(mode)
        frozen = not any(weight.requires_grad for weight in self.core_parameters())
        if frozen and not self.config.update_frozen_statistics:
            self.core.eval()
        return self


class HyperTCore(nn.Module):
    """The stem, one block for each attribute, the queries and what mixes their answers."""

    spatial_code: Tensor
    spectral_code: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.grid, self.side = config.grid, config.stem_side
        places, width, half = config.stem_side**2, config.stem_width, config.embed_dim // 2
        count = config.grid**2
        self.stem = ConvStem(config)
        self.spatial_block = Block(width, largest_divisor(width, config.num_heads))
        self.spectral_block = Block(places, largest_divisor(places, config.num_heads))
        self.spatial_query = nn.Parameter(torch.randn(count, half))
        self.spectral_query = nn.Parameter(torch.randn(count, half))
        self.spatial_match = AttributeMatch(width, half)
        self.spectral_match = AttributeMatch(places, half)
        self.norm = nn.LayerNorm(config.embed_dim)
        self.fc1 = nn.Linear(config.embed_dim, FEED_FORWARD * config.embed_dim, bias=False)
        self.fc2 = nn.Linear(FEED_FORWARD * config.embed_dim, config.embed_dim, bias=False)
        # Not among the weights: they follow from the settings.
        spatial_code = spatial_encoding(self.side, self.side, width)
        spectral_code = wavelength_encoding(config.wavelength_nm, places, width)
        self.register_buffer("spatial_code", spatial_code, persistent=False)
        self.register_buffer("spectral_code", spectral_code, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, LowLevel]:
        """(B, C, chip_px, chip_px) to (B, N, D), and what the blocks saw."""
        low = self.low_level(self.stem(x))
        spatial = self.spatial_match(low.spatial, self.spatial_query) + self.spatial_query
        spectral = self.spectral_match(low.spectral, self.spectral_query) + self.spectral_query
        mixed = self.norm(torch.cat([spatial, spectral], dim=-1))
        tokens: Tensor = self.fc2(F.gelu(self.fc1(mixed)))  # no residual, as published
        return tokens, low

    def low_level(self, stem: Tensor) -> LowLevel:
        """Let both blocks look at the stem's map (B, stem, S, S), and add the codes.

        Places attend within windows as wide as the tokens' grid, four of them as published;
        channels, whose values are the whole map, attend to all channels.
        """
        g = self.grid
        windows = rearrange(stem, "b d (h g) (w k) -> (b h w) (g k) d", g=g, k=g)
        spatial = rearrange(
            self.spatial_block(windows),
            "(b h w) (g k) d -> b (h g w k) d",
            h=self.side // g,
            w=self.side // g,
            g=g,
        )
        spectral = self.spectral_block(stem.flatten(2))
        return LowLevel(spatial + self.spatial_code, spectral + self.spectral_code)


class ConvStem(nn.Module):
    """Convolutions from the image to a map of S x S places.

    As published for three halvings: C to 64, residual, 128 at half the size, residual, 256 at a
    quarter, and the last layer to 512 at an eighth. Other numbers of halvings leave out or repeat
    the pair in the middle; without any the last layer keeps the size.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = stem_widths(config.stem_width, config.halvings)
        self.expand = nn.Conv2d(config.in_channels, widths[0], 1)
        pairs = max(config.halvings - 1, 0)
        self.residuals = nn.ModuleList(
            _normed(nn.Conv2d(width, width, 3, padding=1)) for width in widths[: max(pairs, 1)]
        )
        self.downs = nn.ModuleList(
            _normed(nn.Conv2d(widths[i], widths[i + 1], 2, stride=2)) for i in range(pairs)
        )
        stride = 2 if config.halvings else 1
        self.last = nn.Conv2d(widths[pairs], config.stem_width, 3, stride=stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, chip_px, chip_px) to (B, stem, S, S)."""
        y = self.expand(x)
        for index, residual in enumerate(self.residuals):
            y = y + F.gelu(residual(y))
            if index < len(self.downs):
                y = self.downs[index](y)
        out: Tensor = self.last(y)
        return out


class ConvTokenizer(nn.Module):
    """A plain patch convolution, that of the baselines which SpectralX is compared with.

    Args:
        config: of the tokenizer it stands in for; wavelengths have no use here.
        kind: a low-rank path beside the frozen convolution, or none.
    """

    def __init__(
        self, config: TokenizerConfig, kind: Literal["none", "lora", "slr"] = "none"
    ) -> None:
        super().__init__()
        self.config = config
        patch_px = config.patch_px
        proj = nn.Conv2d(config.in_channels, config.embed_dim, patch_px, stride=patch_px)
        # As a linear layer over the flattened patch, which is what the convolution is.
        nn.init.xavier_uniform_(proj.weight.data.flatten(1))
        self.proj: nn.Module = proj
        if kind != "none":
            self.proj = LowRankConv(proj, config.low_rank, scaled=kind == "slr")

    def forward(self, x: Tensor) -> Tokens:
        """(B, C, chip_px, chip_px) to tokens, without low-level features; see `HyperTokenizer`."""
        check_chips(x, self.config)
        return Tokens(self.proj(x).flatten(2).transpose(1, 2), low=None)


def check_chips(x: Tensor, config: TokenizerConfig) -> None:
    """Refuse chips that a tokenizer is not for.

    Raises:
        ValueError: other bands or another size.
    """
    _b, c, h, w = x.shape
    side = config.chip_px
    if (c, h, w) != (config.in_channels, side, side):
        raise ValueError(
            f"The tokenizer reads {config.in_channels} bands of {side} x {side} px, not {c} bands "
            f"of {h} x {w} px."
        )


def stem_widths(stem_dim: int, halvings: int) -> list[int]:
    """Channels before each halving and after the last: 64, 128, 256, 512 as published."""
    floor = min(STEM_MIN, stem_dim)
    return [max(stem_dim >> (halvings - step), floor) for step in range(halvings + 1)]


def largest_divisor(width: int, limit: int) -> int:
    """The largest number up to ``limit`` that divides ``width``."""
    return next(count for count in range(min(limit, width), 0, -1) if width % count == 0)


def _normed(conv: nn.Conv2d) -> nn.Sequential:
    """A convolution and its batch norm."""
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels))

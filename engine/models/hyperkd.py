"""HyperKD's student: the encoder over all bands.

It is the masked autoencoder's ViT of HyperKD (arXiv 2508.09453). Its width, depth and token size
are not known from the paper, so they are settings; the presets say whose they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.patches import patchify, take_tokens
from engine.models.transformer import Block, init_transformer, sincos_positions


@dataclass(frozen=True)
class EncoderConfig:
    """The settings of the encoder.

    Args:
        in_channels: bands.
        patch_px: side of the square of pixels that becomes one token.
        embed_dim: width of a token, divisible by 4 and by ``num_heads``.
        depth: transformer blocks.
        num_heads: of attention.
        mlp_ratio: hidden width of a block's MLP over ``embed_dim``.
        dropout: in training.

    Raises:
        ValueError: a setting is out of range.
    """

    in_channels: int
    patch_px: int = 2
    embed_dim: int = 64
    depth: int = 2
    num_heads: int = 4
    mlp_ratio: float = 4.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        sizes = (self.in_channels, self.patch_px, self.embed_dim, self.depth, self.num_heads)
        if min(sizes) < 1:
            raise ValueError(f"An encoder needs sizes of at least 1, not {sizes}.")
        if self.embed_dim % 4 or self.embed_dim % self.num_heads:
            raise ValueError(
                f"The token width {self.embed_dim} must be divisible by 4 (positions) and by the "
                f"{self.num_heads} heads."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"Dropout is a share from 0 to below 1, not {self.dropout}.")


def vit_b(in_channels: int, patch_px: int = 16) -> EncoderConfig:
    """As wide as Prithvi-100M, so that its blocks can be copied and no projector is needed."""
    return EncoderConfig(in_channels, patch_px, embed_dim=768, depth=12, num_heads=12)


def d512(in_channels: int, patch_px: int = 16) -> EncoderConfig:
    """The width of KARMA, a sibling of HyperKD on the same sensor; its depth is our choice."""
    return EncoderConfig(in_channels, patch_px, embed_dim=512, depth=12, num_heads=8)


class PatchEmbed(nn.Module):
    """A square of pixels with all its bands becomes one token."""

    def __init__(self, in_channels: int, patch_px: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dim, kernel_size=patch_px, stride=patch_px)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), sides divisible by the patch, to (B, D, H / patch, W / patch)."""
        y: Tensor = self.proj(x)
        return y


class HyperKDEncoder(nn.Module):
    """The student of HyperKD: a ViT over all bands with fixed positions and a CLS token.

    It owns its normalisation, that of the pixels which it was first trained on. Its decoder, for
    pre-training, is a module of its own and no part of a classifier.
    """

    band_mean: Tensor
    band_std: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("band_mean", torch.zeros(config.in_channels))
        self.register_buffer("band_std", torch.ones(config.in_channels))
        self.patch_embed = PatchEmbed(config.in_channels, config.patch_px, config.embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, config.num_heads, config.mlp_ratio, config.dropout)
            for _index in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim)
        self.apply(init_transformer)
        nn.init.normal_(self.cls_token, std=0.02)
        # As a linear layer over the flattened patch, which is what the convolution is.
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))

    def normalise(self, reflectance: Tensor) -> Tensor:
        """Standardise chips (B, C, H, W)."""
        mean, std = self.band_mean[:, None, None], self.band_std[:, None, None]
        return (reflectance - mean) / std

    def forward(
        self, x: Tensor, ids_keep: Tensor | None = None, token_valid: Tensor | None = None
    ) -> Tensor:
        """Encode normalised chips.

        Args: as in `encode`.

        Returns:
            (B, 1 + N_kept, D): CLS first, then the tokens in the order of ``ids_keep``.
        """
        return self.encode(x, ids_keep, token_valid)[0]

    def encode(
        self,
        x: Tensor,
        ids_keep: Tensor | None = None,
        token_valid: Tensor | None = None,
        taps: tuple[int, ...] = (),
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encode normalised chips and listen in on some of the blocks.

        Positions are added before tokens are left out.

        Args:
            x: (B, C, H, W) normalised, sides divisible by ``patch_px``.
            ids_keep: (B, N_kept) int64, the tokens to encode, 0-based in row order; None for all.
                A teacher that gets the same ids sees the same ground.
            token_valid: (B, N) bool, True = measured; others are never attended to.
            taps: 1-based numbers of the blocks whose output is wanted, in any order; ``depth``
                means what leaves the final norm.

        Returns:
            (B, 1 + N_kept, D), CLS first, then the tokens in the order of ``ids_keep``; and for
            each tap (B, N_kept, D), without CLS.
        """
        tokens = self.embed(x, ids_keep)
        if ids_keep is not None and token_valid is not None:
            token_valid = token_valid.gather(1, ids_keep)
        tokens = torch.cat([self.cls_token.to(tokens).expand(len(x), -1, -1), tokens], dim=1)
        if token_valid is not None:
            token_valid = F.pad(token_valid, (1, 0), value=True)  # CLS can always be looked at
        heard: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, token_valid)
            if number in taps:
                heard[number] = tokens[:, 1:]
        encoded: Tensor = self.norm(tokens)
        heard[self.config.depth] = encoded[:, 1:]
        return encoded, tuple(heard[tap] for tap in taps)

    def embed(self, x: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """The tokens with their positions, before the first block.

        Args: as in `encode`.

        Returns:
            (B, N_kept, D).
        """
        patch_px, d = self.config.patch_px, self.config.embed_dim
        rows, cols = x.shape[-2] // patch_px, x.shape[-1] // patch_px
        # float32 whatever the layers' precision: under autocast the sum of all blocks, which starts
        # here, would otherwise be rounded to eight bits by each of them.
        positions = sincos_positions(rows, cols, d).to(x.device)
        if ids_keep is None:
            tokens: Tensor = rearrange(self.patch_embed(x), "b d r c -> b (r c) d")
            return tokens + positions
        # Three quarters of the tokens are hidden: only the others are multiplied.
        proj = self.patch_embed.proj
        seen = take_tokens(patchify(x, patch_px), ids_keep)
        weight = rearrange(proj.weight, "d c p q -> d (p q c)")
        seen = F.linear(seen, weight, proj.bias)
        return seen + positions[ids_keep]

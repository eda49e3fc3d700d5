"""HyperKD: the student encoder over all bands, and the land cover classifier built on it.

The encoder is the masked autoencoder's ViT of HyperKD (arXiv 2508.09453). Its width, depth and
token size are not known from the paper, so they are settings; the presets say whose they are.
The classifier puts a linear path on the full-resolution spectra beside it, because at 30 m most
of the evidence is in the pixel, and lets the encoder add what held-out places confirmed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.patches import patchify, take_tokens
from engine.models.spectral import SpectralHeads, SpectralPath
from engine.models.transformer import Block, init_transformer, sincos_positions

POINTWISE_TILE_PX = 512  # any size would do when no pixel sees another; this one keeps caches warm


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
        positions = sincos_positions(rows, cols, d)
        if ids_keep is None:
            tokens: Tensor = rearrange(self.patch_embed(x), "b d r c -> b (r c) d")
            return tokens + positions.to(tokens)
        # Three quarters of the tokens are hidden: only the others are multiplied.
        proj = self.patch_embed.proj
        seen = take_tokens(patchify(x, patch_px), ids_keep)
        weight = rearrange(proj.weight, "d c p q -> d (p q c)")
        seen = F.linear(seen, weight, proj.bias)
        return seen + positions.to(seen)[ids_keep]


@dataclass(frozen=True)
class ClassifierConfig:
    """The settings of the classifier.

    Args:
        in_channels: C, bands.
        num_classes: K.
        heads_share: share of the small networks in the answer from the pixel alone, 0 to 1; the
            rest is the linear path's. Chosen on held-out places; at 0 they are not computed.
        encoder_gate: how much of the encoder's logits is added to it, 0 to 1. Chosen on held-out
            places; at 0 the encoder is not computed at all.
        heads: number of small networks.
        heads_hidden: their width.
        chip_px: side of the chips that the encoder was trained on.
        halo_px: margin of a chip that is blended with its neighbours.
        head_channels: width of the convolutional head.
        patch_px, embed_dim, depth, num_heads, mlp_ratio, dropout: see `EncoderConfig`.

    Raises:
        ValueError: a setting is out of range.
    """

    in_channels: int
    num_classes: int
    heads_share: float = 0.0
    encoder_gate: float = 0.0
    heads: int = 4
    heads_hidden: int = 64
    chip_px: int = 20
    halo_px: int = 4
    head_channels: int = 64
    patch_px: int = 2
    embed_dim: int = 64
    depth: int = 2
    num_heads: int = 4
    mlp_ratio: float = 4.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(f"A classifier needs two classes or more, not {self.num_classes}.")
        for name, share in (
            ("encoder's gate", self.encoder_gate),
            ("heads' share", self.heads_share),
        ):
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"The {name} is a share from 0 to 1, not {share}.")
        if min(self.heads, self.heads_hidden, self.head_channels) < 1:
            raise ValueError("A classifier needs at least one head of at least one channel.")
        if not 0 <= 2 * self.halo_px < self.chip_px:
            raise ValueError(
                f"A chip of {self.chip_px} px has no core inside a halo of {self.halo_px} px."
            )
        _ = self.encoder  # its own checks

    @property
    def encoder(self) -> EncoderConfig:
        """The part of the settings that describes the encoder."""
        return EncoderConfig(
            self.in_channels,
            self.patch_px,
            self.embed_dim,
            self.depth,
            self.num_heads,
            self.mlp_ratio,
            self.dropout,
        )


class ConvHead(nn.Module):
    """A convolutional head per pixel over up-sampled tokens joined with the spectra."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        width = config.head_channels
        self.tokens = nn.Conv2d(config.embed_dim, width, kernel_size=1)
        self.spectra = nn.Conv2d(config.in_channels, width, kernel_size=1)
        self.mix = nn.Conv2d(2 * width, width, kernel_size=3, padding=1)
        self.dropout = nn.Dropout2d(config.dropout)
        self.classes = nn.Conv2d(width, config.num_classes, kernel_size=1)
        # The head starts by adding nothing to the spectral path.
        nn.init.zeros_(self.classes.weight)
        nn.init.zeros_(self.classes.bias)  # type: ignore[arg-type]

    def forward(self, grid: Tensor, x: Tensor) -> Tensor:
        """Classify pixels.

        Args:
            grid: (B, D, H / patch, W / patch) encoded tokens.
            x: (B, C, H, W) normalised spectra, 0 where not valid.

        Returns:
            (B, K, H, W) logits.
        """
        tokens = self.tokens(grid)
        if tokens.shape[-2:] != x.shape[-2:]:
            tokens = F.interpolate(tokens, size=x.shape[-2:], mode="bilinear")
        joined = F.gelu(torch.cat([tokens, self.spectra(x)], dim=1))
        logits: Tensor = self.classes(self.dropout(F.gelu(self.mix(joined))))
        return logits


class HyperKDClassifier(nn.Module):
    """Land cover of each pixel: pixel logits + gate * head(encoder, spectra).

    The pixel logits are a mixture of a linear path and small networks on the pixel's spectrum.
    Owns its normalisation (buffers of the spectral path), so the same spectrum gives the same
    answer whatever chip it comes in.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.spectral = SpectralPath(config.in_channels, config.num_classes)
        self.heads = SpectralHeads(
            config.in_channels, config.num_classes, config.heads, config.heads_hidden
        )
        self.encoder = HyperKDEncoder(config.encoder)
        self.head = ConvHead(config)

    @property
    def reach_px(self) -> int:
        """How far a pixel's class may depend on others; attention sees its whole chip."""
        return self.config.chip_px if self.config.encoder_gate > 0 else 0

    @property
    def tile_size_px(self) -> int:
        """Side of a tile as it is read, halo included."""
        return self.config.chip_px if self.config.encoder_gate > 0 else POINTWISE_TILE_PX

    @property
    def halo_px(self) -> int:
        """Margin of a tile that its neighbours cover too; none when no pixel sees another."""
        return self.config.halo_px if self.config.encoder_gate > 0 else 0

    @property
    def blend(self) -> bool:
        """True when tiles must be blended because attention sees further than any halo."""
        return self.config.encoder_gate > 0

    def forward(self, reflectance: Tensor, valid: Tensor) -> Tensor:
        """Classify chips of any size from one pixel up.

        Args:
            reflectance: (B, C, h, w) float32, 0 to 1.
            valid: (B, h, w) bool, True = use; what stands elsewhere in ``reflectance`` does not
                matter.

        Returns:
            (B, K, h, w) float32 logits; meaningless where not valid.
        """
        reflectance = reflectance.masked_fill(~valid[:, None], 0.0)
        logits = self.pixel_logits(reflectance)
        if self.config.encoder_gate > 0:
            logits = logits + self.config.encoder_gate * self.context(reflectance, valid)
        return logits

    def pixel_logits(self, reflectance: Tensor) -> Tensor:
        """The answer from each pixel alone: (B, K, h, w) float32 logits."""
        share = self.config.heads_share
        if share == 0:
            linear: Tensor = self.spectral(reflectance)
            return linear
        mean = self.heads.mean_map(reflectance, self.spectral)
        if share == 1:
            return mean
        mixed: Tensor = torch.lerp(self.spectral(reflectance), mean, share)
        return mixed

    def context(self, reflectance: Tensor, valid: Tensor) -> Tensor:
        """The encoder's share before the gate: (B, K, h, w) float32 logits.

        Args: as in `forward`.
        """
        h, w = valid.shape[-2:]
        patch_px = self.config.patch_px
        padding = (0, -w % patch_px, 0, -h % patch_px)
        valid = F.pad(valid, padding, value=False)
        x = F.pad(self.encoder.normalise(reflectance), padding)
        x = x.masked_fill(~valid[:, None], 0.0)
        token_valid = F.max_pool2d(valid[:, None].float(), patch_px)[:, 0] > 0
        tokens = self.encoder(x, token_valid=token_valid.flatten(1))
        rows, cols = token_valid.shape[-2:]
        grid = rearrange(tokens[:, 1:], "b (r c) d -> b d r c", r=rows, c=cols)
        logits: Tensor = self.head(grid, x)[..., :h, :w]
        return logits.float()

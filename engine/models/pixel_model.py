"""What the classifier and the regressor are made of: the pixel's own answer, and the encoder's.

A linear path and small networks on the full-resolution spectra stand beside the encoder, because
at 30 m most of the evidence is in the pixel. The encoder, which sees the neighbourhood too, adds
what held-out places confirmed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.backbone import embed_chips
from engine.models.hyperkd import EncoderConfig, HyperKDEncoder
from engine.models.spectral import POINTWISE_TILE_PX, SpectralHeads, SpectralPath


@dataclass(frozen=True, kw_only=True)
class PixelModelConfig(ABC):
    """The settings that a classifier and a regressor share.

    Args:
        heads_share: share of the small networks in the answer from the pixel alone, 0 to 1; the
            rest is the linear path's. Chosen on held-out places; at 0 they are not computed.
        encoder_gate: how much of the encoder's answer is added to it, 0 to 1. Chosen on held-out
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

    heads_share: float = 0.0
    encoder_gate: float = 0.0
    heads: int = 4
    heads_hidden: int = 64
    chip_px: int = 32
    halo_px: int = 4
    head_channels: int = 64
    patch_px: int = 2
    embed_dim: int = 64
    depth: int = 2
    num_heads: int = 4
    mlp_ratio: float = 4.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, share in (
            ("encoder's gate", self.encoder_gate),
            ("heads' share", self.heads_share),
        ):
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"The {name} is a share from 0 to 1, not {share}.")
        if min(self.heads, self.heads_hidden, self.head_channels) < 1:
            raise ValueError("A model of pixels needs at least one head of at least one channel.")
        if not 0 <= 2 * self.halo_px < self.chip_px:
            raise ValueError(
                f"A chip of {self.chip_px} px has no core inside a halo of {self.halo_px} px."
            )
        _ = self.encoder  # its own checks

    @property
    @abstractmethod
    def bands(self) -> int:
        """C, bands that the model reads."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """K, numbers that the model returns for a pixel."""

    @property
    def encoder(self) -> EncoderConfig:
        """The part of the settings that describes the encoder."""
        return EncoderConfig(
            self.bands,
            self.patch_px,
            self.embed_dim,
            self.depth,
            self.num_heads,
            self.mlp_ratio,
            self.dropout,
        )

    @abstractmethod
    def build(self) -> PixelModel:
        """A model with these settings and fresh weights."""


class ConvHead(nn.Module):
    """A convolutional head per pixel over up-sampled tokens joined with the spectra."""

    def __init__(self, config: PixelModelConfig) -> None:
        super().__init__()
        width = config.head_channels
        self.tokens = nn.Conv2d(config.embed_dim, width, kernel_size=1)
        self.spectra = nn.Conv2d(config.bands, width, kernel_size=1)
        self.mix = nn.Conv2d(2 * width, width, kernel_size=3, padding=1)
        self.dropout = nn.Dropout2d(config.dropout)
        # The name is that of the first packages; in a regressor it is the value's.
        self.classes = nn.Conv2d(width, config.outputs, kernel_size=1)
        # The head starts by adding nothing to the spectral path.
        nn.init.zeros_(self.classes.weight)
        nn.init.zeros_(self.classes.bias)  # type: ignore[arg-type]

    def forward(self, grid: Tensor, x: Tensor) -> Tensor:
        """Answer for pixels.

        Args:
            grid: (B, D, H / patch, W / patch) encoded tokens.
            x: (B, C, H, W) normalised spectra, 0 where not valid.

        Returns:
            (B, K, H, W).
        """
        tokens = self.tokens(grid)
        if tokens.shape[-2:] != x.shape[-2:]:
            tokens = F.interpolate(tokens, size=x.shape[-2:], mode="bilinear")
        joined = F.gelu(torch.cat([tokens, self.spectra(x)], dim=1))
        answer: Tensor = self.classes(self.dropout(F.gelu(self.mix(joined))))
        return answer


class PixelModel(nn.Module):
    """The pixel's own answer, and the encoder's share beside it.

    The pixel's answer is a mixture of a linear path and small networks on its spectrum. The model
    owns its normalisation (buffers of the spectral path), so the same spectrum gives the same
    answer whatever chip it comes in.

    Args:
        config: see there.
    """

    def __init__(self, config: PixelModelConfig) -> None:
        super().__init__()
        self.config = config
        self.spectral = SpectralPath(config.bands, config.outputs)
        self.heads = SpectralHeads(config.bands, config.outputs, config.heads, config.heads_hidden)
        self.encoder = HyperKDEncoder(config.encoder)
        self.head = ConvHead(config)

    @property
    def reach_px(self) -> int:
        """How far a pixel's answer may depend on others; attention sees its whole chip."""
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

    def answers(self, reflectance: Tensor, valid: Tensor) -> Tensor:
        """Answer for chips of any size from one pixel up.

        Args:
            reflectance: (B, C, h, w) float32, 0 to 1.
            valid: (B, h, w) bool, True = use; what stands elsewhere in ``reflectance`` does not
                matter.

        Returns:
            (B, K, h, w) float32; meaningless where not valid.
        """
        reflectance = reflectance.masked_fill(~valid[:, None], 0.0)
        answers = self.pixel_answers(reflectance)
        if self.config.encoder_gate > 0:
            answers = answers + self.config.encoder_gate * self.context(reflectance, valid)
        return answers

    def pixel_answers(self, reflectance: Tensor) -> Tensor:
        """The answer from each pixel alone: (B, C, h, w) to (B, K, h, w) float32."""
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
        """The encoder's share before the gate: (B, K, h, w) float32.

        Args: as in `answers`.
        """
        h, w = valid.shape[-2:]
        grid, x = embed_chips(self.encoder, reflectance, valid)
        answer: Tensor = self.head(grid, x)[..., :h, :w]
        return answer.float()

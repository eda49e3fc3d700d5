"""Classes for every pixel of a scene: an adapted foundation model, its refinement, and UPerNet.

Stage 2 of SpectralX (arXiv 2508.01731, figures "SpectralX" and "Are"): one refining adapter after
each tapped block, a pyramid of the refined taps, and a segmentation head. A linear path on each
pixel's own spectrum beside it, at full resolution, and small networks beside that are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.spectral import POINTWISE_TILE_PX, SpectralHeads, SpectralPath
from engine.models.spectralx.adapted import AdaptedConfig, AdaptedViT
from engine.models.spectralx.on_foundation import count_trainable, load_own_state, own_state
from engine.models.spectralx.refine import Match, RefiningAdapter
from engine.models.spectralx.upernet import (
    SCALES,
    Edges,
    MultiLevelNeck,
    Norm,
    UPerHead,
    pyramid_sides,
    resize,
)
from engine.models.vit import ViT

__all__ = ["Match", "SegmenterConfig", "SpectralXSegmenter"]

# Chips overlap by twice this share of their side, and each pixel is computed 1 / (1 - 0.18)^2 =
# 1.49 times.
HALO_SHARE = 0.09


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig(AdaptedConfig):
    """The settings of a segmentation model.

    Args:
        num_classes: K.
        refine: whether the refining adapter stands behind each tapped block; only SpectralX has it.
        match: see `RefiningAdapter`.
        keep_unused: whether the refining adapter keeps two layers of the published code that
            nothing uses; only the published parameter count needs them.
        neck_channels: width of the pyramid; None: that of the ViT, as published.
        head_channels: width of the head; published: 512.
        neck_scales: sides of the pyramid's maps over that of the token grid, finest first.
        pool_sizes: of the head's pyramid pooling.
        head_norm: the head's normalisation.
        edges: what neck and head see beyond a chip's border.
        dropout: before the last layer, in training.
        spectral_path: whether a linear path on each pixel's own spectrum is added (ours).
        spectral_heads: small networks on the spectrum beside it, at most; 0 for none (ours).
        spectral_hidden: their width.
        spectral_share: their share of the pixel's own answer, 0 to 1; the rest is the linear
            path's. Chosen in training; at 0 they are left out.
        network: whether anything but the pixel's own spectrum answers (ours). False where places
            that training had not seen did not confirm that the network helps: then no pixel sees
            another, and nothing is computed for nothing.
        halo_px: margin of a chip that is blended with its neighbours; None: 0.09 of the chip, so
            that no pixel is computed more than 1.5 times.

    Raises:
        ValueError: a setting is out of range, or contradicts another.
    """

    num_classes: int
    refine: bool = True
    match: Match = "hard"
    keep_unused: bool = False
    neck_channels: int | None = None
    head_channels: int = 512
    neck_scales: tuple[float, ...] = SCALES
    pool_sizes: tuple[int, ...] = (1, 2, 3, 6)
    head_norm: Norm = "batch"
    edges: Edges = "replicate"
    dropout: float = 0.1
    spectral_path: bool = True
    spectral_heads: int = 0
    spectral_hidden: int = 64
    spectral_share: float = 0.0
    network: bool = True
    halo_px: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.network and not self.spectral_path:
            raise ValueError("A segmenter without its network needs a spectral path.")
        if self.num_classes < 2:
            raise ValueError(f"A segmentation needs two classes or more, not {self.num_classes}.")
        if min(self.neck_width, self.head_channels) < 1 or len(self.neck_scales) < 2:
            raise ValueError("The head needs channels, and a pyramid of two maps or more.")
        if self.spectral_heads < 0 or self.spectral_hidden < 1 or not 0 <= self.spectral_share <= 1:
            raise ValueError("The networks on spectra are 0 or more, with a share from 0 to 1.")
        if self.halo_px is not None and not 0 <= 2 * self.halo_px < self.chip_px:
            raise ValueError(
                f"A chip of {self.chip_px} px has no core inside a halo of {self.halo_px} px."
            )

    @property
    def neck_width(self) -> int:
        """Channels of the pyramid."""
        return self.vit.embed_dim if self.neck_channels is None else self.neck_channels

    @property
    def has_refinement(self) -> bool:
        """Whether there is a refining adapter; what it looks up, only the hyper tokenizer has."""
        return self.refine and self.adaptation == "spectralx"

    @property
    def has_heads(self) -> bool:
        """Whether small networks on spectra answer beside the linear path."""
        return self.spectral_path and self.spectral_heads > 0 and self.spectral_share > 0

    @property
    def sides(self) -> tuple[int, ...]:
        """Of the pyramid's maps, in cells, finest first."""
        return pyramid_sides(self.grid, self.patch_px, self.neck_scales)


class SpectralXSegmenter(nn.Module):
    """Spectral reflectance in, logits of classes out.

    Args:
        config: see there.
        vit: the foundation, see `AdaptedViT`.

    Raises:
        ValueError: it is another ViT than the settings say.
    """

    def __init__(self, config: SegmenterConfig, vit: ViT) -> None:
        super().__init__()
        self.config = config
        self.adapted = AdaptedViT(config, vit)
        width, sides = config.vit.embed_dim, config.sides
        self.refine = _refiner(config, self.adapted) if config.has_refinement else None
        self.neck = MultiLevelNeck(
            width, config.neck_width, sides, len(config.blocks), config.edges
        )
        self.head = UPerHead(
            config.neck_width,
            config.head_channels,
            config.num_classes,
            sides,
            pool_sizes=config.pool_sizes,
            dropout=config.dropout,
            norm=config.head_norm,
            edges=config.edges,
        )
        self.spectral = (
            SpectralPath(config.in_channels, config.num_classes) if config.spectral_path else None
        )
        self.spectral_heads = _spectral_heads(config) if config.has_heads else None

    @property
    def tile_size_px(self) -> int:
        """Side of a tile as it is read; the tokenizer is made for this size."""
        return self.config.chip_px if self.config.network else POINTWISE_TILE_PX

    @property
    def halo_px(self) -> int:
        """Margin of a tile that its neighbours cover too."""
        if not self.config.network:
            return 0
        if self.config.halo_px is not None:
            return self.config.halo_px
        return floor(HALO_SHARE * self.config.chip_px)

    @property
    def blend(self) -> bool:
        """Attention sees the whole chip, so no halo makes tiles agree."""
        return self.config.network

    def forward(self, reflectance: Tensor, valid: Tensor) -> Tensor:
        """Classify chips of any size from one pixel up to ``chip_px``; without network any chips.

        Smaller ones are filled up with pixels that are not valid, below and on the right.

        Args:
            reflectance: (B, C, h, w) float32, 0 to 1.
            valid: (B, h, w) bool, True = use; what stands elsewhere in ``reflectance`` does not
                matter.

        Returns:
            (B, K, h, w) float32 logits; meaningless where not valid.

        Raises:
            ValueError: the chips are larger than ``chip_px``.
        """
        if not self.config.network:
            return self.pixel_answers(torch.where(valid[:, None], reflectance, 0.0))
        h, w = valid.shape[-2:]
        side = self.config.chip_px
        if max(h, w) > side:
            raise ValueError(f"The model reads chips of up to {side} px a side, not {h} x {w} px.")
        x = self.adapted.normalise(reflectance, valid)
        if (h, w) != (side, side):  # padding by nothing would copy
            x = F.pad(x, (0, side - w, 0, side - h))  # 0, as pixels that are not valid
        output = self.adapted(x, self.refine)
        logits = resize(self.head(self.neck(output.taps)), side)[..., :h, :w].float()
        if self.spectral is not None:
            logits = logits + self.pixel_answers(torch.where(valid[:, None], reflectance, 0.0))
        return logits

    def pixel_answers(self, reflectance: Tensor) -> Tensor:
        """What each pixel's own spectrum answers; 0 without a spectral path.

        Args:
            reflectance: (B, C, h, w) float32 of any size, 0 where not valid.

        Returns:
            (B, K, h, w) float32 logits.
        """
        if self.spectral is None:
            b, _c, h, w = reflectance.shape
            return reflectance.new_zeros(b, self.config.num_classes, h, w)
        linear: Tensor = self.spectral(reflectance)
        if self.spectral_heads is None:
            return linear
        mean = self.spectral_heads.mean_map(reflectance, self.spectral)
        mixed: Tensor = torch.lerp(linear, mean, self.config.spectral_share)
        return mixed

    def set_trainable(self) -> None:
        """Let the second stage's parts train, and nothing else."""
        self.requires_grad_(True)
        self.adapted.set_trainable(2)

    def trainable_counts(self) -> dict[str, int]:
        """Count the values that train now, part by part; parts without any are left out.

        The paper counts all of them but ``neck and head``.
        """
        parts = {
            "Are-adapter": _parameters(self.refine),
            "neck and head": [*_parameters(self.neck), *_parameters(self.head)],
            "spectral path": [*_parameters(self.spectral), *_parameters(self.spectral_heads)],
        }
        return self.adapted.trainable_counts() | count_trainable(parts)

    @property
    def foundation_names(self) -> frozenset[str]:
        """Names, in the state, of the foundation's tensors that no training changes."""
        return frozenset(f"adapted.{name}" for name in self.adapted.foundation_names)

    def own_state(self) -> dict[str, Tensor]:
        """Everything but the foundation's frozen tensors: what a package holds."""
        return own_state(self, self.foundation_names)

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `own_state` of a model with the same settings gave.

        Raises:
            ValueError: names or shapes differ; the message names the first.
        """
        load_own_state(self, self.foundation_names, state)


def _parameters(module: nn.Module | None) -> list[nn.Parameter]:
    """All parameters of a module that may not be there."""
    return [] if module is None else list(module.parameters())


def _spectral_heads(config: SegmenterConfig) -> SpectralHeads:
    """The small networks on spectra."""
    return SpectralHeads(
        config.in_channels, config.num_classes, config.spectral_heads, config.spectral_hidden
    )


def _refiner(config: SegmenterConfig, adapted: AdaptedViT) -> RefiningAdapter:
    """The one refining adapter, which stands behind every tapped block."""
    tokenizer = config.tokenizer
    return RefiningAdapter(
        config.vit.embed_dim,
        tokenizer.stem_width,
        config.grid,
        tokenizer.stem_side,
        match=config.match,
        keep_unused=config.keep_unused,
    )

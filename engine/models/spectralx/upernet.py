"""From the taps of a ViT to classes: the pyramid of its maps, and UPerNet's head.

Stage 2 of SpectralX (arXiv 2508.01731, figure "SpectralX") reads four blocks of a plain ViT, whose
maps have one size, and makes a pyramid of them (the neck, as in SETR) for the head of UPerNet
(Xiao et al., 2018). The sizes are those of the published code at 224 px chips of 16 px patches.
For smaller grids than its 14 x 14 tokens, and for group normalisation, the choices are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["batch", "group"]
"""How the head standardises: over the batch as published, or over groups within a chip (ours)."""

Edges = Literal["zeros", "replicate"]
"""What 3x3 convolutions see beyond the border of a chip: zeros as published, or its last cells.

Zeros are unlike all that a map holds, so that a chip's answers change towards its border. On a
scene of many chips this shows: along a gradient, steps where chips meet are three times those
elsewhere, and with repeated cells, which are ours, a fifth larger.
"""

LEVELS = 4  # maps of the pyramid, finest first
SCALES = (4.0, 2.0, 1.0, 0.5)  # of the published pyramid: their sides over that of the token grid
HEAD_NORM_EPS = 1e-6  # published; torch's own default is ten times larger
GROUPS, CHANNELS_PER_GROUP = 8, 4  # of group normalisation: at most, at least


def pyramid_sides(grid: int, patch_px: int, scales: Sequence[float] = SCALES) -> tuple[int, ...]:
    """Choose how large the maps of the pyramid are.

    No map is finer than the pixels, and none has less than one cell.

    Args:
        grid: G, tokens a side.
        patch_px: pixels a side of a token, which is the largest scale that makes sense.
        scales: wanted sides over G, one a level, finest first.

    Returns:
        One side a level, in cells.
    """
    return tuple(max(int(grid * min(scale, patch_px)), 1) for scale in scales)


def resize(x: Tensor, side: int) -> Tensor:
    """Bilinear resizing of (B, C, h, w) to a square; the same tensor where nothing changes."""
    if x.shape[-2:] == (side, side):
        return x
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)


class MultiLevelNeck(nn.Module):
    """A pyramid out of maps of one size: 1x1 convolution, bilinear resizing, 3x3 convolution.

    There is no normalisation and no activation, as published.

    Args:
        embed_dim: D, width of the taps.
        channels: width of the pyramid; the published one keeps D.
        sides: of the pyramid's maps, see `pyramid_sides`.
        taps: how many maps come in; where they are not four, neighbouring levels share one, or
            the taps between are left out.
        edges: see `Edges`.
    """

    def __init__(
        self,
        embed_dim: int,
        channels: int,
        sides: tuple[int, ...],
        taps: int = LEVELS,
        edges: Edges = "zeros",
    ) -> None:
        super().__init__()
        self.sides = sides
        count = len(sides)
        # The last tap of each quarter of the taps; with four of them, each its own level.
        self.tap_of_level = tuple(-(-(level + 1) * taps // count) - 1 for level in range(count))
        self.lateral = nn.ModuleList(nn.Conv2d(embed_dim, channels, 1) for _side in sides)
        self.smooth = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode=edges) for _side in sides
        )
        for layer in [*self.lateral, *self.smooth]:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, taps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, D, G, G) of the taps, shallow first, to (B, channels, side, side) a level."""
        return [
            smooth(resize(lateral(taps[tap]), side))
            for lateral, smooth, side, tap in zip(
                self.lateral, self.smooth, self.sides, self.tap_of_level, strict=True
            )
        ]


class ConvNorm(nn.Module):
    """A convolution without bias, its normalisation, and ReLU."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, norm: Norm, edges: Edges = "zeros"
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, channels, kernel, padding=kernel // 2, padding_mode=edges, bias=False
        )
        self.norm = _norm(channels, norm)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) to (B, channels, h, w)."""
        y: Tensor = F.relu(self.norm(self.conv(x)))
        return y


class UPerHead(nn.Module):
    """Pyramid pooling on the coarsest map, then from coarse to fine, then all maps together.

    Args:
        in_channels: width of the pyramid.
        channels: width of the head.
        num_classes: K.
        sides: of the pyramid's maps, finest first.
        pool_sizes: cells a side to which the coarsest map is averaged; those larger than it would
            only repeat its cells, and are left out.
        dropout: share of the last map's channels that training sets to 0.
        norm: see `Norm`.
        edges: see `Edges`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_classes: int,
        sides: tuple[int, ...],
        *,
        pool_sizes: tuple[int, ...] = (1, 2, 3, 6),
        dropout: float = 0.1,
        norm: Norm = "batch",
        edges: Edges = "zeros",
    ) -> None:
        super().__init__()
        self.sides = sides
        self.pool_sizes = tuple(size for size in pool_sizes if size <= sides[-1])
        self.pooled = nn.ModuleList(
            ConvNorm(in_channels, channels, 1, norm) for _size in self.pool_sizes
        )
        pooled_channels = in_channels + len(self.pool_sizes) * channels
        self.bottleneck = ConvNorm(pooled_channels, channels, 3, norm, edges)
        self.lateral = nn.ModuleList(
            ConvNorm(in_channels, channels, 1, norm) for _side in sides[:-1]
        )
        self.smooth = nn.ModuleList(
            ConvNorm(channels, channels, 3, norm, edges) for _side in sides[:-1]
        )
        self.fuse = ConvNorm(len(sides) * channels, channels, 3, norm, edges)
        self.dropout = nn.Dropout2d(dropout)
        self.classes = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.zeros_(self.classes.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The pyramid, (B, in_channels, side, side) a level, to logits of its finest map."""
        return self.classify(self.features(maps))

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """The pyramid to (B, channels, side, side) before the dropout and the last layer."""
        levels = [lateral(level) for lateral, level in zip(self.lateral, maps[:-1], strict=True)]
        levels.append(self._pool(maps[-1]))
        indices = range(len(levels))
        for coarse, fine in pairwise(reversed(indices)):
            levels[fine] = levels[fine] + resize(levels[coarse], self.sides[fine])
        smoothed = [smooth(x) for smooth, x in zip(self.smooth, levels[:-1], strict=True)]
        joined = [resize(level, self.sides[0]) for level in [*smoothed, levels[-1]]]
        fused: Tensor = self.fuse(torch.cat(joined, dim=1))
        return fused

    def classify(self, features: Tensor) -> Tensor:
        """(B, channels, h, w) to (B, K, h, w) logits."""
        logits: Tensor = self.classes(self.dropout(features))
        return logits

    def _pool(self, coarsest: Tensor) -> Tensor:
        """Join the coarsest map with its own averages over larger cells."""
        side = coarsest.shape[-1]
        averages = [
            resize(conv(F.adaptive_avg_pool2d(coarsest, size)), side)
            for conv, size in zip(self.pooled, self.pool_sizes, strict=True)
        ]
        joined: Tensor = self.bottleneck(torch.cat([coarsest, *averages], dim=1))
        return joined


class _BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that takes its running statistics where a batch has but one value.

    The average of a whole map, in a batch of one chip, has no spread; torch refuses it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        y: Tensor = super().forward(x)
        return y


def _norm(channels: int, norm: Norm) -> nn.Module:
    """One that depends on the batch in training, or one that never does."""
    if norm == "batch":
        return _BatchNorm(channels, eps=HEAD_NORM_EPS)
    # A group of several channels has a spread even where a map is a single cell.
    most = max(min(GROUPS, channels // CHANNELS_PER_GROUP), 1)
    groups = next(count for count in range(most, 0, -1) if channels % count == 0)
    return nn.GroupNorm(groups, channels, eps=HEAD_NORM_EPS)

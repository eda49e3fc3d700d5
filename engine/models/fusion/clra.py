"""CLRA, the block that CSAKD's streams are made of (arXiv 2406.19666 and its published code).

Cross-layer residual aggregation: three dense units, each a residual around five densely connected
convolutions, and one more residual around the three. There is no normalisation anywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SLOPE = 0.2  # of every LeakyReLU of the published networks
RESIDUAL = 0.2  # share of a unit's answer, and of a block's, that is added to its input
UNITS = 3  # dense units in a block
GROWING = 4  # convolutions of a unit that add ``growth`` channels; one more goes back to ``width``
# Published: the convolutions of the units start at a tenth of Kaiming's spread.
_START = 0.1
# Every unit has five 3 x 3 convolutions one after another on its longest path.
REACH_PER_BLOCK_PX = UNITS * (GROWING + 1)


class DenseUnit(nn.Module):
    """Five 3 x 3 convolutions, each of all that came before, around a residual.

    d_0 = x, d_i = LeakyReLU(conv_i([d_0 … d_{i-1}])) for i = 1 … 4, and the result is
    x + 0.2 · conv_5([d_0 … d_4]).

    Args:
        width: channels in and out.
        growth: channels that each of the first four convolutions adds.
        groups: of every convolution; divides ``width`` and ``growth``.

    Raises:
        ValueError: the groups do not divide both.
    """

    def __init__(self, width: int, growth: int, groups: int = 1) -> None:
        super().__init__()
        if groups < 1 or width % groups or growth % groups:
            raise ValueError(
                f"{groups} groups do not divide a width of {width} and a growth of {growth}."
            )
        convs = [
            nn.Conv2d(width + i * growth, growth, 3, padding=1, groups=groups)
            for i in range(GROWING)
        ]
        convs.append(nn.Conv2d(width + GROWING * growth, width, 3, padding=1, groups=groups))
        self.convs = nn.ModuleList(convs)
        self.activation = nn.LeakyReLU(SLOPE, inplace=True)
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            conv.weight.data.mul_(_START)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to the same."""
        known = x
        for conv in self.convs[:GROWING]:
            known = torch.cat([known, self.activation(conv(known))], dim=1)
        return torch.add(x, self.convs[GROWING](known), alpha=RESIDUAL)


class CLRA(nn.Module):
    """Three dense units and a residual around them: x + 0.2 · U_3(U_2(U_1(x))).

    At the start the convolutions add next to nothing, so that a block multiplies by 1.2.

    Args:
        width: channels in and out.
        growth: of the units.
        groups: of every convolution. The published student groups its coarse hyperspectral
            stream by width / 2, which needs a growth that is a multiple of that.
    """

    def __init__(self, width: int, growth: int, groups: int = 1) -> None:
        super().__init__()
        self.units = nn.Sequential(*(DenseUnit(width, growth, groups) for _ in range(UNITS)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to the same."""
        return torch.add(x, self.units(x), alpha=RESIDUAL)


class Encoder(nn.Module):
    """One stream: a 3 x 3 convolution with LeakyReLU, then blocks one after another.

    Args:
        in_channels: of the stream's input.
        width: of the stream.
        growth: of its blocks.
        blocks: how many; with 0 the stem is the whole stream.
        groups: of the blocks' convolutions; the stem has none.
    """

    def __init__(
        self, in_channels: int, width: int, growth: int, blocks: int, groups: int = 1
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        self.activation = nn.LeakyReLU(SLOPE, inplace=True)
        self.blocks = nn.Sequential(*(CLRA(width, growth, groups) for _ in range(blocks)))

    @property
    def reach_px(self) -> int:
        """How far a pixel of the result looks, in pixels of the stream's own grid."""
        return encoder_reach_px(len(self.blocks))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, width, H, W)."""
        features: Tensor = self.blocks(self.activation(self.stem(x)))
        return features


def encoder_reach_px(blocks: int) -> int:
    """How far an `Encoder` of so many blocks looks: its stem and every block."""
    return 1 + REACH_PER_BLOCK_PX * blocks

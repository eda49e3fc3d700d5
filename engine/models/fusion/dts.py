"""The dual two-streamed network of CSAKD, of any band counts and integer ratio (arXiv 2406.19666).

Two streams look at spectra, two at space; one of each pair sees both images:

- ``hsi``: the hyperspectral image on the coarse grid,
- ``mixed_fine``: it, interpolated, with the multispectral image on the fine grid,
- ``mixed_coarse``: it with the multispectral image brought down to the coarse grid,
- ``msi``: the multispectral image on the fine grid.

`engine.models.fusion.attention` makes one map of them, and two convolutions the spectra.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.fusion.attention import FUSIONS, Fusion, Streams, build_fusion
from engine.models.fusion.clra import GROWING, SLOPE, UNITS, Encoder, encoder_reach_px

Down = Literal["bicubic", "area"]
"""How the multispectral image comes to the coarse grid: as published, without antialiasing (four
fine pixels at even ratios and one at odd ones), or as the mean of each block (ours)."""

_HEAD_REACH_PX = 2  # fine pixels: two 3 x 3 convolutions
# Networks trained on real cubes, with one to four blocks a stream, change by less than 1e-4 of the
# range from 4 to 7 coarse pixels on, and by a fifth of that with each more. What a long training
# may carry further is allowed for.
_EFFECTIVE_PX, _EFFECTIVE_PX_PER_BLOCK = 4, 3


@dataclass(frozen=True)
class DTSConfig:
    """Sizes and choices of a `DTSNet`.

    Args:
        hsi_channels: L, of the hyperspectral image (bands, or coefficients of a basis) and of the
            result.
        msi_channels: M.
        ratio: fine pixels along a side of a coarse one.
        width: of the streams; published 2 * (L // 4).
        growth: of the blocks' units; published width / 2.
        blocks: of the streams mixed_fine, mixed_coarse, hsi and msi.
        h_groups: groups of the convolutions in the stream ``hsi``.
        fusion: of the streams.
        fusion_width: of an attention's queries, keys and values.
        heads: of an attention.
        down: how the multispectral image comes to the coarse grid.

    Raises:
        ValueError: a number is out of range, or a name unknown.
    """

    hsi_channels: int
    msi_channels: int
    ratio: int
    width: int
    growth: int
    blocks: tuple[int, int, int, int]
    h_groups: int = 1
    fusion: Fusion = "repaired"
    fusion_width: int = 64
    heads: int = 4
    down: Down = "area"

    def __post_init__(self) -> None:
        for name in ("hsi_channels", "msi_channels", "width", "growth", "h_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}.")
        if self.ratio < 1:
            raise ValueError(f"The ratio is a whole number from 1, not {self.ratio}.")
        if len(self.blocks) != 4 or min(self.blocks) < 0:
            raise ValueError(f"blocks are four numbers from 0, not {self.blocks}.")
        if self.fusion not in FUSIONS:
            raise ValueError(f"There is no fusion {self.fusion!r}; there are {', '.join(FUSIONS)}.")
        if self.down not in get_args(Down):
            raise ValueError(f"down is {' or '.join(get_args(Down))}, not {self.down!r}.")
        # JSON gives a list back; a frozen setting is compared and hashed.
        object.__setattr__(self, "blocks", tuple(self.blocks))


class DTSOutput(NamedTuple):
    """What a `DTSNet` answers.

    Attributes:
        image: (B, L, H, W), on the scale of the inputs.
        features: (B, width, H, W), the fused map, for distillation.
    """

    image: Tensor
    features: Tensor


class DTSNet(nn.Module):
    """Both images to spectra on the fine grid.

    Inputs are on a scale of about -1 to 1, without gaps. The result has no global skip.

    Args:
        config: sizes and choices.
    """

    def __init__(self, config: DTSConfig) -> None:
        super().__init__()
        self.config = config
        bands, width = config.hsi_channels, config.width
        both = bands + config.msi_channels
        mixed_fine, mixed_coarse, hsi, msi = config.blocks
        self.mixed_fine = Encoder(both, width, config.growth, mixed_fine)
        self.mixed_coarse = Encoder(both, width, config.growth, mixed_coarse)
        self.hsi = Encoder(bands, width, config.growth, hsi, config.h_groups)
        self.msi = Encoder(config.msi_channels, width, config.growth, msi)
        self.fusion = build_fusion(config.fusion, width, config.fusion_width, config.heads)
        self.head = nn.Sequential(
            nn.Conv2d(width, bands, 3, padding=1),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv2d(bands, bands, 3, padding=1, bias=False),
        )

    @property
    def reach_px(self) -> int:
        """How far, in coarse pixels, the result looks at all: the whole receptive field."""
        return reach_px(self.config)

    @property
    def halo_px(self) -> int:
        """How far, in coarse pixels, it looks with an effect: see `halo_px`."""
        return halo_px(self.config)

    def streams(self, hsi: Tensor, msi: Tensor) -> Streams:
        """The four streams of both images.

        Args:
            hsi: (B, L, h, w).
            msi: (B, M, h * ratio, w * ratio).

        Raises:
            ValueError: the grids do not nest.
        """
        h, w = hsi.shape[-2:]
        fine = (h * self.config.ratio, w * self.config.ratio)
        if tuple(msi.shape[-2:]) != fine:
            raise ValueError(
                f"A coarse image of {h} x {w} px at ratio {self.config.ratio} needs a fine one of "
                f"{fine[0]} x {fine[1]} px, not {msi.shape[-2]} x {msi.shape[-1]}."
            )
        hsi, msi = _as_it_is_fast(hsi), _as_it_is_fast(msi)
        up = F.interpolate(hsi, size=fine, mode="bilinear", align_corners=False)
        return Streams(
            hsi=self.hsi(hsi),
            msi=self.msi(msi),
            mixed_coarse=self.mixed_coarse(torch.cat([hsi, self._down(msi, h, w)], dim=1)),
            mixed_fine=self.mixed_fine(torch.cat([up, msi], dim=1)),
        )

    def forward(self, hsi: Tensor, msi: Tensor) -> DTSOutput:
        """Fuse.

        Args:
            hsi: (B, L, h, w).
            msi: (B, M, h * ratio, w * ratio).

        Raises:
            ValueError: the grids do not nest.
        """
        features: Tensor = self.fusion(self.streams(hsi, msi))
        return DTSOutput(self.head(features), features)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Fix the repaired attention's statistics to those of a scene; no effect on other fusions.

        Args:
            batches: of (hsi, msi) as for `forward`. Without any, nothing is changed.
        """
        was_training = self.training
        self.eval()
        try:
            for number, (hsi, msi) in enumerate(batches):
                if number == 0:
                    self.fusion.forget()
                self.fusion.observe(self.streams(hsi, msi))
        finally:
            self.train(was_training)

    @torch.no_grad()
    def start_at_zero(self) -> None:
        """Let the network begin with a result of 0 everywhere, to be added to something (ours)."""
        last = self.head[-1]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]

    def _down(self, msi: Tensor, h: int, w: int) -> Tensor:
        if self.config.down == "area":
            return F.avg_pool2d(msi, self.config.ratio)
        return F.interpolate(msi, size=(h, w), mode="bicubic", align_corners=False)


def _as_it_is_fast(image: Tensor) -> Tensor:
    """The same image, on a CPU with a pixel's channels side by side in memory.

    Convolutions keep that order. Without it each of them brings its input into another and its
    result back, which takes a fifth of a plain one and two thirds of a grouped one.
    """
    if image.device.type != "cpu":
        return image
    return image.contiguous(memory_format=torch.channels_last)


def reach_px(config: DTSConfig) -> int:
    """The radius in coarse pixels outside of which nothing changes the result."""
    mixed_fine, mixed_coarse, hsi, msi = (encoder_reach_px(blocks) for blocks in config.blocks)
    # The head looks at fine pixels; so does bicubic at ratio 2, beyond its own block.
    head = _blocks_of(_HEAD_REACH_PX, config.ratio)
    down = 1 if config.down == "bicubic" and config.ratio == 2 else 0
    return max(
        _blocks_of(mixed_fine + _HEAD_REACH_PX, config.ratio) + 1,  # bilinear: the next pixel too
        _blocks_of(msi + _HEAD_REACH_PX, config.ratio),
        mixed_coarse + down + head,
        hsi + head,
    )


def halo_px(config: DTSConfig) -> int:
    """The radius in coarse pixels outside of which a result changes by less than 1e-4 of its range.

    Residuals of 0.2 within 0.2 let what is far away fade, much faster than `reach_px` says.
    """
    return min(reach_px(config), _EFFECTIVE_PX + _EFFECTIVE_PX_PER_BLOCK * max(config.blocks))


def _blocks_of(fine_px: int, ratio: int) -> int:
    """Coarse pixels that so many fine ones reach into, from the edge of a block."""
    return -(-fine_px // ratio)


def multiply_adds(config: DTSConfig, fine_px: int) -> int:
    """Multiplications with additions of a result, counted as the published work counts them.

    Those of convolutions alone, each on the grid on which the published code has it. `DTSNet` does
    a few less: its 1 x 1 convolutions of coarse streams are done before these are repeated.

    Args:
        config: of the network.
        fine_px: pixels of the result, on the fine grid.
    """
    bands, width, both = (
        config.hsi_channels,
        config.width,
        config.hsi_channels + config.msi_channels,
    )
    block, grouped = _block_weights(width, config.growth), config.h_groups
    mixed_fine, mixed_coarse, hsi, msi = config.blocks
    fine = 9 * width * (both + config.msi_channels) + block * (mixed_fine + msi)
    fine += _fusion_weights(config) + 9 * bands * (width + bands)
    coarse = 9 * width * (both + bands) + block * mixed_coarse + block // grouped * hsi
    return fine * fine_px + coarse * fine_px // config.ratio**2


def _block_weights(width: int, growth: int) -> int:
    """Weights of one block without groups, which each pixel is multiplied by once."""
    grown = sum((width + i * growth) * growth for i in range(GROWING))
    return 9 * UNITS * (grown + (width + GROWING * growth) * width)


def _fusion_weights(config: DTSConfig) -> int:
    """Weights of the fusion's convolutions."""
    attention = 4 * config.width * config.fusion_width
    gate = 16 * config.width
    return {
        "sum": 0,
        "weights": 0,
        "none": gate,
        "attention": attention,
        "released": attention + gate,
        "repaired": attention + gate,
    }[config.fusion]

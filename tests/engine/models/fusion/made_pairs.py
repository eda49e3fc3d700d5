"""Pairs whose fine hyperspectral image is known, and tiles of them."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from engine.models.fusion.degradation import PointSpread
from engine.models.fusion.method import FusionMethod, ImagePair
from tests.engine.training.made_ground import ground, response, whole

RATIO = 3


@dataclass(frozen=True)
class Known:
    """A pair and its fine hyperspectral image; what `fit_injection` learns from."""

    pair: ImagePair
    target: Tensor
    target_valid: Tensor


def known(rows: int = 18, columns: int = 20, *, seed: int = 0, noise: float = 0.0) -> Known:
    """A pair of ``rows`` x ``columns`` coarse pixels, whose sensors are those of `physics`."""
    image = ground(rows * RATIO, columns * RATIO, seed=seed)
    hsi = physics().spread.degrade(image)
    drawn = torch.randn(hsi.shape, generator=torch.Generator().manual_seed(seed))
    msi = response()(image)
    pair = ImagePair(hsi + noise * drawn, msi, whole(hsi), whole(msi))
    return Known(pair, image, whole(image))


def physics() -> SimpleNamespace:
    """How both sensors see."""
    return SimpleNamespace(ratio=RATIO, spread=PointSpread.gaussian(RATIO), response=response())


def degraded(at: Known) -> Known:
    """The same from three times as far: the coarse image is the target."""
    spread = physics().spread
    hsi, msi = spread.degrade(at.pair.hsi), spread.degrade(at.pair.msi)
    pair = ImagePair(hsi, msi, whole(hsi), whole(msi))
    return Known(pair, at.pair.hsi, at.pair.hsi_valid)


def with_gaps(pair: ImagePair) -> ImagePair:
    """The same with clouds in both images; what is there is wrong by far."""
    hsi_valid, msi_valid = pair.hsi_valid.clone(), pair.msi_valid.clone()
    hsi_valid[:, 4:6, 7] = False
    hsi_valid[:, 0, 0] = False
    msi_valid[:, 20:23, 11:25] = False
    hsi = pair.hsi.masked_fill(~hsi_valid[:, None], 9.0)
    msi = pair.msi.masked_fill(~msi_valid[:, None], 9.0)
    return ImagePair(hsi, msi, hsi_valid, msi_valid)


def tiled(method: FusionMethod, pair: ImagePair, core_px: int) -> Tensor:
    """Apply a method tile by tile, each with a margin of its reach where the image goes on."""
    rows, columns = pair.hsi.shape[-2:]
    ratio = pair.ratio
    lines = []
    for top in range(0, rows, core_px):
        line = []
        for left in range(0, columns, core_px):
            above, before = min(top, method.reach_px), min(left, method.reach_px)
            tile = pair.crop(
                slice(top - above, min(rows, top + core_px + method.reach_px)),
                slice(left - before, min(columns, left + core_px + method.reach_px)),
            )
            result = method(tile)[..., above * ratio :, before * ratio :]
            line.append(result[..., : core_px * ratio, : core_px * ratio])
        lines.append(torch.cat(line, -1))
    return torch.cat(lines, -2)


def error(result: Tensor, target: Tensor, *, rim: int = 0) -> float:
    """Root mean square error."""
    inner = slice(rim, -rim or None)
    return float((result - target)[..., inner, inner].square().mean().sqrt())

"""How wide the coarse sensor's point spread is, found from a pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.models.fusion.degradation import PointSpread
from engine.models.fusion.method import ImagePair
from engine.training.pair_agreement import Agreement

# Widths that are tried, in coarse pixels. Real sensors lie between 0.8 and 1.4; 1 is the usual.
_WIDTHS = np.arange(0.5, 2.05, 0.15)
# Steps of the refinement, a parabola each.
_STEPS = (0.1, 0.04)
# A width is believed where it explains this much more of the detail than the worst one tried.
_STANDS_OUT_SHARE = 0.02


@dataclass(frozen=True, eq=False)
class SpreadFit:
    """A point spread, and how it was come by.

    Args:
        spread: a Gaussian.
        fwhm_px: its full width at half maximum, fine pixels.
        agreement: share of the multispectral detail, 0 to 1, that the hyperspectral image
            explains with it.
        estimated: False where the pair does not tell, and a coarse pixel's width was taken.
    """

    spread: PointSpread
    fwhm_px: float
    agreement: float
    estimated: bool


def estimate_spread(sample: Sequence[ImagePair], ratio: int) -> SpreadFit:
    """Find the width with which the hyperspectral image explains the multispectral one best.

    A Gaussian, because a free kernel needs more than one scene has to say about it. Parabolas
    go on from the best width that was tried.

    Args:
        sample: pairs that lie on one another (see `engine.training.pair_shift`).
        ratio: fine pixels along a coarse one.
    """
    usual = PointSpread.gaussian(ratio)
    agreement = Agreement(sample)

    def left_over(width: float) -> float:
        spread = PointSpread.gaussian(ratio, fwhm_px=width * ratio)
        return agreement.unexplained(spread)

    tried = np.asarray([left_over(width) for width in _WIDTHS])
    if not np.isfinite(tried).all() or np.ptp(tried) < _STANDS_OUT_SHARE:
        return SpreadFit(usual, float(ratio), _explained(left_over(1.0)), estimated=False)
    width = float(_WIDTHS[np.argmin(tried)])
    for step in _STEPS:
        width += step * _vertex(*(left_over(width + i * step) for i in (-1, 0, 1)))
    spread = PointSpread.gaussian(ratio, fwhm_px=width * ratio)
    return SpreadFit(spread, width * ratio, _explained(left_over(width)), estimated=True)


def _vertex(before: float, at: float, after: float) -> float:
    """Where the parabola through three neighbours is lowest, -1 to 1."""
    curvature = before - 2 * at + after
    return float(np.clip(0.5 * (before - after) / curvature, -1, 1)) if curvature > 0 else 0.0


def _explained(left_over: float) -> float:
    """0 to 1; 0 also where too few pixels are left to say."""
    return float(np.clip(1 - np.nan_to_num(left_over, nan=1.0), 0, 1))

"""Back-projection: a fused image is corrected until, degraded, it is the hyperspectral image.

After Irani and Peleg, CVGIP 53(3), 1991: what the degraded result lacks of the coarse image is
interpolated and added, again and again. Steps of one size converge slowly, because details that
the coarse sensor hardly sees are hardly corrected; steps of Chebyshev's sizes (Richardson's
iteration, see Golub and Varga, Numerische Mathematik 3, 1961) need a third of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.models.fusion.consistency import degrade_known, known_pixels
from engine.models.fusion.degradation import PointSpread
from engine.models.fusion.method import BICUBIC_REACH_PX, FusionMethod, ImagePair, upsample

STEPS = 5
"""After which 3 % of a difference are left, at all frequencies that the coarse sensor sees well."""

# Of what is interpolated, the coarse sensor sees between these shares, by spatial frequency: 0.17
# to 1 when its point spread is a Gaussian as wide as its pixel.
_LEAST_SEEN, _MOST_SEEN = 0.15, 1.05


class BackProjection(FusionMethod):
    """A method whose result is corrected towards the hyperspectral image.

    Where not both images are valid nothing is corrected, and nothing is taken from there.

    Args:
        method: that makes the first result.
        spread: of the hyperspectral sensor, at the method's ratio.

    Raises:
        ValueError: the ratios differ.
    """

    def __init__(self, method: FusionMethod, spread: PointSpread) -> None:
        super().__init__()
        if spread.ratio != method.ratio:
            raise ValueError(f"a spread of ratio {spread.ratio} for a method of {method.ratio}")
        self.name = method.name
        self.ratio = method.ratio
        self.method = method
        self.spread = spread

    @property
    def reach_px(self) -> int:
        """Of the method, and of each step: degraded, then interpolated."""
        return self.method.reach_px + STEPS * (self.spread.reach_px + BICUBIC_REACH_PX)

    def forward(self, pair: ImagePair) -> Tensor:
        """Fuse and correct, (B, L, h, w) to (B, L, h*r, w*r)."""
        result: Tensor = self.method(pair)
        fine_valid = known_pixels(pair)
        # Half precision is for networks; what is missing here is in its last digits.
        with torch.autocast(result.device.type, enabled=False):
            for size in step_sizes():
                low, low_valid = degrade_known(result, fine_valid, self.spread)
                missing = (pair.hsi - low) * (pair.hsi_valid & low_valid)[:, None]
                result = result + size * upsample(missing, self.ratio)
        return result


def step_sizes() -> list[float]:
    """Sizes of the steps: inverse roots of the Chebyshev polynomial on what is seen."""
    middle, half = (_MOST_SEEN + _LEAST_SEEN) / 2, (_MOST_SEEN - _LEAST_SEEN) / 2
    angles = [math.pi * (2 * step + 1) / (2 * STEPS) for step in range(STEPS)]
    return [1.0 / (middle + half * math.cos(angle)) for angle in angles]

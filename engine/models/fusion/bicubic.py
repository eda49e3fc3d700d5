"""Bicubic interpolation: fusion that does not look at the fine image, the lower bound of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from torch import Tensor

from engine.models.fusion.details import gap_reach_px, seen_by_both, usual_spectra
from engine.models.fusion.method import FusionMethod, ImagePair, Physics, fill_invalid, upsample


class Bicubic(FusionMethod):
    """The hyperspectral image, interpolated.

    Args:
        usual_hsi: (L,) reflectance where no valid pixel is near.
        ratio: fine pixels along a coarse one.
    """

    usual_hsi: Tensor

    name = "bicubic"

    def __init__(self, usual_hsi: Tensor, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.register_buffer("usual_hsi", usual_hsi)

    @classmethod
    def fit(cls, sample: Sequence[ImagePair], physics: Physics) -> Self:
        """Make one for the pair that ``sample`` is of.

        Raises:
            ValueError: no pixel is valid in both images.
        """
        usual_hsi, _ = usual_spectra(*seen_by_both(sample, physics.spread))
        return cls(usual_hsi, physics.ratio)

    @property
    def reach_px(self) -> int:
        """Of filling gaps and interpolating."""
        return gap_reach_px(None)

    def forward(self, pair: ImagePair) -> Tensor:
        """Interpolate (B, L, h, w) to (B, L, h*r, w*r)."""
        self.check(pair)
        return upsample(fill_invalid(pair.hsi, pair.hsi_valid, self.usual_hsi), self.ratio)

"""MTF-GLP-HS: details of a guide that is synthesised for each hyperspectral band.

The Laplacian pyramid with a filter like the sensor's: Aiazzi et al., PE&RS 72(5), 2006,
doi:10.14358/PERS.72.5.591. The guide of each band as a combination of all multispectral ones:
Selva et al., IEEE JSTARS 8(6), 2015, doi:10.1109/JSTARS.2015.2440092.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Self

import torch
from torch import Tensor

from engine.models.fusion.degradation import PointSpread
from engine.models.fusion.details import (
    affine_fit,
    gap_reach_px,
    seen_by_both,
    unseen_details,
    usual_spectra,
    without_gaps,
)
from engine.models.fusion.method import FusionMethod, ImagePair, Physics, upsample


class GLPHS(FusionMethod):
    """Each band plus the details of its guide, a weighted sum of the multispectral bands.

        y = up(x) + G · (p - up(degrade(p)))

    ``G`` regresses the hyperspectral bands on the degraded multispectral ones. The gain with
    which the paper injects a guide, the covariance with the band over the guide's own variance,
    is 1 for a guide that comes of such a regression.

    Args:
        guide: (L, M) weights G.
        spread: of the coarse sensor.
        usual_hsi: (L,) reflectance where no valid pixel is near.
        usual_msi: (M,) likewise.
    """

    guide: Tensor
    usual_hsi: Tensor
    usual_msi: Tensor

    name = "glphs"

    def __init__(
        self, guide: Tensor, spread: PointSpread, usual_hsi: Tensor, usual_msi: Tensor
    ) -> None:
        super().__init__()
        self.ratio = spread.ratio
        self.spread = deepcopy(spread)
        self.register_buffer("guide", guide)
        self.register_buffer("usual_hsi", usual_hsi)
        self.register_buffer("usual_msi", usual_msi)

    @classmethod
    def fit(cls, sample: Sequence[ImagePair], physics: Physics) -> Self:
        """Fit the guides at the coarse grid.

        Raises:
            ValueError: no pixel is valid in both images.
        """
        hsi, msi = seen_by_both(sample, physics.spread)
        guide, _ = affine_fit(msi, hsi)
        return cls(guide.float(), physics.spread, *usual_spectra(hsi, msi))

    @property
    def reach_px(self) -> int:
        """Of filling gaps, the sensor's point spread and interpolating."""
        return gap_reach_px(self.spread)

    def forward(self, pair: ImagePair) -> Tensor:
        """Sharpen (B, L, h, w) to (B, L, h*r, w*r)."""
        self.check(pair)
        hsi, msi = without_gaps(pair, self.usual_hsi, self.usual_msi)
        details = unseen_details(msi, self.spread)
        return upsample(hsi, self.ratio) + torch.einsum("lm,bmhw->blhw", self.guide, details)

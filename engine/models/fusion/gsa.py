"""GSA: component substitution with a fitted component, as hypersharpening does it.

Aiazzi, Baronti and Selva, IEEE TGRS 45(10), 2007, doi:10.1109/TGRS.2007.901007, for a single
sharpening band; several of them as in Selva et al., IEEE JSTARS 8(6), 2015,
doi:10.1109/JSTARS.2015.2440092: each hyperspectral band is sharpened by the multispectral one
that it correlates with best.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from engine.models.fusion.details import (
    affine_fit,
    gap_reach_px,
    seen_by_both,
    usual_spectra,
    without_gaps,
)
from engine.models.fusion.method import FusionMethod, ImagePair, Physics, upsample


class GSA(FusionMethod):
    """Each band plus a gain times what a multispectral band has and its own component has not.

    The component of a multispectral band is the sum of the hyperspectral bands that it sharpens,
    with the weights that give it best at the coarse grid:

        y_k = up(x_k) + g_k · (p_m - up(w_m · x + c_m)),    g_k = cov(component_m, x_k) / var

    Args:
        component: (M, L) weights w, 0 for bands that another multispectral band sharpens.
        constant: (M,) reflectance c.
        gain: (L, M) g, one entry a row that is not 0.
        usual_hsi: (L,) reflectance where no valid pixel is near.
        usual_msi: (M,) likewise.
        ratio: fine pixels along a coarse one.
    """

    component: Tensor
    constant: Tensor
    gain: Tensor
    usual_hsi: Tensor
    usual_msi: Tensor

    name = "gsa"

    def __init__(
        self,
        component: Tensor,
        constant: Tensor,
        gain: Tensor,
        usual_hsi: Tensor,
        usual_msi: Tensor,
        ratio: int,
    ) -> None:
        super().__init__()
        self.ratio = ratio
        self.register_buffer("component", component)
        self.register_buffer("constant", constant)
        self.register_buffer("gain", gain)
        self.register_buffer("usual_hsi", usual_hsi)
        self.register_buffer("usual_msi", usual_msi)

    @classmethod
    def fit(cls, sample: Sequence[ImagePair], physics: Physics) -> Self:
        """Fit components and gains at the coarse grid.

        Raises:
            ValueError: no pixel is valid in both images.
        """
        hsi, msi = seen_by_both(sample, physics.spread)
        sharpened_by = _correlation(hsi, msi).argmax(1)
        component = torch.zeros(msi.shape[1], hsi.shape[1], dtype=torch.float64)
        constant = msi.mean(0)
        gain = torch.zeros(hsi.shape[1], msi.shape[1], dtype=torch.float64)
        for index in range(msi.shape[1]):
            bands = sharpened_by == index
            if not bool(bands.any()):
                continue
            weights, offset = affine_fit(hsi[:, bands], msi[:, index, None])
            component[index, bands], constant[index] = weights[0], offset[0]
            gain[bands, index] = _gain(hsi[:, bands] @ weights[0], hsi[:, bands])
        usual = usual_spectra(hsi, msi)
        return cls(component.float(), constant.float(), gain.float(), *usual, physics.ratio)

    @property
    def reach_px(self) -> int:
        """Of filling gaps and interpolating."""
        return gap_reach_px(None)

    def forward(self, pair: ImagePair) -> Tensor:
        """Sharpen (B, L, h, w) to (B, L, h*r, w*r)."""
        self.check(pair)
        hsi, msi = without_gaps(pair, self.usual_hsi, self.usual_msi)
        component = torch.einsum("ml,blhw->bmhw", self.component, hsi)
        missing = msi - upsample(component + self.constant[:, None, None], self.ratio)
        return upsample(hsi, self.ratio) + torch.einsum("lm,bmhw->blhw", self.gain, missing)


def _correlation(hsi: Tensor, msi: Tensor) -> Tensor:
    """(N, L) and (N, M) → (L, M) correlation coefficients, 0 for constant bands."""
    hsi, msi = hsi - hsi.mean(0), msi - msi.mean(0)
    norms = hsi.norm(dim=0)[:, None] * msi.norm(dim=0)
    coefficients: Tensor = hsi.T @ msi / norms.clamp(min=1e-12)
    return coefficients


def _gain(component: Tensor, hsi: Tensor) -> Tensor:
    """(N,) and (N, K) → (K,) how much each band changes with the component."""
    component = component - component.mean()
    covariance = torch.einsum("n,nk->k", component, hsi - hsi.mean(0))
    gain: Tensor = covariance / component.square().sum().clamp(min=1e-12)
    return gain

"""CNMF: both images as mixtures of the same materials.

Yokoya, Yairi and Iwasaki, IEEE TGRS 50(2), 2012, doi:10.1109/TGRS.2011.2161320. Endmembers begin
as vertices of the data: vertex component analysis, Nascimento and Dias, IEEE TGRS 43(4), 2005,
doi:10.1109/TGRS.2005.844293.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Self

import torch
from torch import Tensor

from engine.models.fusion.degradation import SpectralResponse
from engine.models.fusion.details import (
    gap_reach_px,
    seen_by_both,
    usual_spectra,
    without_gaps,
)
from engine.models.fusion.method import FusionMethod, ImagePair, Physics, upsample

ENDMEMBERS = 20
FIT_PX = 4096
"""Coarse pixels that endmembers are fitted to; more do not move them."""

OUTER_STEPS = 3
COARSE_STEPS = 100
FINE_STEPS = 200
"""Multiplicative updates; the paper stops at a change of 1e-2 to 1e-4, we after a fixed number,
so that a pixel's result does not depend on the others of its tile."""

_SUM_WEIGHT = 0.1
_LEAST = 1e-9


class CNMF(FusionMethod):
    """Abundances of the fine image, times endmembers of the hyperspectral one.

    Endmembers come of a coupled factorisation of a sample. Applied, they stand: a coarse pixel is
    unmixed, its abundances are interpolated to the fine grid, and updated there until they give
    the multispectral pixel. Each pixel is so by itself, whatever the tile.

    Args:
        endmembers: (L, P) reflectance, not negative.
        response: of the multispectral bands.
        usual_hsi: (L,) reflectance where no valid pixel is near.
        usual_msi: (M,) likewise.
        ratio: fine pixels along a coarse one.
    """

    endmembers: Tensor
    usual_hsi: Tensor
    usual_msi: Tensor

    name = "cnmf"

    def __init__(
        self,
        endmembers: Tensor,
        response: SpectralResponse,
        usual_hsi: Tensor,
        usual_msi: Tensor,
        ratio: int,
    ) -> None:
        super().__init__()
        self.ratio = ratio
        self.response = deepcopy(response)
        self.register_buffer("endmembers", endmembers)
        self.register_buffer("usual_hsi", usual_hsi)
        self.register_buffer("usual_msi", usual_msi)

    @classmethod
    def fit(cls, sample: Sequence[ImagePair], physics: Physics) -> Self:
        """Factorise both images of the sample together.

        Endmembers and coarse abundances are found first, from the hyperspectral image alone. Then
        the fine abundances, which the multispectral image gives, are degraded to the coarse grid,
        and the endmembers fitted to them.

        Raises:
            ValueError: no pixel is valid in both images.
        """
        usual = usual_spectra(*seen_by_both(sample, physics.spread))
        parts = _first_px(sample, FIT_PX)
        use = torch.cat([part.hsi_valid.flatten() for part in parts])
        spectra = torch.cat([_as_rows(part.hsi) for part in parts])[use].clamp(min=0.0)
        endmembers = vertices(spectra, min(ENDMEMBERS, *spectra.shape))
        abundances = unmix(spectra, endmembers, COARSE_STEPS)
        method = cls(endmembers, physics.response, *usual, physics.ratio)
        method.endmembers = _fit_endmembers(endmembers, spectra, abundances)
        for _ in range(OUTER_STEPS):
            fine = [method.abundances(part) for part in parts]
            low = torch.cat([_as_rows(physics.spread.degrade(part)) for part in fine])[use]
            method.endmembers = _fit_endmembers(method.endmembers, spectra, low)
        return method

    @property
    def reach_px(self) -> int:
        """Of filling gaps and interpolating."""
        return gap_reach_px(None)

    def forward(self, pair: ImagePair) -> Tensor:
        """Sharpen (B, L, h, w) to (B, L, h*r, w*r)."""
        self.check(pair)
        return torch.einsum("lp,bphw->blhw", self.endmembers, self.abundances(pair))

    def abundances(self, pair: ImagePair) -> Tensor:
        """Return (B, P, h*r, w*r) shares of the endmembers, not negative and about 1 together."""
        hsi, msi = without_gaps(pair, self.usual_hsi, self.usual_msi)
        coarse = unmix(_as_rows(hsi).clamp(min=0.0), self.endmembers, COARSE_STEPS)
        begin = upsample(_as_image(coarse, hsi), self.ratio).clamp(min=_LEAST)
        seen = _as_rows(msi) - self.response.offset
        fine_endmembers = self.response.weights @ self.endmembers
        fine = unmix(seen.clamp(min=0.0), fine_endmembers, FINE_STEPS, _as_rows(begin))
        return _as_image(fine, msi)


def vertices(spectra: Tensor, count: int) -> Tensor:
    """Find the spectra that span the others best, by vertex component analysis.

    Args:
        spectra: (N, L), not negative.
        count: P, of at most N and L.

    Returns:
        (L, P), which are some of ``spectra``.
    """
    square = spectra.T @ spectra
    axes = torch.linalg.eigh(square.double())[1][:, -count:].to(spectra)
    inside = spectra @ axes
    # The simplex is seen from the origin, so that a darker pixel of a material is the same one.
    depth = inside @ inside.mean(0)
    inside = inside / depth.clamp(min=float(depth.mean()) * 0.05)[:, None]
    generator = torch.Generator().manual_seed(0)
    found = torch.zeros(count, count).to(spectra)
    chosen = []
    for index in range(count):
        way = torch.randn(count, generator=generator).to(spectra)
        known = found[:, : max(index, 1)]
        way = way - known @ (torch.linalg.pinv(known) @ way)
        chosen.append(int((inside @ way).abs().argmax()))
        found[:, index] = inside[chosen[-1]]
    return spectra[chosen].T.clone()


def unmix(spectra: Tensor, endmembers: Tensor, steps: int, begin: Tensor | None = None) -> Tensor:
    """Find the shares that give ``spectra``, by multiplicative updates.

    Args:
        spectra: (N, C), not negative.
        endmembers: (C, P), not negative.
        steps: updates; their number is fixed, so that no pixel depends on another.
        begin: (N, P) to begin with; shares that are all alike when None.

    Returns:
        (N, P), not negative, about 1 together.
    """
    # The sum of the shares is one more band, which is 1 (Yokoya et al., equation 10).
    weight = _SUM_WEIGHT * endmembers.mean() * len(endmembers) ** 0.5
    wanted = spectra @ endmembers + weight**2
    square = endmembers.T @ endmembers + weight**2
    count = endmembers.shape[1]
    shares = torch.full_like(wanted, 1 / count) if begin is None else begin
    for _ in range(steps):
        shares = shares * wanted / (shares @ square).clamp(min=_LEAST)
    return shares


def _fit_endmembers(endmembers: Tensor, spectra: Tensor, shares: Tensor) -> Tensor:
    """Update both in turn until the endmembers (L, P) fit ``spectra`` (N, L)."""
    for _ in range(COARSE_STEPS):
        given = spectra.T @ shares
        endmembers = endmembers * given / (endmembers @ (shares.T @ shares)).clamp(min=_LEAST)
        shares = unmix(spectra, endmembers, 1, shares)
    return endmembers


def _first_px(sample: Sequence[ImagePair], limit_px: int) -> list[ImagePair]:
    """Take parts of a sample until they hold ``limit_px`` coarse pixels; at least one."""
    parts, taken_px = [], 0
    for pair in sample:
        if taken_px >= limit_px:
            break
        rows = max(1, (limit_px - taken_px) // (pair.hsi.shape[-1] * len(pair.hsi)))
        parts.append(pair.crop(slice(None, rows), slice(None)))
        taken_px += parts[-1].hsi_valid.numel()
    return parts


def _as_rows(image: Tensor) -> Tensor:
    """(B, C, H, W) → (B*H*W, C)."""
    return image.movedim(1, -1).flatten(0, 2)


def _as_image(rows: Tensor, like: Tensor) -> Tensor:
    """(B*H*W, C) → (B, C, H, W) with the size of ``like``."""
    batch, _, height, width = like.shape
    return rows.reshape(batch, height, width, -1).movedim(-1, 1)

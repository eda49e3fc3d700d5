"""What classical fusion is built of: details that the coarse sensor does not see, and regressions.

All regressions are statistics of a sample of the pair, so that a result does not depend on how
the image is cut into tiles.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from engine.models.fusion.degradation import PointSpread
from engine.models.fusion.method import BICUBIC_REACH_PX, ImagePair, fill_invalid, upsample

RIDGE = 1e-4
"""Of a regression: how much of the inputs' mean variance is added to each one's own.

Neighbouring bands say the same within their noise; without it, weights of thousands cancel out.
"""


def without_gaps(pair: ImagePair, usual_hsi: Tensor, usual_msi: Tensor) -> tuple[Tensor, Tensor]:
    """Return both images with likely values where they are not valid.

    Args:
        pair: any.
        usual_hsi: (L,) what stands where no valid pixel is near.
        usual_msi: (M,) likewise.

    Returns:
        (B, L, h, w) and (B, M, h*r, w*r); both look no further than `gap_reach_px`.
    """
    hsi = fill_invalid(pair.hsi, pair.hsi_valid, usual_hsi)
    return hsi, fill_invalid(pair.msi, pair.msi_valid, usual_msi, radius_px=pair.ratio)


def gap_reach_px(spread: PointSpread | None) -> int:
    """How many coarse pixels filling gaps, blurring by ``spread`` and interpolating reach.

    Gaps of the coarse image are filled from two coarse pixels around, those of the fine one from
    one; both are then interpolated, and the fine one is degraded in between.
    """
    return BICUBIC_REACH_PX + max(2, 0 if spread is None else 1 + spread.reach_px)


def unseen_details(msi: Tensor, spread: PointSpread) -> Tensor:
    """Return what the coarse sensor does not see of the fine image: it, minus its low pass.

    The low pass is the image degraded to the coarse grid and interpolated back, the first level
    of a generalised Laplacian pyramid (Aiazzi et al. 2006).

    Args:
        msi: (B, M, h*r, w*r), valid everywhere.
        spread: of the coarse sensor.

    Returns:
        (B, M, h*r, w*r).
    """
    return msi - upsample(spread.degrade(msi), spread.ratio)


def seen_by_both(sample: Iterable[ImagePair], spread: PointSpread) -> tuple[Tensor, Tensor]:
    """Return coarse pixels that are valid in both images, as each of the two sees them.

    Args:
        sample: parts of the pair.
        spread: that brings the fine image to the coarse grid.

    Returns:
        (N, L) and (N, M) float64 reflectance.

    Raises:
        ValueError: no pixel is valid in both.
    """
    hsi, msi = [], []
    for pair in sample:
        low, low_valid = spread.degrade(pair.msi, pair.msi_valid)
        both = pair.hsi_valid & low_valid
        hsi.append(pair.hsi.movedim(1, -1)[both])
        msi.append(low.movedim(1, -1)[both])
    if not sum(map(len, hsi)):
        raise ValueError("no pixel of the sample is valid in both images")
    return torch.cat(hsi).double(), torch.cat(msi).double()


def usual_spectra(hsi: Tensor, msi: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean spectra (L,) and (M,) float32 of pixels (N, L) and (N, M)."""
    return hsi.mean(0).float(), msi.mean(0).float()


def affine_fit(inputs: Tensor, outputs: Tensor, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """Regress linearly, with a constant.

    Args:
        inputs: (N, P) float64.
        outputs: (N, Q) float64.
        ridge: added to the inputs' variances, as a share of their mean.

    Returns:
        (Q, P) weights and (Q,) constants, float64: ``outputs ≈ inputs @ weights.T + constants``.
    """
    input_mean, output_mean = inputs.mean(0), outputs.mean(0)
    centred = inputs - input_mean
    square = centred.T @ centred
    # A single value everywhere has no variance; its weight is zero rather than undefined.
    square += torch.eye(len(square)).to(square) * (ridge * square.diagonal().mean() + 1e-12)
    weights = torch.linalg.solve(square, centred.T @ (outputs - output_mean)).T
    return weights, output_mean - weights @ input_mean

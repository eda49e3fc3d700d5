"""Areas of classes, corrected for the errors of the map that they were measured on.

Olofsson et al. (2014), Remote Sensing of Environment 148, 42-57,
https://doi.org/10.1016/j.rse.2014.02.015 : stratified estimation with the map's classes as strata.
The confidence intervals hold when the reference places were drawn at random.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z_95 = 1.96  # as in the paper
MIN_SAMPLES = 2  # of a stratum: one sample alone says nothing about its variance


@dataclass(frozen=True, eq=False)
class AreaEstimate:
    """Shares of the ground that was assessed, 0 to 1, with half widths of 95 % intervals.

    Args:
        assessed: (K,) bool, the map's classes with enough reference samples to say something.
        assessed_share: of the map's pixels, those in the assessed classes.
        mapped: (K,) share of each class as mapped, within the assessed part.
        estimated: (K,) share of each class on the ground (eq. 9), within the assessed part.
        estimated_95: (K,) half width of its interval (eq. 10).
        overall_accuracy: share of the ground that is mapped rightly (eq. 1 with areas).
        overall_accuracy_95: half width of its interval (eq. 5).
    """

    assessed: NDArray[np.bool_]
    assessed_share: float
    mapped: NDArray[np.float64]
    estimated: NDArray[np.float64]
    estimated_95: NDArray[np.float64]
    overall_accuracy: float
    overall_accuracy_95: float


def estimate_areas(confusion: ArrayLike, mapped_px: ArrayLike) -> AreaEstimate | None:
    """Estimate the share of each class on the ground.

    A class of the map with fewer than two reference samples cannot be corrected: its ground is
    left out, and the estimate is for the rest.

    Args:
        confusion: (K, K) counts of samples, rows = reference, columns = map.
        mapped_px: (K,) pixels of each class in the whole map.

    Returns:
        None when no class of the map has enough samples.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    pixels = np.asarray(mapped_px, dtype=np.float64)
    samples = counts.sum(axis=0)  # of each class of the map
    assessed = (samples >= MIN_SAMPLES) & (pixels > 0)
    if not assessed.any():
        return None
    weight = np.where(assessed, pixels, 0) / pixels[assessed].sum()
    # Of what is mapped as a class (columns), the share that is each class on the ground (rows).
    share = np.divide(counts, samples, out=np.zeros_like(counts), where=assessed)
    degrees = np.where(assessed, samples - 1, 1)
    variance = weight**2 * share * (1 - share) / degrees
    right = np.diagonal(share)
    return AreaEstimate(
        assessed=assessed,
        assessed_share=float(pixels[assessed].sum() / pixels.sum()),
        mapped=weight,
        estimated=share @ weight,
        estimated_95=Z_95 * np.sqrt(variance.sum(axis=1)),
        overall_accuracy=float(weight @ right),
        overall_accuracy_95=float(Z_95 * np.sqrt(np.diagonal(variance).sum())),
    )

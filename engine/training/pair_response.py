"""What each multispectral band takes in of the hyperspectral ones, found from a pair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression

Array = NDArray[np.float64]

# Strengths of the prior that are tried, as shares of the spectra's mean variance.
_RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# The strongest is taken that leaves no more than this times what the best one leaves.
_AS_GOOD = 1.003
# Parts of the sample, in its order (so that they are places), that judge the strengths.
_FOLDS = 4
# Pixels further off than this many spreads (1.48 median deviations) of the others have changed
# between the images, or are mixed by their borders; they are left out of the second fit.
_OUTLIER = 4.0
# More pixels make the response no more exact than the images are.
_MAX_PX = 16_384
# Bands beside a nominal response that may belong to it: the larger of this width and this share of
# the response's range, because centres drift from scene to scene.
_MARGIN_NM, _MARGIN_SHARE = 15.0, 0.15
# A band with less of a nominal response than this share of its peak does not widen the range.
_SEEN = 0.02


@dataclass(frozen=True, eq=False)
class ResponseFit:
    """Multispectral reflectance = weights @ hyperspectral reflectance + offset.

    Args:
        weights: (M, L) float64, not negative. Rows sum to about 1; to how much more or less is
            the difference of the two sensors' calibration.
        offset: (M,) reflectance.
        error: (M,) root mean square of what is left, relative to that of the band itself.
    """

    weights: Array
    offset: Array
    error: Array


def estimate_response(
    hsi: Array,
    msi_low: Array,
    nominal: Array | None = None,
    allowed: NDArray[np.bool_] | None = None,
) -> ResponseFit:
    """Non-negative least squares with an offset and a prior.

    With a nominal response the weights are drawn to it, times the gain that fits; without one
    neighbouring weights are drawn to each other (Simões et al. 2015 do the latter, Yokoya et al.
    the restriction to bands where a response can be). How strongly is decided by places that were
    left out, one strength for each band. A second fit leaves out what the first cannot explain.

    Args:
        hsi: (N, L) reflectance of valid pixels, in an order in which neighbours are neighbours.
        msi_low: (N, M) of the multispectral image as the coarse sensor would see it.
        nominal: (M, L) not negative, rows sum to 1 or to 0 where nothing is known.
        allowed: (M, L) True where a weight may be; everywhere when None.
    """
    step = max(1, -(-len(hsi) // _MAX_PX))
    hsi, msi_low = hsi[::step].astype(np.float64), msi_low[::step].astype(np.float64)
    rows = []
    for band in range(msi_low.shape[1]):
        prior = None if nominal is None or not nominal[band].any() else nominal[band]
        free = np.ones(hsi.shape[1], bool) if allowed is None else allowed[band]
        rows.append(_one_band(hsi, msi_low[:, band], prior, free))
    weights, offset, error = zip(*rows, strict=True)
    return ResponseFit(np.stack(weights), np.asarray(offset), np.asarray(error))


def allowed_bands(nominal: Array, wavelength_nm: Array) -> NDArray[np.bool_]:
    """(M, L) bands where a response may be: those of the nominal one, and some beside it.

    Args:
        nominal: (M, L); a row of zeros allows all.
        wavelength_nm: (L,) in any order.
    """
    allowed = np.ones(nominal.shape, bool)
    for row, weights in zip(allowed, nominal, strict=True):
        if weights.any():
            seen_nm = wavelength_nm[weights > _SEEN * weights.max()]
            margin_nm = max(_MARGIN_NM, _MARGIN_SHARE * float(np.ptp(seen_nm)))
            row[:] = (wavelength_nm >= seen_nm.min() - margin_nm) & (
                wavelength_nm <= seen_nm.max() + margin_nm
            )
    return allowed


def relative_error(found: Array, wanted: Array) -> Array:
    """(M,) root mean square of the difference of (N, M) values, relative to the wanted ones."""
    size = np.sqrt(np.square(wanted).mean(axis=0))
    return np.asarray(np.sqrt(np.square(found - wanted).mean(axis=0)) / np.maximum(size, 1e-12))


def _one_band(
    hsi: Array, values: Array, nominal: Array | None, free: NDArray[np.bool_]
) -> tuple[Array, float, float]:
    """Weights (L,), offset and relative error of one multispectral band."""
    spectra = hsi[:, free]
    prior = None if nominal is None else nominal[free]
    ridge = _best_ridge(spectra, values, prior)
    weights, offset = _fit(spectra, values, prior, ridge)
    left = values - spectra @ weights - offset
    spread = 1.4826 * np.median(np.abs(left - np.median(left)))
    usual = np.abs(left - np.median(left)) <= _OUTLIER * spread
    if 0.5 * len(usual) < np.count_nonzero(usual) < len(usual):
        weights, offset = _fit(spectra[usual], values[usual], prior, ridge)
    error = relative_error((spectra @ weights + offset)[:, None], values[:, None])
    row = np.zeros(hsi.shape[1])
    row[free] = weights
    return row, offset, float(error[0])


def _best_ridge(spectra: Array, values: Array, prior: Array | None) -> float:
    """The strongest prior with which left-out parts of the sample are explained as by the best."""
    folds = np.arange(len(spectra)) * _FOLDS // max(len(spectra), 1)
    left_over = np.zeros(len(_RIDGES))
    for fold in range(_FOLDS):
        held = folds == fold
        if not held.any() or held.all():
            continue
        for i, ridge in enumerate(_RIDGES):
            weights, offset = _fit(spectra[~held], values[~held], prior, ridge)
            # Absolute, so that a few changed pixels do not decide.
            left_over[i] += np.abs(values[held] - spectra[held] @ weights - offset).sum()
    return _RIDGES[int(np.flatnonzero(left_over <= _AS_GOOD * left_over.min())[-1])]


def _fit(spectra: Array, values: Array, prior: Array | None, ridge: float) -> tuple[Array, float]:
    """Weights that are not negative, and the offset.

    The problem is brought to as many rows as there are bands by the spectra's covariance, which
    gives the same answer.
    """
    mean, mean_value = spectra.mean(axis=0), float(values.mean())
    centred, centred_values = spectra - mean, values - mean_value
    gram = centred.T @ centred / len(spectra)
    cross = centred.T @ centred_values / len(spectra)
    strength = ridge * max(float(np.trace(gram)) / len(gram), 1e-12)
    penalty = strength * _penalty(len(gram), prior)
    wanted = np.zeros(len(gram)) if prior is None else _gain(gram, cross, prior) * prior
    factor = np.linalg.cholesky(gram + penalty + 1e-9 * strength * np.eye(len(gram)))
    right = np.linalg.solve(factor, cross + penalty @ wanted)
    found = LinearRegression(fit_intercept=False, positive=True).fit(factor.T, right)
    weights: Array = found.coef_
    return weights, mean_value - float(mean @ weights)


def _gain(gram: Array, cross: Array, prior: Array) -> float:
    """How bright the nominal band has to be made to fit best."""
    power = float(prior @ gram @ prior)
    return max(float(prior @ cross) / power, 0.0) if power > 0 else 1.0


def _penalty(count: int, prior: Array | None) -> Array:
    """(L, L) of the squared distance to the prior, or of the steps between neighbours.

    A little of the size beside the steps, so that the strength of all together is not free.
    """
    if prior is not None:
        return np.eye(count)
    steps = np.diff(np.eye(count), axis=0)
    return np.asarray(steps.T @ steps + 1e-3 * np.eye(count))

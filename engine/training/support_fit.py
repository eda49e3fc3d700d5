"""Fitting what says how familiar a spectrum is, see `engine.models.support`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.models.spectral import SpectralPath
from engine.models.support import Support
from engine.training.places import place_folds
from engine.training.samples import Samples

MAX_COMPONENTS = 16
MAX_GAUSSIANS = 96  # 100 kB with 16 components; of more classes one Gaussian is fitted to all
FAMILIAR_SHARE = 0.95  # of held-out pixels, which lie within the distance that reads 0.5
# A class's covariance counts as much as the pooled one when it has so many pixels a component.
_PIXELS_PER_COMPONENT = 5
_SMALLEST_DISTANCE = 0.1  # where held-out pixels are copies of training pixels
_RIDGE = 1e-3  # of the mean variance: no direction is so thin that a rounding leaves it
_FOLDS = 4  # of places, where none is held out


@dataclass(frozen=True, eq=False)
class _Gaussians:
    """Classes in the subspace; float64.

    Args:
        centre: (G, Q).
        covariance: (G, Q, Q), shrunk.
        usual_outside: (G,) mean of the squared rest outside the subspace, above 0.
    """

    centre: Tensor
    covariance: Tensor
    usual_outside: Tensor


def fit_support(spectra: Tensor, class_index: Tensor, held_out_spectra: Tensor) -> Support:
    """Fit the support of a model to its training spectra.

    1. Standardise spectra as they are and at unit length, as `SpectralPath` does.
    2. Take their leading principal components, at most 16.
    3. Fit a Gaussian to each class; covariances of few pixels are shrunk towards the pooled one
       (regularised discriminant analysis; Friedman 1989).
    4. Set the scale so that 95 % of the held-out spectra read 0.5 or more.

    Args:
        spectra: (M, C) reflectance of the training pixels, M at least 2.
        class_index: (M,) int64, any numbers; classes without pixels take no room.
        held_out_spectra: (H, C) of places that are not among them, H at least 1.

    Returns:
        On the CPU, float32.

    Raises:
        ValueError: there are fewer spectra.
    """
    if len(spectra) < 2 or len(held_out_spectra) < 1:
        raise ValueError(
            f"A support needs 2 training spectra and 1 held-out one, not {len(spectra)} and "
            f"{len(held_out_spectra)}."
        )
    spectra = spectra.detach().cpu().float()
    path = SpectralPath(spectra.shape[1], 1)
    path.fit_views(spectra, torch.ones(len(spectra)))
    views = path.views(spectra).double()
    basis = _leading_components(views)
    gaussians = _fit_gaussians(views, basis, _class_number(class_index.cpu()))
    support = Support(spectra.shape[1], *gaussians.centre.shape)
    _fill(support, path, basis, gaussians)
    _set_scale(support, support.distance(held_out_spectra.detach().cpu().float()))
    return support


def fit_support_to_places(training: Samples, held_out: Samples | None, seed: int) -> Support | None:
    """Fit the support of a model to its samples.

    Where no place was held out, folds of the training places give the scale: each is measured by a
    support that was fitted to the others.

    Args:
        training: samples that the model was trained on.
        held_out: those of other places; None or empty when there are none.
        seed: of the folds.

    Returns:
        None when all labels lie in one place, so that nothing says what is usual.
    """
    spectra, label = training.spectra, training.class_index
    if held_out is not None and len(held_out.chip):
        return fit_support(spectra, label, held_out.spectra)
    fold = torch.from_numpy(place_folds(label.numpy(), training.place.numpy(), _FOLDS, seed))
    if int(fold.max()) < 1:
        return None
    distance = torch.empty(len(spectra))
    for number in range(int(fold.max()) + 1):
        member = fold == number
        other = fit_support(spectra[~member], label[~member], spectra[member])
        distance[member] = other.distance(spectra[member])
    support = fit_support(spectra, label, spectra)
    _set_scale(support, distance)
    return support


def _leading_components(views: Tensor) -> Tensor:
    """(Q, 2 C) orthonormal principal components of (M, 2 C) standardised views, the widest."""
    count = min(MAX_COMPONENTS, views.shape[1], max(len(views) // _PIXELS_PER_COMPONENT, 1))
    covariance = views.T @ views / len(views)  # their mean is 0: they are standardised
    vectors: Tensor = torch.linalg.eigh(covariance)[1]  # columns, by ascending variance
    return vectors[:, -count:].T.contiguous()


def _class_number(class_index: Tensor) -> Tensor:
    """(M,) int64: numbers from 0 without gaps; one for all where there are too many classes."""
    names, number = torch.unique(class_index, return_inverse=True)
    return number if len(names) <= MAX_GAUSSIANS else torch.zeros_like(number)


def _fit_gaussians(views: Tensor, basis: Tensor, number: Tensor) -> _Gaussians:
    """Fit a Gaussian to each class, (M,) numbers from 0."""
    inside = views @ basis.T
    outside = (views - inside @ basis).square().sum(dim=1)
    count = torch.bincount(number).double()
    centre = _mean_by_class(inside, number, count)
    apart = inside - centre[number]
    pooled = apart.T @ apart / len(apart)
    members = [apart[number == index] for index in range(len(count))]
    own = torch.stack([part.T @ part / len(part) for part in members])
    trust = count / (count + _PIXELS_PER_COMPONENT * inside.shape[1])
    ridge = _RIDGE * pooled.diagonal().mean().clamp_min(_RIDGE)
    covariance = torch.lerp(pooled, own, trust[:, None, None]) + ridge * torch.eye(len(pooled))
    usual = torch.lerp(outside.mean(), _mean_by_class(outside, number, count), trust)
    # A subspace that holds all of the training data leaves rounding outside, which is no measure.
    return _Gaussians(centre, covariance, usual.clamp_min(float(ridge)))


def _mean_by_class(values: Tensor, number: Tensor, count: Tensor) -> Tensor:
    """(G, ...) means of (M, ...) values over the members of each class."""
    sums = torch.zeros(len(count), *values.shape[1:], dtype=values.dtype)
    sums.index_add_(0, number, values)
    means: Tensor = sums / count.reshape(-1, *[1] * (values.ndim - 1))
    return means


def _fill(support: Support, path: SpectralPath, basis: Tensor, gaussians: _Gaussians) -> None:
    """Put what was fitted into the buffers."""
    for name in ("band_mean", "band_std", "unit_mean", "unit_std"):
        getattr(support, name).copy_(getattr(path, name))
    support.basis.copy_(basis)
    support.centre.copy_(gaussians.centre)
    # W with Wᵀ W = covariance⁻¹: the inverse of the lower Cholesky factor.
    factor = torch.linalg.cholesky(gaussians.covariance)
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype).expand_as(factor)
    support.whitening.copy_(torch.linalg.solve_triangular(factor, identity, upper=False))
    support.usual_outside.copy_(gaussians.usual_outside)


def _set_scale(support: Support, distance: Tensor) -> None:
    """Let 95 % of (H,) distances of held-out pixels, of any number of them, read 0.5 or more."""
    scale = float(np.quantile(distance.numpy(), FAMILIAR_SHARE, method="higher"))
    support.distance_95.fill_(max(scale, _SMALLEST_DISTANCE))

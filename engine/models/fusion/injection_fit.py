"""Fits the strong start to images whose fine version is known.

Everything is sums over pixels, kept apart for four parts of each image, so that the strength of
the regression is chosen by places that each candidate has not seen, without another pass.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from engine.models.fusion.degradation import PointSpread
from engine.models.fusion.details import (
    affine_fit,
    seen_by_both,
    usual_spectra,
    without_gaps,
)
from engine.models.fusion.injection import MOST_CURVED, Injection, InjectionConfig
from engine.models.fusion.method import ImagePair, upsample
from engine.models.fusion.noise import missing_noise, with_noise

logger = logging.getLogger(__name__)

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""Candidates: what is added to each feature's mean square, which is 1."""

CANDIDATES = (
    ("details",),
    ("details", "around"),
    ("details", "around", "spectrum"),
    ("details", "around", "products", "curves"),
    ("details", "around", "products", "curves", "spectrum"),
)
"""Which features may have weights; places that the fit has not seen choose."""

_FOLDS = 4
# How often noise is drawn for the same pixels, at most, and until so many have got some.
_MOST_DRAWS = 4
_DRAWN_PX = 4096
# Known fine pixels of which means and components are taken.
_MOST_SPECTRA = 20_000


class KnownFine(Protocol):
    """A pair whose fine hyperspectral image is known."""

    @property
    def pair(self) -> ImagePair:
        """Both images."""
        ...

    @property
    def target(self) -> Tensor:
        """(B, L, h*r, w*r) reflectance."""
        ...

    @property
    def target_valid(self) -> Tensor:
        """(B, h*r, w*r) bool."""
        ...


def fit_injection(
    triplets: Sequence[KnownFine],
    *,
    spread: PointSpread | None = None,
    inputs: Sequence[ImagePair] = (),
) -> Injection:
    """Fit the strong start.

    Args:
        triplets: pairs with their known fine image; at least one.
        spread: of the coarse sensor; a Gaussian as wide as a coarse pixel when None.
        inputs: the pairs at the scale at which the start will be used, of which ``triplets``
            are the degraded ones. Only the noise of their coarse images is looked at: what the
            triplets have less of is added to them. Nothing is added when empty.

    Raises:
        ValueError: no pixel is valid in all images.
    """
    pairs = [triplet.pair for triplet in triplets]
    spread = PointSpread.gaussian(pairs[0].ratio) if spread is None else spread
    hsi, msi = _all_spectra(triplets, spread)
    injection = _standardised(hsi, msi, spread)
    _set_limits(injection, triplets)
    guide, _ = affine_fit((msi - msi.mean(0)) / injection.msi_std, hsi)
    injection.weights[:, : msi.shape[1]] = guide
    if inputs:
        triplets = _as_noisy(triplets, missing_noise(pairs, inputs, spread))
    sums = [_sums(injection, triplet) for triplet in triplets]
    injection.weights += _chosen(injection.config, _Sums.together(sums)).T
    _fit_gains(injection, triplets, hsi)
    return injection


def _all_spectra(triplets: Sequence[KnownFine], spread: PointSpread) -> tuple[Tensor, Tensor]:
    """Return (N, L) and (N, M) float64 spectra of both sensors, at both scales.

    Coarse pixels beside the degraded multispectral image, and known fine pixels beside the
    multispectral image itself.
    """
    hsi, msi = seen_by_both([triplet.pair for triplet in triplets], spread)
    fine_hsi, fine_msi = [], []
    for triplet in triplets:
        use = _use(triplet)
        fine_hsi.append(triplet.target.movedim(1, -1)[use])
        fine_msi.append(triplet.pair.msi.movedim(1, -1)[use])
    step = max(1, sum(map(len, fine_hsi)) // _MOST_SPECTRA)
    return (
        torch.cat([hsi, torch.cat(fine_hsi)[::step].double()]),
        torch.cat([msi, torch.cat(fine_msi)[::step].double()]),
    )


@dataclass(frozen=True, eq=False)
class _Noisy:
    """A triplet whose coarse image got noise."""

    pair: ImagePair
    target: Tensor
    target_valid: Tensor


def _as_noisy(triplets: Sequence[KnownFine], noise: Tensor) -> Sequence[KnownFine]:
    """Add noise (L,) to the coarse images; several times, where pixels are few."""
    if not bool(noise.any()):
        return triplets
    pixels = sum(triplet.pair.hsi_valid.numel() for triplet in triplets)
    draws = max(1, min(_MOST_DRAWS, _DRAWN_PX // pixels))
    return [
        _Noisy(
            replace(triplet.pair, hsi=with_noise(triplet.pair.hsi, noise, draw + draws * index)),
            triplet.target,
            triplet.target_valid,
        )
        for index, triplet in enumerate(triplets)
        for draw in range(draws)
    ]


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums over the pixels of each fold F, of features P and of what they shall explain, L bands.

    Args:
        square: (F, P, P) of features by features.
        cross: (F, P, L) of features by what is missing.
        energy: (F, L) of the square of what is missing.
    """

    square: Tensor
    cross: Tensor
    energy: Tensor

    @classmethod
    def together(cls, parts: Sequence[_Sums]) -> _Sums:
        """Add the sums of several triplets."""
        return cls(
            torch.stack([part.square for part in parts]).sum(0),
            torch.stack([part.cross for part in parts]).sum(0),
            torch.stack([part.energy for part in parts]).sum(0),
        )

    def without(self, fold: int) -> tuple[Tensor, Tensor]:
        """Return (P, P) and (P, L) sums over all folds but one."""
        return self.square.sum(0) - self.square[fold], self.cross.sum(0) - self.cross[fold]

    def error(self, fold: int, weights: Tensor) -> Tensor:
        """Return (L,) squared errors that ``weights`` (P, L) leave in a fold."""
        explained = 2 * (weights * self.cross[fold]).sum(0)
        spent = (weights * (self.square[fold] @ weights)).sum(0)
        error: Tensor = self.energy[fold] - explained + spent
        return error


def _standardised(hsi: Tensor, msi: Tensor, spread: PointSpread) -> Injection:
    """Make an injection whose means, scales and axes are those of pixels (N, L) and (N, M)."""
    injection = Injection(InjectionConfig(hsi.shape[1], msi.shape[1], spread.ratio, spread.size))
    injection.spread.load_state_dict(spread.state_dict())
    injection.hsi_mean, injection.msi_mean = usual_spectra(hsi, msi)
    injection.msi_std = msi.std(0, correction=0).clamp(min=1e-6).float()
    standard = (msi - msi.mean(0)) / injection.msi_std
    few = msi.shape[1] <= MOST_CURVED
    axes = torch.eye(msi.shape[1]) if few else _components(standard)[: injection.config.curved]
    injection.curved_axes = axes.float()
    injection.spectral_axes = _unit_variance(hsi, _components(hsi)[: injection.config.spectral])
    return injection


def _components(values: Tensor) -> Tensor:
    """(N, C) → (C, C) float64 principal axes, one a row, the widest first."""
    centred = values - values.mean(0)
    axes: Tensor = torch.linalg.eigh(centred.T @ centred)[1].T
    return axes.flip(0)


def _unit_variance(values: Tensor, axes: Tensor) -> Tensor:
    """Scale ``axes`` (K, C) so that ``values`` (N, C) spread by 1 along each; float32."""
    spread = (values @ axes.T).std(0, correction=0)
    return (axes / spread.clamp(min=1e-6)[:, None]).float()


def _set_limits(injection: Injection, triplets: Sequence[KnownFine]) -> None:
    """Take down the least and most value along each axis where the target is known."""
    curved, spectral = [], []
    for triplet in triplets:
        hsi, msi = without_gaps(triplet.pair, injection.hsi_mean, injection.msi_mean)
        values, spectrum = injection.along_axes(hsi, msi)
        use = _use(triplet)
        coarse = max_pool2d(use.float()[:, None], injection.ratio)[:, 0] > 0
        curved.append(values.movedim(1, -1)[use])
        spectral.append(spectrum.movedim(1, -1)[coarse])
    injection.curved_limits = torch.stack(torch.aminmax(torch.cat(curved), dim=0))
    injection.spectral_limits = torch.stack(torch.aminmax(torch.cat(spectral), dim=0))


def _sums(injection: Injection, triplet: KnownFine) -> _Sums:
    """Sum over the valid pixels of a triplet, for each of its quarters."""
    hsi, msi = without_gaps(triplet.pair, injection.hsi_mean, injection.msi_mean)
    features = injection.features(hsi, msi)
    missing = triplet.target - upsample(hsi, injection.ratio) - injection.injected(features)
    use, fold = _use(triplet), _quarters(features)
    squares, crosses, energies = [], [], []
    for index in range(_FOLDS):
        here = use & (fold == index)
        inputs = features.movedim(1, -1)[here].double()
        outputs = missing.movedim(1, -1)[here].double()
        squares.append(inputs.T @ inputs)
        crosses.append(inputs.T @ outputs)
        energies.append(outputs.square().sum(0))
    return _Sums(torch.stack(squares), torch.stack(crosses), torch.stack(energies))


def _use(triplet: KnownFine) -> Tensor:
    """(B, H, W) bool: where the target and both images are valid."""
    ratio = triplet.pair.ratio
    coarse = triplet.pair.hsi_valid.repeat_interleave(ratio, 1).repeat_interleave(ratio, 2)
    return coarse & triplet.pair.msi_valid & triplet.target_valid


def _quarters(image: Tensor) -> Tensor:
    """(B, C, H, W) → (1, H, W), in which quarter each pixel lies, 0 to 3."""
    height, width = image.shape[-2:]
    lower = torch.arange(height, device=image.device) * 2 >= height
    right = torch.arange(width, device=image.device) * 2 >= width
    return (lower.long()[:, None] * 2 + right.long())[None]


def _chosen(config: InjectionConfig, sums: _Sums) -> Tensor:
    """Return (P, L) weights that unseen places like best; all 0 when they like none.

    What is compared is the mean logarithm of the bands' errors, as PSNR does: bands of low
    reflectance count like others.
    """
    scale = sums.square.sum(0).diagonal().sqrt().clamp(min=1e-12)
    best, best_error = torch.zeros_like(sums.cross[0]), _log_error(sums.energy.sum(0))
    for names in CANDIDATES:
        used = torch.cat(
            [torch.full((size,), name in names) for name, size in config.groups().items()]
        )
        for ridge in RIDGES:
            error = torch.zeros_like(sums.energy[0])
            for fold in range(_FOLDS):
                weights = _solved(*sums.without(fold), scale, used, ridge)
                error = error + sums.error(fold, weights)
            if (log_error := _log_error(error)) < best_error:
                best = _solved(sums.square.sum(0), sums.cross.sum(0), scale, used, ridge)
                best_error = log_error
                logger.debug("%s with a ridge of %g: %.4f", "+".join(names), ridge, log_error)
    return best


def _log_error(error: Tensor) -> float:
    """(L,) squared errors → the mean of their logarithms."""
    return float(error.clamp(min=1e-30).log().mean())


def _solved(square: Tensor, cross: Tensor, scale: Tensor, used: Tensor, ridge: float) -> Tensor:
    """Ridge regression on the ``used`` features, each scaled to unit norm; (P, L)."""
    norm = scale[used]
    system = square[used][:, used] / norm[:, None] / norm
    system = system + ridge * torch.eye(len(norm)).to(system)
    weights = torch.zeros_like(cross)
    weights[used] = torch.linalg.solve(system, cross[used] / norm[:, None]) / norm[:, None]
    return weights


def _fit_gains(injection: Injection, triplets: Sequence[KnownFine], hsi: Tensor) -> None:
    """Fit, along each component of the spectra, how much of what the coarse image says is true.

    Two gains a component: of the interpolated image itself, and of what the result, degraded,
    lacks of it. The first is at most 0 and no less than -1, which takes the component away.

    Args:
        injection: with its weights; gets its two matrices.
        triplets: with the known fine images.
        hsi: (N, L) coarse spectra, whose components are used.
    """
    axes = _components(hsi).to(injection.weights)
    square, cross = torch.zeros(2, 2, len(axes)), torch.zeros(2, len(axes))
    for triplet in triplets:
        causes, effect = _along(injection, triplet, axes)
        square += torch.einsum("icn,jcn->ijc", causes, causes).cpu()
        cross += torch.einsum("icn,cn->ic", causes, effect).cpu()
    own, back = _two_gains(square.double(), cross.double())
    own, back = own.clamp(-1, 0).to(axes), back.clamp(0, 1).to(axes)
    injection.denoising = axes.T @ (own[:, None] * axes)
    injection.giving_back = axes.T @ (back[:, None] * axes)


def _along(injection: Injection, triplet: KnownFine, axes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two causes (2, C, N) and the effect (C, N) along ``axes``, valid pixels."""
    hsi, msi = without_gaps(triplet.pair, injection.hsi_mean, injection.msi_mean)
    features = injection.features(hsi, msi)
    first = upsample(hsi, injection.ratio) + injection.injected(features)
    lacks = upsample(hsi - injection.spread.degrade(first), injection.ratio)
    own = upsample(hsi - injection.hsi_mean[:, None, None], injection.ratio)
    use = _use(triplet)
    image = torch.stack([own, lacks, triplet.target - first])
    along = torch.einsum("kl,sbln->skbn", axes, image.flatten(3))
    rows = along.reshape(3, len(axes), -1)[:, :, use.flatten()]
    return rows[:2], rows[2]


def _two_gains(square: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
    """Solve (2, 2, C) · gains = (2, C) for each component, with 1 % more on the diagonal."""
    one, two = square[0, 0] * 1.01 + 1e-12, square[1, 1] * 1.01 + 1e-12
    both = square[0, 1]
    determinant = one * two - both**2
    return (
        (two * cross[0] - both * cross[1]) / determinant,
        (one * cross[1] - both * cross[0]) / determinant,
    )

"""The losses of CSAKD: what is lost to the truth, and what a student learns from its teacher.

Values and weights are those of the published code (arXiv 2406.19666): smooth L1, an angle of
spectra, an error of bands by their energy, and a student's distance to its teacher's answer and
features, each of the last four a tenth. Two terms of that code do not do what their names say: its
angle is taken of values that lie one after another in memory, which are pixels of one band, and
its energies, of a scale from -1 to 1, are lowest at middle values. Here both are as meant; a
setting gives them as published.

Every loss takes a mask. Where all is valid, it is the published value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

Distillation = Literal["none", "response", "feature", "both"]
"""What the student learns from its teacher: nothing, its image, its fused map, or both."""

# Published: added to each band's energy, so that a black band does not count for everything.
ENERGY_FLOOR = 0.1
# Published: added to the product of lengths, so that a spectrum of zeros has an angle.
ANGLE_EPSILON = 1e-8


@dataclass(frozen=True)
class FusionLossSettings:
    """Weights of the terms beside smooth L1, whose weight is 1; a term of weight 0 is left out.

    Args:
        spectral_angle: weight of 1 - cosine of spectra.
        band_energy: weight of the bands' error by their energy.
        response: weight of the student's distance to the teacher's image.
        feature: weight of its distance to the teacher's fused map.
        zero: value of no reflectance on the images' scale; angles are taken from there, and
            energies are of ``(value - zero) / 2``. On a scale from -1 to 1, -1.
        published_angle: the published code's angle.
        published_energy: the published code's energies and its constant, which may make the loss
            negative.

    Raises:
        ValueError: a weight is negative.
    """

    spectral_angle: float = 0.1
    band_energy: float = 0.1
    response: float = 0.1
    feature: float = 0.1
    zero: float = -1.0
    published_angle: bool = False
    published_energy: bool = False

    def __post_init__(self) -> None:
        for name in ("spectral_angle", "band_energy", "response", "feature"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"The weight {name} is at least 0, not {getattr(self, name)}.")

    def distilling(self, kind: Distillation) -> Self:
        """The same without what ``kind`` does not name."""
        return replace(
            self,
            response=self.response if kind in ("response", "both") else 0.0,
            feature=self.feature if kind in ("feature", "both") else 0.0,
        )


class FusionLoss(NamedTuple):
    """A loss and what it is made of.

    Attributes:
        total: () the weighted sum, with gradients.
        terms: each term before its weight, without gradients.
    """

    total: Tensor
    terms: dict[str, Tensor]


def teacher_loss(
    image: Tensor,
    target: Tensor,
    settings: FusionLossSettings | None = None,
    valid: Tensor | None = None,
) -> FusionLoss:
    """What a network loses to the truth.

    Args:
        image: (B, L, H, W) its answer, on a scale of about -1 to 1.
        target: (B, L, H, W) the truth, on the same.
        settings: weights; the published ones when None.
        valid: (B, H, W) bool, True = counts; all when None.
    """
    settings = settings or FusionLossSettings()
    return _weighted(_truth_terms(image, target, settings, valid), settings)


def student_loss(
    image: Tensor,
    features: Tensor,
    target: Tensor,
    teacher_image: Tensor,
    teacher_features: Tensor,
    settings: FusionLossSettings | None = None,
    valid: Tensor | None = None,
) -> FusionLoss:
    """What a student loses to the truth and to its teacher, who gets no gradient.

    Args:
        image: (B, L, H, W) its answer.
        features: (B, D, H, W) its fused map.
        target: (B, L, H, W) the truth.
        teacher_image: (B, L, H, W).
        teacher_features: (B, D, H, W).
        settings: weights; the published ones when None.
        valid: (B, H, W) bool, True = counts; all when None.
    """
    settings = settings or FusionLossSettings()
    terms = _truth_terms(image, target, settings, valid)
    if settings.response > 0:
        terms["response"] = smooth_l1(image, teacher_image.detach(), valid)
    if settings.feature > 0:
        terms["feature"] = feature_distance(features, teacher_features, valid)
    return _weighted(terms, settings)


def smooth_l1(found: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean of d² / 2 where d = |found - target| is below 1, and of d - 1/2 elsewhere.

    Args:
        found: (B, C, H, W).
        target: (B, C, H, W).
        valid: (B, H, W) bool, True = counts; all when None.
    """
    return _mean(F.smooth_l1_loss(found, target, reduction="none"), valid)


def spectral_angle(found: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """1 - mean cosine between spectra.

    The cosine, not the angle: the angle's slope has no bound where both agree.

    Args:
        found: (B, L, H, W), from 0 where there is no signal.
        target: (B, L, H, W).
        valid: (B, H, W) bool, True = counts; all when None.
    """
    return _mean(1.0 - _cosine(found, target, dim=1)[:, None], valid)


def published_spectral_angle(found: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """The published code's angle: of L values that follow each other in memory, for parity.

    Args:
        found: (B, L, H, W) on a scale from -1 to 1.
        target: (B, L, H, W).
        valid: (B, H, W) bool; a row of values counts when all of its pixels do. All when None.
    """
    bands = found.shape[1]
    rows = _cosine(found.reshape(-1, bands), target.reshape(-1, bands), dim=1)
    if valid is None:
        return 1.0 - rows.mean()
    counts = valid[:, None].expand_as(found).reshape(-1, bands).all(dim=1)
    return 1.0 - (rows * counts).sum() / counts.sum().clamp(min=1)


def band_energy(found: Tensor, target: Tensor, unit_target: Tensor, valid: Tensor | None) -> Tensor:
    """Smooth L1 of each band by its energy, so that dark bands count (band-energy-balanced).

    mean_b( SmoothL1_b / (mean(y_b²) + 0.1) ), with y from 0 to 1 and means of each image: the
    published formula on the scale on which it does what it is named for.

    Args:
        found: (B, L, H, W).
        target: (B, L, H, W).
        unit_target: (B, L, H, W) the target on a scale from 0 to 1.
        valid: (B, H, W) bool, True = counts; all when None.
    """
    error = _mean_px(F.smooth_l1_loss(found, target, reduction="none"), valid)
    energy = _mean_px(unit_target.square(), valid) + ENERGY_FLOOR
    return _mean_images(error / energy, valid)


def published_band_energy(found: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """The published code's form, for parity: energies of -1 to 1, and -1/2 at every error.

    mean_b( mean(d² / 2 + max(d - 1, 0) - 1/2) / mean(y_b² + 0.1) ), with d = |found - target|.

    Args:
        found: (B, L, H, W) on a scale from -1 to 1.
        target: (B, L, H, W).
        valid: (B, H, W) bool, True = counts; all when None.
    """
    distance = (found - target).abs()
    error = _mean_px(distance.square() / 2 + F.relu(distance - 1) - 0.5, valid)
    energy = _mean_px(target.square(), valid) + ENERGY_FLOOR
    return _mean_images(error / energy, valid)


def feature_distance(student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
    """Binary cross entropy of the student's map, as logits, to the teacher's after a sigmoid.

    As published. Its least value is the entropy of the teacher's map, not 0.

    Args:
        student: (B, D, H, W).
        teacher: (B, D, H, W), gets no gradient.
        valid: (B, H, W) bool, True = counts; all when None.
    """
    target = teacher.detach().sigmoid()
    return _mean(F.binary_cross_entropy_with_logits(student, target, reduction="none"), valid)


def with_noise(hsi: Tensor, noise: Tensor, snr_db: float, zero: float = 0.0) -> Tensor:
    """Add noise of one spread for the whole batch, so strong below the signal.

    sigma = sqrt(mean((hsi - zero)²) / 10^(snr / 10)). Published with ``zero`` = 0 on a scale from
    -1 to 1, where a dark image counts as a strong signal; with ``zero`` = -1 the signal is that of
    the sensor.

    Args:
        hsi: (B, L, h, w).
        noise: (B, L, h, w) of a standard normal distribution.
        snr_db: signal to noise in decibels.
        zero: value of no signal.
    """
    sigma = ((hsi - zero).square().mean() / 10 ** (snr_db / 10)).sqrt()
    return torch.addcmul(hsi, noise, sigma)


def _truth_terms(
    image: Tensor, target: Tensor, settings: FusionLossSettings, valid: Tensor | None
) -> dict[str, Tensor]:
    """The terms that need no teacher, those of weight 0 left out."""
    if valid is not None:  # what is not known may not be finite, which would reach gradients
        target = torch.where(valid[:, None], target, settings.zero)
    terms = {"smooth_l1": smooth_l1(image, target, valid)}
    if settings.spectral_angle > 0:
        terms["spectral_angle"] = (
            published_spectral_angle(image, target, valid)
            if settings.published_angle
            else spectral_angle(image - settings.zero, target - settings.zero, valid)
        )
    if settings.band_energy > 0:
        terms["band_energy"] = (
            published_band_energy(image, target, valid)
            if settings.published_energy
            else band_energy(image, target, (target - settings.zero) / 2, valid)
        )
    return terms


def _weighted(terms: dict[str, Tensor], settings: FusionLossSettings) -> FusionLoss:
    total = terms["smooth_l1"]
    for name, value in terms.items():
        if name != "smooth_l1":
            total = total + getattr(settings, name) * value
    return FusionLoss(total, {name: value.detach() for name, value in terms.items()})


def _cosine(found: Tensor, target: Tensor, dim: int) -> Tensor:
    """Cosine along a dimension; 0 where either is all zeros."""
    product = (found * target).sum(dim)
    lengths = torch.linalg.vector_norm(found, dim=dim) * torch.linalg.vector_norm(target, dim=dim)
    cosine: Tensor = product / (lengths + ANGLE_EPSILON)
    return cosine


def _mean(values: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over all that counts: (B, C, H, W) and (B, H, W) to ()."""
    if valid is None:
        return values.mean()
    kept = torch.where(valid[:, None], values, 0.0)
    return kept.sum() / (valid.sum().clamp(min=1) * values.shape[1])


def _mean_px(values: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over each image's pixels: (B, C, H, W) to (B, C)."""
    if valid is None:
        return values.mean(dim=(2, 3))
    kept = torch.where(valid[:, None], values, 0.0)
    return kept.sum(dim=(2, 3)) / valid.sum(dim=(1, 2)).clamp(min=1)[:, None]


def _mean_images(values: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over (B, C), of the images that have a valid pixel."""
    if valid is None:
        return values.mean()
    known = valid.flatten(1).any(dim=1)
    kept = torch.where(known[:, None], values, 0.0)
    return kept.sum() / (known.sum().clamp(min=1) * values.shape[1])

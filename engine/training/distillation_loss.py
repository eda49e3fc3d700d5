"""The loss of the distillation: reconstruction by MSE and SSIM, and the teacher's signal by KL.

HyperKD (arXiv 2508.09453) combines MSE, SSIM and a KL divergence. What the divergence compares,
the weights, the temperature and the windows are not known to us. Here it compares softened
features of student and teacher; a divergence of spectra, the other reading, is an option. All
numbers are settings of ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.models.mae import StudentOutput
from engine.models.patches import patchify, put_tokens, take_tokens, unpatchify

# Wang et al., "Image quality assessment" (2004), for reflectance with a range of 1.
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
SPECTRAL_FLOOR = 1e-6  # reflectance added to every band, so that a spectrum of zeros is a share


@dataclass(frozen=True)
class LossSettings:
    """Weights and settings of the terms; a term of weight 0 is not computed.

    Args:
        mse: weight of the squared error of hidden tokens.
        ssim: weight of 1 - SSIM of the composite image.
        features: weight of the distance to the teacher's features.
        spectral: weight of the divergence between spectra of hidden pixels.
        temperature: above 0, by which features are divided before they become shares.
        feature_loss: "kl" between softened features, or "mse" between normalised ones.
        ssim_bands: bands a step for SSIM, drawn anew each time: neighbours are so alike that a
            few give the same gradient on average, and 32 would take a tenth of a small step.
        ssim_window_px: side of SSIM's Gaussian window, odd; smaller tiles get the largest that
            fits into them.
        ssim_sigma_px: its standard deviation.

    Raises:
        ValueError: a weight is negative, all are 0, or a setting is out of range.
    """

    mse: float = 1.0
    ssim: float = 0.1
    features: float = 1.0
    spectral: float = 0.0
    temperature: float = 2.0
    feature_loss: Literal["kl", "mse"] = "kl"
    ssim_bands: int = 8
    ssim_window_px: int = 11
    ssim_sigma_px: float = 1.5

    def __post_init__(self) -> None:
        weights = (self.mse, self.ssim, self.features, self.spectral)
        if min(weights) < 0 or not any(weights):
            raise ValueError(f"A loss has weights of 0 or more, not all 0; not {weights}.")
        if self.temperature <= 0:
            raise ValueError(f"The temperature is above 0, not {self.temperature}.")
        if self.ssim_bands < 1 or self.ssim_window_px % 2 != 1 or self.ssim_sigma_px <= 0:
            raise ValueError(
                "SSIM needs a band or more, an odd window and a width above 0, not "
                f"{self.ssim_bands}, {self.ssim_window_px} px and {self.ssim_sigma_px} px."
            )


@dataclass(frozen=True, eq=False)
class _Hidden:
    """The hidden tokens of a batch, predicted and true, in float32; k counts their pixels.

    Args:
        predicted: (B, k, C) normalised.
        target: (B, k, C) normalised.
        pixel_weight: (B, k), 1 where valid, else 0.
        band_weight: (B, C), 1 where present, else 0.
        ids: (B, M) int64, the tokens.
        patch_px: p, so that k = M * p * p.
        complete: all weights are 1, so that nothing has to be multiplied.
    """

    predicted: Tensor
    target: Tensor
    pixel_weight: Tensor
    band_weight: Tensor
    ids: Tensor
    patch_px: int
    complete: bool


class DistillationLoss:
    """All terms for a batch, in float32 whatever the precision around.

    Args:
        settings: weights and settings of the terms.
    """

    def __init__(self, settings: LossSettings) -> None:
        self.settings = settings

    def __call__(
        self,
        output: StudentOutput,
        x: Tensor,
        valid: Tensor,
        band_present: Tensor,
        teacher_features: Sequence[Tensor],
        band_mean: Tensor,
        band_std: Tensor,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Compute the loss of a batch.

        Pixels without data, and bands that a scene has not, count for nothing.

        Args:
            output: of the student for ``x``.
            x: (B, C, H, W) normalised, 0 where there is no data.
            valid: (B, H, W) bool, True = use.
            band_present: (B, C) bool, False where a sample's scene has not the band.
            teacher_features: for each tap (B, N_kept, width), as the student's.
            band_mean: (C,) reflectance, of the normalisation.
            band_std: (C,) reflectance, of the normalisation.
            generator: on the CPU; draws the bands for SSIM.

        Returns:
            "loss", the weighted sum with its gradient; and each term that has a weight, without
            weight and gradient, by its name in the settings.

        Raises:
            ValueError: the features are to be compared, and the teacher's are not as many.
        """
        settings = self.settings
        with torch.autocast(x.device.type, enabled=False):
            terms: dict[str, Tensor] = {}
            hidden = _hidden(output, x, valid, band_present)
            if settings.mse:
                terms["mse"] = _squared_error(hidden)
            if settings.ssim:
                bands = torch.randperm(x.shape[1], generator=generator)[: settings.ssim_bands]
                bands = bands.to(x.device)
                scale = band_mean[bands].float(), band_std[bands].float()
                terms["ssim"] = self._ssim_loss(hidden, x[:, bands].float(), valid, bands, scale)
            if settings.features:
                terms["features"] = self._feature_loss(output.features, teacher_features)
            if settings.spectral:
                target, predicted = (
                    part * band_std + band_mean for part in (hidden.target, hidden.predicted)
                )
                terms["spectral"] = spectral_divergence(
                    target, predicted, hidden.pixel_weight, hidden.band_weight
                )
            loss = torch.stack([getattr(settings, name) * term for name, term in terms.items()])
        return {"loss": loss.sum()} | {name: term.detach() for name, term in terms.items()}

    def _ssim_loss(
        self,
        hidden: _Hidden,
        x: Tensor,
        valid: Tensor,
        bands: Tensor,
        scale: tuple[Tensor, Tensor],
    ) -> Tensor:
        """1 - mean SSIM of the composite for S of the bands; ``x`` (B, S, H, W) holds these."""
        p = hidden.patch_px
        rows, cols = x.shape[-2] // p, x.shape[-1] // p
        predicted = hidden.predicted.index_select(2, bands)
        if not hidden.complete:  # without data both images are 0, and the same
            predicted = predicted * hidden.pixel_weight[:, :, None]
        predicted = predicted.view(*hidden.ids.shape, -1)
        composite = unpatchify(put_tokens(patchify(x, p), hidden.ids, predicted), p, rows, cols)
        mean, std = (value[:, None, None] for value in scale)
        composite, original = ((image * std + mean).clamp(0.0, 1.0) for image in (composite, x))
        settings = self.settings
        similarity = ssim_map(composite, original, settings.ssim_window_px, settings.ssim_sigma_px)
        margin_px = (x.shape[-1] - similarity.shape[-1]) // 2
        inner = valid[:, None, margin_px:, margin_px:]
        inner = inner[..., : similarity.shape[-2], : similarity.shape[-1]]
        weight = inner * hidden.band_weight[:, bands, None, None]
        return ((1.0 - similarity) * weight).sum() / weight.sum().clamp_min(1.0)

    def _feature_loss(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Mean over the taps."""
        if not student or len(student) != len(teacher):
            raise ValueError(
                f"The student gives features of {len(student)} blocks, the teacher of "
                f"{len(teacher)}; without a teacher their weight must be 0."
            )
        terms = []
        for ours, theirs in zip(student, teacher, strict=True):
            ours, theirs = (F.layer_norm(h.float(), h.shape[-1:]) for h in (ours, theirs.detach()))
            if self.settings.feature_loss == "mse":
                terms.append(F.mse_loss(ours, theirs))
            else:
                terms.append(softened_divergence(theirs, ours, self.settings.temperature))
        return torch.stack(terms).mean()


def softened_divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of features that a temperature turned into shares of their sum.

    Args:
        teacher: (…, D).
        student: (…, D).
        temperature: T; the divergence is multiplied by T², so that the size of its gradient
            does not depend on it (Hinton et al. 2015).

    Returns:
        () mean over the tokens, at least 0.
    """
    log_p = F.log_softmax(teacher / temperature, dim=-1)
    log_q = F.log_softmax(student / temperature, dim=-1)
    divergence = F.kl_div(log_q, log_p, log_target=True, reduction="sum")
    return divergence * temperature**2 / math.prod(teacher.shape[:-1])


def spectral_divergence(
    target: Tensor, predicted: Tensor, pixel_weight: Tensor, band_weight: Tensor
) -> Tensor:
    """KL(target || predicted) of spectra as shares of their sum.

    Args:
        target: (B, k, C) reflectance; what is negative counts as 0.
        predicted: (B, k, C) reflectance.
        pixel_weight: (B, k), 0 for pixels that do not count.
        band_weight: (B, C), 0 for bands that do not count.

    Returns:
        () mean over the pixels, at least 0.
    """
    band = band_weight[:, None]
    log_q, log_predicted = (
        (floored / floored.sum(dim=2, keepdim=True)).clamp_min(1e-12).log()
        for floored in (
            (part.clamp_min(0.0) + SPECTRAL_FLOOR) * band for part in (target, predicted)
        )
    )
    divergence = (log_q.exp() * (log_q - log_predicted) * band).sum(dim=2)
    return (divergence * pixel_weight).sum() / pixel_weight.sum().clamp_min(1.0)


def ssim_map(a: Tensor, b: Tensor, window_px: int = 11, sigma_px: float = 1.5) -> Tensor:
    """Structural similarity of two images at every pixel whose window lies inside.

    Wang et al. 2004, for a data range of 1, with a Gaussian window.

    Args:
        a: (B, S, H, W), 0 to 1.
        b: (B, S, H, W), 0 to 1, without gradient.
        window_px: side of the window, odd; the largest odd one that fits if the image is smaller.
        sigma_px: standard deviation of the window.

    Returns:
        (B, S, H - window + 1, W - window + 1), at most 1.
    """
    window_px = min(window_px, *(side - 1 + side % 2 for side in a.shape[-2:]))
    # Variances as differences of squares keep their digits when the level is taken away first.
    level = b.mean(dim=(2, 3), keepdim=True)
    a0, b0 = a - level, b - level
    blurred = _blur(torch.cat([a0, a0 * a0, a0 * b0]), window_px, sigma_px)
    mean_a, square_a, product = blurred.chunk(3)
    mean_b, square_b = _blur(torch.cat([b0, b0 * b0]), window_px, sigma_px).chunk(2)
    variances = (square_a - mean_a * mean_a) + (square_b - mean_b * mean_b)
    covariance = product - mean_a * mean_b
    mean_a, mean_b = mean_a + level, mean_b + level
    luminance = (2 * mean_a * mean_b + SSIM_C1) / (mean_a * mean_a + mean_b * mean_b + SSIM_C1)
    return luminance * (2 * covariance + SSIM_C2) / (variances + SSIM_C2)


def _blur(images: Tensor, window_px: int, sigma_px: float) -> Tensor:
    """Gaussian means inside (B, S, H, W), one axis after the other."""
    bands = images.shape[1]
    offset = torch.arange(window_px, device=images.device) - window_px // 2
    kernel = torch.exp(-0.5 * (offset / sigma_px) ** 2).to(images)
    kernel = (kernel / kernel.sum()).repeat(bands, 1, 1, 1)  # (S, 1, 1, window)
    images = F.conv2d(images, kernel, groups=bands)
    return F.conv2d(images, kernel.transpose(2, 3), groups=bands)


def _hidden(output: StudentOutput, x: Tensor, valid: Tensor, band_present: Tensor) -> _Hidden:
    b, c = x.shape[:2]
    patch_px = math.isqrt(output.prediction.shape[-1] // c)
    ids = output.ids_masked
    target = take_tokens(patchify(x.float(), patch_px), ids).view(b, -1, c)
    pixel_weight = take_tokens(patchify(valid[:, None].float(), patch_px), ids).flatten(1)
    predicted = output.prediction.float().view(b, -1, c)
    complete = bool(valid.all() & band_present.all())
    present = band_present.float()
    return _Hidden(predicted, target, pixel_weight, present, ids, patch_px, complete)


def _squared_error(hidden: _Hidden) -> Tensor:
    """Mean over all values that count."""
    if hidden.complete:
        return F.mse_loss(hidden.predicted, hidden.target)
    weight = hidden.pixel_weight[:, :, None] * hidden.band_weight[:, None]
    # Weights are 0 or 1, so that both sides may be multiplied; the fused loss takes a third of
    # the time of weighted squares.
    squares = F.mse_loss(hidden.predicted * weight, hidden.target * weight, reduction="sum")
    count = hidden.pixel_weight.sum(dim=1) @ hidden.band_weight.sum(dim=1)
    return squares / count.clamp_min(1.0)

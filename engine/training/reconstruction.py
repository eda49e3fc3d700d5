"""How well a student tells what it was not shown: PSNR, SSIM and spectral angle."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.functional.image import (
    spectral_angle_mapper,
    structural_similarity_index_measure,
)
from torchmetrics.image import PeakSignalNoiseRatio

# The library's SSIM holds a dozen copies of what it is given; this bounds them to about 0.5 GB.
SSIM_MAX_VALUES = 8_000_000


@dataclass(frozen=True)
class ReconstructionResult:
    """Scores of reconstructions in reflectance, on hidden tokens and on the whole composite.

    The whole holds the visible tokens as they are, so its scores are better by nature.

    Args:
        psnr_db: peak signal-to-noise ratio of the hidden values, for a peak of 1.
        ssim: mean structural similarity at the hidden pixels, over all bands.
        spectral_angle_deg: mean angle between true and predicted spectra of hidden pixels.
        psnr_db_whole: as ``psnr_db``, of all values.
        ssim_whole: as ``ssim``, of all pixels.
        spectral_angle_deg_whole: as ``spectral_angle_deg``, of all pixels.
    """

    psnr_db: float
    ssim: float
    spectral_angle_deg: float
    psnr_db_whole: float
    ssim_whole: float
    spectral_angle_deg_whole: float

    def summary(self) -> dict[str, float]:
        """The six numbers by their names in results."""
        return asdict(self)


class ReconstructionScores:
    """Collects the scores batch by batch, on whatever device the batches are.

    Pixels without data, and bands that a sample's scene has not, count for nothing.
    """

    def __init__(self) -> None:
        self._psnr = {part: PeakSignalNoiseRatio(data_range=1.0) for part in ("", "_whole")}
        self._ssim = {part: MeanMetric() for part in ("", "_whole")}
        self._angle = {part: MeanMetric() for part in ("", "_whole")}
        self._seen = False

    @torch.no_grad()
    def update(
        self,
        composite: Tensor,
        x: Tensor,
        valid: Tensor,
        band_present: Tensor,
        masked: Tensor,
        band_mean: Tensor,
        band_std: Tensor,
    ) -> None:
        """Count a batch.

        Args:
            composite: (B, C, H, W) normalised, from `compose`.
            x: (B, C, H, W) normalised.
            valid: (B, H, W) bool, True = use.
            band_present: (B, C) bool, False where a sample's scene has not the band.
            masked: (B, N) bool, True = the token was hidden.
            band_mean: (C,) reflectance, of the normalisation.
            band_std: (C,) reflectance, of the normalisation.
        """
        mean, std = band_mean[:, None, None], band_std[:, None, None]
        present = band_present[:, :, None, None]
        predicted, target = (
            ((image.float() * std + mean) * present).masked_fill(~valid[:, None], 0.0)
            for image in (composite, x)
        )
        similarity = _ssim_in_parts(predicted, target)
        # Angles need a direction: pixels that are black in all bands have none.
        angle_deg = spectral_angle_mapper(predicted, target, reduction="none").rad2deg()
        has_angle = angle_deg.isfinite()
        hidden = valid & pixels_of(masked, valid.shape[-2:])
        for part, pixels in (("", hidden), ("_whole", valid)):
            counted = pixels[:, None] & present
            if not counted.any():
                continue
            self._seen = True
            self._on(self._psnr[part], x).update(predicted[counted], target[counted])
            self._on(self._ssim[part], x).update(similarity[counted])
            self._on(self._angle[part], x).update(angle_deg[pixels & has_angle])

    def result(self) -> ReconstructionResult:
        """The scores of what was counted so far.

        Raises:
            ValueError: nothing was counted.
        """
        if not self._seen:
            raise ValueError("No reconstruction was counted.")
        scores = {
            name + part: float(metrics[part].compute())
            for name, metrics in (
                ("psnr_db", self._psnr),
                ("ssim", self._ssim),
                ("spectral_angle_deg", self._angle),
            )
            for part in ("", "_whole")
        }
        return ReconstructionResult(**scores)

    def _on(self, metric: Metric, x: Tensor) -> Metric:
        return metric.to(x.device)


def pixels_of(token_values: Tensor, size_px: torch.Size) -> Tensor:
    """Spread tokens over their pixels.

    Args:
        token_values: (B, N), in row order; the tokens are square and fill the image.
        size_px: (H, W).

    Returns:
        (B, H, W).
    """
    h, w = size_px
    patch_px = round((h * w / token_values.shape[1]) ** 0.5)
    grid = token_values.view(-1, h // patch_px, w // patch_px)
    return grid.repeat_interleave(patch_px, dim=1).repeat_interleave(patch_px, dim=2)


def _ssim_in_parts(predicted: Tensor, target: Tensor) -> Tensor:
    """(B, C, H, W) structural similarity of (B, C, H, W) reflectance, clipped to 0..1."""
    values = predicted[0].numel()
    parts = max(1, -(-len(predicted) * values // SSIM_MAX_VALUES))
    maps = []
    for p, t in zip(predicted.chunk(parts), target.chunk(parts), strict=True):
        answer = structural_similarity_index_measure(
            p, t, reduction="none", data_range=(0.0, 1.0), return_full_image=True
        )
        maps.append(answer[1])
    return torch.cat(maps)

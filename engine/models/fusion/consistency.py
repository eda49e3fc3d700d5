"""How well a fused image, degraded as the sensors would, gives back what it was made of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from engine.models.fusion.degradation import PointSpread, SpectralResponse
from engine.models.fusion.method import ImagePair

# Below this mean reflectance a pixel is black, and no difference is relative to it.
_BLACK = 1e-3


class Consistency(NamedTuple):
    """Of a pair and what was made of it; errors and energies are means of squares over bands.

    Args:
        hsi_error: (B, h, w) of the degraded result less the hyperspectral image, 0 where not valid.
        hsi_energy: (B, h, w) of the hyperspectral image.
        hsi_valid: (B, h, w) bool, where both are known.
        msi_error: (B, h*r, w*r) of the result seen in the multispectral bands less that image.
        msi_energy: (B, h*r, w*r) of the multispectral image.
        msi_valid: (B, h*r, w*r) bool.
    """

    hsi_error: Tensor
    hsi_energy: Tensor
    hsi_valid: Tensor
    msi_error: Tensor
    msi_energy: Tensor
    msi_valid: Tensor

    def layers(self) -> Tensor:
        """What tiles pass on: (B, 4, h*r, w*r) of hyperspectral error and energy, then both others.

        NaN where a pixel is not known. A coarse pixel's values stand at all its fine pixels.
        """
        hsi = torch.stack([self.hsi_error, self.hsi_energy], dim=1)
        hsi = torch.where(self.hsi_valid[:, None], hsi, torch.nan)
        msi = torch.stack([self.msi_error, self.msi_energy], dim=1)
        msi = torch.where(self.msi_valid[:, None], msi, torch.nan)
        return torch.cat([interpolate(hsi, size=msi.shape[-2:]), msi], dim=1)

    def on_fine_grid(self) -> Tensor:
        """Relative root mean square differences, (B, 2, h*r, w*r): hyperspectral, multispectral.

        0 where a pixel is given back exactly; NaN where it is not known.
        """
        layers = self.layers()
        return relative_difference(layers[:, ::2], layers[:, 1::2])


def measure_consistency(
    result: Tensor, pair: ImagePair, spread: PointSpread, response: SpectralResponse
) -> Consistency:
    """Degrade a result both ways and compare.

    Args:
        result: (B, L, h*r, w*r) reflectance, in the bands of ``pair.hsi``; finite.
        pair: what it was made of.
        spread: of the hyperspectral sensor. A coarse pixel depends on fine ones of
            ``spread.reach_px`` coarse pixels around it.
        response: of the multispectral bands.
    """
    fine_valid = known_pixels(pair)
    low, low_valid = degrade_known(result, fine_valid, spread)
    hsi_valid = pair.hsi_valid & low_valid
    hsi_error = torch.square(low - pair.hsi).mean(1) * hsi_valid
    msi_error = torch.square(response(result) - pair.msi).mean(1) * fine_valid
    return Consistency(
        hsi_error=hsi_error,
        hsi_energy=torch.square(pair.hsi).mean(1),
        hsi_valid=hsi_valid,
        msi_error=msi_error,
        msi_energy=torch.square(pair.msi).mean(1),
        msi_valid=fine_valid,
    )


def degrade_known(image: Tensor, valid: Tensor, spread: PointSpread) -> tuple[Tensor, Tensor]:
    """Degrade what is valid; where all is, in a third of the time that masks take.

    Args:
        image: (B, L, h*r, w*r).
        valid: (B, h*r, w*r) bool.
        spread: of the coarse sensor.

    Returns:
        (B, L, h, w), and (B, h, w) bool where it is known.
    """
    if not bool(valid.all()):
        return spread.degrade(image, valid)
    low = spread.degrade(image)
    return low, valid.new_ones(len(low), *low.shape[-2:])


def known_pixels(pair: ImagePair) -> Tensor:
    """Fine pixels that are valid in both images, (B, h*r, w*r) bool."""
    coarse = pair.hsi_valid.repeat_interleave(pair.ratio, 1).repeat_interleave(pair.ratio, 2)
    return coarse & pair.msi_valid


def relative_difference(error: Tensor, energy: Tensor) -> Tensor:
    """Root mean square difference relative to the image, of squares; NaN stays."""
    return torch.sqrt(error / energy.clamp(min=_BLACK**2))

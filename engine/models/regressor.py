"""The regressor: a quantity in its unit from the spectrum and what surrounds it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.models.pixel_model import PixelModel, PixelModelConfig


@dataclass(frozen=True)
class RegressorConfig(PixelModelConfig):
    """The settings of the regressor.

    It answers in standard units: the value, or its logarithm, less the training values' mean and
    over their spread.

    Args:
        in_channels: C, bands.
        value_mean: of the training values, or of their logarithm.
        value_std: their spread, above 0.
        log1p: whether it learned log(1 + value), as it does for values that are strongly skewed.

    Raises:
        ValueError: a setting is out of range.
    """

    in_channels: int
    value_mean: float = 0.0
    value_std: float = 1.0
    log1p: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.value_mean):
            raise ValueError(f"The mean of the training values is {self.value_mean}.")
        if not (math.isfinite(self.value_std) and self.value_std > 0):
            raise ValueError(f"The spread of the training values is {self.value_std}, not above 0.")

    @property
    def bands(self) -> int:
        """C."""
        return self.in_channels

    @property
    def outputs(self) -> int:
        """One value."""
        return 1

    def build(self) -> HyperKDRegressor:
        """A regressor with these settings and fresh weights."""
        return HyperKDRegressor(self)


class HyperKDRegressor(PixelModel):
    """Spectral reflectance in, a quantity in its unit out; never clamped.

    Args:
        config: see there.
    """

    config: RegressorConfig

    def forward(self, reflectance: Tensor, valid: Tensor) -> Tensor:
        """Estimate the quantity on chips of any size from one pixel up.

        Args:
            reflectance: (B, C, h, w) float32, 0 to 1.
            valid: (B, h, w) bool, True = use; what stands elsewhere in ``reflectance`` does not
                matter.

        Returns:
            (B, 1, h, w) float32 in the quantity's unit; meaningless where not valid.
        """
        return self.to_unit(self.answers(reflectance, valid))

    def to_unit(self, answers: Tensor) -> Tensor:
        """Turn answers in standard units, of any shape, into values in the quantity's unit."""
        config = self.config
        values = answers.float() * config.value_std + config.value_mean
        return torch.expm1(values) if config.log1p else values

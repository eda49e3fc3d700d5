"""Cheap models that see a whole chip: where a tile lies shows in what they say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from engine.packages.build import ARCHITECTURES, Architecture
from engine.packages.metadata import ModelInfo, Normalisation
from engine.packages.package import save_package
from engine.raster.spectra import BandTable
from engine.raster.style import ClassInfo
from engine.raster.tiles import Tiling

CHIP_PX, HALO_PX = 32, 2  # of the laptop preset
WAVELENGTH_NM = (500.0, 600.0, 700.0)


@dataclass(frozen=True)
class ChipMeanConfig:
    in_channels: int
    num_classes: int
    own_weight: float = 6.0
    chip_weight: float = 6.0


class ChipMean(nn.Module):
    """The second class's logit is a sum of the pixel's reflectance and its chip's mean."""

    def __init__(self, config: ChipMeanConfig) -> None:
        super().__init__()
        self.config = config
        self.offset = nn.Parameter(torch.tensor(-3.0))

    def forward(self, reflectance: Tensor, valid: Tensor) -> Tensor:
        own = reflectance.mean(dim=1)
        count = valid.sum(dim=(1, 2), keepdim=True).clamp_min(1)
        chip = (own * valid).sum(dim=(1, 2), keepdim=True) / count
        logit = self.config.own_weight * own + self.config.chip_weight * chip + self.offset
        return torch.stack([torch.zeros_like(logit), logit], dim=1)


def know_chip_mean(monkeypatch) -> None:
    """Let the engine know the architecture of `ChipMean`."""
    monkeypatch.setitem(
        ARCHITECTURES,
        "chip-mean",
        Architecture("tests.engine.jobs.chip_models", "ChipMean", "ChipMeanConfig"),
    )


def chip_mean_info(**settings: float) -> ModelInfo:
    bands = len(WAVELENGTH_NM)
    return ModelInfo(
        name="chip-mean",
        title="Chip mean",
        description="For tests.",
        version="1.0.0",
        architecture="chip-mean",
        config={"in_channels": bands, "num_classes": 2} | settings,
        bands=BandTable(
            tuple(f"b{i}" for i in range(bands)),
            np.array(WAVELENGTH_NM),
            np.full(bands, 10.0),
            np.ones(bands, bool),
        ),
        classes=(ClassInfo(1, "dark", "#332288"), ClassInfo(2, "bright", "#ddcc77")),
        normalisation=Normalisation.of(np.zeros(bands), np.ones(bands)),
        tiling=Tiling(CHIP_PX, HALO_PX, blend=True),
        licence="other",
    )


def save_chip_mean(path: Path, **settings: float) -> str:
    info = chip_mean_info(**settings)
    state = ChipMean(ChipMeanConfig(**info.config)).state_dict()
    return str(save_package(str(path), info, state))

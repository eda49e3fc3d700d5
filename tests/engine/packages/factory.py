"""A small model made by code: 12 bands, three classes, an architecture that only tests have."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.packages.metadata import ModelInfo, Normalisation
from engine.raster.spectra import BandTable
from engine.raster.style import ClassInfo
from engine.raster.tiles import Tiling

BAND_COUNT = 12


@dataclass(frozen=True)
class TinyConfig:
    in_channels: int
    num_classes: int
    kernel_px: tuple[int, int] = (1, 1)


class TinyModel(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.head = nn.Conv2d(config.in_channels, config.num_classes, config.kernel_px)

    def forward(self, reflectance: Tensor, valid: Tensor) -> Tensor:
        return self.head(reflectance)


@dataclass(frozen=True)
class TinyFuserConfig:
    hsi_channels: int
    msi_channels: int
    ratio: int


class TinyFuser(nn.Module):
    def __init__(self, config: TinyFuserConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.zeros(config.hsi_channels, config.msi_channels))


def tiny_bands() -> BandTable:
    fwhm_nm = np.full(BAND_COUNT, 6.5)
    fwhm_nm[3] = np.nan  # not every sensor states every width
    return BandTable(
        names=tuple(f"band {number}" for number in range(1, BAND_COUNT + 1)),
        wavelength_nm=np.linspace(423.03, 2438.6, BAND_COUNT),
        fwhm_nm=fwhm_nm,
        good=np.ones(BAND_COUNT, dtype=np.bool_),
        origin="test",
    )


def fine_bands() -> BandTable:
    """Of a finer image; its first band has the name of a coarse one."""
    return BandTable(
        names=("band 1", "near infrared"),
        wavelength_nm=np.array([560.0, 842.0]),
        fwhm_nm=np.array([36.0, np.nan]),
        good=np.ones(2, dtype=np.bool_),
        origin="test",
    )


def fusion_facts() -> dict[str, Any]:
    """What `tiny_info` says otherwise about a model of two images."""
    config = {"hsi_channels": BAND_COUNT, "msi_channels": 2, "ratio": 3}
    return {
        "task": "super-resolution",
        "classes": (),
        "fine_bands": fine_bands(),
        "config": config,
        "architecture": "tiny-fuser",
    }


def tiny_info(**changes: Any) -> ModelInfo:
    info = ModelInfo(
        name="tiny-test",
        title="Tiny test model",
        description="Three classes from twelve bands.",
        version="1.2.0",
        architecture="hyperkd-tiny",
        config={"in_channels": BAND_COUNT, "num_classes": 3, "kernel_px": [1, 1]},
        bands=tiny_bands(),
        classes=(
            ClassInfo(value=1, name="Low vegetation", color="#8fce5a"),
            ClassInfo(value=4, name="Wasser/Water ö", color="#1E78B4"),
            ClassInfo(value=200, name="Roof", color="#e31a1c"),
        ),
        normalisation=Normalisation.of(
            np.linspace(0.05, 0.3, BAND_COUNT), np.linspace(0.01, 0.1, BAND_COUNT)
        ),
        tiling=Tiling(tile_size_px=64, halo_px=4, blend=True),
        licence="CC-BY-SA-4.0",
        attribution="Somebody, 2009",
        training={"seed": 7, "epochs": 12, "curve": [0.5, 0.25], "nested": {"blocks": 5}},
        scores={"balanced_accuracy": 0.87, "kappa": 0.8},
        training_area=(13.2, 52.4, 13.5, 52.6),
        training_period=(
            datetime(2009, 8, 20, 10, 0, tzinfo=UTC),
            datetime(2009, 8, 21, 11, 30, tzinfo=UTC),
        ),
        created=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        engine_version="0.1.0",
    )
    return replace(info, **changes)


def tiny_state(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return dict(TinyModel(TinyConfig(BAND_COUNT, 3)).state_dict())

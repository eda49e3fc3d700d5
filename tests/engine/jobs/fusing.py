"""What the tests of fusion share: requests, the truth behind a made pair, and what was written."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from affine import Affine

from engine.jobs.fuse import Request
from engine.models.fusion.dts import DTSConfig
from engine.models.fusion.fuser import Fuser, FuserConfig, network_channels
from engine.packages.metadata import Normalisation
from engine.packages.package import save_package
from engine.raster.spectra import BandTable
from tests.engine.conftest import write_raster
from tests.engine.jobs.made_pairs import (
    COARSE_PX_M,
    HSI_NM,
    MSI_NM,
    ORIGIN,
    RATIO,
    MadePair,
    fine_scene,
)
from tests.engine.packages.factory import tiny_info

SAMPLE = Path(__file__).parents[3] / "resources" / "sample"
BERLIN_HSI = str(SAMPLE / "EnMAP_BerlinUrbanGradient.bsq")
BERLIN_MSI = str(SAMPLE / "HighResolution_BerlinUrbanGradient.tif")


def request_for(pair: MadePair, folder: Path, **parameters: Any) -> Request:
    """A request with an output in a folder; a classical method unless another is asked for."""
    given = {
        "hyperspectral": pair.hsi,
        "multispectral": pair.msi,
        "method": "glphs",
        "output": str(folder / "fused.tif"),
    }
    return Request.parse(given | parameters)


def read(path: str) -> np.ndarray:
    """(C, h, w) reflectance, NaN where there is none."""
    with rasterio.open(path) as dataset:
        values = dataset.read(masked=True).astype(np.float64)
        scale = np.array(dataset.scales)[:, None, None]
    return (values * scale).filled(np.nan)


def write_truth(folder: Path, **options: Any) -> str:
    """The fine scene of a made pair, as the reference that nobody has."""
    x, y = ORIGIN
    px = COARSE_PX_M / RATIO
    path = folder / "truth.tif"
    write_raster(
        path,
        array=np.round(fine_scene(**options) * 1e4).astype(np.int16),
        wavelength_nm=HSI_NM,
        fwhm_nm=np.full(len(HSI_NM), 40.0),
        transform=Affine(px, 0, x, 0, -px, y),
        nodata=-32768,
        scale=1e-4,
    )
    return str(path)


def spoil(
    path: str, rows: slice, cols: slice, value: float, band_number: int | None = None
) -> None:
    """Write a value into a part of a raster, in one band or in all."""
    with rasterio.open(path, "r+") as dataset:
        values = dataset.read()
        bands = slice(None) if band_number is None else slice(band_number - 1, band_number)
        values[bands, rows, cols] = value
        dataset.write(values)


def table_of(wavelength_nm: Any, fwhm_nm: Any) -> BandTable:
    """Bands named by their number."""
    nm = np.asarray(wavelength_nm, np.float64)
    names = tuple(f"b{i + 1}" for i in range(len(nm)))
    return BandTable(names, nm, np.broadcast_to(fwhm_nm, nm.shape), np.ones(len(nm), bool), "test")


def save_fuser(
    folder: Path,
    *,
    hsi_nm: Any = HSI_NM,
    msi_nm: Any = MSI_NM,
    ratio: int = RATIO,
    name: str = "tiny-fuser",
    gate: float = 1.0,
) -> str:
    """Save a package of a small network with random weights on interpolation."""
    bands, fine_bands = table_of(hsi_nm, 40.0), table_of(msi_nm, 80.0)
    coarse, fine = network_channels(len(bands), len(fine_bands), None, "bicubic")
    network = DTSConfig(
        hsi_channels=coarse, msi_channels=fine, ratio=ratio, width=8, growth=4,
        blocks=(0, 1, 1, 1), h_groups=4, fusion_width=8, heads=2,
    )  # fmt: skip
    config = FuserConfig(len(bands), len(fine_bands), ratio, network, None, "bicubic")
    torch.manual_seed(0)
    model = Fuser(config)
    model.answer_spread.fill_(1.0)
    model.gate.fill_(gate)
    info = tiny_info(
        name=name,
        bands=bands,
        fine_bands=fine_bands,
        config=asdict(config),
        architecture="csakd-fuser",
        task="super-resolution",
        classes=(),
        normalisation=Normalisation.of(np.zeros(len(bands)), np.ones(len(bands))),
    )
    return str(save_package(str(folder / name), info, model.state_dict()))

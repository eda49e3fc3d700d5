"""What the tests of fusion share: requests, the truth behind a made pair, and what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine

from engine.jobs.fuse import Request
from tests.engine.conftest import write_raster
from tests.engine.jobs.made_pairs import (
    COARSE_PX_M,
    HSI_NM,
    ORIGIN,
    RATIO,
    MadePair,
    fine_scene,
)

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

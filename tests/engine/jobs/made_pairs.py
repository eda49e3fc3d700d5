"""Pairs of images made by code: a fine scene of three covers, as two sensors see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from affine import Affine

from engine.models.fusion.degradation import PointSpread
from tests.engine.conftest import write_raster

RATIO, HEIGHT, WIDTH = 3, 28, 24  # coarse pixels, never square
HSI_NM = np.linspace(450.0, 930.0, 13)
MSI_NM, MSI_FWHM_NM = np.array([490.0, 560.0, 665.0, 842.0]), np.array([80.0, 60.0, 60.0, 140.0])
COARSE_PX_M = 30.0
ORIGIN = (383_472.5, 5_818_310.0)


@dataclass(frozen=True)
class MadePair:
    """Where both images are."""

    hsi: str
    msi: str


def fine_scene(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    """(L, H, W) float64 reflectance at the fine resolution: three covers, a little uneven.

    Patches have edges between fine pixels, so that the multispectral image knows more than the
    hyperspectral one.
    """
    nm = (HSI_NM - HSI_NM[0]) / (HSI_NM[-1] - HSI_NM[0])
    spectra = np.stack([0.05 + 0.35 * nm, 0.04 + 0.4 * (nm > 0.5), 0.28 - 0.1 * nm])
    generator = np.random.default_rng(seed)
    rows, columns = height * RATIO, width * RATIO
    field = generator.normal(size=(len(spectra), rows, columns))
    smooth = torch.from_numpy(field)[None]
    for _ in range(2):
        smooth = torch.nn.functional.avg_pool2d(smooth, 7, 1, 3, count_include_pad=False)
    share = torch.softmax(40 * smooth[0], dim=0).numpy()
    light = 1 + 0.05 * generator.normal(size=(rows, columns))
    return np.asarray(np.einsum("klw,kc->clw", share, spectra) * light)


def multispectral(fine: np.ndarray) -> np.ndarray:
    """(M, H, W): what a sensor of four broad bands sees of (L, H, W)."""
    sigma_nm = MSI_FWHM_NM / 2.355
    weights = np.exp(-0.5 * ((HSI_NM - MSI_NM[:, None]) / sigma_nm[:, None]) ** 2)
    return np.einsum("ml,lhw->mhw", weights / weights.sum(axis=1, keepdims=True), fine)


def hyperspectral(fine: np.ndarray) -> np.ndarray:
    """(L, h, w): what a coarse sensor sees of (L, H, W)."""
    coarse = PointSpread.gaussian(RATIO).degrade(torch.from_numpy(fine)[None])
    return np.asarray(coarse[0].numpy())


def write_pair(
    folder: Path,
    name: str = "pair",
    *,
    hsi_order: Sequence[int] | None = None,
    msi_order: Sequence[int] | None = None,
    hsi_nm: Any = HSI_NM,
    msi_nm: Any = MSI_NM,
    shift_coarse_px: tuple[int, int] = (0, 0),
    split: int = 1,
    seed: int = 0,
    height: int = HEIGHT,
    width: int = WIDTH,
) -> MadePair:
    """Write both images as int16 with scale.

    Args:
        folder: of the files.
        name: begins those of both.
        hsi_order: 0-based bands in their stored order, some may be missing; None: all.
        msi_order: likewise.
        hsi_nm: centres that the file states; None for none.
        msi_nm: likewise.
        shift_coarse_px: how far the multispectral image is georeferenced too far right and down.
        split: each fine pixel into so many along a side, all the same.
        seed: of the scene.
        height: coarse pixels.
        width: coarse pixels.
    """
    fine = fine_scene(height, width, seed)
    hsi_order = range(len(HSI_NM)) if hsi_order is None else hsi_order
    msi_order = range(len(MSI_NM)) if msi_order is None else msi_order
    x, y = ORIGIN
    fine_px_m = COARSE_PX_M / RATIO / split
    right, down = (COARSE_PX_M * part for part in shift_coarse_px)
    places = {
        "hsi": Affine(COARSE_PX_M, 0, x, 0, -COARSE_PX_M, y),
        "msi": Affine(fine_px_m, 0, x + right, 0, -fine_px_m, y - down),
    }
    cubes = {
        "hsi": (
            hyperspectral(fine)[list(hsi_order)],
            hsi_nm,
            np.full(len(HSI_NM), 40.0),
            hsi_order,
        ),
        "msi": (
            multispectral(fine)[list(msi_order)].repeat(split, axis=1).repeat(split, axis=2),
            msi_nm,
            MSI_FWHM_NM,
            msi_order,
        ),
    }
    paths = {}
    for kind, (cube, nm, fwhm_nm, order) in cubes.items():
        path = folder / f"{name}_{kind}.tif"
        write_raster(
            path,
            array=np.round(cube * 1e4).astype(np.int16),
            wavelength_nm=None if nm is None else np.asarray(nm)[list(order)],
            fwhm_nm=None if nm is None else fwhm_nm[list(order)],
            transform=places[kind],
            nodata=-32768,
            scale=1e-4,
        )
        paths[kind] = str(path)
    return MadePair(**paths)

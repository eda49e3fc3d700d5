"""Scenes for trainings without labels, made by code: smooth fields under bands of many sensors."""

import numpy as np

# In the ranges of Galileo's ten bands, and between them.
WAVELENGTH_NM = np.array(
    [470, 495, 560, 620, 665, 704, 740, 783, 833, 865, 1000, 1240, 1400, 1610, 1640, 2100, 2200],
    float,
)
FWHM_NM = np.full(len(WAVELENGTH_NM), 12.0)
HEIGHT, WIDTH = 62, 75


def landscape(wavelength_nm=WAVELENGTH_NM, height=HEIGHT, width=WIDTH, seed=0):
    """(C, H, W) int16 reflectance x 10,000: two materials, mixed in waves across the scene."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:height, :width]
    share = 0.5 + 0.5 * np.sin(rows / 5 + seed) * np.cos(cols / 7)
    x = (wavelength_nm - 400) / 2000
    plant, soil = 0.05 + 0.4 * np.exp(-((x - 0.3) ** 2) / 0.03), 0.1 + 0.3 * x
    cube = plant[:, None, None] * share + soil[:, None, None] * (1 - share)
    return (10_000 * cube + rng.normal(0, 30, cube.shape)).astype(np.int16)


def landscape_scene(make_raster, name, array, wavelength_nm, fwhm_nm=FWHM_NM, **options):
    """Write a landscape as a scene with its bands; returns its path."""
    return make_raster(
        name, array=array, wavelength_nm=wavelength_nm, fwhm_nm=fwhm_nm[: len(wavelength_nm)],
        scale=1e-4, nodata=-99, **options,
    ).path  # fmt: skip

"""Small pairs made by code: a coarse image with many bands, a fine one with few."""

from dataclasses import dataclass

import numpy as np
import rasterio
import torch
from affine import Affine

from engine.raster.pair import open_pair
from engine.raster.tiles import Window

BANDS, FINE_BANDS = 6, 2
HEIGHT, WIDTH, RATIO = 24, 17, 3  # never square
CRS = "EPSG:32633"
# The pixels are not square, and the origin lies at half a pixel.
COARSE = Affine(30.0, 0.0, 383_472.5, 0.0, -24.0, 5_818_310.0)
HSI_NM = np.linspace(450.0, 950.0, BANDS)
MSI_NM = np.array([560.0, 840.0])


def write_image(path, values, transform, *, nm=None, fwhm_nm=110.0, nodata=None, crs=CRS, **more):
    """Write (C, h, w) values; integers are reflectance x 10,000."""
    c, h, w = values.shape
    profile = {
        "driver": "GTiff", "count": c, "height": h, "width": w, "dtype": values.dtype,
        "transform": transform, "crs": crs, "nodata": nodata,
    } | more  # fmt: skip
    given = {key: value for key, value in profile.items() if value is not None}
    with rasterio.open(path, "w", **given) as dataset:
        dataset.write(values)
        if values.dtype.kind != "f":
            dataset.scales = [1e-4] * c
        for number in range(1, c + 1):
            if nm is not None:
                tags = {"wavelength": f"{nm[number - 1]:g}", "wavelength_units": "nm"}
                dataset.update_tags(number, fwhm=f"{fwhm_nm:g}", **tags)
    return str(path)


def numbers(bands, height, width, seed=0):
    """Values that differ in every pixel and band, int16, reflectance x 10,000."""
    return np.random.default_rng(seed).integers(1, 9_000, (bands, height, width)).astype("int16")


def smooth(bands, height, width, step=1.0, offset=(0.0, 0.0)):
    """A picture of waves in coarse pixels, sampled every ``step`` of them: (bands, h, w) float32.

    Args:
        bands: each its own waves.
        height: rows of samples.
        width: columns of samples.
        step: distance of samples, in coarse pixels.
        offset: (x, y) by which the picture lies to the right and down, in coarse pixels.
    """
    rows = (np.arange(height) + 0.5)[:, None] * step - offset[1]
    cols = (np.arange(width) + 0.5) * step - offset[0]
    waves = [0.4 + 0.2 * np.sin(rows / (2 + b)) * np.cos(cols / (3 + b)) for b in range(bands)]
    return np.asarray(waves, np.float32)


@dataclass
class MadePair:
    """A pair on disk."""

    hsi_path: str
    msi_path: str
    hsi: np.ndarray
    msi: np.ndarray

    def open(self, **options):
        return open_pair(self.hsi_path, self.msi_path, **options)


def make_pair(
    folder,
    *,
    height=HEIGHT,
    width=WIDTH,
    ratio=RATIO,
    hsi=None,
    msi=None,
    msi_transform=None,
    hsi_options=None,
    msi_options=None,
):
    """Write a pair whose grids nest, unless another transform is given."""
    hsi = numbers(BANDS, height, width) if hsi is None else hsi
    msi = numbers(FINE_BANDS, height * ratio, width * ratio, 1) if msi is None else msi
    fine = COARSE @ Affine.scale(1 / ratio) if msi_transform is None else msi_transform
    hsi_nm = HSI_NM if len(hsi) == BANDS else None
    msi_nm = MSI_NM if len(msi) == FINE_BANDS else None
    return MadePair(
        write_image(folder / "hsi.tif", hsi, COARSE, **{"nm": hsi_nm, **(hsi_options or {})}),
        write_image(folder / "msi.tif", msi, fine, **{"nm": msi_nm, **(msi_options or {})}),
        hsi,
        msi,
    )


def whole(pair):
    """The window of all coarse pixels."""
    return Window(0, 0, pair.hsi.height, pair.hsi.width)


class ConvPair(torch.nn.Module):
    """Random 3 x 3 convolutions of both images: a reach of two coarse pixels."""

    def __init__(self, ratio=RATIO, bands=BANDS, fine_bands=FINE_BANDS, out_channels=4):
        super().__init__()
        self.ratio, self.reach_px, self.out_channels = ratio, 2, out_channels
        generator = torch.Generator().manual_seed(0)
        self.coarse = torch.nn.Conv2d(bands, out_channels, 3, padding=1)
        self.fine = torch.nn.Conv2d(fine_bands, out_channels, 3, padding=1)
        self.last = torch.nn.Conv2d(out_channels, out_channels, 3, padding=1)
        for weight in self.parameters():
            weight.data.normal_(0, 0.3, generator=generator)

    def forward(self, pair):
        coarse = self.coarse(pair.hsi).repeat_interleave(self.ratio, 2)
        coarse = coarse.repeat_interleave(self.ratio, 3)
        return self.last(torch.tanh(coarse + self.fine(pair.msi)))


class NearestPair:
    """Gives each hyperspectral pixel to all fine ones under it."""

    reach_px = 0

    def __init__(self, ratio=RATIO, out_channels=BANDS):
        self.ratio, self.out_channels = ratio, out_channels

    def __call__(self, pair):
        return pair.hsi.repeat_interleave(self.ratio, 2).repeat_interleave(self.ratio, 3)


class Mosaic:
    """A sink that puts windows of a grid together and counts how often each pixel came."""

    def __init__(self, grid, channels):
        self.grid = grid
        self.values = np.full((channels, grid.height, grid.width), np.nan, np.float32)
        self.valid = np.zeros((grid.height, grid.width), bool)
        self.times = np.zeros((grid.height, grid.width), int)
        self.windows = []

    def __call__(self, window, values, valid):
        inside = Window(self.grid.row_off, self.grid.col_off, self.grid.height, self.grid.width)
        place = window.slices_in(inside)
        self.values[:, *place], self.valid[place] = values, valid
        self.times[place] += 1
        self.windows.append(window)

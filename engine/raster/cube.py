"""What a raster of many bands needs beside its pixels: blocks that fit, and who its bands are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.raster.spectra import BandTable
from engine.raster.style import RgbStyle

LARGEST_BLOCK_PX = 512
# A block of a Cloud Optimized GeoTIFF holds all bands; whoever reads one pixel decodes one.
_BLOCK_BYTES = 8 * 2**20
_SMALLEST_BLOCK_PX = 16  # of TIFF
# The coarsest overview fits on a screen.
_OVERVIEW_PX = 512
# Of red, green and blue, as eyes have them; a band further away shows another colour.
_COLOURS_NM = (660.0, 560.0, 480.0)
_COLOUR_TOLERANCE_NM = 60.0
_STRETCH_PERCENT = (2.0, 98.0)


@dataclass(frozen=True, eq=False)
class CubeInfo:
    """What is known of a cube's bands, in its metadata.

    Args:
        bands: names, wavelengths, widths and flags; None without wavelengths.
        scale: reflectance = stored * scale + offset.
        offset: likewise.
        acquired: when the image was taken, UTC.
    """

    bands: BandTable | None = None
    scale: float = 1.0
    offset: float = 0.0
    acquired: datetime | None = None

    def band_tags(self, band_index: int) -> dict[str, str]:
        """Tags of a band (0-based), as `engine.raster.band_metadata` and the EnMAP-Box read them.

        The flag is ENVI's: 1 is good, 0 is bad.
        """
        if self.bands is None:
            return {}
        tags = {
            "wavelength": _number(self.bands.wavelength_nm[band_index]),
            "wavelength_units": "Nanometers",
            "bbl": str(int(self.bands.good[band_index])),
        }
        if np.isfinite(self.bands.fwhm_nm[band_index]):
            tags["fwhm"] = _number(self.bands.fwhm_nm[band_index])
        return tags

    def imagery_tags(self, band_index: int) -> dict[str, str]:
        """Tags of GDAL's IMAGERY domain, which are in micrometres by definition."""
        if self.bands is None:
            return {}
        tags = {"CENTRAL_WAVELENGTH_UM": _number(self.bands.wavelength_nm[band_index] / 1e3)}
        if np.isfinite(self.bands.fwhm_nm[band_index]):
            tags["FWHM_UM"] = _number(self.bands.fwhm_nm[band_index] / 1e3)
        return tags

    def dataset_tags(self) -> dict[str, str]:
        """Tags of the whole cube; the driver for COGs drops the IMAGERY domain at this level."""
        if self.acquired is None:
            return {}
        return {"acquisition_time": f"{self.acquired:%Y-%m-%dT%H:%M:%SZ}"}


def block_side_px(band_count: int, dtype: np.dtype[Any]) -> int:
    """The side of blocks of all bands: a power of two, by bytes, 512 for maps."""
    side = LARGEST_BLOCK_PX
    while side > _SMALLEST_BLOCK_PX and band_count * side**2 * dtype.itemsize > _BLOCK_BYTES:
        side //= 2
    return side


def overview_factors(height: int, width: int) -> list[int]:
    """By how much overviews are coarser: 2, 4, … until the last one fits on a screen."""
    factors = []
    factor = 2
    while max(height, width) * 2 > _OVERVIEW_PX * factor:
        factors.append(factor)
        factor *= 2
    return factors


def colour_style(bands: BandTable | None, band_count: int) -> RgbStyle:
    """Choose three bands to look at a cube by: true colour, or spread over what it has.

    Args:
        bands: of the cube; None without wavelengths.
        band_count: L, 1 or more.
    """
    if bands is None or not bands.good.any():
        return _spread(np.arange(band_count))
    good = np.flatnonzero(bands.good)
    away_nm = np.abs(bands.wavelength_nm[good] - np.asarray(_COLOURS_NM)[:, None])
    if away_nm.min(axis=1).max() > _COLOUR_TOLERANCE_NM:
        return _spread(good[np.argsort(bands.wavelength_nm[good], kind="stable")])
    red, green, blue = (int(good[nearest]) + 1 for nearest in away_nm.argmin(axis=1))
    return RgbStyle(red, green, blue)


def _spread(band_index: NDArray[np.intp]) -> RgbStyle:
    """Bands (N,) from far, the middle and near of a list, 0-based, ascending by wavelength."""
    count = len(band_index)
    red, green, blue = (int(band_index[count * sixths // 6]) + 1 for sixths in (5, 3, 1))
    return RgbStyle(red, green, blue)


def stretch(values: NDArray[np.float64]) -> tuple[float, float]:
    """The limits between which a band is shown, 2 and 98 of 100 pixels.

    Args:
        values: (N,) of valid pixels, may be empty.
    """
    if not values.size:
        return 0.0, 1.0
    low, high = (float(limit) for limit in np.percentile(values, _STRETCH_PERCENT))
    return (low, high) if low < high else (low, low + 1.0)


def _number(value: float) -> str:
    """As short as it can be without losing what a sensor's table states."""
    return f"{float(value):.10g}"

"""Synthetic scenes, written fast: many bands of noise under smooth brightness."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin
from rasterio.windows import Window as RasterioWindow

NODATA = 65535
BLOCK = 256
LAYOUTS = ("tiled by pixel", "tiled by band", "ENVI BIL")
# Bands of noise are made once and repeated: what is read does not matter, only how much.
_PATTERN_ROWS = 64

_HEADER = """ENVI
samples = {side}
lines = {side}
bands = {bands}
header offset = 0
file type = ENVI Standard
data type = 12
interleave = bil
byte order = 0
data ignore value = {nodata}
reflectance scale factor = 10000
map info = {{UTM, 1, 1, 380000, 5820000, 30, 30, 33, North, WGS-84}}
wavelength units = Nanometers
wavelength = {{{wavelengths}}}
fwhm = {{{fwhm}}}
"""


def make_scene(
    folder: Path,
    layout: str,
    side: int,
    wavelength_nm: NDArray[np.float64],
    fwhm_nm: NDArray[np.float64],
) -> str:
    """Write a uint16 scene of ``side`` x ``side`` px, unless it is there already.

    Returns:
        its path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bands = len(wavelength_nm)
    suffix = "bil" if layout == "ENVI BIL" else "tif"
    path = folder / f"scene_{layout.replace(' ', '_').lower()}_{side}_{bands}.{suffix}"
    if path.exists():
        return str(path)
    rng = np.random.default_rng(0)
    pattern = rng.integers(200, 6000, (bands, _PATTERN_ROWS, side), dtype=np.uint16)
    unfinished = path.with_name(f"unfinished_{path.name}")
    if layout == "ENVI BIL":
        _write_bil(unfinished, pattern, side)
        text = _HEADER.format(
            side=side,
            bands=bands,
            nodata=NODATA,
            wavelengths=", ".join(f"{value:.2f}" for value in wavelength_nm),
            fwhm=", ".join(f"{value:.2f}" for value in fwhm_nm),
        )
        path.with_suffix(".hdr").write_text(text, encoding="utf-8")
    else:
        _write_tiled(unfinished, layout, pattern, side, wavelength_nm, fwhm_nm)
    unfinished.rename(path)
    return str(path)


def remove_scene(path: str) -> None:
    """Remove a scene and what lies beside it."""
    for file in (path, f"{path}.aux.xml", str(Path(path).with_suffix(".hdr"))):
        Path(file).unlink(missing_ok=True)


def _write_bil(path: Path, pattern: NDArray[np.uint16], side: int) -> None:
    rows = np.ascontiguousarray(pattern.swapaxes(0, 1))  # (rows, bands, columns), as stored
    with path.open("wb") as file:
        for row in range(0, side, _PATTERN_ROWS):
            rows[: min(_PATTERN_ROWS, side - row)].tofile(file)


def _write_tiled(
    path: Path,
    layout: str,
    pattern: NDArray[np.uint16],
    side: int,
    wavelength_nm: NDArray[np.float64],
    fwhm_nm: NDArray[np.float64],
) -> None:
    rows = np.tile(pattern, (1, BLOCK // _PATTERN_ROWS, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        dataset = rasterio.open(
            path, "w", driver="GTiff", height=side, width=side, count=len(pattern), dtype="uint16",
            nodata=NODATA, tiled=True, blockxsize=BLOCK, blockysize=BLOCK, BIGTIFF="IF_SAFER",
            interleave=layout.rpartition(" ")[2], crs="EPSG:32633",
            transform=from_origin(380_000, 5_820_000, 30, 30),
        )  # fmt: skip
    with dataset:
        dataset.scales = [1e-4] * len(pattern)
        for number, (centre, width) in enumerate(zip(wavelength_nm, fwhm_nm, strict=True), 1):
            tags = {"wavelength": f"{centre:.2f}", "wavelength_units": "nm", "fwhm": f"{width:.2f}"}
            dataset.update_tags(number, **tags)
        for row in range(0, side, BLOCK):
            count = min(BLOCK, side - row)
            dataset.write(rows[:, :count], window=RasterioWindow(0, row, side, count))

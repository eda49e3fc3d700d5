"""Small rasters made by code, for all tests of the engine."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning

BANDS, HEIGHT, WIDTH = 12, 24, 17  # never square
# Pixels are not square either, and the origin lies at half a pixel.
TRANSFORM = Affine(30.0, 0.0, 383472.5, 0.0, -20.0, 5818310.0)
CRS = "EPSG:32633"
WAVELENGTH_NM = np.linspace(450.0, 1000.0, BANDS)
FWHM_NM = np.full(BANDS, 10.0)


@dataclass(frozen=True, eq=False)
class MadeRaster:
    """A raster that was written: its source string and what is in it."""

    path: str
    array: np.ndarray
    wavelength_nm: np.ndarray | None
    fwhm_nm: np.ndarray | None


def ramp(bands: int = BANDS, height: int = HEIGHT, width: int = WIDTH, dtype: str = "int16"):
    """(C, H, W) with another number in every cell; reflectance x 10,000 for integers."""
    numbers = np.arange(bands * height * width).reshape(bands, height, width)
    if np.issubdtype(np.dtype(dtype), np.floating):
        return (numbers / numbers.size * 0.6 + 0.01).astype(dtype)
    if np.dtype(dtype).itemsize == 1:
        return (numbers % 120 + 1).astype(dtype)
    return (numbers + 100).astype(dtype)


def write_raster(
    path: Path,
    *,
    array: np.ndarray | None = None,
    dtype: str = "int16",
    driver: str = "GTiff",
    wavelength_nm: Any = WAVELENGTH_NM,
    fwhm_nm: Any = FWHM_NM,
    good: Any = None,
    unit: str | None = "Nanometers",
    tags: str = "bands",
    nodata: float | None = None,
    nodata_corner: bool = False,
    scale: float | None = None,
    offset: float | None = None,
    crs: str | None = CRS,
    transform: Affine | None = TRANSFORM,
    gzipped: bool = False,
    **options: Any,
) -> MadeRaster:
    """Write a raster.

    Args:
        path: file to write.
        array: (C, H, W); `ramp` of ``dtype`` when None.
        dtype: stored type, when there is no array.
        driver: GTiff, ENVI, …
        wavelength_nm: (C,) centres, None for none; written in ``unit``.
        fwhm_nm: (C,) widths, None for none; written in ``unit``.
        good: (C,) flags, None for none.
        unit: "Nanometers", "Micrometers", another word, or None to state none.
        tags: where to write them: "bands", "imagery", "envi" (ENVI domain, or the header of an
            ENVI file), "dataset" or "none".
        nodata: declared for all bands.
        nodata_corner: put ``nodata`` into the top left 5 x 4 px of every band.
        scale: declared for all bands.
        offset: declared for all bands.
        crs: None for none.
        transform: None for none.
        gzipped: compress the pixels of an ENVI file (``file compression = 1``).
        options: creation options (tiled=True, interleave="pixel", compress="deflate", …).
    """
    array = ramp(dtype=dtype) if array is None else np.array(array)
    if nodata_corner:
        array[:, :4, :5] = nodata
    count = len(array)
    if wavelength_nm is not None and len(wavelength_nm) != count:
        wavelength_nm = np.linspace(450.0, 1000.0, count)
    if fwhm_nm is not None and len(fwhm_nm) != count:
        fwhm_nm = np.full(count, 10.0)
    profile = {
        "driver": driver,
        "width": array.shape[2],
        "height": array.shape[1],
        "count": count,
        "dtype": array.dtype.name,
        "nodata": nodata,
        "crs": crs,
        "transform": transform,
    }
    given = {key: value for key, value in profile.items() if value is not None}
    with rasterio.open(path, "w", **given, **options) as dataset:
        dataset.write(array)
        if scale is not None or offset is not None:
            dataset.scales = [1.0 if scale is None else scale] * count
            dataset.offsets = [0.0 if offset is None else offset] * count
        _write_tags(dataset, _in_unit(wavelength_nm, fwhm_nm, good, unit), unit, tags)
    if driver == "ENVI":
        if tags == "envi":
            _append_to_header(path, _in_unit(wavelength_nm, fwhm_nm, good, unit), unit)
        if gzipped:
            _gzip(path)
    return MadeRaster(str(path), array, wavelength_nm, fwhm_nm)


@pytest.fixture
def make_raster(tmp_path: Path) -> Callable[..., MadeRaster]:
    """``make_raster("name.tif", **options)`` writes a raster; see `write_raster`."""

    def make(name: str = "scene.tif", **options: Any) -> MadeRaster:
        return write_raster(tmp_path / name, **options)

    return make


@pytest.fixture
def data_folder() -> Path:
    """The folder of real data; tests that need it are skipped where it is not."""
    folder = Path(os.environ.get("HYPERKD_DATA", Path(__file__).parents[2] / "../shared/data"))
    if not folder.is_dir():
        pytest.skip(f"real data is not here: {folder} (set HYPERKD_DATA)")
    return folder.resolve()


@pytest.fixture(scope="session")
def fixtures_folder() -> Path:
    """The folder of numbers that public code computed; tests that need it are skipped without."""
    folder = Path(
        os.environ.get("HYPERKD_FIXTURES", Path(__file__).parents[2] / "../shared/fixtures")
    )
    if not folder.is_dir():
        pytest.skip(f"the fixtures are not here: {folder} (set HYPERKD_FIXTURES)")
    return folder.resolve()


@pytest.fixture(autouse=True)
def _scenes_without_a_grid_are_allowed():
    """rasterio warns when the tests write or open one."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


@pytest.fixture
def one_thread():
    """Threads that wait for each other take longer than tiny trainings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _in_unit(wavelength_nm, fwhm_nm, good, unit) -> dict[str, list[str]]:
    """The values of the three properties as text in their unit."""
    factor = 1e-3 if unit is not None and unit.lower().startswith(("micro", "um", "µm")) else 1.0
    columns = {}
    if wavelength_nm is not None:
        columns["wavelength"] = [f"{value * factor:.10g}" for value in wavelength_nm]
    if fwhm_nm is not None:
        columns["fwhm"] = [f"{value * factor:.10g}" for value in fwhm_nm]
    if good is not None:
        columns["bbl"] = [str(int(value)) for value in good]
    return columns


def _write_tags(dataset, columns: dict[str, list[str]], unit: str | None, where: str) -> None:
    units = {} if unit is None else {"wavelength_units": unit}
    for number in dataset.indexes:
        own = {key: values[number - 1] for key, values in columns.items()}
        if where == "bands":
            dataset.update_tags(number, **own, **units)
        if where == "imagery":
            keys = {"wavelength": "CENTRAL_WAVELENGTH_UM", "fwhm": "FWHM_UM"}
            in_um = {keys[key]: value for key, value in own.items() if key in keys}
            dataset.update_tags(number, ns="IMAGERY", **in_um)
    lists = {key: "{" + ", ".join(values) + "}" for key, values in columns.items()}
    if where == "dataset":
        dataset.update_tags(**lists, **units)
    if where == "envi" and dataset.driver != "ENVI":
        dataset.update_tags(ns="ENVI", **lists, **units)


def _append_to_header(path: Path, columns: dict[str, list[str]], unit: str | None) -> None:
    header = path.with_suffix(".hdr")
    text = header.read_text()
    if unit is not None:
        text += f"wavelength units = {unit}\n"
    for key, values in columns.items():
        text += f"{key} = {{\n {', '.join(values)}}}\n"
    header.write_text(text)


def _gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))
    header = path.with_suffix(".hdr")
    header.write_text(header.read_text() + "file compression = 1\n")


ENMAP_STEM = "ENMAP01-____L2A-DT0000001234_20220627T104548Z_001_V010400_20230101T000000Z"


@pytest.fixture
def make_enmap_product(tmp_path: Path) -> Callable[..., tuple[str, str, np.ndarray]]:
    """Write a small EnMAP L2A product: (METADATA.XML, spectral image, array)."""

    def make(
        wavelength_nm=WAVELENGTH_NM,
        fwhm_nm=FWHM_NM,
        *,
        empty: tuple[int, ...] = (),
        gain: str = "0.0001",
        level: str = "L2A",
        folder: Path = tmp_path,
        **options: Any,
    ) -> tuple[str, str, np.ndarray]:
        array = ramp(len(wavelength_nm))
        array[list(empty)] = -32768
        folder.mkdir(exist_ok=True)
        stem = ENMAP_STEM.replace("L2A", level)
        image = write_raster(
            folder / f"{stem}-SPECTRAL_IMAGE.TIF", array=array, tags="none", **options
        )
        metadata = folder / f"{stem}-METADATA.XML"
        metadata.write_text(enmap_xml(wavelength_nm, fwhm_nm, empty, gain, level))
        return str(metadata), image.path, array

    return make


def enmap_xml(wavelength_nm, fwhm_nm, empty=(), gain="0.0001", level="L2A") -> str:
    """The parts of an EnMAP METADATA.XML that matter, with their real names."""
    bands = "".join(
        f'<bandID number="{i}"><wavelengthCenterOfBand>{nm}</wavelengthCenterOfBand>'
        f"<FWHMOfBand>{fwhm}</FWHMOfBand><GainOfBand>{gain}</GainOfBand>"
        f"<OffsetOfBand>0</OffsetOfBand></bandID>"
        for i, (nm, fwhm) in enumerate(zip(wavelength_nm, fwhm_nm, strict=True), start=1)
    )
    statistics = "".join(
        f'<bandID number="{i + 1}"><mean>{-1000000 if i in empty else 1234.5}</mean>'
        f"<stdDeviation>{0 if i in empty else 321.0}</stdDeviation></bandID>"
        for i in range(len(wavelength_nm))
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<level_X xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
        f"<metadata/><base><level>{level}</level></base>"
        f"<specific><backgroundValue>-32768</backgroundValue>"
        f"<bandCharacterisation>{bands}</bandCharacterisation></specific>"
        f"<product><bandStatistics>{statistics}</bandStatistics></product></level_X>"
    )

"""Opening rasters through GDAL: errors as sentences, and a bounded block cache."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

import numpy as np
import rasterio
from rasterio.env import set_gdal_config
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader

from engine.errors import SceneError
from engine.raster.gzipped import check_gzip_length, is_gzipped

logger = logging.getLogger(__name__)

# GDAL's default is a twentieth of the memory, which then grows with the scene. A strip that is
# aligned to blocks needs none; this holds the blocks that neighbouring strips share by their
# halo. Measured on 200 bands: smaller is not slower, the default is (page faults).
CACHE_BYTES = 128 * 1024**2
# Formats whose pixels stand in a plain file, which GDAL fills with zeros where it ends early.
_RAW_DRIVERS = ("ENVI", "EHdr")
_REMOTE_PREFIXES = ("/vsi", "http://", "https://", "s3://", "gs://")


def open_dataset(source: str, *, threads: bool = False) -> DatasetReader:
    """Open a raster for reading.

    Args:
        source: anything that GDAL opens.
        threads: decode compressed blocks in parallel; only for GeoTIFF.

    Raises:
        SceneError: there is no such file, GDAL cannot open it, or it holds no bands.
    """
    set_gdal_config("GDAL_CACHEMAX", CACHE_BYTES)
    options = {"num_threads": "ALL_CPUS"} if threads else {}
    try:
        with warnings.catch_warnings():
            # Scenes without a grid are allowed, and said in the scene's notes.
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            dataset = rasterio.open(source, **options)
    except (RasterioError, OSError, ValueError, TypeError) as error:
        raise _open_error(source, error) from error
    if dataset.count:
        return dataset
    inside = list(dataset.subdatasets)
    dataset.close()
    raise SceneError(
        f"{source} has no bands of its own"
        + (f" but {len(inside)} data sets inside." if inside else "."),
        f"Choose one of them, for example {inside[0]}." if inside else "Choose another raster.",
    )


def gdal_reason(error: BaseException) -> str:
    """GDAL's own words, which rasterio keeps in the cause of its error."""
    cause = error.__cause__ or error
    words = getattr(cause, "errmsg", None) or str(cause)
    return " ".join(words.split()).rstrip(".")


def check_raw_length(dataset: DatasetReader) -> None:
    """Check that a raw file is as long as its header says.

    GDAL gives zeros for what is missing at the end, and zeros look like measurements.

    Raises:
        SceneError: it is shorter.
    """
    if dataset.driver == "VRT":
        for name in (name for name in dataset.files[1:] if _is_raw(name)):
            with open_dataset(name) as source:
                check_raw_length(source)
        return
    path = Path(dataset.name)
    if dataset.driver not in _RAW_DRIVERS or not path.is_file():
        return
    expected = raw_bytes(dataset)
    if is_gzipped(dataset):
        check_gzip_length(path, expected)
        return
    length = path.stat().st_size
    if length < expected:
        raise SceneError(
            f"{path} is truncated: it has {length:,} of the {expected:,} bytes that its header "
            f"asks for, so that the block of {_missing(dataset, length)} is missing.",
            "Copy or download the file again.",
        )


def _is_raw(name: str) -> bool:
    """True when an ENVI or ESRI header stands beside a file."""
    path = Path(name)
    beside = (path.with_suffix(".hdr"), path.with_name(f"{path.name}.hdr"))
    return path.suffix != ".hdr" and path.is_file() and any(header.is_file() for header in beside)


def raw_bytes(dataset: DatasetReader) -> int:
    """Length that a raw file needs for its pixels and what stands before them."""
    pixel_bytes = sum(np.dtype(name).itemsize for name in dataset.dtypes)
    offset = int(dataset.tags(ns="ENVI").get("header_offset", "0"))
    return offset + int(dataset.width * dataset.height * pixel_bytes)


def _missing(dataset: DatasetReader, length: int) -> str:
    """The bands or rows behind a number of bytes, in words."""
    pixel_bytes = sum(np.dtype(name).itemsize for name in dataset.dtypes)
    if dataset.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") == "BAND":
        band_bytes = dataset.width * dataset.height * pixel_bytes // dataset.count
        return f"bands {length // band_bytes + 1} to {dataset.count}"
    return f"rows {length // (dataset.width * pixel_bytes)} to {dataset.height - 1}"


def local_files(dataset: DatasetReader) -> dict[str, int]:
    """The plain files that a data set reads from, with their lengths in bytes."""
    return {name: os.path.getsize(name) for name in dataset.files if os.path.isfile(name)}


def _open_error(source: str, error: Exception) -> SceneError:
    """Say what is wrong, and look whether the file is there at all."""
    plain = not source.startswith(_REMOTE_PREFIXES) and "\n" not in source and ":" not in source[2:]
    if plain and not os.path.exists(source):
        return SceneError(f"There is no raster {source}.", "Check the path; was the file moved?")
    if plain and os.path.isdir(source):
        return SceneError(f"{source} is a folder.", "Choose the raster file inside it.")
    return SceneError(
        f"GDAL cannot open {source}: {gdal_reason(error)}.",
        "Check that the file is complete and of a format that GDAL reads.",
    )

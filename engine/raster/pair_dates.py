"""When images were taken, as far as their files say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import PurePath

from rasterio.io import DatasetReader

from engine.raster.band_metadata import normalised_key
from engine.raster.dataset import open_dataset
from engine.raster.scene import Scene
from engine.raster.sidecar import list_beside, read_text
from engine.raster.xml_tree import XmlError, parse_xml

# Of one another; the ground hardly changes overnight, and passes of one day differ in time zone.
SAME_TIME = timedelta(days=1)
IMAGERY_KEY = "ACQUISITIONDATETIME"
_ISO = re.compile(
    r"((?:19|20)\d\d)[-:/]?(0[1-9]|1[0-2])[-:/]?(0[1-9]|[12]\d|3[01])"
    r"(?:[T ]?([01]\d|2[0-3]):?([0-5]\d):?([0-5]\d)?)?"
)
# In names only with a time of day, because a bare date may be that of the processing; Landsat's
# names have the date of the acquisition first.
_IN_NAME = re.compile(
    r"(?<!\d)((?:19|20)\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])T?([01]\d|2[0-3])([0-5]\d)([0-5]\d)"
    r"(?!\d)"
)
_LANDSAT = re.compile(r"^L[COTEM]0[1-9]_\w{4}_\d{6}_((?:19|20)\d\d)(\d\d)(\d\d)_")
_KEYS = ("acquisition_time", "acquisitiondatetime", "acquisition_date", "datetime")


def date_note(hsi: Scene, msi: Scene) -> tuple[str, ...]:
    """Say so when the images are of different days."""
    first, second = acquisition_time(hsi), acquisition_time(msi)
    if first is None or second is None or abs(first - second) <= SAME_TIME:
        return ()
    days = abs(first - second).total_seconds() / 86_400
    return (
        f"{hsi.name} was taken on {first:%Y-%m-%d} and {msi.name} on {second:%Y-%m-%d}, "
        f"{days:.0f} days apart: what changed on the ground between them will be wrong in the "
        "result.",
    )


def acquisition_time(scene: Scene) -> datetime | None:
    """When a scene was taken, in UTC.

    The first of: GDAL's IMAGERY domain, an EnMAP METADATA.XML beside the file, the data set's
    tags and ENVI header, the file's name, the TIFF's own date.

    Returns:
        None when nothing says so.
    """
    for file in scene.files:
        with open_dataset(file) as dataset:
            for text in _statements(dataset):
                found = parse_time(text)
                if found is not None:
                    return found
    return None


def parse_time(text: str) -> datetime | None:
    """Read a date with or without a time, as ISO 8601, TIFF and GDAL write it; None: it is none."""
    found = _ISO.search(text)
    if found is None:
        return None
    year, month, day, hour, minute, second = (int(part or 0) for part in found.groups())
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:  # 31 June
        return None


def _statements(dataset: DatasetReader) -> Iterator[str]:
    """What a data set says about its time, best first."""
    yield dataset.tags(ns="IMAGERY").get(IMAGERY_KEY, "")
    yield from _enmap_times(dataset.name)
    tags = dataset.tags(ns="ENVI") | dataset.tags()
    by_key = {normalised_key(key): value for key, value in tags.items()}
    yield from (by_key[key] for key in _KEYS if key in by_key)
    name = PurePath(dataset.name).name
    yield from (
        " ".join(("-".join(m.groups()[:3]), ":".join(m.groups()[3:])))
        for m in _IN_NAME.finditer(name)
    )
    yield from ("-".join(m.groups()) for m in _LANDSAT.finditer(name))
    yield dataset.tags().get("TIFFTAG_DATETIME", "")


def _enmap_times(name: str) -> Iterator[str]:
    """The start of the acquisition in the METADATA.XML of an EnMAP spectral image."""
    stem, word, _ = PurePath(name).name.upper().partition("SPECTRAL_IMAGE")
    if not word:
        return
    for path in list_beside(name):
        if PurePath(path).name.upper() != f"{stem}METADATA.XML":
            continue
        try:
            root = parse_xml(read_text(path) or "<none/>")
        except XmlError:  # said by whoever reads the bands from it
            return
        for coverage in root.find_all("temporalCoverage"):
            yield coverage.first_text("startTime") or ""

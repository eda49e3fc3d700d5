"""Known sensors: which one a raster comes from, and the table of its bands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePath

import numpy as np
from rasterio.io import DatasetReader

from engine.raster.band_metadata import BandFacts
from engine.raster.band_tables import read_rows, table_facts

SENSOR_FOLDER = Path(__file__).resolve().parents[2] / "resources" / "sensors"

# Collection 2 surface reflectance, the same for all its bands and satellites:
# https://www.usgs.gov/landsat-missions/landsat-collection-2-surface-reflectance
_LANDSAT_SR_SCALE, _LANDSAT_SR_OFFSET = 2.75e-5, -0.2
# Sentinel-2 from processing baseline 04.00 on adds 1,000 to its numbers:
# https://sentiwiki.copernicus.eu/web/s2-processing
_SENTINEL2_OFFSET_FROM, _SENTINEL2_OFFSET = 400, -0.1


@dataclass(frozen=True)
class Sensor:
    """A sensor that has a table.

    Args:
        name: as users know it.
        table: file in ``resources/sensors``, without suffix.
        pattern: found in the file's name or metadata when a raster is the sensor's.
    """

    name: str
    table: str
    pattern: re.Pattern[str]


def _sensor(name: str, table: str, pattern: str) -> Sensor:
    return Sensor(name, table, re.compile(pattern, re.IGNORECASE))


# The first that is found counts: satellites before their families.
SENSORS = (
    _sensor("EnMAP", "enmap", r"enmap"),
    _sensor("PRISMA", "prisma", r"prisma|\bprs_l[12]"),
    _sensor("DESIS", "desis", r"desis"),
    _sensor("EMIT", "emit", r"\bemit(?![a-z])"),
    _sensor("Sentinel-2B", "sentinel2b", r"\bs2b_|sentinel[-_ ]?2b"),
    _sensor("Sentinel-2A", "sentinel2a", r"\bs2[ac]?_|sentinel[-_ ]?2|\bT\d{2}[A-Z]{3}_\d{8}T"),
    _sensor("Landsat 9", "landsat9", r"\blc0?9(?:_|\d{13})|landsat[-_ ]?9"),
    _sensor("Landsat 8", "landsat8", r"\bl[co]0?8(?:_|\d{13})|landsat[-_ ]?8"),
    _sensor("Landsat 7", "landsat7", r"\ble0?7(?:_|\d{13})|landsat[-_ ]?7"),
    _sensor("Landsat 5", "landsat5", r"\blt0?5(?:_|\d{13})|landsat[-_ ]?5"),
)


def sensor_facts(dataset: DatasetReader) -> BandFacts | None:
    """The bands of the sensor that a raster names, when its band names or their number fit.

    Returns:
        The facts, with a note; None when no sensor is named or its table does not fit.
    """
    sensor = find_sensor(dataset)
    if sensor is None:
        return None
    table = sensor_table(sensor.table)
    names = _band_names(dataset)
    rows = _rows_by_name(table, names)
    how = "by their names"
    if rows is None and len(table.names or ()) == dataset.count:
        rows, how = list(range(dataset.count)), "in the order of the table"
    if rows is None:
        return None
    note = f"No wavelengths are stated: the bands were taken {how} as those of {sensor.name}."
    facts = _rows_of(table, rows, note)
    return _with_known_scale(facts, sensor, dataset.name)


def find_sensor(dataset: DatasetReader) -> Sensor | None:
    """The sensor that a raster's path or metadata names."""
    path = PurePath(dataset.name)
    # The folder too: a Sentinel-2 product says its satellite there.
    texts = [path.stem, *(part for part in path.parts if part.upper().endswith(".SAFE"))]
    for domain in (None, "ENVI", "IMD", "IMAGERY"):
        for key, value in dataset.tags(ns=domain).items():
            if _TELLING_KEY.search(key):
                texts.append(str(value))
    text = "\n".join(texts)
    return next((sensor for sensor in SENSORS if sensor.pattern.search(text)), None)


_TELLING_KEY = re.compile(
    r"satellite|spacecraft|platform|sensor|instrument|mission|constellation|product_uri|description",
    re.IGNORECASE,
)


@lru_cache
def sensor_table(table: str) -> BandFacts:
    """Read a sensor's table from ``resources/sensors``."""
    path = SENSOR_FOLDER / f"{table}.csv"
    return table_facts(read_rows(path), f"table of {table}", str(path))


def _band_names(dataset: DatasetReader) -> list[str]:
    """Band names in the form of the tables: ``B02``, ``SR_B2`` and ``Band 2`` are ``B2``."""
    names = [description or "" for description in dataset.descriptions]
    if dataset.count == 1 and not names[0]:
        names = [PurePath(dataset.name).stem]
    return [_short_name(name) for name in names]


def _short_name(name: str) -> str:
    found = re.findall(
        r"(?:^|[_\W])(?:SR_|ST_)?B(?:AND)?[ _]?0*(\d{1,3}A?)(?![0-9A-Z])", name.upper()
    )
    return f"B{found[-1]}" if found else name.upper()


def _rows_by_name(table: BandFacts, names: Sequence[str]) -> list[int] | None:
    places = {name.upper(): row for row, name in enumerate(table.names or ())}
    rows = [places.get(name, -1) for name in names]
    return None if -1 in rows else rows


def _rows_of(table: BandFacts, rows: list[int], note: str) -> BandFacts:
    """The rows of a table as facts of their own."""
    if table.wavelength_nm is None:
        raise AssertionError(f"{table.origin} has no wavelengths")
    return replace(
        table,
        wavelength_nm=table.wavelength_nm[rows],
        fwhm_nm=None if table.fwhm_nm is None else table.fwhm_nm[rows],
        good=None if table.good is None else table.good[rows],
        names=None if table.names is None else tuple(table.names[row] for row in rows),
        notes=(note,),
    )


def _with_known_scale(facts: BandFacts, sensor: Sensor, path: str) -> BandFacts:
    """Scale and offset where a product's name fixes them."""
    count = len(facts.names or ())
    if sensor.name.startswith("Landsat") and re.search(r"_SR_B\d", path, re.IGNORECASE):
        scale, offset = _LANDSAT_SR_SCALE, _LANDSAT_SR_OFFSET
        note = "Landsat Collection 2 surface reflectance: scale 0.0000275, offset -0.2, nodata 0."
    elif (baseline := re.search(r"_N(\d{4})_", path)) and sensor.name.startswith("Sentinel-2"):
        shifted = int(baseline.group(1)) >= _SENTINEL2_OFFSET_FROM
        scale, offset = 1e-4, _SENTINEL2_OFFSET if shifted else 0.0
        note = (
            f"Sentinel-2 baseline {baseline.group(1)}: scale 0.0001, offset {offset:g}, nodata 0."
        )
    else:
        return facts
    return replace(
        facts,
        scale=np.full(count, scale),
        offset=np.full(count, offset),
        nodata=(0.0,) * count,
        notes=(*facts.notes, note),
    )

"""Band tables that stand in a file of their own: a user's CSV, a sensor's CSV, an ENVI header."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.errors import BandTableError
from engine.raster.band_metadata import BandFacts, list_facts, normalised_key
from engine.raster.sidecar import read_text
from engine.raster.units import guess_unit_factor, unit_factor, widths_in_nm

_COLUMNS = {
    "wavelength": ("wavelength", "center_wavelength", "central_wavelength", "centre", "center"),
    "fwhm": ("fwhm", "full_width_half_max", "width", "bandwidth"),
    "unit": ("unit", "units", "wavelength_unit", "wavelength_units"),
    "good": ("good", "bbl", "good_band"),
    "bad": ("bad", "bad_band"),
    "name": ("name", "band_name", "band"),
    "number": ("band_number", "number", "no"),
    "scale": ("scale", "gain"),
    "offset": ("offset",),
    "nodata": ("nodata", "no_data"),
}
_REMEDY = (
    "Give one row a band, in the order of the bands, with a column wavelength (nm) and, where "
    "known, fwhm, good, name, scale, offset and nodata."
)

Rows = list[dict[str, str]]


def read_user_table(path: str, count: int) -> BandFacts:
    """Read the band table that a user gives for a scene of ``count`` bands.

    Columns, in any order and upper or lower case: ``wavelength`` (or ``wavelength_nm``,
    ``wavelength_um``), and optionally ``fwhm`` (``fwhm_nm``, ``fwhm_um``), ``unit``, ``good`` or
    ``bbl`` (1 good, 0 bad), ``name``, ``band_number`` (1-based, when rows are missing or in
    another order), ``scale``, ``offset`` (reflectance = dn * scale + offset) and ``nodata``.
    An ENVI header is accepted as well.

    Raises:
        BandTableError: it cannot be read, has no wavelengths, or not one row a band.
    """
    text = read_text(path)
    if text is None:
        raise BandTableError(f"The band table {path} cannot be read.", "Check the path.")
    if text.lstrip().upper().startswith("ENVI"):
        tags = parse_envi_header(text)
        return list_facts(tags, count, tags.get("wavelength_units"), "band table")
    rows = _rows_in_order(parse_rows(text, path), count, path)
    return table_facts(rows, "band table", path)


def parse_rows(text: str, path: str) -> Rows:
    """Split a CSV (comma, semicolon or tab; ``#`` starts a comment) into rows by column.

    Raises:
        BandTableError: it has no rows, or no column of wavelengths.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise BandTableError(f"The band table {path} is empty.", _REMEDY)
    delimiter = next((mark for mark in (";", "\t", ",") if mark in lines[0]), ",")
    cells = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    if delimiter == ";":
        # Spreadsheets that separate by semicolon write decimal commas.
        cells = [cells[0], *([cell.replace(",", ".") for cell in row] for row in cells[1:])]
    header = [normalised_key(cell) for cell in cells[0]]
    if all(re.fullmatch(r"[-+.\deE]+", cell) for cell in cells[0]):
        header = ["wavelength", "fwhm", "good"][: len(header)]
        cells = [[], *cells]
    for line_number, row in enumerate(cells[1:], start=2):
        if len(row) < len(header):
            raise BandTableError(
                f"Row {line_number} of the band table {path} has {len(row)} of {len(header)} "
                "columns.",
                _REMEDY,
            )
    return [dict(zip(header, row, strict=False)) for row in cells[1:]]


def table_facts(rows: Rows, origin: str, path: str) -> BandFacts:
    """Turn the rows of a table into facts, one a row.

    Raises:
        BandTableError: there is no column of wavelengths, or a cell is not a number.
    """
    key, wavelength = _numbers(rows, "wavelength", path)
    if wavelength is None or key is None:
        raise BandTableError(f"The band table {path} has no column 'wavelength'.", _REMEDY)
    factor, notes = _factor(rows, key, wavelength, path)
    wavelength_nm = np.where(wavelength > 0, wavelength * factor, np.nan)
    fwhm_key, fwhm = _numbers(rows, "fwhm", path)
    if fwhm is not None and fwhm_key is not None:
        own = unit_factor(fwhm_key[-2:]) if fwhm_key.endswith(("_nm", "_um")) else None
        fwhm, width_notes = widths_in_nm(fwhm, own or factor, wavelength_nm, origin)
        notes += width_notes
    facts = BandFacts(origin, wavelength_nm=wavelength_nm, fwhm_nm=fwhm, notes=notes)
    return _with_optional_columns(facts, rows, path)


def parse_envi_header(text: str) -> dict[str, str]:
    """Split an ENVI header into its keys (normalised) and values (braces kept)."""
    tags: dict[str, str] = {}
    for match in re.finditer(r"^\s*([^=;{}\n]+?)\s*=\s*(\{[^}]*\}|[^\n]*)", text, re.MULTILINE):
        tags[normalised_key(match.group(1))] = " ".join(match.group(2).split())
    return tags


def read_rows(path: Path) -> Rows:
    """The rows of one of our own tables in ``resources/sensors``."""
    return parse_rows(path.read_text(encoding="utf-8"), str(path))


def _rows_in_order(rows: Rows, count: int, path: str) -> Rows:
    """One row a band: by ``band_number`` when there is such a column, otherwise as they stand."""
    key = _column(rows, "number")
    if key is None:
        if len(rows) != count:
            raise BandTableError(
                f"The band table {path} has {len(rows)} rows, the scene {count} bands.", _REMEDY
            )
        return rows
    placed: Rows = [dict.fromkeys(rows[0], "") for _ in range(count)]
    for row in rows:
        number = int(row[key]) if row[key].isdigit() else 0
        if not 1 <= number <= count:
            raise BandTableError(
                f"The band table {path} has a row for band {row[key]!r}, the scene bands 1 to "
                f"{count}.",
                _REMEDY,
            )
        placed[number - 1] = row
    return placed


def _with_optional_columns(facts: BandFacts, rows: Rows, path: str) -> BandFacts:
    name_key = _column(rows, "name")
    names = tuple(row[name_key] for row in rows) if name_key is not None else ()
    scale = _numbers(rows, "scale", path)[1]
    offset = _numbers(rows, "offset", path)[1]
    if scale is None and offset is not None:
        scale = np.ones(len(rows))
    return replace(
        facts,
        good=_good(rows, path),
        names=names if names and all(names) else None,
        scale=None if scale is None else np.nan_to_num(scale, nan=1.0),
        offset=None if scale is None else _filled(offset, len(rows)),
        nodata=_nodata(rows),
    )


def _filled(offset: NDArray[np.float64] | None, count: int) -> NDArray[np.float64]:
    return np.zeros(count) if offset is None else np.nan_to_num(offset, nan=0.0)


def _good(rows: Rows, path: str) -> NDArray[np.bool_] | None:
    good = _numbers(rows, "good", path)[1]
    if good is not None:
        return np.asarray(np.nan_to_num(good, nan=1.0) != 0.0)
    bad = _numbers(rows, "bad", path)[1]
    return None if bad is None else np.asarray(np.nan_to_num(bad, nan=0.0) == 0.0)


def _nodata(rows: Rows) -> tuple[float | None, ...] | None:
    """Numbers, ``nan`` among them; an empty cell means that the band has no such value."""
    key = _column(rows, "nodata")
    if key is None:
        return None
    return tuple(float(row[key]) if row[key] else None for row in rows)


def _factor(
    rows: Rows, key: str, wavelength: NDArray[np.float64], path: str
) -> tuple[float, tuple[str, ...]]:
    """Nanometres in one unit of the table; stated by the column, else guessed with a note."""
    unit_key = _column(rows, "unit")
    unit = key[-2:] if key.endswith(("_nm", "_um")) else None
    if unit is None and unit_key is not None:
        unit = rows[0][unit_key]
    factor = unit_factor(unit)
    if factor is not None:
        return factor, ()
    guessed, note = guess_unit_factor(wavelength, unit, "band table")
    if guessed is None:
        raise BandTableError(f"The band table {path} gives bands in {unit!r}.", _REMEDY)
    # Our documented default; only the other reading needs saying.
    return guessed, (note,) if guessed != 1.0 or unit else ()


def _column(rows: Sequence[Mapping[str, str]], what: str) -> str | None:
    """The key of a column in any of its spellings."""
    present = rows[0] if rows else {}
    for base in _COLUMNS[what]:
        for key in (base, f"{base}_nm", f"{base}_um"):
            if key in present:
                return key
    return None


def _numbers(rows: Rows, what: str, path: str) -> tuple[str | None, NDArray[np.float64] | None]:
    """A column as numbers, NaN where a cell is empty, and its key; None when there is none."""
    key = _column(rows, what)
    if key is None:
        return None, None
    numbers = np.full(len(rows), np.nan)
    for i, row in enumerate(rows):
        text = {"true": "1", "false": "0"}.get(row[key].lower(), row[key])
        try:
            numbers[i] = float(text) if text else np.nan
        except ValueError as error:
            raise BandTableError(
                f"The band table {path} has {row[key]!r} as {key} of row {i + 1}, which is not a "
                "number.",
                _REMEDY,
            ) from error
    return key, numbers

"""What a raster says about its bands: wavelengths, widths, bad bands, scale, in any spelling.

A *source* is one place where bands are described (band tags, GDAL's IMAGERY domain, an ENVI
header, …). Each gives `BandFacts`, with gaps; `merge_facts` takes every property from the first
source that has it. The order of the sources is the caller's: band level before data set level.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader

from engine.raster.units import guess_unit_factor, unit_factor, widths_in_nm

Floats = NDArray[np.float64]

_WAVELENGTH_KEYS = (
    "wavelength",
    "wavelengths",
    "center_wavelength",
    "central_wavelength",
    "centre_wavelength",
    "centerwavelength",
    "wavelength_center",
    "wavelengthcenter",
    "eo:center_wavelength",
    "wl",
)
_FWHM_KEYS = ("fwhm", "full_width_half_max", "eo:full_width_half_max", "bandwidth", "band_width")
_UNIT_KEYS = (
    "wavelength_units",
    "wavelength_unit",
    "wavelengths_units",
    "wavelengthunits",
)
_GOOD_KEYS = ("bbl", "good", "good_band")
_BAD_KEYS = ("bad", "bad_band", "badband")
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_DESCRIBED = re.compile(rf"({_NUMBER})\s*([a-zµμ]+)\b", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class BandFacts:
    """What one source says about the C bands; None where it says nothing.

    Args:
        origin: the source, for messages.
        wavelength_nm: (C,) float64, NaN for a band without one.
        fwhm_nm: (C,) float64, NaN for a band without one.
        good: (C,) bool.
        names: C names.
        scale: (C,) float64, reflectance = dn * scale + offset.
        offset: (C,) float64.
        nodata: one a band.
        notes: what was assumed or passed over.
    """

    origin: str
    wavelength_nm: Floats | None = None
    fwhm_nm: Floats | None = None
    good: NDArray[np.bool_] | None = None
    names: tuple[str, ...] | None = None
    scale: Floats | None = None
    offset: Floats | None = None
    nodata: tuple[float | None, ...] | None = None
    notes: tuple[str, ...] = ()


def merge_facts(sources: Iterable[BandFacts]) -> BandFacts:
    """Take each property from the first source that has it, whole before in part.

    Scale and offset belong together and come from one source. Notes of a source are kept only
    when something was taken from it.
    """
    facts = list(sources)
    wavelength = _first_numbers(facts, "wavelength_nm")
    takers = {
        "wavelength_nm": wavelength,
        "fwhm_nm": _first_numbers(facts, "fwhm_nm"),
        "good": _first(facts, "good"),
        "names": _first(facts, "names"),
        "scale": _first(facts, "scale"),
        "nodata": _first(facts, "nodata"),
    }
    merged = {name: getattr(source, name) for name, source in takers.items() if source is not None}
    scaled = takers["scale"]
    offset = scaled.offset if scaled is not None else None
    used = [source for source in facts if any(source is taker for taker in takers.values())]
    notes = tuple(dict.fromkeys(note for source in used for note in source.notes))
    origin = wavelength.origin if wavelength is not None else ""
    return BandFacts(origin, **merged, offset=offset, notes=notes)


def dataset_facts(dataset: DatasetReader) -> list[BandFacts]:
    """Collect what GDAL passes on, best source first."""
    band_tags = [_tags_of_band(dataset, number) for number in dataset.indexes]
    dataset_tags = _normalised(dataset.tags())
    envi_tags = _normalised(dataset.tags(ns="ENVI"))
    unit = _first_value(dataset_tags, _UNIT_KEYS) or _first_value(envi_tags, _UNIT_KEYS)
    header = list_facts(envi_tags, dataset.count, unit, "ENVI header")
    in_bands = _band_level_facts(band_tags, unit)
    in_imagery = _imagery_facts(dataset)
    in_dataset = list_facts(dataset_tags, dataset.count, unit, "data set tags")
    in_gdal = _gdal_facts(dataset)
    described = description_facts(dataset.descriptions)
    if dataset.driver == "ENVI":
        # GDAL makes both other sources from this header, and rounds the widths to 1 nm.
        return [header, in_bands, in_imagery, in_gdal, in_dataset, *described]
    return [in_bands, in_imagery, header, in_gdal, in_dataset, *described]


def list_facts(tags: Mapping[str, str], count: int, unit: str | None, origin: str) -> BandFacts:
    """Read lists such as ``wavelength = {460, 465}`` from normalised tags of a whole data set.

    Lists whose length is not the number of bands are passed over with a note.
    """
    key, wavelength = _list_of(tags, _WAVELENGTH_KEYS, count)
    fwhm = _list_of(tags, _FWHM_KEYS, count)[1]
    good = _good_list(tags, count)
    notes = tuple(
        f"The {origin} lists {len(found)} values as {name!r} for {count} bands; "
        "the list is not used."
        for name, found in _lists(tags, (*_WAVELENGTH_KEYS, *_FWHM_KEYS, *_GOOD_KEYS))
        if len(found) not in (1, count)
    )
    facts = _in_nm(origin, wavelength, fwhm, _unit_of_key(key, tags) or unit)
    names = _split_list(tags.get("band_names", ""))
    scale, offset = _scale_of_header(tags, count)
    return replace(
        facts,
        good=good,
        names=tuple(names) if len(names) == count and all(names) else None,
        scale=scale,
        offset=offset,
        notes=facts.notes + notes,
    )


def normalised_key(key: str) -> str:
    """``Wavelength Units`` and ``WAVELENGTH-UNITS`` as ``wavelength_units``."""
    return re.sub(r"[\s\-]+", "_", key.strip().lower())


def description_facts(descriptions: Sequence[str | None]) -> list[BandFacts]:
    """Read band names, and wavelengths in such as ``band 8 (0.460 Micrometers)``, ``B2 490 nm``.

    Two sources, because the names are of use where the wavelengths come from elsewhere.
    """
    found = [_described_nm(text or "") for text in descriptions]
    names = tuple(text or "" for text in descriptions)
    facts = [BandFacts("band names", names=names if all(names) else None)]
    if any(value is not None for value in found):
        wavelength_nm = np.asarray([np.nan if value is None else value for value in found])
        notes = ("The wavelengths were read from the names of the bands.",)
        facts.append(BandFacts("band names", wavelength_nm=wavelength_nm, notes=notes))
    return facts


def _described_nm(text: str) -> float | None:
    """The last number in a band's name that has a unit of length behind it, in nm."""
    for number, unit in reversed(_DESCRIBED.findall(text)):
        factor = unit_factor(unit)
        if factor is not None and 100.0 <= float(number) * factor <= 20_000.0:
            return float(number) * factor
    return None


def _first(facts: Sequence[BandFacts], name: str) -> BandFacts | None:
    return next((source for source in facts if getattr(source, name) is not None), None)


def _first_numbers(facts: Sequence[BandFacts], name: str) -> BandFacts | None:
    """The first source with a number for every band, else the first with any."""
    having = [
        source
        for source in facts
        if getattr(source, name) is not None and np.isfinite(getattr(source, name)).any()
    ]
    whole = [source for source in having if np.isfinite(getattr(source, name)).all()]
    return next(iter([*whole, *having]), None)


def _tags_of_band(dataset: DatasetReader, number: int) -> dict[str, str]:
    """A band's own tags, those of its ENVI domain below them."""
    tags = _normalised(dataset.tags(number, ns="ENVI"))
    return {**tags, **_normalised(dataset.tags(number))}


def _band_level_facts(band_tags: Sequence[Mapping[str, str]], unit: str | None) -> BandFacts:
    """Wavelength, width and flag from the tags of each band."""
    origin = "band tags"
    keys = [_first_key(tags, _WAVELENGTH_KEYS) for tags in band_tags]
    wavelength = _numbers(
        [tags.get(key or "", "") for tags, key in zip(band_tags, keys, strict=True)]
    )
    fwhm = _numbers([_first_value(tags, _FWHM_KEYS) or "" for tags in band_tags])
    stated = {_unit_of_key(key, tags) for tags, key in zip(band_tags, keys, strict=True) if key}
    own_unit = next(iter(stated - {None}), None)
    facts = _in_nm(origin, wavelength, fwhm, own_unit or unit)
    if len(stated - {None}) > 1:
        facts = _mixed_units(origin, band_tags, keys, wavelength, fwhm)
    flags = [_flag(tags) for tags in band_tags]
    known = any(flag is not None for flag in flags)
    good = np.asarray([flag is not False for flag in flags]) if known else None
    return replace(facts, good=good)


def _mixed_units(
    origin: str,
    band_tags: Sequence[Mapping[str, str]],
    keys: Sequence[str | None],
    wavelength: Floats | None,
    fwhm: Floats | None,
) -> BandFacts:
    """Bands of one file with units of their own, as in a stack of two sensors' bands."""
    factors = [
        unit_factor(_unit_of_key(key, tags)) for key, tags in zip(keys, band_tags, strict=True)
    ]
    factor = np.asarray([np.nan if value is None else value for value in factors])
    wavelength_nm = None if wavelength is None else wavelength * factor
    fwhm_nm = None if fwhm is None else fwhm * factor
    return BandFacts(origin, wavelength_nm=wavelength_nm, fwhm_nm=fwhm_nm)


def _imagery_facts(dataset: DatasetReader) -> BandFacts:
    """GDAL's IMAGERY domain, which is in micrometres by definition."""
    tags = [_normalised(dataset.tags(number, ns="IMAGERY")) for number in dataset.indexes]
    wavelength = _numbers([tag.get("central_wavelength_um", "") for tag in tags])
    fwhm = _numbers([tag.get("fwhm_um", "") for tag in tags])
    return _in_nm("IMAGERY domain", wavelength, fwhm, "um")


def _gdal_facts(dataset: DatasetReader) -> BandFacts:
    """Scale, offset and nodata as GDAL knows them; scale 1 and offset 0 are its "not stated"."""
    scale = np.asarray(dataset.scales, np.float64)
    offset = np.asarray(dataset.offsets, np.float64)
    stated = bool(np.any(scale != 1.0) or np.any(offset != 0.0))
    return BandFacts(
        "GDAL",
        scale=scale if stated else None,
        offset=offset if stated else None,
        nodata=tuple(dataset.nodatavals) if set(dataset.nodatavals) != {None} else None,
    )


def _in_nm(
    origin: str, wavelength: Floats | None, fwhm: Floats | None, unit: str | None
) -> BandFacts:
    """Convert to nm; without a known unit, guess it and say so."""
    if wavelength is None:
        return BandFacts(origin)
    factor = unit_factor(unit)
    notes: tuple[str, ...] = ()
    if factor is None:
        factor, note = guess_unit_factor(wavelength, unit, origin)
        notes = (note,)
        if factor is None:
            return BandFacts(origin, notes=notes)
    wavelength_nm = np.where(wavelength > 0, wavelength * factor, np.nan)
    if fwhm is None:
        return BandFacts(origin, wavelength_nm=wavelength_nm, notes=notes)
    fwhm_nm, width_notes = widths_in_nm(fwhm, factor, wavelength_nm, origin)
    return BandFacts(
        origin, wavelength_nm=wavelength_nm, fwhm_nm=fwhm_nm, notes=notes + width_notes
    )


def _scale_of_header(tags: Mapping[str, str], count: int) -> tuple[Floats | None, Floats | None]:
    """ENVI's reflectance scale factor divides; gains multiply."""
    gain = _list_of(tags, ("data_gain_values",), count)[1]
    if gain is not None:
        offset = _list_of(tags, ("data_offset_values",), count)[1]
        return gain, np.zeros(count) if offset is None else offset
    divisor = _numbers([tags.get("reflectance_scale_factor", "")])
    if divisor is None or not divisor[0] > 0:
        return None, None
    return np.full(count, 1.0 / divisor[0]), np.zeros(count)


def _good_list(tags: Mapping[str, str], count: int) -> NDArray[np.bool_] | None:
    """ENVI's bad band list: 1 is good, 0 is bad."""
    flags = _list_of(tags, _GOOD_KEYS, count)[1]
    return None if flags is None else np.nan_to_num(flags, nan=1.0) != 0.0


def _flag(tags: Mapping[str, str]) -> bool | None:
    """True for a good band, False for a bad one, None when its tags do not say."""
    for keys, meaning in ((_GOOD_KEYS, True), (_BAD_KEYS, False)):
        value = _first_value(tags, keys)
        if value is not None:
            return (value.strip().lower() not in ("0", "0.0", "false", "no", "")) is meaning
    return None


def _lists(tags: Mapping[str, str], keys: Sequence[str]) -> list[tuple[str, list[str]]]:
    return [
        (key, _split_list(tags[full]))
        for key in keys
        for full in (key, *(f"{key}_{unit}" for unit in ("nm", "um")))
        if full in tags
    ]


def _list_of(
    tags: Mapping[str, str], keys: Sequence[str], count: int
) -> tuple[str | None, Floats | None]:
    """The first list of numbers as long as there are bands, and its key."""
    for key in (full for base in keys for full in (base, f"{base}_nm", f"{base}_um")):
        values = _split_list(tags.get(key, ""))
        if len(values) == count:
            numbers = _numbers(values)
            if numbers is not None:
                return key, numbers
    return None, None


def _split_list(text: str) -> list[str]:
    """``{1, 2}``, ``[1 2]`` or ``1,2`` as strings."""
    inner = text.strip().strip("{}[]()").strip()
    if not inner:
        return []
    parts = inner.split(",") if "," in inner else inner.split()
    return [part.strip().strip("'\"") for part in parts]


def _numbers(values: Sequence[str]) -> Floats | None:
    """(C,) float64, NaN for what is no number; None when nothing is."""
    numbers = np.asarray([_number(value) for value in values], np.float64)
    return numbers if np.isfinite(numbers).any() else None


def _number(text: str) -> float:
    match = re.fullmatch(rf"\s*({_NUMBER})\s*([a-zµμ]*)\s*", text, re.IGNORECASE)
    return float(match.group(1)) if match else float("nan")


def _unit_of_key(key: str | None, tags: Mapping[str, str]) -> str | None:
    """The unit in a key (``wavelength_nm``), in the value (``460 nm``) or beside it."""
    if key is None:
        return None
    if key.endswith(("_nm", "_um")):
        return key[-2:]
    in_value = re.search(r"\d\s*([a-zµμ]{2,})\s*$", tags.get(key, ""), re.IGNORECASE)
    if in_value and unit_factor(in_value.group(1)) is not None:
        return in_value.group(1)
    return _first_value(tags, _UNIT_KEYS)


def _first_key(tags: Mapping[str, str], keys: Sequence[str]) -> str | None:
    names = (full for key in keys for full in (key, f"{key}_nm", f"{key}_um"))
    return next((name for name in names if tags.get(name, "").strip()), None)


def _first_value(tags: Mapping[str, str], keys: Sequence[str]) -> str | None:
    key = _first_key(tags, keys)
    return None if key is None else tags[key]


def _normalised(tags: Mapping[str, str]) -> dict[str, str]:
    return {normalised_key(key): value for key, value in tags.items()}

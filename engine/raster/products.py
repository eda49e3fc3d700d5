"""What lies beside a raster and describes it: EnMAP products, STAC items, headers, VRT sources."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader

from engine.errors import SceneError
from engine.raster.band_metadata import BandFacts, dataset_facts, list_facts, merge_facts
from engine.raster.band_tables import parse_envi_header
from engine.raster.dataset import open_dataset
from engine.raster.sensors import sensor_facts
from engine.raster.sidecar import list_beside, list_zip, read_text
from engine.raster.xml_tree import Element, XmlError, parse_xml

logger = logging.getLogger(__name__)

_METADATA_END = "METADATA.XML"
_IMAGE_WORD = "SPECTRAL_IMAGE"
_IMAGE_SUFFIXES = (".TIF", ".TIFF", ".BSQ", ".BIL", ".BIP", ".JP2", ".VRT")
ENMAP_NODATA = -32768.0
ENMAP_L2A_SCALE = 1e-4
# An L2A gain outside of this does not give reflectance.
_L2A_GAIN_RANGE = (1e-5, 1e-3)
# A VRT of VRTs of VRTs is followed no further.
_MAX_VRT_DEPTH = 3


def resolve_source(source: str) -> str:
    """Turn what a user chose into the raster to open: a product's XML or zip into its image.

    Raises:
        SceneError: the product has no spectral image, or more than one.
    """
    name = PurePath(source).name.upper()
    if name.endswith(_METADATA_END):
        return _only_image(source, list_beside(source), name[: -len(_METADATA_END)])
    if name.endswith(".ZIP") and not source.startswith("/vsi"):
        inside = list_zip(source)
        if any(PurePath(path).name.upper().endswith(_METADATA_END) for path in inside):
            return _only_image(source, inside, "")
    return source


def collect_facts(dataset: DatasetReader, depth: int = 0) -> BandFacts:
    """Everything that is said about a data set's bands, by itself and by what lies beside it."""
    sources = [
        *_enmap_beside(dataset),
        *dataset_facts(dataset),
        *_vrt_sources(dataset, depth),
        *_header_beside(dataset),
        *_stac_beside(dataset),
    ]
    merged = merge_facts(sources)
    if merged.wavelength_nm is not None and np.isfinite(merged.wavelength_nm).all():
        return merged
    by_sensor = sensor_facts(dataset)
    if by_sensor is not None:
        return merge_facts([*sources, by_sensor])
    # Notes of sources that gave nothing tell why there are no wavelengths.
    reasons = tuple(note for source in sources for note in source.notes)
    return replace(merged, notes=tuple(dict.fromkeys(merged.notes + reasons)))


def enmap_facts(xml: str, count: int) -> BandFacts:
    """Read the band table of an EnMAP ``METADATA.XML`` for an image of ``count`` bands.

    Bands whose statistics are empty (no deviation around a negative mean) are bad.

    Raises:
        XmlError: it is not XML.
    """
    root = parse_xml(xml)
    bands = _enmap_bands(root, "bandCharacterisation")
    level = (root.first_text("level") or "").upper()
    if len(bands) != count:
        note = f"METADATA.XML describes {len(bands)} bands, the image has {count}; it is not used."
        return BandFacts("METADATA.XML", notes=(note,) if bands else ())
    nodata = _float(root.first_text("backgroundValue"), ENMAP_NODATA)
    scale, offset, notes = _enmap_scale(bands, level)
    empty = {
        number for number, band in _enmap_bands(root, "bandStatistics").items() if _is_empty(band)
    }
    return BandFacts(
        "METADATA.XML",
        wavelength_nm=_column(bands, "wavelengthCenterOfBand"),
        fwhm_nm=_column(bands, "FWHMOfBand"),
        good=np.asarray([number not in empty for number in bands]),
        names=tuple(f"band {number}" for number in bands),
        scale=scale,
        offset=offset,
        nodata=(nodata,) * count,
        notes=notes,
    )


def stac_facts(item: Mapping[str, Any], file_name: str, count: int) -> BandFacts | None:
    """Read the bands of one asset of a STAC item (``eo:bands`` or, since 1.1, ``bands``), in µm."""
    bands = _stac_bands(item, file_name, count)
    if bands is None:
        return None
    wavelength_um = _stac_column(bands, "center_wavelength", "eo:center_wavelength")
    fwhm_um = _stac_column(bands, "full_width_half_max", "eo:full_width_half_max")
    names = [str(band.get("name") or band.get("description") or "") for band in bands]
    scale = _stac_column(bands, "scale", "raster:scale")
    offset = _stac_column(bands, "offset", "raster:offset")
    stated = bool(np.isfinite(scale).any())
    return BandFacts(
        "STAC item",
        wavelength_nm=wavelength_um * 1e3,
        fwhm_nm=fwhm_um * 1e3,
        names=tuple(names) if all(names) else None,
        scale=np.nan_to_num(scale, nan=1.0) if stated else None,
        offset=np.nan_to_num(offset, nan=0.0) if stated else None,
    )


def _only_image(source: str, paths: Sequence[str], prefix: str) -> str:
    """The one spectral image among the files of a product."""
    images = [
        path
        for path in paths
        if _IMAGE_WORD in PurePath(path).name.upper()
        and PurePath(path).suffix.upper() in _IMAGE_SUFFIXES
    ]
    own = [path for path in images if PurePath(path).name.upper().startswith(prefix)]
    found = own or images
    if len(found) == 1:
        return found[0]
    raise SceneError(
        f"{source} stands beside {len(found)} spectral images, not one.",
        "Choose a product of level L2A, with its …-SPECTRAL_IMAGE.TIF in the same folder."
        if not found
        else f"Choose one of them: {', '.join(PurePath(path).name for path in found)}.",
    )


def _enmap_beside(dataset: DatasetReader) -> list[BandFacts]:
    """The facts of the METADATA.XML beside an EnMAP spectral image."""
    name = PurePath(dataset.name).name.upper()
    if _IMAGE_WORD not in name:
        return []
    prefix = name.split(_IMAGE_WORD)[0]
    candidates = [
        path
        for path in list_beside(dataset.name)
        if PurePath(path).name.upper().endswith(_METADATA_END)
    ]
    own = [path for path in candidates if PurePath(path).name.upper() == prefix + _METADATA_END]
    for path in (own or candidates)[:1]:
        text = read_text(path)
        try:
            return [] if text is None else [enmap_facts(text, dataset.count)]
        except XmlError as error:
            raise SceneError(f"{path} cannot be read: {error}", "Download it again.") from error
    return []


def _enmap_bands(root: Element, section: str) -> dict[int, Element]:
    """The ``bandID`` elements of a section, by band number, ascending."""
    bands: dict[int, Element] = {}
    for parent in root.find_all(section):
        for place, band in enumerate(parent.find_all("bandID"), start=1):
            number = band.attributes.get("number", "")
            bands[int(number) if number.isdigit() else place] = band
    return dict(sorted(bands.items()))


def _enmap_scale(
    bands: Mapping[int, Element], level: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[str, ...]]:
    """Gains and offsets; L2A is reflectance, L1 is radiance."""
    gain = _column(bands, "GainOfBand")
    offset = np.nan_to_num(_column(bands, "OffsetOfBand"), nan=0.0)
    if level.startswith("L1"):
        note = f"The product is of level {level}: radiance, not surface reflectance."
        return np.nan_to_num(gain, nan=1.0), offset, (note,)
    low, high = _L2A_GAIN_RANGE
    if np.all((gain >= low) & (gain <= high)):
        return gain, offset, ()
    note = "METADATA.XML states no usable gain; EnMAP L2A is taken as reflectance x 10,000."
    return np.full(len(bands), ENMAP_L2A_SCALE), np.zeros(len(bands)), (note,)


def _is_empty(band: Element) -> bool:
    """True when a band's statistics say that no pixel has a value."""
    deviation = _float(band.first_text("stdDeviation"), np.nan)
    mean = _float(band.first_text("mean", "meanReflectance"), 0.0)
    return bool(np.isnan(mean) or (deviation == 0.0 and mean < 0.0))


def _column(bands: Mapping[int, Element], tag: str) -> NDArray[np.float64]:
    return np.asarray([_float(band.first_text(tag), np.nan) for band in bands.values()])


def _float(text: str | None, default: float) -> float:
    try:
        return default if text is None else float(text)
    except ValueError:
        return default


def _header_beside(dataset: DatasetReader) -> Iterator[BandFacts]:
    """An ENVI header beside a raster of another format, when it is for as many bands."""
    if dataset.driver == "ENVI":
        return
    for path in dict.fromkeys([f"{os.path.splitext(dataset.name)[0]}.hdr", f"{dataset.name}.hdr"]):
        text = read_text(path)
        if text is None or not text.lstrip().upper().startswith("ENVI"):
            continue
        tags = parse_envi_header(text)
        if tags.get("bands", "").strip() == str(dataset.count):
            yield list_facts(tags, dataset.count, tags.get("wavelength_units"), "ENVI header")


def _stac_beside(dataset: DatasetReader) -> Iterator[BandFacts]:
    """STAC items beside a raster that have it among their assets."""
    name = PurePath(dataset.name).name
    for path in list_beside(dataset.name):
        if PurePath(path).suffix.lower() not in (".json", ".geojson"):
            continue
        item = _json_object(path)
        if item.get("type") == "Feature" and isinstance(item.get("assets"), dict):
            facts = stac_facts(item, name, dataset.count)
            if facts is not None:
                yield facts


def _json_object(path: str) -> dict[str, Any]:
    try:
        value = json.loads(read_text(path) or "{}")
    except (ValueError, RecursionError) as error:
        logger.debug("%s is not JSON: %s", path, error)
        return {}
    return value if isinstance(value, dict) else {}


def _stac_bands(item: Mapping[str, Any], file_name: str, count: int) -> list[dict[str, Any]] | None:
    """The band objects of the asset that is this file, one a band."""
    for asset in item["assets"].values():
        if not isinstance(asset, dict):
            continue
        href = str(asset.get("href", "")).split("?")[0].replace("\\", "/")
        if href.rsplit("/", 1)[-1] != file_name:
            continue
        layers = [asset.get(key) for key in ("bands", "eo:bands", "raster:bands")]
        whole = [bands for bands in layers if isinstance(bands, list) and len(bands) == count]
        if not whole:
            continue
        # Later lists fill what earlier ones leave out: eo:bands and raster:bands run in parallel.
        return [
            {key: value for bands in reversed(whole) for key, value in dict(bands[i]).items()}
            for i in range(count)
        ]
    return None


def _stac_column(bands: Sequence[Mapping[str, Any]], *keys: str) -> NDArray[np.float64]:
    found = [next((band[key] for key in keys if key in band), None) for band in bands]
    return np.asarray(
        [float(value) if isinstance(value, int | float) else np.nan for value in found]
    )


@dataclass(frozen=True)
class _VrtBand:
    """The first source of a band of a VRT; ``plain`` when its numbers are not changed."""

    path: str
    band_number: int
    plain: bool


def _vrt_sources(dataset: DatasetReader, depth: int) -> list[BandFacts]:
    """What the sources of a VRT say about its bands."""
    if dataset.driver != "VRT" or depth >= _MAX_VRT_DEPTH:
        return []
    bands = _vrt_bands(dataset)
    if len(bands) != dataset.count:
        return []
    facts: dict[str, BandFacts] = {}
    for path in dict.fromkeys(band.path for band in bands):
        with open_dataset(path) as source:
            facts[path] = collect_facts(source, depth + 1)
    picked = [(facts[band.path], band.band_number - 1) for band in bands]
    plain = all(band.plain for band in bands)
    good = [found.good is None or bool(found.good[i]) for found, i in picked]
    return [
        BandFacts(
            "bands of the VRT's sources",
            wavelength_nm=_pick(picked, "wavelength_nm"),
            fwhm_nm=_pick(picked, "fwhm_nm"),
            good=np.asarray(good) if any(found.good is not None for found, _ in picked) else None,
            scale=_pick(picked, "scale") if plain else None,
            offset=_pick(picked, "offset") if plain else None,
            notes=tuple(dict.fromkeys(note for found in facts.values() for note in found.notes)),
        )
    ]


def _vrt_bands(dataset: DatasetReader) -> list[_VrtBand]:
    """The first source of each band; fewer than there are bands when one is derived."""
    try:
        root = parse_xml(dataset.tags(ns="xml:VRT").get("xml:VRT", ""))
    except XmlError as error:
        logger.debug("the XML of %s is not read: %s", dataset.name, error)
        return []
    folder = os.path.dirname(dataset.name)
    bands = []
    for band in (child for child in root.children if child.tag == "VRTRasterBand"):
        sources = [
            child for child in band.children if child.tag in ("SimpleSource", "ComplexSource")
        ]
        for source in sources[:1]:
            name = next(source.find_all("SourceFilename"))
            relative = name.attributes.get("relativeToVRT") == "1"
            number = source.first_text("SourceBand") or "1"
            if number.isdigit():
                path = os.path.join(folder, name.text) if relative else name.text
                bands.append(_VrtBand(path, int(number), source.tag == "SimpleSource"))
    return bands


def _pick(picked: Sequence[tuple[BandFacts, int]], name: str) -> NDArray[np.float64] | None:
    """One property of every band from its own source; None when a source lacks it."""
    columns = [(getattr(found, name), i) for found, i in picked]
    if all(column is None for column, _ in columns):
        return None
    if name in ("scale", "offset") and any(column is None for column, _ in columns):
        return None
    return np.asarray([np.nan if column is None else column[i] for column, i in columns])

"""A scene: one image from one file or several, its grid, its bands and how to read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import MaskFlags
from rasterio.io import DatasetReader
from rasterio.transform import Affine

from engine.errors import BandTableError, SceneError
from engine.raster.band_metadata import BandFacts, merge_facts
from engine.raster.band_tables import read_user_table
from engine.raster.dataset import check_raw_length, open_dataset
from engine.raster.products import collect_facts, resolve_source
from engine.raster.radiometry import assumed_scale, fitting_nodata, says_radiance
from engine.raster.reader import SceneReader
from engine.raster.spectra import BandTable
from engine.raster.tiles import Window

__all__ = ["Scene", "SceneReader", "open_scene"]

# Types that PyTorch can take over without loss; no sensor stores another.
_DTYPES = ("uint8", "int8", "int16", "uint16", "int32", "float32", "float64")
# Two grids are the same when no corner is further off than this share of a pixel.
_GRID_TOLERANCE_PX = 1e-3
_SAMPLE_BANDS = 5
_SAMPLE_ROWS, _SAMPLE_COLS = 32, 256


@dataclass(frozen=True, eq=False)
class Scene:
    """One input image: where its bands are stored and what their numbers mean.

    Args:
        name: for messages and layer names.
        files: GDAL source strings.
        band_sources: for every band its (index into ``files``, band_number there, 1-based).
        bands: their wavelengths; None for a raster that says none.
        height: rows.
        width: columns.
        transform: (col, row) to map coordinates, exactly as stored.
        crs: None when the files have none.
        dtype: stored type, common to all bands.
        nodata: stored value for "no measurement", one a band; None where there is none.
        scale: (C,) float64; reflectance = dn * scale + offset.
        offset: (C,) float64.
        notes: what was assumed, for the user.
        block_shape: rows and columns that are stored together.
    """

    name: str
    files: tuple[str, ...]
    band_sources: tuple[tuple[int, int], ...]
    bands: BandTable | None
    height: int
    width: int
    transform: Affine
    crs: CRS | None
    dtype: np.dtype[np.generic]
    nodata: tuple[float | None, ...]
    scale: NDArray[np.float64]
    offset: NDArray[np.float64]
    notes: tuple[str, ...]
    block_shape: tuple[int, int]

    def require_bands(self) -> BandTable:
        """The band table.

        Raises:
            BandTableError: the scene has no wavelengths.
        """
        if self.bands is not None:
            return self.bands
        raise BandTableError(
            f"{self.name} has no wavelengths for its {len(self.band_sources)} bands."
            + "".join(f" {note}" for note in self.notes if "band" in note.lower()),
            "Give a band table: a CSV with one row a band and a column wavelength (nm), and fwhm "
            "where it is known.",
        )


def open_scene(source: str | Sequence[str], bands_csv: str | None = None) -> Scene:
    """Open an image and find out everything about it but its pixels.

    Args:
        source: anything that GDAL opens, an EnMAP product by its METADATA.XML or its spectral
            image, or several files on one grid whose bands form one scene in this order.
        bands_csv: a band table of the user, which goes before what the files say.

    Raises:
        SceneError: a file cannot be opened, or the bands do not form one scene.
        BandTableError: the user's table does not fit.
    """
    sources = [source] if isinstance(source, str) else list(source)
    if not sources:
        raise SceneError("No raster was given.", "Choose at least one file.")
    files = tuple(resolve_source(each) for each in sources)
    parts = []
    for file in files:
        with open_dataset(file) as dataset:
            check_raw_length(dataset)
            parts.append(_describe(dataset, file))
    _check_one_grid(parts)
    facts = _joined_facts(parts)
    if bands_csv is not None:
        user = read_user_table(bands_csv, sum(part.count for part in parts))
        facts = merge_facts([user, facts])
    return _make_scene(sources, files, parts, facts)


@dataclass(frozen=True, eq=False)
class _Part:
    """What one file of a scene is."""

    file: str
    count: int
    shape: tuple[int, int]
    transform: Affine
    crs: CRS | None
    dtype: str
    block_shape: tuple[int, int]
    facts: BandFacts
    notes: tuple[str, ...]
    texts: tuple[str, ...]


def _describe(dataset: DatasetReader, file: str) -> _Part:
    """Look at one file.

    Raises:
        SceneError: its bands differ in type, or are of a type that no reflectance has.
    """
    dtypes = sorted(set(dataset.dtypes))
    if len(dtypes) > 1 or dtypes[0] not in _DTYPES:
        raise SceneError(
            f"The bands of {file} are of type {', '.join(dtypes)}.",
            f"Convert them to one type ({', '.join(_DTYPES)}), for example with gdal_translate "
            "-ot Float32.",
        )
    texts = (PurePath(dataset.name).name, *dataset.tags().values())
    return _Part(
        file=file,
        count=dataset.count,
        shape=(dataset.height, dataset.width),
        transform=dataset.transform,
        crs=dataset.crs or None,
        dtype=dtypes[0],
        block_shape=_block_shape(dataset),
        facts=collect_facts(dataset),
        notes=_file_notes(dataset),
        texts=(*texts, *dataset.tags(ns="ENVI").values()),
    )


def _block_shape(dataset: DatasetReader) -> tuple[int, int]:
    """Rows and columns stored together; a VRT's are those of its first source."""
    rows, cols = dataset.block_shapes[0]
    if dataset.driver == "VRT" and len(dataset.files) > 1:
        with open_dataset(dataset.files[1]) as stored:
            rows, cols = stored.block_shapes[0]
    return min(rows, dataset.height), min(cols, dataset.width)


def _file_notes(dataset: DatasetReader) -> tuple[str, ...]:
    """What the user should know about a file's place on Earth, and about its mask."""
    notes = []
    if not dataset.crs and dataset.gcps[0]:
        notes.append(
            f"{dataset.name} is placed by ground control points only; results keep its pixel grid "
            "and have no CRS."
        )
    elif not dataset.crs:
        notes.append(f"{dataset.name} has no CRS; results will have none either.")
    if any(flags == [MaskFlags.per_dataset] for flags in dataset.mask_flag_enums):
        notes.append(
            f"{dataset.name} has a mask of its own, which is not used: mark pixels without a "
            "measurement by a nodata value."
        )
    return tuple(notes)


def _check_one_grid(parts: Sequence[_Part]) -> None:
    """Check that all files have the first one's size, type, place and CRS.

    Raises:
        SceneError: they differ; both files are named.
    """
    first = parts[0]
    for other in parts[1:]:
        difference = _grid_difference(first, other)
        if difference:
            raise SceneError(
                f"{first.file} and {other.file} do not form one scene: {difference}.",
                "Choose files of one grid and type, or bring them onto one with gdalwarp.",
            )


def _grid_difference(first: _Part, other: _Part) -> str:
    """The first difference in words, empty when there is none."""
    if first.shape != other.shape:
        sizes = [f"{part.shape[1]} x {part.shape[0]} px" for part in (first, other)]
        return f"they have {sizes[0]} and {sizes[1]}"
    if first.dtype != other.dtype:
        return f"they are of type {first.dtype} and {other.dtype}"
    if first.crs != other.crs:
        return f"their CRS are {first.crs} and {other.crs}"
    height, width = first.shape
    a, b = first.transform, other.transform
    pixel_size = min(np.hypot(a.a, a.d), np.hypot(a.b, a.e))
    for col, row in ((0, 0), (width, 0), (0, height), (width, height)):
        shift_x = (b.a - a.a) * col + (b.b - a.b) * row + b.c - a.c
        shift_y = (b.d - a.d) * col + (b.e - a.e) * row + b.f - a.f
        if np.hypot(shift_x, shift_y) > _GRID_TOLERANCE_PX * pixel_size:
            return "their pixels lie at different places"
    return ""


def _joined_facts(parts: Sequence[_Part]) -> BandFacts:
    """The facts of all files, one after the other."""
    if len(parts) == 1:
        return parts[0].facts
    facts = [part.facts for part in parts]
    counts = [part.count for part in parts]

    def joined(name: str, missing: float) -> NDArray[np.float64] | None:
        columns = [getattr(fact, name) for fact in facts]
        if all(column is None for column in columns):
            return None
        filled = [
            np.full(count, missing) if column is None else column
            for column, count in zip(columns, counts, strict=True)
        ]
        return np.concatenate(filled)

    good = joined("good", 1.0)
    stated = all(fact.scale is not None for fact in facts)
    names = [
        fact.names or (PurePath(part.file).stem,) * part.count
        for fact, part in zip(facts, parts, strict=True)
    ]
    nodata = [fact.nodata or (None,) * part.count for fact, part in zip(facts, parts, strict=True)]
    return BandFacts(
        ", ".join(dict.fromkeys(fact.origin for fact in facts if fact.origin)),
        wavelength_nm=joined("wavelength_nm", np.nan),
        fwhm_nm=joined("fwhm_nm", np.nan),
        good=None if good is None else good.astype(bool),
        names=tuple(name for group in names for name in group),
        scale=joined("scale", 1.0) if stated else None,
        offset=joined("offset", 0.0) if stated else None,
        nodata=tuple(value for group in nodata for value in group),
        notes=tuple(dict.fromkeys(note for fact in facts for note in fact.notes)),
    )


def _make_scene(
    sources: Sequence[str], files: tuple[str, ...], parts: Sequence[_Part], facts: BandFacts
) -> Scene:
    """Put the scene together; bands without a wavelength beside such with one are left out."""
    first = parts[0]
    all_sources = [
        (i, number) for i, part in enumerate(parts) for number in range(1, part.count + 1)
    ]
    kept, kept_note = _bands_with_wavelength(facts, len(all_sources))
    dtype = np.dtype(first.dtype)
    all_nodata = facts.nodata or (None,) * len(all_sources)
    nodata, nodata_note = fitting_nodata([all_nodata[i] for i in kept], dtype)
    scene = Scene(
        name=PurePath(sources[0]).stem,
        files=files,
        band_sources=tuple(all_sources[i] for i in kept),
        bands=_band_table(facts, kept),
        height=first.shape[0],
        width=first.shape[1],
        transform=first.transform,
        crs=first.crs,
        dtype=dtype,
        nodata=nodata,
        scale=np.ones(len(kept)),
        offset=np.zeros(len(kept)),
        notes=(),
        block_shape=first.block_shape,
    )
    if facts.scale is not None and facts.offset is not None:
        scale, offset, scale_note = facts.scale[kept], facts.offset[kept], ""
    else:
        radiance = says_radiance([text for part in parts for text in part.texts])
        one_scale, scale_note = assumed_scale(_sample(scene), dtype, radiance)
        scale, offset = np.full(len(kept), one_scale), np.zeros(len(kept))
    notes = (*first.notes, *facts.notes, kept_note, nodata_note, scale_note)
    notes = tuple(dict.fromkeys(note for note in notes if note))
    return replace(scene, scale=scale, offset=offset, notes=notes)


def _bands_with_wavelength(facts: BandFacts, count: int) -> tuple[list[int], str]:
    """0-based bands that have a wavelength, or all when none has, and a note on the others."""
    if facts.wavelength_nm is None or not np.isfinite(facts.wavelength_nm).any():
        return list(range(count)), ""
    kept = [int(i) for i in np.flatnonzero(np.isfinite(facts.wavelength_nm))]
    left_out = [str(i + 1) for i in range(count) if i not in set(kept)]
    if not left_out:
        return kept, ""
    shown = ", ".join(left_out[:10]) + (", …" if len(left_out) > 10 else "")
    return kept, f"{len(left_out)} of {count} bands have no wavelength and are left out: {shown}."


def _band_table(facts: BandFacts, kept: list[int]) -> BandTable | None:
    if facts.wavelength_nm is None or not np.isfinite(facts.wavelength_nm).any():
        return None
    count = len(facts.wavelength_nm)
    names = facts.names or tuple(f"band {i + 1}" for i in range(count))
    fwhm_nm = np.full(count, np.nan) if facts.fwhm_nm is None else facts.fwhm_nm
    good = np.ones(count, bool) if facts.good is None else facts.good
    return BandTable(
        names=tuple(names[i] for i in kept),
        wavelength_nm=facts.wavelength_nm[kept].astype(np.float64),
        fwhm_nm=fwhm_nm[kept].astype(np.float64),
        good=good[kept],
        origin=facts.origin,
    )


def _sample(scene: Scene) -> NDArray[Any]:
    """(N,) valid values of a few bands, from two places that have some.

    Few and small, because a block of a file that is stored by pixel holds all its bands.
    """
    usable = np.flatnonzero(scene.bands.good) if scene.bands else np.arange(len(scene.nodata))
    chosen = (
        usable[np.linspace(0, len(usable) - 1, _SAMPLE_BANDS).astype(int)] if len(usable) else [0]
    )
    band_index = [int(i) for i in dict.fromkeys(chosen)]
    height = min(_SAMPLE_ROWS, scene.height)
    width = min(_SAMPLE_COLS, scene.width, scene.block_shape[1])
    # From the edge of a block, so that each place lies in one.
    col_off = scene.width // 2 // scene.block_shape[1] * scene.block_shape[1]
    width = min(width, scene.width - col_off)
    places = []
    with SceneReader(scene, band_index, unpack=False) as reader:
        for share in (0.5, 0.25, 0.75, 0.05, 0.95):
            row_off = int(share * (scene.height - height))
            values = reader.read(Window(row_off, col_off, height, width))
            valid = [_valid(values[i], scene.nodata[band]) for i, band in enumerate(band_index)]
            places.append(np.concatenate(valid))
            if sum(place.size > 0 for place in places) == 2:
                break
    return np.concatenate(places)


def _valid(values: NDArray[Any], nodata: float | None) -> NDArray[Any]:
    finite: NDArray[Any] = values[np.isfinite(values)]
    return finite if nodata is None else finite[finite != nodata]

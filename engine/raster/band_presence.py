"""Which bands of a model a scene really has: matched by wavelength, and not empty in the file.

Providers keep the number of bands and leave some without measurements (water vapour, a failed
detector). Such a band must neither spoil the pixels of all others nor change the channel count.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import BandMatchError, BandTableError
from engine.raster.scene import Scene, SceneReader
from engine.raster.spectra import BandMatch, BandTable, match_bands
from engine.raster.tiles import Window

# EnPT's default for bands in water vapour. Our choice: which bands HyperKD drops is not known.
ENMAP_DROP_RANGES_NM = ((1358.0, 1453.0), (1814.0, 1961.0))
_CHUNK_BYTES = 32 * 1024**2
_RANGE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*-\s*(\d+(?:\.\d+)?)\s*")


@dataclass(frozen=True, eq=False)
class PresentBands:
    """What a scene gives of a model's bands.

    Args:
        match: how to make those that are present, in the model's order.
        present: (C,) bool, True where the scene has the model's band.
        notes: what is missing, for the user.
    """

    match: BandMatch
    present: NDArray[np.bool_]
    notes: tuple[str, ...] = ()


def parse_ranges(text: str) -> tuple[tuple[float, float], ...]:
    """Read ranges such as ``"1358-1453, 1814-1961"``, in nanometres.

    Returns:
        (lowest, highest) of each; none for an empty text or the word "none".

    Raises:
        BandTableError: a part is no range, or its end is below its start.
    """
    if text.strip().lower() == "none":
        return ()
    ranges = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = _RANGE.fullmatch(part)
        if found is None or float(found[1]) > float(found[2]):
            raise BandTableError(
                f"{part!r} is not a range of wavelengths.",
                'Write ranges in nanometres like "1358-1453, 1814-1961", the lower end first; or '
                '"none".',
            )
        ranges.append((float(found[1]), float(found[2])))
    return tuple(ranges)


def select_bands(table: BandTable, keep: NDArray[np.bool_]) -> BandTable:
    """The bands where (C,) ``keep`` is True.

    Raises:
        BandTableError: there are none.
    """
    chosen = np.flatnonzero(keep)
    return BandTable(
        tuple(table.names[i] for i in chosen),
        table.wavelength_nm[chosen],
        table.fwhm_nm[chosen],
        table.good[chosen],
        table.origin,
    )


def student_bands(table: BandTable, drop_ranges_nm: Sequence[tuple[float, float]]) -> BandTable:
    """The bands of a scene that a model learns from: good, and outside the ranges.

    Args:
        table: of the first scene.
        drop_ranges_nm: (lowest, highest) nm, both ends dropped too.

    Raises:
        BandTableError: no band is left.
    """
    keep = table.good.copy()
    for low_nm, high_nm in drop_ranges_nm:
        keep &= (table.wavelength_nm < low_nm) | (table.wavelength_nm > high_nm)
    if not keep.any():
        raise BandTableError(
            f"None of the first scene's {len(table)} bands is left: {int((~table.good).sum())} "
            f"are marked as bad and the others lie in the ranges to drop.",
            "Shorten the ranges of wavelengths to drop.",
        )
    return select_bands(table, keep)


def find_empty_bands(scene: Scene, band_index: Sequence[int]) -> NDArray[np.bool_]:
    """Find the bands that measure nothing: nodata everywhere, or one value everywhere.

    Reads no further than until each band has shown two values, which is the first rows for most.

    Args:
        scene: the scene.
        band_index: 0-based bands to look at.

    Returns:
        (len(band_index),) bool, True = empty.

    Raises:
        SceneError: the scene cannot be read.
    """
    chosen = list(band_index)
    low, high = np.full(len(chosen), np.inf), np.full(len(chosen), -np.inf)
    windows = _chunks(scene, len(chosen))
    # Most bands show two values in the first chunk; the file is opened once more for the others.
    for part in (windows[:1], windows[1:]):
        undecided = np.flatnonzero(~(low < high))
        if not len(undecided) or not part:
            break
        with SceneReader(scene, [chosen[place] for place in undecided]) as reader:
            for window in part:
                values = reader.read(window)
                for place, band in zip(undecided, values, strict=True):
                    usable = _measured(band, scene.nodata[chosen[place]])
                    if usable.size:
                        low[place] = min(low[place], float(usable.min()))
                        high[place] = max(high[place], float(usable.max()))
                if (low < high).all():
                    break
    return np.asarray(~(low < high))


def match_present_bands(model: BandTable, scene: Scene) -> PresentBands:
    """Find a model's bands in a scene, and mark those that it cannot give.

    A band is not present when the scene has none near it, or when the scene's own band there is
    empty: it is then not made of its neighbours, because it was never measured.

    Raises:
        BandMatchError: the scene has none of the bands.
        BandTableError: the scene has no wavelengths.
        SceneError: the scene cannot be read.
    """
    table = scene.require_bands()
    wanted, match = _match_some(model, table, scene.name)
    empty = np.zeros(len(table), np.bool_)
    used = list(match.scene_band_index)
    empty[used] = find_empty_bands(scene, used)
    if not empty.any():
        return PresentBands(match, wanted, _notes(model, scene, wanted))
    own = _own_bands(match, wanted)
    wanted = wanted & ~np.where(own >= 0, empty[np.maximum(own, 0)], False)
    if not wanted.any():
        raise BandMatchError(
            f"All bands of {scene.name} that the model reads are empty.", "Leave the scene out."
        )
    measured = BandTable(
        table.names, table.wavelength_nm, table.fwhm_nm, table.good & ~empty, table.origin
    )
    kept, match = _match_some(select_bands(model, wanted), measured, scene.name)
    present = np.zeros(len(model), np.bool_)
    present[np.flatnonzero(wanted)[kept]] = True
    return PresentBands(match, present, _notes(model, scene, present))


def _chunks(scene: Scene, band_count: int) -> list[Window]:
    """What is read at a time: about 32 MiB, of whole blocks where these are smaller."""
    block_rows, block_cols = scene.block_shape
    chunk_px = max(_CHUNK_BYTES // (band_count * scene.dtype.itemsize), 1)
    if block_cols >= scene.width or block_rows == 1:
        cols = scene.width
    else:
        cols = min(max(chunk_px // (block_rows * block_cols), 1) * block_cols, scene.width)
    rows = max(chunk_px // cols, 1)
    if rows > block_rows:
        rows = rows // block_rows * block_rows
    return [
        Window(row, col, min(rows, scene.height - row), min(cols, scene.width - col))
        for row in range(0, scene.height, rows)
        for col in range(0, scene.width, cols)
    ]


def _measured(values: NDArray[Any], nodata: float | None) -> NDArray[Any]:
    """The finite values that are not nodata, flat."""
    usable = np.isfinite(values)
    if nodata is not None:
        usable &= values != nodata
    measured: NDArray[Any] = values[usable]
    return measured


def _match_some(
    model: BandTable, table: BandTable, scene_name: str
) -> tuple[NDArray[np.bool_], BandMatch]:
    """Match those bands of a model that a scene has.

    Returns:
        (C,) bool, which ones, and the match of these.
    """
    try:
        return np.ones(len(model), np.bool_), match_bands(model, table)
    except BandMatchError as error:
        found = np.asarray([row.action != "too far" for row in error.rows])
        if not found.any():
            raise BandMatchError(
                f"{scene_name} has none of the {len(model)} bands, "
                f"{model.wavelength_nm.min():.0f} to {model.wavelength_nm.max():.0f} nm.",
                "Leave the scene out, or check its wavelengths.",
                error.rows,
            ) from error
    return found, match_bands(select_bands(model, found), table)


def _own_bands(match: BandMatch, wanted: NDArray[np.bool_]) -> NDArray[np.intp]:
    """(C,) 0-based scene band that is the model's band itself; -1 where it is made of several."""
    own = np.full(len(wanted), -1, np.intp)
    for place, (band, row) in enumerate(zip(np.flatnonzero(wanted), match.rows, strict=True)):
        if row.action == "same":
            column = place if match.weights is None else int(match.weights[place].argmax())
            own[band] = match.scene_band_index[column]
    return own


def _notes(model: BandTable, scene: Scene, present: NDArray[np.bool_]) -> tuple[str, ...]:
    """Say which bands are masked in this scene."""
    missing_nm = model.wavelength_nm[~present]
    if not len(missing_nm):
        return ()
    shown = ", ".join(f"{value:.0f}" for value in missing_nm[:8])
    more = ", …" if len(missing_nm) > 8 else ""
    return (
        f"{scene.name} has no measurements for {len(missing_nm)} of {len(model)} bands "
        f"({shown}{more} nm): they are masked there.",
    )

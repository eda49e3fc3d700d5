"""Which bands of two images can be used together, by wavelength."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp

from engine.errors import SceneError
from engine.raster.band_presence import find_empty_bands
from engine.raster.dataset import open_dataset
from engine.raster.scene import Scene
from engine.raster.spectra import BandTable, filled_fwhm_nm

# A fine band with less of its width than this where the hyperspectral image measures says too
# little about any of its bands.
SMALLEST_SHARE_INSIDE = 0.5
_STEPS = 200  # of a band's width, when its share is counted
# Fine bands without wavelengths are used as they come; a name is not worth a guess.
_NAMES_SHOWN = 8


@dataclass(frozen=True)
class PairBands:
    """The bands of a pair.

    Args:
        hsi_index: all hyperspectral bands, 0-based.
        usable_hsi_index: those that are good and measure something; the others say nothing about
            whether a pixel is valid.
        msi_index: the multispectral bands that are used.
        notes: what is left out and why.
        alpha_index: the multispectral band that says which pixels are opaque; None: there is none.
    """

    hsi_index: tuple[int, ...]
    usable_hsi_index: tuple[int, ...]
    msi_index: tuple[int, ...]
    notes: tuple[str, ...]
    alpha_index: int | None = None


def choose_bands(hsi: Scene, msi: Scene) -> PairBands:
    """Look which bands measure something, and which fine ones lie inside the coarse range.

    Raises:
        SceneError: no band of one of the images is left.
    """
    usable, hsi_notes = find_usable(hsi)
    fine, msi_notes = find_usable(msi)
    alpha = find_alpha(msi)
    if alpha is not None:
        fine = tuple(band for band in fine if band != alpha)
        msi_notes += (
            f"Band {alpha + 1} of {msi.name} is an alpha band: where it is not opaque, nothing is "
            "measured.",
        )
    inside, range_notes = _inside(hsi, msi, usable, fine)
    return PairBands(
        hsi_index=tuple(range(len(hsi.band_sources))),
        usable_hsi_index=usable,
        msi_index=inside,
        notes=(*hsi_notes, *msi_notes, *range_notes),
        alpha_index=alpha,
    )


def share_inside(msi: BandTable, hsi: BandTable) -> NDArray[np.float64]:
    """How much of each fine band's width the hyperspectral bands measure.

    A band measures half its width, or half the way to its neighbours, to both sides.

    Returns:
        (M,) float64, 0 to 1.
    """
    order = np.argsort(hsi.wavelength_nm, kind="stable")
    centre_nm = hsi.wavelength_nm[order]
    estimated_nm = filled_fwhm_nm(
        BandTable(hsi.names, hsi.wavelength_nm, np.full(len(hsi), np.nan), hsi.good)
    )[0]  # the spacing around each band
    reach_nm = np.fmax(np.nan_to_num(hsi.fwhm_nm), estimated_nm)[order] / 2
    fwhm_nm = filled_fwhm_nm(msi)[0]
    shares = []
    for middle_nm, width_nm in zip(msi.wavelength_nm, fwhm_nm, strict=True):
        at_nm = middle_nm + width_nm * (np.arange(_STEPS) + 0.5 - _STEPS / 2) / _STEPS
        seen = np.abs(at_nm[:, None] - centre_nm) <= reach_nm
        shares.append(float(seen.any(axis=1).mean()))
    return np.asarray(shares, np.float64)


def find_usable(scene: Scene) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The bands of a scene, 0-based, that are good and not empty, and a note on empty ones.

    Raises:
        SceneError: there are none.
    """
    count = len(scene.band_sources)
    good = np.ones(count, np.bool_) if scene.bands is None else scene.bands.good
    kept = np.flatnonzero(good)
    empty = find_empty_bands(scene, kept.tolist()) if len(kept) else np.zeros(0, np.bool_)
    usable = kept[~empty]
    if not len(usable):
        raise SceneError(
            f"None of the {count} bands of {scene.name} measures anything: all are empty or "
            "marked as bad.",
            "Choose another image.",
        )
    if not empty.any():
        return tuple(usable.tolist()), ()
    note = f"{int(empty.sum())} of {count} bands of {scene.name} are empty."
    return tuple(usable.tolist()), (note,)


def find_alpha(scene: Scene) -> int | None:
    """The first band of a scene, 0-based, that says how opaque its pixels are; None: none does."""
    colours = []
    for file in scene.files:
        with open_dataset(file) as dataset:
            colours.append(dataset.colorinterp)
    for band_index, (file_index, number) in enumerate(scene.band_sources):
        if colours[file_index][number - 1] == ColorInterp.alpha:
            return band_index
    return None


def _inside(
    hsi: Scene, msi: Scene, usable: tuple[int, ...], fine: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The fine bands that measure what the hyperspectral image does.

    Raises:
        SceneError: there are none.
    """
    if hsi.bands is None or msi.bands is None:
        return fine, _unknown_notes(hsi, msi, fine)
    coarse_bands = take_bands(hsi.bands, usable)
    shares = share_inside(take_bands(msi.bands, fine), coarse_bands)
    inside = tuple(
        band for band, share in zip(fine, shares, strict=True) if share >= SMALLEST_SHARE_INSIDE
    )
    low_nm, high_nm = coarse_bands.wavelength_nm.min(), coarse_bands.wavelength_nm.max()
    if not inside:
        raise SceneError(
            f"None of the {len(fine)} bands of {msi.name} ({_listed(msi.bands, fine)}) lies where "
            f"{hsi.name} measures ({low_nm:.0f} to {high_nm:.0f} nm).",
            "Choose a multispectral image with bands in this range, or check its wavelengths.",
        )
    outside = [band for band in fine if band not in inside]
    if not outside:
        return inside, ()
    note = (
        f"{len(outside)} of {len(fine)} multispectral bands are left out, because {hsi.name} does "
        f"not measure there: {_listed(msi.bands, outside)}."
    )
    return inside, (note,)


def take_bands(table: BandTable, index: tuple[int, ...] | list[int]) -> BandTable:
    """Some bands of a table, in the order of their 0-based numbers."""
    chosen = list(index)
    return BandTable(
        tuple(table.names[i] for i in chosen),
        table.wavelength_nm[chosen],
        table.fwhm_nm[chosen],
        table.good[chosen],
        table.origin,
    )


def _unknown_notes(hsi: Scene, msi: Scene, fine: tuple[int, ...]) -> tuple[str, ...]:
    """A single band without a wavelength is taken to be panchromatic."""
    if msi.bands is None and len(fine) == 1:
        return (f"{msi.name} has one band without a wavelength: it is taken as panchromatic.",)
    missing = hsi.name if hsi.bands is None else msi.name
    return (
        f"{missing} has no wavelengths: all {len(fine)} multispectral bands are used, and how they "
        "respond is estimated from the images.",
    )


def _listed(table: BandTable, index: tuple[int, ...] | list[int]) -> str:
    shown = ", ".join(f"{table.wavelength_nm[i]:.0f} nm" for i in index[:_NAMES_SHOWN])
    return shown + (", …" if len(index) > _NAMES_SHOWN else "")

"""What a multispectral band takes in of each hyperspectral one, as its sensor's data say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import BandMatchError
from engine.raster.alignment import Response, read_responses
from engine.raster.spectra import GAP_MAX_NM, BandTable, filled_fwhm_nm

# Flat on top with steep sides: with 8, what a band of Sentinel-2 or Landsat 5, 7, 8 takes in lies
# by 5 % of its area elsewhere than with its real curve; with 2, a Gaussian, by 17 %.
FLATNESS = 8
# Where a panchromatic band that states nothing is taken to respond, about as those of satellites.
PANCHROMATIC_NM = (450.0, 850.0)
# A band of which less than this lies within the hyperspectral range is left out.
INSIDE_SHARE = 0.5
_STEP_NM = 0.5


@dataclass(frozen=True, eq=False)
class NominalResponse:
    """What is known of a multispectral sensor, on the bands of a hyperspectral one.

    Args:
        weights: (M, L) float64, not negative; a row sums to 1, or is 0 where nothing is seen.
        share: (M,) float64, 0 to 1: the part of each band's response that the hyperspectral
            bands cover.
        notes: what was assumed, and which bands lie outside.
    """

    weights: NDArray[np.float64]
    share: NDArray[np.float64]
    notes: tuple[str, ...] = ()

    @property
    def inside(self) -> NDArray[np.bool_]:
        """(M,) True for bands that the hyperspectral range covers by half or more."""
        return np.asarray(self.share >= INSIDE_SHARE)


def nominal_response(
    hsi_bands: BandTable, msi_bands: BandTable | None, table: str | None = None
) -> NDArray[np.float64]:
    """The weights of `find_response`, (M, L) float64."""
    return find_response(hsi_bands, msi_bands, table).weights


def find_response(
    hsi_bands: BandTable, msi_bands: BandTable | None, table: str | None = None
) -> NominalResponse:
    """Weigh the hyperspectral bands as each multispectral one does.

    The spectrum between two hyperspectral bands is taken as a straight line, so the weights are
    exact for spectra made of such lines, whatever the spacing. Bad bands have no weight.

    Args:
        hsi_bands: L bands.
        msi_bands: M bands; None for one panchromatic band of which nothing is known.
        table: CSV of response functions as `engine.raster.alignment.read_responses` takes it:
            columns named as the bands are, or as many as there are bands, in their order. Without
            it, a flat-topped response of each band's centre and width.

    Raises:
        BandTableError: the CSV cannot be understood.
        BandMatchError: it has no column for a band.
    """
    curves, notes = _curves(msi_bands, read_responses(table) if table else None)
    rows = [_weights(curve, hsi_bands) for curve in curves]
    weights = np.stack([weight for weight, _ in rows])
    share = np.asarray([covered for _, covered in rows])
    notes += _outside_notes(msi_bands, share)
    return NominalResponse(weights, share, notes)


def _curves(
    msi_bands: BandTable | None, tabulated: dict[str, Response] | None
) -> tuple[list[Response], tuple[str, ...]]:
    """The response of each band, and what was assumed for it."""
    count = 1 if msi_bands is None else len(msi_bands)
    if tabulated is not None:
        return _curves_of_table(msi_bands, tabulated, count), ()
    if msi_bands is None or (count == 1 and not np.isfinite(msi_bands.fwhm_nm[0])):
        low_nm, high_nm = PANCHROMATIC_NM
        note = (
            f"The one band of the multispectral image states no width: it is taken as "
            f"panchromatic, {low_nm:g} to {high_nm:g} nm."
        )
        return [(np.asarray(PANCHROMATIC_NM), np.ones(2))], (note,)
    fwhm_nm, estimated = filled_fwhm_nm(msi_bands)
    curves = [
        flat_topped(float(centre), float(width))
        for centre, width in zip(msi_bands.wavelength_nm, fwhm_nm, strict=True)
    ]
    if not estimated.any():
        return curves, ()
    names = ", ".join(msi_bands.names[i] for i in np.flatnonzero(estimated))
    return curves, (f"The width of {names} is not stated and was estimated from the spacing.",)


def flat_topped(centre_nm: float, fwhm_nm: float) -> Response:
    """A response that is flat on top, a super-Gaussian of exponent `FLATNESS`.

    Returns:
        (K,) wavelengths in nm, ascending, and (K,) responses, 1 at the centre, 0.5 at half of the
        width from it.
    """
    offset = np.linspace(-1.0, 1.0, max(int(2 * fwhm_nm / _STEP_NM), 40) + 1)
    return centre_nm + offset * fwhm_nm, np.exp2(-(np.abs(2 * offset) ** FLATNESS))


def _curves_of_table(
    msi_bands: BandTable | None, tabulated: dict[str, Response], count: int
) -> list[Response]:
    """The tabulated responses in the order of the bands.

    Raises:
        BandMatchError: they are neither named as the bands are, nor as many.
    """
    names: Sequence[str] = () if msi_bands is None else msi_bands.names
    by_name = {name.lower(): response for name, response in tabulated.items()}
    missing = [name for name in names if name.lower() not in by_name]
    if names and not missing:
        return [by_name[name.lower()] for name in names]
    if len(tabulated) == count:
        return list(tabulated.values())
    raise BandMatchError(
        f"The response functions are of {', '.join(tabulated)}; the multispectral image has "
        f"{', '.join(names) or 'one band without a name'}.",
        "Name the columns as the bands are named, or give as many columns as there are bands, in "
        "their order.",
    )


def _weights(curve: Response, hsi_bands: BandTable) -> tuple[NDArray[np.float64], float]:
    """(L,) weights that sum to 1, and the share of the response that the bands cover."""
    grid_nm = np.arange(curve[0][0], curve[0][-1] + _STEP_NM, _STEP_NM)
    seen = np.interp(grid_nm, *curve, left=0.0, right=0.0)
    weights = np.zeros(len(hsi_bands))
    usable = np.flatnonzero(hsi_bands.good)
    if len(usable) == 0:
        return weights, 0.0
    centre_nm, place, count = np.unique(
        hsi_bands.wavelength_nm[usable], return_inverse=True, return_counts=True
    )
    width_nm = np.zeros(len(centre_nm))
    np.maximum.at(width_nm, place, filled_fwhm_nm(hsi_bands)[0][usable])
    covered = _covered(grid_nm, centre_nm, width_nm)
    per_centre = _interpolation_sums(grid_nm[covered], seen[covered], centre_nm)
    total = float(per_centre.sum())
    if total <= 0:
        return weights, 0.0
    # Bands at one place, as in a detector overlap, share what belongs to it.
    weights[usable] = (per_centre / count)[place] / total
    return weights, total / float(seen.sum())


def _covered(
    grid_nm: NDArray[np.float64], centre_nm: NDArray[np.float64], width_nm: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """(G,) True where bands stand on both sides without a gap, or half a band's width beyond."""
    last = len(centre_nm) - 1
    right = np.searchsorted(centre_nm, grid_nm)
    below, above = np.clip(right - 1, 0, last), np.clip(right, 0, last)
    gap_nm = np.maximum(GAP_MAX_NM, np.maximum(width_nm[below], width_nm[above]) * 2)
    between = (centre_nm[above] - centre_nm[below] <= gap_nm) & (right > 0) & (right <= last)
    nearest_nm = np.minimum(
        np.abs(grid_nm - centre_nm[below]) - width_nm[below] / 2,
        np.abs(grid_nm - centre_nm[above]) - width_nm[above] / 2,
    )
    return np.asarray(between | (nearest_nm <= 0))


def _interpolation_sums(
    grid_nm: NDArray[np.float64], seen: NDArray[np.float64], centre_nm: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(L,) what each band's share of a linear interpolation comes to, weighted by ``seen``."""
    last = len(centre_nm) - 1
    right = np.searchsorted(centre_nm, grid_nm)
    below, above = np.clip(right - 1, 0, last), np.clip(right, 0, last)
    span_nm = centre_nm[above] - centre_nm[below]
    upper = np.where(
        span_nm > 0, (grid_nm - centre_nm[below]) / np.where(span_nm > 0, span_nm, 1), 0
    )
    sums = np.zeros(len(centre_nm))
    np.add.at(sums, below, seen * (1 - upper))
    np.add.at(sums, above, seen * upper)
    return sums


def _outside_notes(msi_bands: BandTable | None, share: NDArray[np.float64]) -> tuple[str, ...]:
    """A note on the bands that the hyperspectral range does not cover."""
    outside = np.flatnonzero(share < INSIDE_SHARE)
    if len(outside) == 0:
        return ()
    if msi_bands is None:
        return ("The panchromatic band lies outside of the hyperspectral range.",)
    names = ", ".join(
        f"{msi_bands.names[i]} ({msi_bands.wavelength_nm[i]:.0f} nm)" for i in outside
    )
    return (f"Outside of the hyperspectral range, and left out: {names}.",)

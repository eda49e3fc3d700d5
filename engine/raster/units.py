"""Units of wavelength: whatever a file says becomes nanometres here, once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_NM_PER_UNIT = {
    "nm": 1.0,
    "nanometer": 1.0,
    "nanometers": 1.0,
    "nanometre": 1.0,
    "nanometres": 1.0,
    "um": 1e3,
    "µm": 1e3,  # micro sign, U+00B5
    "μm": 1e3,  # Greek letter, U+03BC
    "mum": 1e3,
    "micron": 1e3,
    "microns": 1e3,
    "micrometer": 1e3,
    "micrometers": 1e3,
    "micrometre": 1e3,
    "micrometres": 1e3,
    "mm": 1e6,
    "millimeter": 1e6,
    "millimeters": 1e6,
    "m": 1e9,
    "meter": 1e9,
    "meters": 1e9,
    "metre": 1e9,
    "metres": 1e9,
    "angstrom": 0.1,
    "angstroms": 0.1,
}
# Below this a number cannot be nanometres of an optical sensor, above it no micrometres.
MICROMETRES_BELOW = 100.0
# Units that ENVI may state and that are no lengths.
_NOT_LENGTHS = {"wavenumber", "ghz", "mhz", "hz", "index"}


def unit_factor(unit: str | None) -> float | None:
    """Nanometres in one of a unit, in any usual spelling; None when it is not known."""
    return None if unit is None else _NM_PER_UNIT.get(unit.strip().strip(".").lower())


def guess_unit_factor(
    wavelength: Floats, unit: str | None, origin: str
) -> tuple[float | None, str]:
    """Guess from the numbers whether they are micrometres or nanometres.

    Returns:
        Nanometres in one unit (None when the stated unit is no length), and the note to show.
    """
    if unit is not None and unit.strip().lower() in _NOT_LENGTHS:
        return None, f"The {origin} gives the bands in {unit!r}, which is not a wavelength."
    micrometres = float(np.nanmax(wavelength)) < MICROMETRES_BELOW
    name = "micrometres" if micrometres else "nanometres"
    stated = f"states {unit!r} as" if unit is not None and unit.strip() else "states no"
    note = (
        f"The {origin} {stated} unit of the wavelengths; {np.nanmin(wavelength):g} to "
        f"{np.nanmax(wavelength):g} were taken as {name}."
    )
    return (1e3 if micrometres else 1.0), note


def widths_in_nm(
    fwhm: Floats, factor: float, wavelength_nm: Floats, origin: str
) -> tuple[Floats, tuple[str, ...]]:
    """Convert widths, which some files give in another unit than the wavelengths.

    Args:
        fwhm: (C,) widths as stated.
        factor: nanometres in one unit of the wavelengths.
        wavelength_nm: (C,) centres.
        origin: for the note.

    Returns:
        (C,) widths in nm, NaN where there is none, and notes.
    """
    fwhm_nm = np.where(fwhm > 0, fwhm * factor, np.nan)
    if not np.isfinite(fwhm_nm).any():
        return fwhm_nm, ()
    ratio = float(np.nanmedian(fwhm_nm) / np.nanmedian(wavelength_nm))
    # No optical band is wider than its wavelength, and none of an imager is a 20,000th of it.
    if ratio > 1.0 and factor == 1e3:
        return fwhm_nm / 1e3, (f"The {origin} gives widths in nm and wavelengths in µm.",)
    if ratio < 5e-5 and factor == 1.0:
        return fwhm_nm * 1e3, (f"The {origin} gives widths in µm and wavelengths in nm.",)
    return fwhm_nm, ()

"""Bands by wavelength: the band table, and how a model's bands are found in a scene's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import BandTableError


@dataclass(frozen=True, eq=False)
class BandTable:
    """The bands of a sensor, a scene or a model, in their stored order.

    Args:
        names: one name a band, never empty.
        wavelength_nm: (C,) float64, band centres, not assumed sorted.
        fwhm_nm: (C,) float64, full widths at half maximum; NaN where unknown.
        good: (C,) bool, False where the producer marked the band as bad.
        origin: where the table was found, for messages ("ENVI header", "band tags", …).

    Raises:
        BandTableError: the lengths differ, or a wavelength is not a positive number.
    """

    names: tuple[str, ...]
    wavelength_nm: NDArray[np.float64]
    fwhm_nm: NDArray[np.float64]
    good: NDArray[np.bool_]
    origin: str = ""

    def __post_init__(self) -> None:
        count = len(self.names)
        lengths = {len(self.wavelength_nm), len(self.fwhm_nm), len(self.good)}
        if lengths != {count}:
            raise BandTableError(
                f"A band table needs as many names ({count}) as wavelengths "
                f"({len(self.wavelength_nm)}), widths ({len(self.fwhm_nm)}) and flags "
                f"({len(self.good)})."
            )
        if count == 0 or not np.all(np.isfinite(self.wavelength_nm) & (self.wavelength_nm > 0)):
            raise BandTableError("Every band needs a positive wavelength in nanometres.")

    def __len__(self) -> int:
        return len(self.names)

"""Which stored values mean "no measurement"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Nodata:
    """NaN and infinities always, and one number a band.

    Args:
        nodata: one number a band; None: all stored values are measurements.
        dtype: stored type.
    """

    def __init__(self, nodata: Sequence[float | None], dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        numbers = [_as_stored(number, dtype) for number in nodata]
        self._has_number = np.array([number is not None for number in numbers], np.bool_)
        stated = [0 if number is None else number for number in numbers]
        self._numbers = np.array(stated, dtype)[:, None, None]

    def mark(self, part: NDArray[Any], bands: slice, valid: NDArray[np.bool_]) -> None:
        """Clear ``valid`` (h, w) where a band of ``part`` (bands, h, w) has no measurement."""
        if self._dtype.kind == "f":
            valid &= np.isfinite(part).all(axis=0)
        chosen = self._has_number[bands]
        if chosen.all():
            valid &= (part != self._numbers[bands]).all(axis=0)
        elif chosen.any():
            valid &= (part[chosen] != self._numbers[bands][chosen]).all(axis=0)


def _as_stored(number: float | None, dtype: np.dtype[Any]) -> Any:
    """A nodata value as the type stores it; None when no pixel can have it.

    NaN and infinities count as None: pixels with such values are never valid.
    """
    if number is None or not np.isfinite(number):
        return None
    if dtype.kind == "f":
        return dtype.type(number)
    limits = np.iinfo(dtype)
    fits = number == int(number) and limits.min <= number <= limits.max
    return dtype.type(int(number)) if fits else None

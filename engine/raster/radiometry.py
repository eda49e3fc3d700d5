"""From stored numbers to reflectance: what to assume when a file states no scale, and nodata."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

REFLECTANCE_FACTOR = 10_000.0
# The brightest per cent of a scene in reflectance x 10,000: snow and glint reach 2.
_INTEGER_MAX = 20_000.0
_FLOAT_REFLECTANCE_MAX = 2.0
# Floats above this are surely no fractions and no percentages.
_PERCENT_MAX = 110.0
_RADIANCE = re.compile(r"radiance|(?:^|[_\W])rdn(?:[_\W]|$)|uw/|µw/|w/m\^?2", re.IGNORECASE)


def says_radiance(texts: Sequence[str]) -> bool:
    """True when a name or a tag of a scene speaks of radiance."""
    return any(_RADIANCE.search(text) for text in texts)


def assumed_scale(
    values: NDArray[Any], dtype: np.dtype[np.generic], radiance: bool
) -> tuple[float, str]:
    """Choose the scale of a scene that states none.

    Args:
        values: (N,) a sample of its valid values, may be empty.
        dtype: stored type.
        radiance: True when it says that it is radiance.

    Returns:
        The scale, and a note for the user; empty when nothing had to be assumed.
    """
    top = float(np.percentile(values, 99)) if values.size else 0.0
    if radiance:
        return 1.0, (
            "The scene holds radiance, not reflectance; its values are used as they are. "
            "Models trained on reflectance will be wrong here."
        )
    if np.issubdtype(dtype, np.floating):
        return _float_scale(top, dtype)
    if dtype.itemsize == 1:
        largest = np.iinfo(np.dtype(dtype.name)).max
        return 1.0 / largest, (
            f"No scale is stated: {dtype.name} values were divided by {largest}, which gives no "
            "calibrated reflectance."
        )
    if top <= _INTEGER_MAX:
        return 1.0 / REFLECTANCE_FACTOR, _times_10000(dtype)
    largest = np.iinfo(np.dtype(dtype.name)).max
    return 1.0 / largest, (
        f"No scale is stated, and values up to {top:.0f} are no reflectance x 10,000: they were "
        f"divided by {largest}. A band table with a column 'scale' overrides this."
    )


def fitting_nodata(
    nodata: Sequence[float | None], dtype: np.dtype[np.generic]
) -> tuple[tuple[float | None, ...], str]:
    """Give nodata values as the stored type has them; drop those that it cannot hold.

    Returns:
        One value a band, and a note when values were dropped.
    """
    fitted = tuple(_fit(value, dtype) for value in nodata)
    pairs = zip(nodata, fitted, strict=True)
    dropped = sorted({value for value, kept in pairs if value is not None and _lost(value, kept)})
    if not dropped:
        return fitted, ""
    text = ", ".join(f"{value:g}" for value in dropped)
    return fitted, f"The stated nodata value {text} cannot occur in {dtype.name} and is ignored."


def _float_scale(top: float, dtype: np.dtype[np.generic]) -> tuple[float, str]:
    if top <= _FLOAT_REFLECTANCE_MAX:
        return 1.0, ""
    if _PERCENT_MAX < top <= _INTEGER_MAX:
        return 1.0 / REFLECTANCE_FACTOR, _times_10000(dtype)
    return 1.0, (
        f"No scale is stated, and values up to {top:.4g} are neither reflectance (0 to 1) nor "
        "reflectance x 10,000; they are used as they are. A band table with a column 'scale' "
        "overrides this."
    )


def _times_10000(dtype: np.dtype[np.generic]) -> str:
    return f"No scale is stated: {dtype.name} values were taken as reflectance x 10,000."


def _fit(value: float | None, dtype: np.dtype[np.generic]) -> float | None:
    if value is None:
        return None
    if np.issubdtype(dtype, np.floating):
        # As the file stores it: -3.4e38 in float32 is another number in float64.
        with np.errstate(over="ignore"):
            return float(np.asarray(value).astype(dtype))
    limits = np.iinfo(np.dtype(dtype.name))
    if not np.isfinite(value) or value != int(value) or not limits.min <= value <= limits.max:
        return None
    return float(value)


def _lost(value: float, kept: float | None) -> bool:
    return kept is None and not np.isnan(value)

"""Fixed codes of places and wavelengths, in the float32 arithmetic of the published code.

Exact arithmetic would differ by up to 1.4e-4 at 2,190 nm, so the steps below are part of the
method: weights that were trained with these codes expect them (arXiv 2508.01731 and its code).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

BASE = 10_000.0  # of sine positions since "Attention Is All You Need"
PLACE_STEP = 10.0  # the published input resolution, one constant for all data (after ScaleMAE)


def sincos(width: int, positions: Tensor) -> Tensor:
    """Code scalar positions: all sines, then all cosines, of falling frequencies.

    Args:
        width: of a code, even.
        positions: (M,) any unit.

    Returns:
        (M, width) float32, -1 to 1.

    Raises:
        ValueError: the width is odd.
    """
    if width < 2 or width % 2:
        raise ValueError(
            f"A code has as many sines as cosines: its width must be even, not {width}."
        )
    steps = torch.arange(width // 2, dtype=torch.float32, device=positions.device)
    frequency = 1.0 / BASE ** (steps / (width / 2))
    angle = positions.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def spatial_encoding(rows: int, cols: int, width: int, step: float = PLACE_STEP) -> Tensor:
    """Code the places of a grid: the first half of the width for columns, the second for rows.

    Args:
        rows: of the grid.
        cols: of the grid.
        width: of a code, divisible by 4.
        step: distance of two neighbours; 10 is published for the tokenizer and for stage 1 of
            ScaleMAE, 1 makes the plain table that ScaleMAE stores.

    Returns:
        (rows * cols, width) float32, in row order.

    Raises:
        ValueError: the width is not divisible by 4.
    """
    if width % 4:
        raise ValueError(f"A code of two axes needs a width divisible by 4, not {width}.")
    half = width // 2
    col_code = sincos(half, torch.arange(cols, dtype=torch.float32) * step)
    row_code = sincos(half, torch.arange(rows, dtype=torch.float32) * step)
    codes = (col_code.expand(rows, cols, half), row_code[:, None].expand(rows, cols, half))
    return rearrange(torch.cat(codes, dim=-1), "r c d -> (r c) d")


def wavelength_encoding(wavelength_nm: Sequence[float], width: int, count: int) -> Tensor:
    """Code the bands' wavelengths, drawn out along the list to ``count`` rows.

    The rows are interpolated by index, as published: the first and the last row are the codes of
    the first and the last band, and the order of the bands matters. One band is repeated.

    Args:
        wavelength_nm: (C,) centres in nm, in the order of the bands.
        width: of a code, even.
        count: rows wanted, the channels of the stem.

    Returns:
        (count, width) float32, -1 to 1.

    Raises:
        ValueError: there is no wavelength, or the width is odd.
    """
    if not len(wavelength_nm):
        raise ValueError("A wavelength code needs the wavelength of at least one band.")
    codes = sincos(width, torch.tensor(tuple(wavelength_nm), dtype=torch.float32))
    last = len(codes) - 1
    place = torch.linspace(0.0, float(last), count, dtype=torch.float64)
    lower = place.floor().long().clamp(max=max(last - 1, 0))
    share = (place - lower)[:, None]  # float64 between float32 rows, as published
    upper = (lower + 1).clamp(max=last)
    return ((1 - share) * codes[lower] + share * codes[upper]).float()

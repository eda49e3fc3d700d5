"""How far two images of one place lie apart, in parts of a coarse pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from engine.errors import SceneError
from engine.models.fusion.degradation import PointSpread
from engine.models.fusion.method import ImagePair
from engine.training.pair_agreement import Agreement

LIMIT_PX = 3.0
"""Coarse pixels, right or down, beyond which two images are not brought together by a shift."""

# A shift is believed when its place stands out from all others: by so many spreads (1.48 median
# deviations) of what those come to and so much of the variance, or by leaving so much less than any
# of them, which a small scene of a few large fields cannot do by chance either.
_STANDS_OUT = 6.0
_STANDS_OUT_SHARE = 0.03
_LEAVES_LESS = 0.5
# How far from the best place the others begin, coarse pixels along a side.
_APART_PX = 2
# Of fewer other places no usual value can be told.
_MIN_OTHERS = 12
# Where nothing stands out, it is looked for this many limits away, to say so.
_WIDE = 4
# Steps of the refinement, coarse pixels; a parabola goes on from the last.
_STEPS_PX = (0.5, 0.25, 0.1)

Cost = Callable[[float, float], float]


@dataclass(frozen=True)
class Shift:
    """Where the multispectral content lies relative to the hyperspectral one.

    Args:
        x_px: to the right, coarse pixels.
        y_px: down, coarse pixels.
        agreement: share of the multispectral detail, 0 to 1, that the hyperspectral image
            explains at this shift.
        unshifted_agreement: the same at a shift of 0.
        reliable: False where no shift stands out; it is 0 then.
    """

    x_px: float
    y_px: float
    agreement: float
    unshifted_agreement: float
    reliable: bool = True

    @property
    def length_px(self) -> float:
        """Distance in coarse pixels."""
        return float(np.hypot(self.x_px, self.y_px))


def estimate_shift(
    sample: Sequence[ImagePair],
    ratio: int,
    limit_px: float = LIMIT_PX,
    *,
    spread: PointSpread | None = None,
) -> Shift:
    """Find the shift at which the hyperspectral image explains the multispectral one best.

    1. All whole coarse pixels up to one beyond the limit are tried (see `Agreement`: no response
       has to be known for it).
    2. The best one is refined on ever smaller steps, and by a parabola at the end.
    3. Where no place stands out, wider ones are tried, so that a large shift is named rather than
       taken for none.

    Args:
        sample: parts of one pair of images, each with its detail; all with the same shift.
        ratio: fine pixels along a coarse one.
        limit_px: largest shift along rows or columns, coarse pixels.
        spread: of the coarse sensor; a Gaussian as wide as a coarse pixel when None.

    Raises:
        SceneError: the images are further apart than the limit.
    """
    agreement = Agreement(sample)
    agreement.sweep(spread or PointSpread.gaussian(ratio))
    cost: Cost = cache(agreement.unexplained_at)
    reach_px = int(np.ceil(limit_px)) + 1
    x_px, y_px, stands_out = _search(cost, reach_px)
    if not stands_out:
        wide_px = min(int(_WIDE * limit_px), min(agreement.coarse_shape) // 3)
        if wide_px > reach_px:
            x_px, y_px, stands_out = _search(cost, wide_px)
    if not stands_out:
        still = _explained(cost, 0.0, 0.0)
        return Shift(0.0, 0.0, still, still, reliable=False)
    x_px, y_px = _refined(cost, x_px, y_px)
    if max(abs(x_px), abs(y_px)) > limit_px:
        raise _too_far(x_px, y_px, limit_px)
    return Shift(x_px, y_px, _explained(cost, x_px, y_px), _explained(cost, 0.0, 0.0))


def _explained(cost: Cost, x_px: float, y_px: float) -> float:
    """0 to 1; 0 also where too few pixels are left to say."""
    return float(np.clip(1 - np.nan_to_num(cost(x_px, y_px), nan=1.0), 0, 1))


def _search(cost: Cost, reach_px: int) -> tuple[float, float, bool]:
    """The best whole shift (x, y) within reach, and whether it stands out."""
    offsets = np.arange(-reach_px, reach_px + 1)
    left_over = np.asarray([[cost(float(x), float(y)) for x in offsets] for y in offsets])
    if np.isnan(left_over).all():
        return 0.0, 0.0, False
    row, column = np.unravel_index(np.nanargmin(left_over), left_over.shape)
    x_px, y_px = offsets[column], offsets[row]
    apart = np.abs(offsets - x_px)[None, :] > _APART_PX
    apart = apart | (np.abs(offsets - y_px)[:, None] > _APART_PX)
    others = left_over[apart & np.isfinite(left_over)]
    return float(x_px), float(y_px), _stands_out(float(left_over[row, column]), others)


def _stands_out(best: float, others: NDArray[np.float64]) -> bool:
    """Whether the best value is no chance one among the others."""
    if len(others) < _MIN_OTHERS:
        return False
    usual = float(np.median(others))
    spread = 1.4826 * float(np.median(np.abs(others - usual)))
    usually = usual - best > max(_STANDS_OUT * spread, _STANDS_OUT_SHARE) and best < others.min()
    return bool(usually or best < _LEAVES_LESS * others.min())


def _refined(cost: Cost, x_px: float, y_px: float) -> tuple[float, float]:
    """Go down to the lowest place around, to a part of the last step."""
    for step_px in _STEPS_PX:
        while True:
            around = [(x_px + i * step_px, y_px + j * step_px) for j, i in _STENCIL]
            best = min(around, key=lambda place: np.nan_to_num(cost(*place), nan=np.inf))
            if not cost(*best) < cost(x_px, y_px):
                break
            x_px, y_px = best
    step_px = _STEPS_PX[-1]
    offset = _vertex(cost(x_px + i * step_px, y_px + j * step_px) for j, i in _STENCIL)
    return x_px + offset[0] * step_px, y_px + offset[1] * step_px


# Rows and columns of a place and its neighbours.
_STENCIL = [(j, i) for j in (-1, 0, 1) for i in (-1, 0, 1)]


def _vertex(values: Iterable[float]) -> tuple[float, float]:
    """Where the paraboloid through 3 x 3 values (least squares) is lowest, in steps (x, y)."""
    rows, columns = np.asarray(_STENCIL, np.float64).T
    terms = np.stack([np.ones(9), columns, rows, columns**2, rows**2, columns * rows], axis=1)
    # Where a value is missing the place is at the edge of what can be said, and stays.
    known = list(values)
    if not np.isfinite(known).all():
        return 0.0, 0.0
    _, x, y, xx, yy, xy = np.linalg.lstsq(terms, np.asarray(known), rcond=None)[0]
    determinant = 4 * xx * yy - xy**2
    if xx <= 0 or determinant <= 0:
        return 0.0, 0.0
    column = (xy * y - 2 * yy * x) / determinant
    row = (xy * x - 2 * xx * y) / determinant
    return float(np.clip(column, -1, 1)), float(np.clip(row, -1, 1))


def _too_far(x_px: float, y_px: float, limit_px: float) -> SceneError:
    """The refusal, with the shift in words."""
    along = f"{abs(x_px):.1f} px {'right' if x_px >= 0 else 'left'}"
    down = f"{abs(y_px):.1f} px {'down' if y_px >= 0 else 'up'}"
    return SceneError(
        f"The multispectral image lies {along} and {down} of the hyperspectral one (coarse "
        f"pixels), further than the limit of {limit_px:g} px.",
        "Georeference one of the images to the other, or give the shift.",
    )

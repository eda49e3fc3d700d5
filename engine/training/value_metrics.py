"""Scores of an estimated quantity beside its measurements, in the quantity's unit."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn import metrics


@dataclass(frozen=True)
class ValueScores:
    """How well estimates agree with measurements.

    Args:
        rmse: root mean square error.
        mae: mean absolute error.
        r2: share of the measurements' variance that is explained; 1 is perfect, 0 no better than
            their mean, NaN when they do not differ.
        bias: mean of estimated less measured.
        count: measurements.
    """

    rmse: float
    mae: float
    r2: float
    bias: float
    count: int

    def summary(self) -> dict[str, float]:
        """Give the three numbers that the job returns, by their names in the toolbox."""
        kept = ("rmse", "mae", "r2")
        return {name: value for name, value in asdict(self).items() if name in kept}


def score_values(measured: ArrayLike, estimated: ArrayLike) -> ValueScores:
    """Score (N,) estimates beside (N,) measurements; N is at least 1."""
    reference = np.asarray(measured, dtype=np.float64)
    answer = np.asarray(estimated, dtype=np.float64)
    differs = len(reference) > 1 and np.ptp(reference) > 0
    return ValueScores(
        rmse=float(metrics.root_mean_squared_error(reference, answer)),
        mae=float(metrics.mean_absolute_error(reference, answer)),
        r2=float(metrics.r2_score(reference, answer)) if differs else float("nan"),
        bias=float((answer - reference).mean()),
        count=len(reference),
    )

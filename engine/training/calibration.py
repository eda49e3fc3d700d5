"""Calibrated confidence: where a model says 0.8, it should be right in eight of ten pixels.

One temperature divides all logits (Guo et al. 2017, arXiv 1706.04599): it changes no class, only
how sure the model says it is. It is fitted on places that training did not see, and judged on
others that the fit did not see either.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from engine.report import INK, MUTED, new_figure

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
BINS = 10
_STEPS = 60  # each halves the interval: beyond what float64 holds apart
_DOT_AREA, _LEAST_DOT_AREA = 90.0, 5.0  # points squared, of the fullest bin and at least
_AFTER_COLOR, _BEFORE_COLOR = "#0b6e6e", "#e2b13c"


@dataclass(frozen=True, eq=False)
class ReliabilityCurve:
    """How often a model is right where it says that it is so sure.

    Args:
        confidence: (bins,) mean confidence in each bin; NaN where it is empty.
        accuracy: (bins,) share of correct answers there; NaN where it is empty.
        count: (bins,) answers there.
        ece: expected calibration error, the mean of |accuracy - confidence| over answers, 0 to 1.
    """

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]
    ece: float


@dataclass(frozen=True, eq=False)
class Calibration:
    """A model's temperature, and what it does on places that its fit did not see.

    Args:
        temperature: that logits are divided by; 1 when there was nothing to fit it on.
        before: curve without it; None when no place was held out for the scores.
        after: curve with it; None likewise.
    """

    temperature: float = 1.0
    before: ReliabilityCurve | None = None
    after: ReliabilityCurve | None = None

    @property
    def ece(self) -> float | None:
        """Expected calibration error with the temperature; None when nothing was held out."""
        return None if self.after is None else self.after.ece


def calibrate(temperature: float, logits: Tensor, class_index: Tensor) -> Calibration:
    """Judge a temperature on (M, K) logits and (M,) classes of places that its fit did not see."""
    if not len(logits):
        return Calibration(temperature)
    before, after = (
        reliability((logits / divisor).softmax(dim=1), class_index)
        for divisor in (1.0, temperature)
    )
    return Calibration(temperature, before, after)


def fit_temperature(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> float:
    """Find the temperature with the lowest cross entropy.

    Cross entropy is convex in 1 / temperature, so its slope has one zero at most, which is found
    by halving. One answer in so many as there are is taken to be as good as guessed, as Platt
    (1999) does, so that a model that was never wrong on few pixels does not become certain.

    Args:
        logits: (M, K), of places that training did not see.
        target: (M, K) shares of classes, rows sum to 1, or (M,) int64 classes.
        weight: (M,) how much each counts; None: all alike.

    Returns:
        0.05 to 20; 1 when there is nothing to fit it on.
    """
    logits = logits.detach().double().cpu()
    target = target.detach().cpu()
    if target.ndim == 1:
        target = F.one_hot(target, logits.shape[1])
    counts = torch.ones(len(logits)) if weight is None else weight.detach().cpu()
    if not len(logits) or float(counts.sum()) <= 0:
        return 1.0
    guessed = 1 / (int((counts > 0).sum()) + 2)
    target = torch.lerp(
        target.double(), torch.full(target.shape, 1 / target.shape[1]).double(), guessed
    )
    share = target * counts.double()[:, None]
    total = share.sum(dim=1, keepdim=True)

    def slope(log_inverse: float) -> float:
        """Of the cross entropy by 1 / temperature, up to a factor above 0."""
        probability = (logits * np.exp(log_inverse)).softmax(dim=1)
        return float(((total * probability - share) * logits).sum())

    low, high = -np.log(MAX_TEMPERATURE), -np.log(MIN_TEMPERATURE)
    for _step in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))


def reliability(probabilities: Tensor, class_index: Tensor, bins: int = BINS) -> ReliabilityCurve:
    """Compare confidence with accuracy, in bins of equal width from 0 to 1.

    Args:
        probabilities: (M, K), rows sum to 1, M at least 1.
        class_index: (M,) int64, what is right.
        bins: a confidence on an edge counts to the bin below it.

    Raises:
        ValueError: there is no answer to judge.
    """
    if not len(probabilities):
        raise ValueError("A reliability curve needs one answer or more.")
    sure, answer = probabilities.detach().double().cpu().max(dim=1)
    confidence = sure.numpy()
    hit = (answer == class_index.cpu()).numpy().astype(np.float64)
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, weights=values, minlength=bins) for values in (confidence, hit)]
    ece = float(np.abs(sums[1] - sums[0]).sum() / len(place))
    empty = count == 0
    means = [np.where(empty, np.nan, values / np.maximum(count, 1)) for values in sums]
    return ReliabilityCurve(means[0], means[1], count, ece)


def reliability_figure(calibration: Calibration) -> Figure:
    """Draw accuracy over confidence before and after the temperature, and how many answers.

    Raises:
        ValueError: nothing was held out, so there is no curve.
    """
    if calibration.before is None or calibration.after is None:
        raise ValueError("There is no reliability curve to draw.")
    figure, axes = new_figure(5.8, 4.4)
    axes.plot([0, 1], [0, 1], color=MUTED, lw=0.9, ls=":")
    share = calibration.after.count / calibration.after.count.sum()
    edges = np.linspace(0, 1, len(share) + 1)
    axes.bar(
        edges[:-1], share, width=np.diff(edges), align="edge", color=_AFTER_COLOR, alpha=0.15,
        label="share of the pixels",
    )  # fmt: skip
    for curve, color, name in (
        (calibration.before, _BEFORE_COLOR, "as trained"),
        (calibration.after, _AFTER_COLOR, f"temperature {calibration.temperature:.2f}"),
    ):
        there = curve.count > 0
        axes.plot(
            curve.confidence[there], curve.accuracy[there], color=color, lw=1.2,
            label=f"{name}: error {curve.ece:.3f}",
        )  # fmt: skip
        # bins of few answers jump up and down, and should not catch the eye
        area = _DOT_AREA * curve.count[there] / curve.count.max()
        axes.scatter(
            curve.confidence[there], curve.accuracy[there], s=np.maximum(area, _LEAST_DOT_AREA),
            color=color, clip_on=False, zorder=3,
        )  # fmt: skip
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("confidence", color=INK)
    axes.set_ylabel("accuracy", color=INK)
    # above the curves: they may run anywhere
    axes.legend(
        fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.02), ncols=3,
        columnspacing=1.2,
    )  # fmt: skip
    return figure

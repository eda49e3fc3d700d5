"""Scores of a classification, all from its confusion matrix: rows = reference, columns = map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix


@dataclass(frozen=True, eq=False)
class Scores:
    """How well a map or a model agrees with its reference; shares from 0 to 1.

    Args:
        confusion: (K, K) counts, rows = reference, columns = predicted.
        overall_accuracy: correct / all.
        balanced_accuracy: mean recall of the classes that the reference has.
        kappa: Cohen's, agreement beyond chance; NaN when there is only one class on both sides.
        f1_macro: mean F1 of the classes that the reference or the prediction has.
        iou_macro: mean intersection over union of the same classes.
        recall: (K,) producer's accuracy; NaN for a class that the reference has not.
        precision: (K,) user's accuracy; NaN for a class that was never predicted.
        f1: (K,), NaN for a class that is in neither.
        iou: (K,), NaN for a class that is in neither.
    """

    confusion: NDArray[np.int64]
    overall_accuracy: float
    balanced_accuracy: float
    kappa: float
    f1_macro: float
    iou_macro: float
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    f1: NDArray[np.float64]
    iou: NDArray[np.float64]

    def summary(self) -> dict[str, float]:
        """Give the five numbers that every job returns, by their names in the toolbox."""
        return {
            "overall_accuracy": self.overall_accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "kappa": self.kappa,
            "f1_macro": self.f1_macro,
            "iou_macro": self.iou_macro,
        }


class ConfusionScores:
    """Collects a confusion matrix batch by batch, on whatever device the batches are.

    Args:
        num_classes: K.
        ignore_index: class index in the reference that means "no label".
    """

    def __init__(self, num_classes: int, ignore_index: int | None = None) -> None:
        self._matrix = MulticlassConfusionMatrix(num_classes, ignore_index=ignore_index)

    def update(self, reference: Tensor, predicted: Tensor) -> None:
        """Count class indices of equal shape; the reference comes first, as rows do."""
        self._matrix.to(reference.device)
        self._matrix.update(predicted, reference)

    @property
    def confusion(self) -> NDArray[np.int64]:
        """The (K, K) counts so far, rows = reference."""
        matrix: Tensor = self._matrix.confmat
        counts: NDArray[np.int64] = matrix.to("cpu", torch.int64).numpy().copy()
        return counts

    def scores(self) -> Scores:
        """Score what was counted so far."""
        return scores_from_confusion(self.confusion)


def scores_from_confusion(confusion: ArrayLike) -> Scores:
    """Score a confusion matrix.

    Every cell is one sample for the library, with its count as the weight; so the cost does not
    depend on the number of pixels.

    Args:
        confusion: (K, K) counts, rows = reference, columns = predicted.

    Raises:
        ValueError: the matrix is not square, has a negative count or is empty.
    """
    counts = np.asarray(confusion).astype(np.int64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"A confusion matrix is square, not {counts.shape}.")
    if counts.min(initial=0) < 0 or counts.sum() == 0:
        raise ValueError("A confusion matrix has counts of at least one sample.")
    reference, predicted = np.nonzero(counts)
    cells = {
        "y_true": reference,
        "y_pred": predicted,
        "sample_weight": counts[reference, predicted],
    }
    in_reference = counts.sum(axis=1) > 0
    in_prediction = counts.sum(axis=0) > 0
    in_either = in_reference | in_prediction
    recall = _per_class(metrics.recall_score, in_reference, cells)
    f1 = _per_class(metrics.f1_score, in_either, cells)
    iou = _per_class(metrics.jaccard_score, in_either, cells)
    return Scores(
        confusion=counts,
        overall_accuracy=float(metrics.accuracy_score(**cells)),
        balanced_accuracy=float(np.nanmean(recall)),
        kappa=_kappa(cells, int(in_either.sum())),
        f1_macro=float(np.nanmean(f1)),
        iou_macro=float(np.nanmean(iou)),
        recall=recall,
        precision=_per_class(metrics.precision_score, in_prediction, cells),
        f1=f1,
        iou=iou,
    )


def _per_class(
    score: Callable[..., Any], present: NDArray[np.bool_], cells: dict[str, NDArray[np.int64]]
) -> NDArray[np.float64]:
    """Score the classes for which the score exists; NaN for the others."""
    values = np.full(len(present), np.nan)
    labels = np.flatnonzero(present)
    values[labels] = score(labels=labels, average=None, zero_division=0, **cells)
    return values


def _kappa(cells: dict[str, NDArray[np.int64]], num_classes: int) -> float:
    if num_classes == 1:  # chance alone explains everything: 0 / 0
        return float("nan")
    y_true, y_pred, weight = cells.values()
    return float(metrics.cohen_kappa_score(y_true, y_pred, sample_weight=weight))

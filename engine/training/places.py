"""Splitting samples by place, because neighbouring pixels are nearly copies of one another."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

HOLD_OUT_DRAWS = 256  # a few milliseconds; more hardly finds a fairer choice


def place_folds(
    class_index: NDArray[np.int64], place: NDArray[np.int64], folds: int, seed: int
) -> NDArray[np.int64]:
    """Deal whole places into folds, with every class in as many folds as it can be.

    Args:
        class_index: (M,) of the samples.
        place: (M,) the place that each is in.
        folds: wanted; fewer when there are not so many places.
        seed: of the deal.

    Returns:
        (M,) int64, the fold of each sample, 0 to ``folds`` - 1.
    """
    folds = min(folds, len(np.unique(place)))
    fold = np.zeros(len(place), np.int64)
    if folds < 2:
        return fold
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # It warns of classes with fewer samples than folds; those cannot be in every fold.
        warnings.simplefilter("ignore", UserWarning)
        for number, (_rest, members) in enumerate(splitter.split(place, class_index, place)):
            fold[members] = number
    return fold


def hold_out(
    class_index: NDArray[np.int64], place: NDArray[np.int64], share: float, seed: int
) -> NDArray[np.bool_]:
    """Choose the places that training does not see.

    Of several random choices it takes the one that holds out the same share of every class, so
    that the scores stand for all classes and training keeps some of each.

    Args:
        class_index: (M,) of the samples.
        place: (M,) the place that each is in.
        share: of the samples, 0 to 1.
        seed: of the choice.

    Returns:
        (M,) bool, True = held out; False everywhere when every choice would take a class away
        from training.
    """
    names, number = np.unique(place, return_inverse=True)
    if share <= 0 or len(names) < 2:
        return np.zeros(len(place), bool)
    counts = np.zeros((len(names), int(class_index.max()) + 1))
    np.add.at(counts, (number, class_index), 1)
    counts = counts[:, counts.any(axis=0)]
    rng = np.random.default_rng(seed)
    best, best_error = np.zeros(len(names), bool), np.inf
    for _draw in range(HOLD_OUT_DRAWS):
        held = np.zeros(len(names), bool)
        held[rng.permutation(len(names))[: max(round(share * len(names)), 1)]] = True
        held_share = counts[held].sum(axis=0) / counts.sum(axis=0)
        error = float(np.square(held_share - share).sum())
        if error < best_error and held_share.max() < 1:
            best, best_error = held, error
    return best[number]

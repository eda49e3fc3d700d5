"""Splitting samples by place, because neighbouring pixels are nearly copies of one another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DRAWS = 256  # a few milliseconds; more hardly finds a fairer choice


def place_folds(
    class_index: NDArray[np.int64], place: NDArray[np.int64], folds: int, seed: int
) -> NDArray[np.int64]:
    """Deal whole places into folds, with every class in as many folds as it can be.

    Of several random deals it takes the one in which the folds are most alike in their classes.

    Args:
        class_index: (M,) of the samples.
        place: (M,) the place that each is in.
        folds: wanted; fewer when there are not so many places.
        seed: of the deal.

    Returns:
        (M,) int64, the fold of each sample, 0 to ``folds`` - 1.
    """
    number, counts = _count_by_place(class_index, place)
    folds = min(folds, len(counts))
    if folds < 2:
        return np.zeros(len(place), np.int64)
    rng = np.random.default_rng(seed)
    share = counts / counts.sum(axis=0)
    deals = [rng.permutation(len(counts)) % folds for _draw in range(DRAWS)]

    def unevenness(deal: NDArray[np.int64]) -> float:
        held = np.stack([share[deal == fold].sum(axis=0) for fold in range(folds)])
        return float(np.square(held - 1 / folds).sum())

    return min(deals, key=unevenness)[number]


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
    number, counts = _count_by_place(class_index, place)
    best, best_error = np.zeros(len(counts), bool), np.inf
    if share <= 0 or len(counts) < 2:
        return best[number]
    rng = np.random.default_rng(seed)
    for _draw in range(DRAWS):
        held = np.zeros(len(counts), bool)
        held[rng.permutation(len(counts))[: max(round(share * len(counts)), 1)]] = True
        held_share = counts[held].sum(axis=0) / counts.sum(axis=0)
        error = float(np.square(held_share - share).sum())
        if error < best_error and held_share.max() < 1:
            best, best_error = held, error
    return best[number]


def _count_by_place(
    class_index: NDArray[np.int64], place: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The number of each sample's place, and samples by place and class, without empty classes."""
    names, number = np.unique(place, return_inverse=True)
    counts = np.zeros((len(names), int(class_index.max(initial=0)) + 1))
    np.add.at(counts, (number, class_index), 1)
    return number, counts[:, counts.any(axis=0)]

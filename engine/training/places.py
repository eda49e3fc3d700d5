"""Splitting samples by place, because neighbouring pixels are nearly copies of one another."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

MAX_FOLDS = 10


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
        # It warns of classes with fewer samples than folds; `hold_out` deals with them.
        warnings.simplefilter("ignore", UserWarning)
        for number, (_rest, members) in enumerate(splitter.split(place, class_index, place)):
            fold[members] = number
    return fold


def hold_out(
    class_index: NDArray[np.int64], place: NDArray[np.int64], share: float, seed: int
) -> NDArray[np.bool_]:
    """Choose the places that training does not see.

    A place is given back when a class would have no sample left to train on.

    Args:
        class_index: (M,) of the samples.
        place: (M,) the place that each is in.
        share: of the places, 0 to 1.
        seed: of the choice.

    Returns:
        (M,) bool, True = held out.
    """
    if share <= 0:
        return np.zeros(len(place), bool)
    # Several folds together come near to shares that are no 1 / n.
    folds = min(MAX_FOLDS, len(np.unique(place)))
    fold = place_folds(class_index, place, folds, seed)
    held = fold < max(round(share * folds), 1)
    for index in np.unique(class_index):
        members = class_index == index
        if held[members].all():
            held &= ~np.isin(place, place[members])
    return held

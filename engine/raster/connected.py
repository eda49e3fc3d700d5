"""Connected patches of a map that arrives in rows: what is joined through earlier rows too.

Two pixels are in one patch when a path of pixels of the same value leads from one to the other,
each beside, above or below the next.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]


def label_patches(values: NDArray[np.uint8], group: Labels | None = None) -> Labels:
    """Number the patches of a part of a map.

    Args:
        values: (h, w), 0 = no patch.
        group: (w,) of the first row: pixels of one number above 0 belong together although
            nothing in these rows may join them; None: nothing is known.

    Returns:
        (h, w) int64, 0 where ``values`` is; patches are numbered from 1 without gaps.
    """
    is_start = np.ones(values.shape, np.bool_)
    is_start[:, 1:] = values[:, 1:] != values[:, :-1]
    run: Labels = np.cumsum(is_start).reshape(values.shape) - 1
    above, below = _joined_downwards(values, is_start, run)
    if group is not None:
        left, right = _joined_by_group(run[0], group)
        above, below = np.concatenate([above, left]), np.concatenate([below, right])
    root = _roots(int(run[-1, -1]) + 1, above, below)
    root[values[is_start] == 0] = -1
    names, number = np.unique(root, return_inverse=True)
    # Runs without a value are the first name, -1, where there are any.
    number = number + (0 if len(names) and names[0] == -1 else 1)
    labels: Labels = number[run]
    return labels


def _joined_downwards(
    values: NDArray[np.uint8], is_start: NDArray[np.bool_], run: Labels
) -> tuple[Labels, Labels]:
    """Runs of neighbouring rows that touch, each pair once: where either of them begins."""
    touching = (values[1:] == values[:-1]) & (values[1:] != 0) & (is_start[1:] | is_start[:-1])
    return run[:-1][touching], run[1:][touching]


def _joined_by_group(run: Labels, group: Labels) -> tuple[Labels, Labels]:
    """Runs of one row that have a group in common: each with the first of its group."""
    there = np.flatnonzero(group > 0)
    _names, first, number = np.unique(group[there], return_index=True, return_inverse=True)
    return run[there[first]][number], run[there]


def _roots(count: int, first: Labels, second: Labels) -> Labels:
    """Join numbers 0 to ``count`` - 1 by pairs; each gets the smallest number of its kind.

    In every round each root takes the smallest root beside it for its parent, and all paths are
    shortened to their end; a few rounds are enough for maps.
    """
    parent = np.arange(count)
    while len(first):
        np.minimum.at(parent, np.maximum(first, second), np.minimum(first, second))
        while not np.array_equal(grandparent := parent[parent], parent):
            parent = grandparent
        first, second = parent[first], parent[second]
        apart = first != second
        first, second = first[apart], second[apart]
    return parent

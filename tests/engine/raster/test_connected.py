"""Connected patches: four neighbours, numbered, also where only earlier rows join them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from engine.raster.connected import label_patches


def by_flooding(values):
    """Labels by the simplest way there is: walk from pixel to pixel."""
    labels = np.zeros(values.shape, np.int64)
    count = 0
    for start in zip(*np.nonzero(values), strict=True):
        if labels[start]:
            continue
        count += 1
        waiting = [start]
        while waiting:
            row, col = waiting.pop()
            inside = 0 <= row < values.shape[0] and 0 <= col < values.shape[1]
            if inside and not labels[row, col] and values[row, col] == values[start]:
                labels[row, col] = count
                waiting += [(row + 1, col), (row - 1, col), (row, col + 1), (row, col - 1)]
    return labels


def same_partition(labels, expected):
    """Whether two labellings differ in numbers only."""
    pairs = {(a, b) for a, b in zip(labels.flat, expected.flat, strict=True)}
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2))
)
def test_patches_are_those_that_one_can_walk(values):
    labels = label_patches(values)
    assert same_partition(labels, by_flooding(values))
    assert np.array_equal(labels == 0, values == 0)


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2))
)
def test_numbers_have_no_gaps(values):
    labels = label_patches(values)
    assert set(np.unique(labels)) - {0} == set(range(1, int(labels.max()) + 1))


def test_corners_do_not_join():
    assert label_patches(np.array([[1, 2], [2, 1]], np.uint8)).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("turns", [3, 6])
def test_a_spiral_is_one_patch(turns):
    side = 4 * turns + 1
    values = np.ones((side, side), np.uint8)
    for ring in range(turns):
        first, last = 2 * ring + 1, side - 2 * ring - 2
        values[first, first - 1 : last + 1] = 2
        values[first : last + 1, last] = 2
        values[last, first : last + 1] = 2
        values[first + 2 : last + 1, first] = 2
    assert same_partition(label_patches(values), by_flooding(values))


def test_what_earlier_rows_joined_is_one_patch():
    values = np.array([[1, 0, 1, 1], [1, 0, 0, 1]], np.uint8)
    apart = label_patches(values)
    joined = label_patches(values, np.array([7, 0, 7, 7]))
    assert apart.tolist() == [[1, 0, 2, 2], [1, 0, 0, 2]]
    assert joined.tolist() == [[1, 0, 1, 1], [1, 0, 0, 1]]

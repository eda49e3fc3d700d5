"""What the labels of a window say, as training wants it: targets, weights, and groups to draw from.

Classes are shares of area, values are means over the pixel; samples are collected alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.raster.labels import FieldValue, SceneLabels
from engine.raster.tiles import Window
from engine.raster.values import SceneValues

PURE_SHARE = 0.6  # a pixel with this much of one class is a sample of it, as in the label raster
MIN_LABELLED_SHARE = 0.3  # below it, most of the light came from ground that nobody labelled
VALUE_GROUPS = 10


@dataclass(frozen=True, eq=False)
class WindowTargets:
    """What is right in the pixels of a window.

    Args:
        target: (K, h, w) float32, shares of K classes, or one value; rows mean nothing where not
            used.
        weight: (h, w) float32, the share of the pixel's area that this is known for.
        used: (h, w) bool, the pixels to train on.
        pure: (h, w) bool, those among them that can be scored.
        group: (h, w) int64, the class or the step of values that each belongs to.
    """

    target: NDArray[np.float32]
    weight: NDArray[np.float32]
    used: NDArray[np.bool_]
    pure: NDArray[np.bool_]
    group: NDArray[np.int64]


class PixelTargets(Protocol):
    """Labels on the grid of one scene."""

    outputs: int
    """K."""

    groups: int
    """Each gets as many samples as the others, where there are as many."""

    def read(self, window: Window) -> WindowTargets:
        """Read a window of the scene."""


class ClassTargets:
    """Shares of classes.

    Args:
        labels: on the grid of the scene.
        values: K values of the class field, in the model's order.
    """

    def __init__(self, labels: SceneLabels, values: Sequence[FieldValue]) -> None:
        self._labels = labels
        self._values = values
        self.outputs = self.groups = len(values)

    def read(self, window: Window) -> WindowTargets:
        """See `PixelTargets.read`; shares sum to 1 over what is labelled."""
        shares = self._labels.shares(window, self._values)
        listed = shares[:-1]
        weight = listed.sum(axis=0)
        used = (weight >= MIN_LABELLED_SHARE) & (shares[-1] <= weight)
        return WindowTargets(
            np.divide(listed, weight, out=np.zeros_like(listed), where=weight > 0),
            weight,
            used,
            used & (listed.max(axis=0) >= PURE_SHARE),
            listed.argmax(axis=0),
        )


class ValueTargets:
    """One measured value a pixel.

    Args:
        values: on the grid of the scene.
        steps: (VALUE_GROUPS - 1,) ascending limits between the groups, see `value_steps`.
    """

    outputs = 1
    groups = VALUE_GROUPS

    def __init__(self, values: SceneValues, steps: NDArray[np.float64]) -> None:
        self._values = values
        self._steps = steps

    def read(self, window: Window) -> WindowTargets:
        """See `PixelTargets.read`."""
        means, known = self._values.means(window)
        used = known >= MIN_LABELLED_SHARE
        return WindowTargets(
            means[None].astype(np.float32),
            known,
            used,
            used & (known >= PURE_SHARE),
            np.digitize(means, self._steps),
        )


def value_steps(levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Limits of groups that are equally wide, so that rare values get all of their samples.

    Args:
        levels: values as they occur, ascending; one in a hundred at both ends does not widen the
            groups.

    Returns:
        (VALUE_GROUPS - 1,) ascending.
    """
    low, high = np.quantile(levels, [0.01, 0.99])
    steps: NDArray[np.float64] = np.linspace(low, high, VALUE_GROUPS + 1)[1:-1]
    return steps

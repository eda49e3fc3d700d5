"""Figures that the reports on trainings share."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from engine.report import INK, MUTED, new_figure
from engine.training.samples import Samples
from engine.training.spectral_fit import SpectralFit

MAX_MAP_PIXELS = 20_000
MAX_MAPS = 4
HELD_OUT_COLOR = "#111111"
LOSS_COLOR, ACCURACY_COLOR = "#0b6e6e", "#e2b13c"
HELD_OUT_PATCH = Patch(fill=False, edgecolor=HELD_OUT_COLOR, label="held out")


def curves_figure(fit: SpectralFit, accuracy_label: str) -> Figure:
    """Loss and accuracy by epoch, and where training stopped.

    Args:
        fit: of the linear path.
        accuracy_label: what the accuracy of its objective is called.
    """
    curve = fit.curve
    epochs = np.arange(1, len(curve) + 1)
    figure, axes = new_figure(7.2, 3.0)
    axes.plot(epochs, [e.train_loss for e in curve], color=MUTED, lw=1.2, label="loss, training")
    axes.plot(
        epochs, [e.held_out_loss for e in curve], color=LOSS_COLOR, lw=1.8, label="loss, held out"
    )
    axes.set_ylim(0, 1.05 * max(max(e.held_out_loss for e in curve[1:] or curve), 0.1))
    axes.set_xlabel("epoch", color=INK)
    axes.set_ylabel("loss", color=INK)
    right = axes.twinx()
    right.spines[["top", "left", "bottom"]].set_visible(False)
    right.spines["right"].set_color("#c9d3d0")
    right.tick_params(colors=MUTED, labelsize=9)
    accuracy = [e.held_out_accuracy for e in curve]
    right.plot(epochs, accuracy, color=ACCURACY_COLOR, lw=1.8, label=f"{accuracy_label}, held out")
    right.set_ylim(0, 1)
    right.set_ylabel(accuracy_label, color=INK)
    axes.axvline(fit.best_epoch + 1, color=INK, lw=0.9, ls=":")
    lines = [*axes.get_lines()[:2], *right.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], fontsize=8, frameon=False)
    return figure


def places_figure(
    samples: Samples,
    held_out: NDArray[np.bool_],
    scene_index: int,
    colors: NDArray[Any],
    **options: Any,
) -> tuple[Figure, Any, Any]:
    """Draw where the labelled pixels of a scene lie; the blocks held out are outlined.

    Args:
        samples: all.
        held_out: (M,) bool.
        scene_index: which scene.
        colors: (M,) what to colour them by, as matplotlib takes it.
        options: more for the markers, such as a colour map.

    Returns:
        figure, axes and markers.
    """
    here = np.flatnonzero((samples.position[:, 0] == scene_index).numpy())
    if len(here) > MAX_MAP_PIXELS:
        here = np.random.default_rng(0).permutation(here)[:MAX_MAP_PIXELS]
    rows, cols = samples.position[here, 1].numpy(), samples.position[here, 2].numpy()
    figure, axes = new_figure(7.2, 6.0)
    size = _marker_size(rows, cols)
    marks = axes.scatter(cols, rows, c=colors[here], s=size, marker="s", linewidths=0, **options)
    place, outside = samples.place[here].numpy(), held_out[here]
    for name in np.unique(place[outside]):
        member = place == name
        left, top = cols[member].min() - 0.5, rows[member].min() - 0.5
        axes.add_patch(
            Rectangle(
                (left, top), cols[member].max() + 0.5 - left, rows[member].max() + 0.5 - top,
                fill=False, edgecolor=HELD_OUT_COLOR, lw=1.4,
            )
        )  # fmt: skip
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set_xlabel("column", color=INK)
    axes.set_ylabel("row", color=INK)
    return figure, axes, marks


def _marker_size(rows: np.ndarray, cols: np.ndarray) -> float:
    """Area of a marker, in points squared, that is about as large as its pixel."""
    span = max(np.ptp(rows), np.ptp(cols), 10) if len(rows) else 10
    return float(np.clip((330 / span) ** 2, 1.0, 120.0))

"""What the report on a training run shows: tables as rows, figures as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from engine.raster.style import ClassInfo
from engine.report import INK, MUTED, confusion_figure, figure_to_data_uri, new_figure
from engine.training.classifier import TrainedClassifier
from engine.training.metrics import Scores
from engine.training.samples import Samples

MAX_MAP_PIXELS = 20_000
MAX_MAPS = 4
HELD_OUT_COLOR = "#111111"
LOSS_COLOR, ACCURACY_COLOR = "#0b6e6e", "#e2b13c"


@dataclass(frozen=True)
class ClassRow:
    """A class in the table of classes."""

    info: ClassInfo
    training_px: int
    held_out_px: int
    recall: float | None
    precision: float | None
    f1: float | None
    iou: float | None


def report_values(
    trained: TrainedClassifier,
    samples: Samples,
    classes: Sequence[ClassInfo],
    scene_names: Sequence[str],
) -> dict[str, Any]:
    """Everything that ``train_classifier.html`` names, beside the model itself.

    Args:
        trained: the result of training.
        samples: all samples, held out or not.
        classes: K, in the model's order.
        scene_names: of the scenes that the samples' positions count.
    """
    scores = trained.scores
    figure = None if scores is None else confusion_figure(scores.confusion, _names(classes))
    return {
        "trained": trained,
        "scores": scores,
        "rows": _class_rows(trained, samples, classes),
        "compared": _compared(trained),
        "names": _names(classes),
        "confusion": None if scores is None else scores.confusion.tolist(),
        "confusion_figure": None if figure is None else figure_to_data_uri(figure),
        "curves_figure": figure_to_data_uri(_curves_figure(trained)),
        "map_figures": [
            (name, figure_to_data_uri(_map_figure(trained, samples, classes, index)))
            for index, name in enumerate(scene_names[:MAX_MAPS])
        ],
        "labelled_px": len(samples.chip),
        "held_out_px": int((torch.from_numpy(trained.held_out) & samples.pure).sum()),
        "blocks": samples.num_places,
        "held_out_blocks": samples.subset(torch.from_numpy(trained.held_out)).num_places,
    }


def _names(classes: Sequence[ClassInfo]) -> list[str]:
    return [info.name for info in classes]


def _class_rows(
    trained: TrainedClassifier, samples: Samples, classes: Sequence[ClassInfo]
) -> list[ClassRow]:
    """Pixels and scores of each class."""
    held_out = torch.from_numpy(trained.held_out)
    label = samples.class_index
    scores = trained.scores

    def value(name: str, index: int) -> float | None:
        return None if scores is None else float(getattr(scores, name)[index])

    return [
        ClassRow(
            info,
            int(((label == index) & ~held_out).sum()),
            int(((label == index) & held_out & samples.pure).sum()),
            *(value(name, index) for name in ("recall", "precision", "f1", "iou")),
        )
        for index, info in enumerate(classes)
    ]


def _compared(trained: TrainedClassifier) -> list[tuple[str, Scores]]:
    """This model and the classical ones on the same held-out pixels, the best first."""
    if trained.scores is None:
        return []
    named = {"HyperKD (this model)": trained.scores, **trained.baselines}
    return sorted(named.items(), key=lambda item: -item[1].balanced_accuracy)


def _curves_figure(trained: TrainedClassifier) -> Figure:
    """Loss and accuracy by epoch, and where training stopped."""
    curve = trained.spectral.curve
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
    right.plot(epochs, accuracy, color=ACCURACY_COLOR, lw=1.8, label="accuracy, held out")
    right.set_ylim(0, 1)
    right.set_ylabel("balanced accuracy", color=INK)
    axes.axvline(trained.spectral.best_epoch + 1, color=INK, lw=0.9, ls=":")
    lines = [*axes.get_lines()[:2], *right.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], fontsize=8, frameon=False)
    return figure


def _map_figure(
    trained: TrainedClassifier,
    samples: Samples,
    classes: Sequence[ClassInfo],
    scene_index: int,
) -> Figure:
    """Where the labelled pixels of a scene lie; the blocks held out are outlined."""
    here = np.flatnonzero((samples.position[:, 0] == scene_index).numpy())
    if len(here) > MAX_MAP_PIXELS:
        here = np.random.default_rng(0).permutation(here)[:MAX_MAP_PIXELS]
    rows, cols = samples.position[here, 1].numpy(), samples.position[here, 2].numpy()
    held_out = trained.held_out[here]
    label = samples.class_index[here].numpy()
    place = samples.place[here].numpy()
    figure, axes = new_figure(7.2, 6.0)
    colors = np.asarray([info.color for info in classes], dtype=object)
    size = _marker_size(rows, cols)
    axes.scatter(cols, rows, c=list(colors[label]), s=size, marker="s", linewidths=0)
    for name in np.unique(place[held_out]):
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
    handles = [Patch(color=info.color, label=info.name) for info in classes]
    handles.append(Patch(fill=False, edgecolor=HELD_OUT_COLOR, label="held out"))
    axes.legend(
        handles=handles, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5)
    )
    return figure


def _marker_size(rows: np.ndarray, cols: np.ndarray) -> float:
    """Area of a marker, in points squared, that is about as large as its pixel."""
    span = max(np.ptp(rows), np.ptp(cols), 10) if len(rows) else 10
    return float(np.clip((330 / span) ** 2, 1.0, 120.0))

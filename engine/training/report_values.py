"""What the report on a training run shows: tables as rows, figures as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from engine.raster.style import ClassInfo
from engine.report import confusion_figure, figure_to_data_uri
from engine.training.calibration import reliability_figure
from engine.training.classifier import TrainedClassifier
from engine.training.metrics import Scores
from engine.training.report_figures import (
    HELD_OUT_PATCH,
    MAX_MAPS,
    curves_figure,
    places_figure,
)
from engine.training.samples import Samples


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
        "calibration": trained.calibration,
        "reliability_figure": None
        if trained.calibration.after is None
        else figure_to_data_uri(reliability_figure(trained.calibration)),
        "curves_figure": figure_to_data_uri(curves_figure(trained.spectral, "balanced accuracy")),
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


def _map_figure(
    trained: TrainedClassifier,
    samples: Samples,
    classes: Sequence[ClassInfo],
    scene_index: int,
) -> Figure:
    """Where the labelled pixels of a scene lie, by class."""
    by_class = np.asarray([info.color for info in classes], dtype=object)
    colors = by_class[samples.class_index.numpy()]
    figure, axes, _marks = places_figure(samples, trained.held_out, scene_index, colors)
    handles = [Patch(color=info.color, label=info.name) for info in classes]
    axes.legend(
        handles=[*handles, HELD_OUT_PATCH], fontsize=8, frameon=False, loc="center left",
        bbox_to_anchor=(1.0, 0.5),
    )  # fmt: skip
    return figure

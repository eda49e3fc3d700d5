"""What the report on a training run shows: tables as rows, figures as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from engine.raster.style import ClassInfo
from engine.report import confusion_figure, figure_to_data_uri
from engine.training.calibration import Calibration, reliability_figure
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


class TrainedOnPlaces(Protocol):
    """What the training of any model of classes gives."""

    @property
    def held_out(self) -> NDArray[np.bool_]:
        """(M,) the samples that training did not see."""

    @property
    def scores(self) -> Scores | None:
        """On them."""

    @property
    def baselines(self) -> dict[str, Scores]:
        """Of classical classifiers."""

    @property
    def calibration(self) -> Calibration:
        """Of the confidence."""


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
    curves = curves_figure(trained.spectral, "balanced accuracy")
    return {
        **shared_values(trained, samples, classes, scene_names, "HyperKD (this model)"),
        "curves_figure": figure_to_data_uri(curves),
    }


def shared_values(
    trained: TrainedOnPlaces,
    samples: Samples,
    classes: Sequence[ClassInfo],
    scene_names: Sequence[str],
    this_model: str,
) -> dict[str, Any]:
    """What the reports on all trainings of classes name.

    Args:
        trained: the result of training.
        samples: all samples, held out or not.
        classes: K, in the model's order.
        scene_names: of the scenes that the samples' positions count.
        this_model: its name beside classical classifiers.
    """
    scores = trained.scores
    figure = None if scores is None else confusion_figure(scores.confusion, _names(classes))
    return {
        "trained": trained,
        "scores": scores,
        "rows": _class_rows(trained, samples, classes),
        "compared": _compared(trained, this_model),
        "names": _names(classes),
        "confusion": None if scores is None else scores.confusion.tolist(),
        "confusion_figure": None if figure is None else figure_to_data_uri(figure),
        "calibration": trained.calibration,
        "reliability_figure": None
        if trained.calibration.after is None
        else figure_to_data_uri(reliability_figure(trained.calibration)),
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
    trained: TrainedOnPlaces, samples: Samples, classes: Sequence[ClassInfo]
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


def _compared(trained: TrainedOnPlaces, this_model: str) -> list[tuple[str, Scores]]:
    """This model and the classical ones on the same held-out pixels, the best first."""
    if trained.scores is None:
        return []
    named = {this_model: trained.scores, **trained.baselines}
    return sorted(named.items(), key=lambda item: -item[1].balanced_accuracy)


def _map_figure(
    trained: TrainedOnPlaces,
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

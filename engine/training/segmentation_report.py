"""What the report on the training of a segmentation shows, beside what all trainings show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from engine.raster.style import ClassInfo
from engine.report import INK, MUTED, figure_to_data_uri, new_figure
from engine.training.report_figures import ACCURACY_COLOR, LOSS_COLOR, curves_figure
from engine.training.report_values import shared_values
from engine.training.samples import Samples
from engine.training.segmentation import TrainedSegmenter
from engine.training.segmentation_fit import SegmenterHistory


def segmentation_values(
    trained: TrainedSegmenter,
    samples: Samples,
    classes: Sequence[ClassInfo],
    scene_names: Sequence[str],
) -> dict[str, Any]:
    """Everything that ``train_segmentation.html`` names, beside the model itself.

    Args:
        trained: the result of training.
        samples: all samples, held out or not.
        classes: K, in the model's order.
        scene_names: of the scenes that the samples' positions count.
    """
    history, total = trained.history, sum(trained.counts.values())
    values = sum(parameter.numel() for parameter in trained.model.parameters())
    spectral = history.spectral
    network = network_figure(history)
    return {
        **shared_values(trained, samples, classes, scene_names, "SpectralX (this model)"),
        "history": history,
        "trainable_parts": list(trained.counts.items()),
        "trainable_total": total,
        "all_values": values,
        "foundation": trained.model.config.foundation,
        "spectral_figure": None
        if spectral is None
        else figure_to_data_uri(curves_figure(spectral, "balanced accuracy")),
        "network_figure": None if network is None else figure_to_data_uri(network),
    }


def network_figure(history: SegmenterHistory) -> Figure | None:
    """Loss and accuracy of the network by epoch, and where its training stopped.

    A network whose answer is left out was not trained on all places, and stopped nowhere. None when
    nothing was trained with anything to look at.
    """
    tried, losses = history.curve(), history.losses
    if not tried and not losses:
        return None
    figure, axes = new_figure(7.2, 3.0)
    epochs = np.arange(1, len(losses) + 1)
    axes.plot(epochs, losses, color=MUTED, lw=1.2, label="loss, training on all")
    checks = [item.epoch for item in tried]
    axes.plot(
        checks, [item.loss for item in tried], color=LOSS_COLOR, lw=1.8, marker="o", ms=3,
        label="loss, held out",
    )  # fmt: skip
    axes.set_ylim(0, 1.1 * max([*losses, *(item.loss for item in tried)]))
    axes.set_xlabel("epoch", color=INK)
    axes.set_ylabel("loss", color=INK)
    right = axes.twinx()
    right.spines[["top", "left", "bottom"]].set_visible(False)
    right.spines["right"].set_color("#c9d3d0")
    right.tick_params(colors=MUTED, labelsize=9)
    right.plot(
        checks, [item.accuracy for item in tried], color=ACCURACY_COLOR, lw=1.8, marker="o", ms=3,
        label="balanced accuracy, held out",
    )  # fmt: skip
    right.set_ylim(0, 1)
    right.set_ylabel("balanced accuracy", color=INK)
    lines = [line for side in (axes, right) for line in side.get_lines() if len(line.get_xdata())]
    if history.choice.gate > 0:
        axes.axvline(history.choice.epochs, color=INK, lw=0.9, ls=":")
    # above the curves: they may run anywhere
    axes.legend(
        lines, [str(line.get_label()) for line in lines], fontsize=8, frameon=False,
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3,
    )  # fmt: skip
    return figure

"""What the report on the training of a regression shows: tables as rows, figures as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from engine.packages.metadata import Quantity
from engine.report import INK, MUTED, figure_to_data_uri, new_figure
from engine.training.regression import TrainedRegressor
from engine.training.report_figures import (
    HELD_OUT_PATCH,
    LOSS_COLOR,
    MAX_MAPS,
    curves_figure,
    places_figure,
)
from engine.training.samples import Samples
from engine.training.value_metrics import ValueScores

LOW_COLORS = "viridis_r"  # dark is much, as in the maps


def value_report_values(
    trained: TrainedRegressor, samples: Samples, quantity: Quantity, scene_names: Sequence[str]
) -> dict[str, Any]:
    """Everything that ``train_regression.html`` names, beside the model itself.

    Args:
        trained: the result of training.
        samples: all samples, held out or not.
        quantity: what was learned.
        scene_names: of the scenes that the samples' positions count.
    """
    held_out = torch.from_numpy(trained.held_out)
    return {
        "trained": trained,
        "quantity": quantity,
        "scores": trained.scores,
        "compared": _compared(trained),
        "scatter_figure": (
            None
            if trained.scores is None
            else figure_to_data_uri(_scatter_figure(trained, samples, quantity))
        ),
        "values_figure": figure_to_data_uri(_values_figure(trained, samples, quantity)),
        "curves_figure": figure_to_data_uri(curves_figure(trained.spectral, "R²")),
        "map_figures": [
            (name, figure_to_data_uri(_map_figure(trained, samples, quantity, index)))
            for index, name in enumerate(scene_names[:MAX_MAPS])
        ],
        "labelled_px": len(samples.chip),
        "held_out_px": len(trained.tested),
        "blocks": samples.num_places,
        "held_out_blocks": samples.subset(held_out).num_places,
    }


def _compared(trained: TrainedRegressor) -> list[tuple[str, ValueScores]]:
    """This model and the classical ones on the same held-out pixels, the best first."""
    if trained.scores is None:
        return []
    named = {"HyperKD (this model)": trained.scores, **trained.baselines}
    return sorted(named.items(), key=lambda item: item[1].rmse)


def _scatter_figure(trained: TrainedRegressor, samples: Samples, quantity: Quantity) -> Figure:
    """Estimated against measured values of the held-out pixels, with the line of perfection."""
    measured = samples.value.numpy()[trained.tested]
    figure, axes = new_figure(4.6, 4.4)
    both = np.concatenate([measured, trained.estimated])
    limits = [float(both.min()), float(both.max())]
    axes.plot(limits, limits, color=MUTED, lw=1.0, ls=":")
    axes.scatter(measured, trained.estimated, s=12, color=LOSS_COLOR, alpha=0.6, linewidths=0)
    axes.set_aspect("equal")
    axes.set_xlabel(f"measured {quantity.label}", color=INK)
    axes.set_ylabel("estimated", color=INK)
    return figure


def _values_figure(trained: TrainedRegressor, samples: Samples, quantity: Quantity) -> Figure:
    """How the values that were learned from are distributed, and those held out."""
    value = samples.value.numpy()
    steps = np.linspace(value.min(), value.max(), 31)
    figure, axes = new_figure(7.2, 2.6)
    axes.hist(value[~trained.held_out], steps, color=LOSS_COLOR, alpha=0.75, label="training")
    if trained.held_out.any():
        axes.hist(value[trained.held_out], steps, histtype="step", color=INK, label="held out")
    axes.set_xlabel(quantity.label, color=INK)
    axes.set_ylabel("pixels", color=INK)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _map_figure(
    trained: TrainedRegressor, samples: Samples, quantity: Quantity, scene_index: int
) -> Figure:
    """Where the labelled pixels of a scene lie, by value."""
    value = samples.value.numpy()
    figure, axes, marks = places_figure(
        samples, trained.held_out, scene_index, value, cmap=LOW_COLORS,
        vmin=value.min(), vmax=value.max(),
    )  # fmt: skip
    figure.colorbar(marks, ax=axes, shrink=0.6, label=quantity.label)
    axes.legend(handles=[HELD_OUT_PATCH], fontsize=8, frameon=False, loc="upper right")
    return figure

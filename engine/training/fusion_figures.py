"""Figures on how good a fused image is: where it gives both images back, and band by band."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from engine.raster.spectra import BandTable
from engine.report import INK, MUTED, new_figure
from engine.training.fusion_metrics import FusionScores
from engine.training.reconstruction_figures import with_gaps

THIS_COLOR = "#0b6e6e"
OTHER_COLORS = ("#c4572b", "#e2b13c", "#7c6bb0", "#8a9a5b", MUTED)
CONSISTENCY_COLORS = "viridis"  # dark means sure, as on the map
# The few worst pixels would leave no colour to the others.
SHOWN_SHARE = 0.98
LEAST_SHOWN = 0.02
TITLES = ("from the hyperspectral image", "from the multispectral image")


def consistency_figure(maps: NDArray[np.float32]) -> Figure:
    """Draw where a result, degraded, differs from both images.

    Args:
        maps: (2, h, w) relative differences; NaN where nothing is known.
    """
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    for axes, title, image in zip(figure.subplots(1, 2), TITLES, maps, strict=True):
        _draw_map(figure, axes, image)
        axes.set_title(f"difference {title}", fontsize=9, color=INK)
    return figure


def difference_figure(image: NDArray[np.float32]) -> Figure:
    """Draw where a result differs from its reference.

    Args:
        image: (h, w) relative differences; NaN where nothing is known.
    """
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    _draw_map(figure, figure.subplots(), image)
    return figure


def band_errors_figure(
    scores: Mapping[str, FusionScores], bands: BandTable | None, this: str
) -> Figure:
    """Draw the error of each band, by wavelength or by number.

    Args:
        scores: by name, as the legend has it.
        bands: L of the scores; None without wavelengths.
        this: the name that is drawn in front.
    """
    figure, axes = new_figure(7.2, 3.0)
    others = [name for name in scores if name != this]
    for color, name in zip(OTHER_COLORS, others, strict=False):
        axes.plot(*_line(scores[name].rmse_band, bands), color=color, lw=1.1, label=name)
    axes.plot(*_line(scores[this].rmse_band, bands), color=THIS_COLOR, lw=2.0, label=this)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("band" if bands is None else "wavelength, nm", color=INK)
    axes.set_ylabel("RMSE", color=INK)
    axes.legend(fontsize=8, frameon=False)
    return figure


def quality_figure(scores: FusionScores, bands: BandTable | None) -> Figure:
    """Draw signal-to-noise ratio and quality index of each band.

    Args:
        scores: of the result.
        bands: L of the scores; None without wavelengths.
    """
    figure, axes = new_figure(7.2, 3.0)
    axes.plot(*_line(scores.psnr_band, bands), color=THIS_COLOR, lw=1.6)
    axes.set_xlabel("band" if bands is None else "wavelength, nm", color=INK)
    axes.set_ylabel("PSNR, dB", color=THIS_COLOR)
    right = axes.twinx()
    right.spines[["top", "left", "bottom"]].set_visible(False)
    right.spines["right"].set_color("#c9d3d0")
    right.tick_params(colors=MUTED, labelsize=9)
    right.plot(*_line(scores.uiqi_band, bands), color="#c4572b", lw=1.2)
    right.set_ylim(top=1.0)
    right.set_ylabel("UIQI", color="#c4572b")
    return figure


def _draw_map(figure: Figure, axes: Any, image: NDArray[np.float32]) -> None:
    """Draw relative differences in per cent, with a colour bar."""
    known = image[np.isfinite(image)]
    top = float(np.quantile(known, SHOWN_SHARE)) if known.size else LEAST_SHOWN
    shown = axes.imshow(
        100 * image, cmap=CONSISTENCY_COLORS, vmin=0, vmax=100 * max(top, LEAST_SHOWN),
        interpolation="nearest",
    )  # fmt: skip
    axes.set_facecolor("#dfe5e3")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, extend="max")
    bar.ax.tick_params(labelsize=8, colors=MUTED)
    bar.set_label("per cent", fontsize=8, color=INK)
    bar.outline.set_visible(False)


def _line(
    values: NDArray[np.float64], bands: BandTable | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """X and y of a line over the bands; broken where wavelengths leave a gap."""
    if bands is None:
        return np.arange(1.0, len(values) + 1), values
    return with_gaps(bands.wavelength_nm, values.astype(np.float32), bands.good)

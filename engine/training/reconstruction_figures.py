"""What the reports on masked trainings show: reconstructions, spectra, and curves of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from engine.raster.spectra import BandTable
from engine.report import INK, MUTED, figure_to_data_uri, new_figure
from engine.training.held_out import TilePicture
from engine.training.masked_fit import HELD_OUT, FitHistory
from engine.training.scene_tiles import SceneTiles

TRUE_COLOUR = "true colour"
TRUE_COLOUR_NM = (655.0, 560.0, 480.0)
FALSE_COLOUR_NM = (865.0, 655.0, 560.0)  # near infrared shows plants as red
SHORTWAVE_NM = (2200.0, 1610.0, 865.0)
# A band further from a colour than this does not show it.
COLOUR_REACH_NM = 60.0
STRETCH_PERCENT = (2.0, 98.0)
MASK_GREY = 0.55
MAX_SPECTRA = 4
GAP_NM = 60.0  # a line that runs through a gap would show what nobody measured
FEW_BANDS = 20  # below, all bands lie far apart
TRUTH_COLOR, GUESS_COLOR, TEACHER_COLOR = "#1f2a2e", "#c4572b", "#0b6e6e"
TERM_TITLES = {
    "loss": "loss, weighted sum",
    "mse": "squared error of hidden tokens",
    "ssim": "1 - structural similarity",
    "features": "distance to the teacher's features",
    "spectral": "divergence of spectra",
    "low": "squared error of coarse structure",
    "high": "squared error of fine structure",
    "doubled": "absolute error at twice the size",
    "balance": "uneven use of experts",
}


@dataclass(frozen=True)
class SceneRow:
    """A scene in the table of scenes."""

    name: str
    size: str
    bands: int
    training_tiles: int
    held_out_tiles: int


def report_figures(
    pictures: Sequence[TilePicture], bands: BandTable, history: FitHistory
) -> dict[str, Any]:
    """The figures of a report, as data URIs.

    Args:
        pictures: of tiles.
        bands: of the tiles.
        history: of the training.

    Returns:
        "tile_figures", pairs of a caption and a picture; "spectra_figure"; "curves_figure".
    """
    return {
        "tile_figures": [
            (_caption(picture), figure_to_data_uri(tile_figure(picture, bands)))
            for picture in pictures
        ],
        "spectra_figure": figure_to_data_uri(spectra_figure(pictures, bands)),
        "curves_figure": figure_to_data_uri(curves_figure(history)),
    }


def scene_rows(tiles: SceneTiles) -> list[SceneRow]:
    """How many tiles each scene gave."""
    return [
        SceneRow(
            scene.name,
            f"{scene.width} x {scene.height}",
            int(tiles.present[index].sum()),
            sum(anchor.scene_index == index for anchor in tiles.plan.training),
            sum(anchor.scene_index == index for anchor in tiles.plan.held_out),
        )
        for index, scene in enumerate(tiles.scenes)
    ]


def tile_figure(picture: TilePicture, bands: BandTable) -> Figure:
    """Measured, shown and reconstructed, in the colours that the bands have."""
    composites = colour_composites(bands, picture.band_present)
    figure = Figure(figsize=(7.2, 2.55 * len(composites)), layout="constrained")
    grid = figure.subplots(len(composites), 3, squeeze=False)
    for row, (name, band_index) in zip(grid, composites, strict=True):
        measured = picture.reflectance[band_index].transpose(1, 2, 0)
        low, high = stretch(measured[picture.valid], together=name == TRUE_COLOUR)
        shown = np.clip((measured - low) / (high - low), 0, 1)
        guessed = picture.reconstructed[band_index].transpose(1, 2, 0)
        guessed = np.clip((guessed - low) / (high - low), 0, 1)
        for image in (shown, guessed):
            image[~picture.valid] = 1.0
        images = {
            "measured": shown,
            "shown": np.where(picture.hidden[..., None], MASK_GREY, shown),
            "reconstructed": guessed,
        }
        for axes, (title, image) in zip(row, images.items(), strict=True):
            axes.imshow(image, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            axes.set_title(f"{title}, {name}", fontsize=8, color=INK)
    return figure


def colour_composites(bands: BandTable, present: NDArray[np.bool_]) -> list[tuple[str, list[int]]]:
    """Find what can be shown as colours.

    Returns:
        names, and the 0-based bands for red, green and blue; at least one.
    """
    found = []
    for name, colours_nm in (
        (TRUE_COLOUR, TRUE_COLOUR_NM),
        ("near infrared", FALSE_COLOUR_NM),
        ("shortwave infrared", SHORTWAVE_NM),
    ):
        chosen = [_nearest(bands, present, colour_nm) for colour_nm in colours_nm]
        if all(band is not None for band in chosen):
            found.append((name, [int(band) for band in chosen if band is not None]))
    if found:
        return found[:2]
    usable = np.flatnonzero(present)
    order = usable[np.argsort(bands.wavelength_nm[usable])[::-1]]
    spread = order[np.linspace(0, len(order) - 1, 3).astype(int)]
    return [("three of the bands", [int(band) for band in spread])]


def spectra_figure(pictures: Sequence[TilePicture], bands: BandTable) -> Figure:
    """Mean spectra of some hidden tokens, as measured and as reconstructed."""
    figure, axes = new_figure(7.2, 3.2)
    tokens = [token for picture in pictures for token in _hidden_tokens(picture)]
    chosen = [tokens[i] for i in _spread(len(tokens), MAX_SPECTRA)]
    for number, (picture, pixels) in enumerate(chosen):
        for cube, style, label in (
            (picture.reflectance, "-", "measured"),
            (picture.reconstructed, ":", "reconstructed"),
        ):
            spectrum = cube[:, pixels].mean(axis=1)
            x, y = with_gaps(bands.wavelength_nm, spectrum, picture.band_present)
            color = f"C{number}"
            axes.plot(x, y, style, color=color, lw=1.3, label=f"{label}, token {number + 1}")
    axes.set_xlabel("wavelength, nm", color=INK)
    axes.set_ylabel("reflectance", color=INK)
    if chosen:
        axes.legend(fontsize=7, frameon=False, ncols=2)
    return figure


def curves_figure(history: FitHistory) -> Figure:
    """Every term of the loss by epoch, in training and on the held-out tiles."""
    terms = history.terms
    columns = 2
    rows = -(-len(terms) // columns)
    figure = Figure(figsize=(7.2, 2.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, term in zip(grid, terms, strict=False):
        axes.plot(*history.curve(term), color=MUTED, lw=1.2, label="training")
        held_out = history.curve(f"{HELD_OUT}{term}")
        if held_out[0]:
            axes.plot(*held_out, color=TEACHER_COLOR, lw=1.6, marker=".", ms=3, label="held out")
        axes.set_title(TERM_TITLES.get(term, term), fontsize=9, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#c9d3d0")
        axes.tick_params(colors=MUTED, labelsize=8)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for axes in grid[len(terms) :]:
        axes.set_visible(False)
    grid[0].legend(fontsize=8, frameon=False)
    return figure


def _caption(picture: TilePicture) -> str:
    """Where a tile lies."""
    anchor = picture.anchor
    return f"{picture.scene_name}, from row {anchor.row_off} and column {anchor.col_off}"


def _nearest(bands: BandTable, present: NDArray[np.bool_], wavelength_nm: float) -> int | None:
    """The band that shows a colour, if there is one."""
    distance_nm = np.where(present, np.abs(bands.wavelength_nm - wavelength_nm), np.inf)
    band = int(distance_nm.argmin())
    return band if distance_nm[band] <= COLOUR_REACH_NM else None


def stretch(
    values: NDArray[np.float32], *, together: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest shown value of (N, 3), one for each colour or for all together."""
    low, high = np.percentile(values, STRETCH_PERCENT, axis=None if together else 0)
    return low, np.maximum(high, low + 1e-4)


def _hidden_tokens(
    picture: TilePicture,
) -> list[tuple[TilePicture, NDArray[np.bool_]]]:
    """A bright and a dark token of a tile that were hidden, each as (P, P) bool of its pixels."""
    p = picture.patch_px
    side = picture.hidden.shape[0] // p
    token = np.add.outer(np.arange(side) * side, np.arange(side)).repeat(p, 0).repeat(p, 1)
    known = picture.hidden & picture.valid
    candidates = np.unique(token[known])
    if not len(candidates):
        return []
    brightness = [picture.reflectance[:, known & (token == one)].mean() for one in candidates]
    order = np.argsort(brightness, kind="stable")
    # Not the extremes themselves, which are the tile's oddest places.
    tenth = len(order) // 10
    return [(picture, known & (token == candidates[i])) for i in (order[tenth], order[-1 - tenth])]


def _spread(count: int, wanted: int) -> list[int]:
    """Some of 0 to ``count`` - 1, evenly apart."""
    return [int(i) for i in np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(int))]


def with_gaps(
    wavelength_nm: NDArray[np.float64],
    spectrum: NDArray[np.float32],
    present: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A spectrum in order of wavelength, with NaN where a line should break."""
    usable = np.flatnonzero(present)
    order = usable[np.argsort(wavelength_nm[usable], kind="stable")]
    x, y = wavelength_nm[order], spectrum[order].astype(np.float64)
    is_gap = (np.diff(x) > GAP_NM) & (len(x) > FEW_BANDS)
    breaks = np.flatnonzero(is_gap) + 1
    return np.insert(x, breaks, np.nan), np.insert(y, breaks, np.nan)

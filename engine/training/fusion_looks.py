"""What a fusion made of one place, before and after: in colours, and as spectra of some points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from engine.models.fusion.method import ImagePair
from engine.raster.spectra import BandTable
from engine.report import INK, MUTED, new_figure
from engine.training.reconstruction_figures import (
    TRUE_COLOUR,
    colour_composites,
    stretch,
    with_gaps,
)

BEFORE_COLOR, AFTER_COLOR, FINE_COLOR = "#1f2a2e", "#0b6e6e", "#c4572b"
POINTS = 4
MOST_SPECTRA = 4096
INVALID_GREY = 1.0
# Fine pixels along a side of what is shown: enough to see, and quick for every method.
LOOK_FINE_PX = 240
# A colour of the fine image may lie this far from that of the coarse one: its bands are broad.
SAME_COLOUR_NM = 80.0

Point = tuple[int, int]
"""Row and column of a coarse pixel, 0-based."""


@dataclass(frozen=True, eq=False)
class Look:
    """A part of a pair, at its own resolution, and what was made of it.

    Args:
        name: of the place, for people.
        hsi: (L, h, w) float32 reflectance.
        msi: (M, h*r, w*r) float32 reflectance.
        fused: (L, h*r, w*r) float32 reflectance.
        hsi_valid: (h, w) bool.
        msi_valid: (h*r, w*r) bool.
    """

    name: str
    hsi: NDArray[np.float32]
    msi: NDArray[np.float32]
    fused: NDArray[np.float32]
    hsi_valid: NDArray[np.bool_]
    msi_valid: NDArray[np.bool_]

    @classmethod
    def of(cls, name: str, pair: ImagePair, fused: Any) -> Look:
        """Take the first pair of a batch, and (L, H, W) that was made of it."""
        return cls(
            name,
            hsi=pair.hsi[0].cpu().numpy(),
            msi=pair.msi[0].cpu().numpy(),
            fused=np.asarray(fused, dtype=np.float32),
            hsi_valid=pair.hsi_valid[0].cpu().numpy(),
            msi_valid=pair.msi_valid[0].cpu().numpy(),
        )

    @property
    def ratio(self) -> int:
        """Fine pixels along one side of a coarse one."""
        return int(self.msi.shape[-1] // self.hsi.shape[-1])

    @property
    def whole(self) -> NDArray[np.bool_]:
        """(h, w) where a coarse pixel and all fine ones in it are valid."""
        height, width = self.hsi_valid.shape
        blocks = self.msi_valid.reshape(height, self.ratio, width, self.ratio)
        return self.hsi_valid & np.asarray(blocks.all(axis=(1, 3)))


def look_part(sample: Sequence[ImagePair], fine_px: int = LOOK_FINE_PX) -> ImagePair:
    """Choose what is shown of a pair: a square with as many valid pixels as there is.

    Args:
        sample: of the pair, one image each.
        fine_px: along a side of the square, at most.
    """
    best, most = sample[0], -1
    for part in sample:
        height, width = part.hsi.shape[-2:]
        side = max(fine_px // part.ratio, 1)
        for row in _starts(height, side):
            for column in _starts(width, side):
                square = part.crop(slice(row, row + side), slice(column, column + side))
                count = int(square.hsi_valid.sum()) * part.ratio**2 + int(square.msi_valid.sum())
                if count > most:
                    best, most = square, count
    return best


def _starts(length: int, side: int) -> list[int]:
    """Where squares begin along a side, from the middle outwards, half of each in the next."""
    last = max(length - side, 0)
    return sorted({*range(0, last + 1, max(side // 2, 1)), last}, key=lambda at: abs(at - last / 2))


def sample_points(look: Look, count: int = POINTS) -> list[Point]:
    """Choose coarse pixels whose spectra stand for the place: the middles of groups of spectra.

    Spectra are grouped at unit length, because the same cover may be lit or shaded.

    Args:
        look: of a place.
        count: of points, at most.

    Returns:
        the largest group's first; none where nothing is valid.
    """
    rows, columns = np.nonzero(look.whole)
    if not len(rows):
        return []
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), MOST_SPECTRA)).astype(int)
    rows, columns = rows[chosen], columns[chosen]
    spectra = look.hsi[:, rows, columns].T.astype(np.float64)
    length = np.maximum(np.linalg.norm(spectra, axis=1, keepdims=True), 1e-6)
    distinct = len(np.unique(spectra / length, axis=0))
    groups = KMeans(min(count, distinct), n_init=4, random_state=0).fit(spectra / length)
    distance = groups.transform(spectra / length)
    middles = distance.argmin(axis=0)
    order = np.argsort(-np.bincount(groups.labels_, minlength=len(middles)), kind="stable")
    return [(int(rows[i]), int(columns[i])) for i in middles[order]]


def looks_figure(
    look: Look, bands: BandTable, fine_bands: BandTable | None, points: list[Point]
) -> Figure:
    """Draw both images and the fused one side by side, the points of the spectra in it.

    The hyperspectral images share one stretch, so that what changed its brightness shows.

    Args:
        look: of a place.
        bands: (L) of the hyperspectral image.
        fine_bands: (M) of the multispectral one; None where its wavelengths are not known.
        points: that are numbered in the coarse image.
    """
    name, colours = colour_composites(bands, bands.good)[0]
    together = name == TRUE_COLOUR
    measured = look.hsi[colours].transpose(1, 2, 0)
    low, high = stretch(measured[look.hsi_valid], together=together)
    coarse = _shown(measured, low, high, look.hsi_valid)
    fine_valid = look.msi_valid & np.kron(look.hsi_valid, np.ones((look.ratio,) * 2, np.bool_))
    fused = _shown(look.fused[colours].transpose(1, 2, 0), low, high, fine_valid)
    own = _fine_colours(bands, colours, fine_bands, len(look.msi))
    seen = look.msi[own].transpose(1, 2, 0)
    fine = _shown(seen, *stretch(seen[look.msi_valid], together=together), look.msi_valid)
    figure = Figure(figsize=(10.2, 3.7), layout="constrained")
    titles = ("hyperspectral", "multispectral", "fused")
    for axes, title, image in zip(
        figure.subplots(1, 3), titles, (coarse, fine, fused), strict=True
    ):
        axes.imshow(image, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_title(f"{title}, {name}", fontsize=9, color=INK)
        scale = 1 if title == "hyperspectral" else look.ratio
        for number, (row, column) in enumerate(points, start=1):
            at = ((column + 0.5) * scale - 0.5, (row + 0.5) * scale - 0.5)
            axes.plot(*at, "s", mfc="none", mec="white", ms=6, mew=1.2)
            axes.annotate(
                str(number), at, color="white", fontsize=8, xytext=(5, 5),
                textcoords="offset points",
            )  # fmt: skip
    return figure


def spectra_figure(
    look: Look, bands: BandTable, fine_bands: BandTable | None, points: list[Point]
) -> Figure:
    """Draw the spectrum of each point before, and those of all fine pixels in it after.

    Args:
        look: of a place.
        bands: (L) of the hyperspectral image.
        fine_bands: (M) of the multispectral one, whose values are drawn as dots; None for none.
        points: one or more, see `sample_points`.
    """
    rows = -(-len(points) // 2)
    figure = Figure(figsize=(10.2, 2.7 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False).ravel()
    for number, (axes, point) in enumerate(zip(grid, points, strict=False), start=1):
        _draw_point(axes, look, point, bands, fine_bands)
        axes.set_title(f"point {number}", fontsize=9, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#c9d3d0")
        axes.tick_params(colors=MUTED, labelsize=8)
        axes.set_xlabel("wavelength, nm", fontsize=8, color=INK)
        axes.set_ylabel("reflectance", fontsize=8, color=INK)
    for axes in grid[len(points) :]:
        axes.set_visible(False)
    grid[0].legend(fontsize=8, frameon=False)
    return figure


def response_figure(
    weights: NDArray[np.floating[Any]],
    nominal: NDArray[np.floating[Any]] | None,
    bands: BandTable,
    names: tuple[str, ...],
) -> Figure:
    """Draw the response of each fine band over wavelength.

    Args:
        weights: (M, L) as estimated.
        nominal: (M, L) as known before, dotted; None when nothing was known.
        bands: (L) of the hyperspectral image.
        names: of the M fine bands.
    """
    figure, axes = new_figure(7.2, 3.0)
    centre_nm = weights @ bands.wavelength_nm / np.maximum(weights.sum(axis=1), 1e-9)
    rank = centre_nm.argsort().argsort() / max(len(names) - 1, 1)
    colors = colormaps["turbo"](0.08 + 0.84 * rank)  # short waves blue, long ones red
    for index, (name, color) in enumerate(zip(names, colors, strict=True)):
        found = with_gaps(bands.wavelength_nm, weights[index], bands.good)
        axes.plot(*found, color=color, lw=1.5, label=name)
        if nominal is not None:
            known = with_gaps(bands.wavelength_nm, nominal[index], bands.good)
            axes.plot(*known, ":", color=color, lw=1.0)
    seen_nm = bands.wavelength_nm[(weights > 0).any(axis=0)]
    if len(seen_nm) > 1:
        margin_nm = 0.1 * float(np.ptp(seen_nm))
        axes.set_xlim(seen_nm.min() - margin_nm, seen_nm.max() + margin_nm)
    axes.set_xlabel("wavelength, nm", color=INK)
    axes.set_ylabel("weight", color=INK)
    axes.legend(fontsize=8, frameon=False, ncols=2)
    return figure


def _shown(
    image: NDArray[np.float32],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    valid: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """(h, w, 3) between 0 and 1, white where not valid."""
    shown = np.clip((image.astype(np.float64) - low) / (high - low), 0, 1)
    shown[~valid] = INVALID_GREY
    return shown


def _fine_colours(
    bands: BandTable, colours: list[int], fine_bands: BandTable | None, count: int
) -> list[int]:
    """The fine bands nearest to the colours of the coarse image; one band shows as grey."""
    if fine_bands is None or count == 1:
        return [0, 0, 0] if count < 3 else [2, 1, 0]
    wanted_nm = bands.wavelength_nm[colours]
    distance_nm = np.abs(fine_bands.wavelength_nm[:, None] - wanted_nm)
    if (distance_nm.min(axis=0) > SAME_COLOUR_NM).any():
        order = np.argsort(fine_bands.wavelength_nm)[::-1]
        return [int(order[i]) for i in np.linspace(0, count - 1, 3).astype(int)]
    return [int(band) for band in distance_nm.argmin(axis=0)]


def _draw_point(
    axes: Any, look: Look, point: Point, bands: BandTable, fine_bands: BandTable | None
) -> None:
    """Draw the spectra of one coarse pixel and the fine ones in it."""
    row, column = point
    block = np.s_[
        :,
        row * look.ratio : (row + 1) * look.ratio,
        column * look.ratio : (column + 1) * look.ratio,
    ]
    after = look.fused[block].reshape(len(look.fused), -1).T
    for number, spectrum in enumerate(after):
        label = None if number else "after: its fine pixels"
        line = with_gaps(bands.wavelength_nm, spectrum, bands.good)
        axes.plot(*line, color=AFTER_COLOR, lw=0.7, alpha=0.6, label=label)
    before = with_gaps(bands.wavelength_nm, look.hsi[:, row, column], bands.good)
    axes.plot(*before, color=BEFORE_COLOR, lw=1.6, label="before: the coarse pixel")
    if fine_bands is not None:
        fine = look.msi[block].reshape(len(look.msi), -1)
        nm = np.repeat(fine_bands.wavelength_nm, fine.shape[1])
        axes.plot(nm, fine.ravel(), ".", color=FINE_COLOR, ms=3, label="multispectral image")
    axes.set_ylim(bottom=min(0.0, float(after.min())))

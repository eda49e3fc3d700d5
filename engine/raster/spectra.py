"""Bands by wavelength: the band table, and how a model's bands are found in a scene's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engine.errors import BandMatchError, BandTableError

SIGMA_PER_FWHM = 1.0 / (2.0 * np.sqrt(2.0 * np.log(2.0)))

# A scene band is the model's band when it is this near: shifts from scene to scene of one sensor
# are below it, and the slope of a red edge over it is below the noise.
SAME_MAX_NM = 2.0
SAME_MAX_FWHM = 0.25
# Widths of the same band: one may be at most twice the other.
SAME_WIDTH_RATIO = 2.0
# Without neighbours to resample from, as in multispectral scenes, a band of comparable width
# that shares most of its response will do (Sentinel-2A and 2B, Landsat and Sentinel-2).
NEAREST_MAX_FWHM = 0.5
# Neighbours further apart than this, and than the model band's own width, are a gap. One bad band
# of a 10 or 15 nm sensor may be bridged, a water vapour region (100 nm and more) may not.
GAP_MAX_NM = 30.0
# Beyond this many standard deviations a Gaussian response is taken as zero.
RESPONSE_REACH_SIGMA = 3.0
# Used for a table of a single band whose width nobody states.
LONE_BAND_FWHM_NM = 10.0

Action = Literal["same", "resampled", "too far"]


@dataclass(frozen=True, eq=False)
class BandTable:
    """The bands of a sensor, a scene or a model, in their stored order.

    Args:
        names: one name a band, never empty.
        wavelength_nm: (C,) float64, band centres, not assumed sorted.
        fwhm_nm: (C,) float64, full widths at half maximum; NaN where unknown.
        good: (C,) bool, False where the producer marked the band as bad.
        origin: where the table was found, for messages ("ENVI header", "band tags", …).

    Raises:
        BandTableError: the lengths differ, or a wavelength is not a positive number.
    """

    names: tuple[str, ...]
    wavelength_nm: NDArray[np.float64]
    fwhm_nm: NDArray[np.float64]
    good: NDArray[np.bool_]
    origin: str = ""

    def __post_init__(self) -> None:
        count = len(self.names)
        lengths = {len(self.wavelength_nm), len(self.fwhm_nm), len(self.good)}
        if lengths != {count}:
            raise BandTableError(
                f"A band table needs as many names ({count}) as wavelengths "
                f"({len(self.wavelength_nm)}), widths ({len(self.fwhm_nm)}) and flags "
                f"({len(self.good)})."
            )
        if count == 0 or not np.all(np.isfinite(self.wavelength_nm) & (self.wavelength_nm > 0)):
            raise BandTableError("Every band needs a positive wavelength in nanometres.")

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class MatchRow:
    """What was found for one band of the model.

    Args:
        model_band: its name.
        model_wavelength_nm: its centre.
        scene_bands: names of the scene's bands that it is made of; when ``action`` is
            "too far", the nearest one or none.
        distance_nm: from its centre to that of the nearest of them, never negative.
        action: "same" (one band taken as it is), "resampled" (a weighted mean) or "too far".
    """

    model_band: str
    model_wavelength_nm: float
    scene_bands: tuple[str, ...]
    distance_nm: float
    action: Action


@dataclass(frozen=True, eq=False)
class BandMatch:
    """How to make a model's bands from a scene's.

    Args:
        scene_band_index: 0-based bands to read. Ascending when ``weights`` are given; in the
            model's order when they are not.
        weights: (model bands, bands read) float32, rows sum to 1; None when every band read is
            a band of the model, so that nothing has to be computed.
        rows: one a model band, in the model's order.
        notes: what was assumed, for the log.
    """

    scene_band_index: tuple[int, ...]
    weights: NDArray[np.float32] | None
    rows: tuple[MatchRow, ...]
    notes: tuple[str, ...] = ()

    def table(self) -> str:
        """Write the rows, and the notes below them, as aligned text."""
        return "\n".join([_rows_as_text(self.rows), *self.notes])


def match_bands(model: BandTable, scene: BandTable) -> BandMatch:
    """Find each band of a model among a scene's, by wavelength alone.

    1. A scene band within 2 nm and a quarter of the width, and of comparable width, is the band.
    2. Otherwise it is a weighted mean of scene bands: weights follow the model band's Gaussian,
       narrowed by the scene bands' own width, and are corrected so that a spectrum that is linear
       around the band comes out exact; where the scene is too coarse for this, the two
       neighbours are interpolated.
    3. Where neighbours are too far apart for that, one band within half a width will do.

    Bands that the scene marks as bad are never used.

    Raises:
        BandMatchError: a band of the model lies in a gap of the scene; the message holds the table.
    """
    matcher = _Matcher(scene)
    fwhm_nm, model_estimated = filled_fwhm_nm(model)
    found = [
        matcher.match(
            model.names[i], float(model.wavelength_nm[i]), float(fwhm_nm[i]), bool(estimated)
        )
        for i, estimated in enumerate(model_estimated)
    ]
    rows = tuple(item.row for item in found)
    notes = _width_notes("scene", matcher.estimated) + _width_notes("model", model_estimated)
    if any(row.action == "too far" for row in rows):
        raise _gap_error(rows)
    if all(row.action == "same" for row in rows):
        selected = tuple(int(item.band_index[0]) for item in found)
        return BandMatch(selected, None, rows, notes)
    used = sorted({int(index) for item in found for index in item.band_index})
    weights = np.zeros((len(found), len(used)), np.float32)
    for i, item in enumerate(found):
        weights[i, np.searchsorted(used, item.band_index)] = item.weight
    return BandMatch(tuple(used), weights, rows, notes)


def filled_fwhm_nm(table: BandTable) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Estimate the missing widths from the spacing of the bands around.

    The median over the six nearest spacings, because in a detector overlap the nearest band may
    be no distance away, and beside a gap a hundred nanometres.

    Returns:
        (C,) float64 widths without NaN, and (C,) bool, True where one is an estimate.
    """
    estimated = ~(np.isfinite(table.fwhm_nm) & (table.fwhm_nm > 0))
    if not estimated.any():
        return table.fwhm_nm, estimated
    order = np.argsort(table.wavelength_nm, kind="stable")
    spacing_nm = np.diff(table.wavelength_nm[order])
    spacing_nm = spacing_nm[spacing_nm > 0]
    starts = np.unique(table.wavelength_nm[order])[:-1]
    fwhm_nm = np.where(estimated, LONE_BAND_FWHM_NM, table.fwhm_nm)
    for i in np.flatnonzero(estimated) if len(spacing_nm) else ():
        middles = starts + spacing_nm / 2
        nearest = np.argsort(np.abs(middles - table.wavelength_nm[i]), kind="stable")[:6]
        fwhm_nm[i] = np.median(spacing_nm[nearest])
    return fwhm_nm, estimated


@dataclass(frozen=True, eq=False)
class _Found:
    """One model band: bands of the scene (0-based, ascending) with their weights, and its row."""

    band_index: NDArray[np.intp]
    weight: NDArray[np.float64]
    row: MatchRow


class _Matcher:
    """The good bands of a scene in order of wavelength, ready to be searched."""

    def __init__(self, scene: BandTable) -> None:
        fwhm_nm, estimated = filled_fwhm_nm(scene)
        self.estimated = estimated & scene.good
        good = np.flatnonzero(scene.good)
        # Width and name after wavelength, so that the stored order decides nothing.
        order = sorted(good, key=lambda i: (scene.wavelength_nm[i], fwhm_nm[i], scene.names[i], i))
        self._band_index = np.asarray(order, np.intp)
        self._names = tuple(scene.names[i] for i in order)
        self._wavelength_nm = scene.wavelength_nm[self._band_index]
        self._fwhm_nm = fwhm_nm[self._band_index]
        self._width_known = ~estimated[self._band_index]

    def match(self, name: str, wavelength_nm: float, fwhm_nm: float, estimated: bool) -> _Found:
        """Find one band of the model; ``estimated`` says that its width is a guess."""
        distance_nm = np.abs(self._wavelength_nm - wavelength_nm)
        same = self._comparable(fwhm_nm, estimated) & (
            distance_nm <= np.minimum(SAME_MAX_NM, SAME_MAX_FWHM * fwhm_nm)
        )
        if same.any():
            return self._take_nearest(name, wavelength_nm, fwhm_nm, same)
        chosen, weight = self._resample(wavelength_nm, fwhm_nm)
        if len(chosen):
            row = self._row(name, wavelength_nm, chosen, "resampled")
            return self._found(chosen, weight, row)
        reach_nm = NEAREST_MAX_FWHM * np.minimum(fwhm_nm, self._fwhm_nm)
        near = self._comparable(fwhm_nm, estimated) & (distance_nm <= reach_nm)
        if near.any():
            return self._take_nearest(name, wavelength_nm, fwhm_nm, near)
        nearest = np.argsort(distance_nm, kind="stable")[:1]
        row = self._row(name, wavelength_nm, nearest, "too far")
        return self._found(nearest, np.zeros(len(nearest)), row)

    def _comparable(self, fwhm_nm: float, estimated: bool) -> NDArray[np.bool_]:
        """(C,) bool: bands as wide as the model's, or of unknown width."""
        ratio = self._fwhm_nm / fwhm_nm
        comparable = (ratio <= SAME_WIDTH_RATIO) & (ratio >= 1 / SAME_WIDTH_RATIO)
        return comparable | ~self._width_known | estimated

    def _take_nearest(
        self, name: str, wavelength_nm: float, fwhm_nm: float, allowed: NDArray[np.bool_]
    ) -> _Found:
        """The nearest allowed band; in a detector overlap the one whose name or width fits."""
        candidates = np.flatnonzero(allowed)
        best = min(
            candidates,
            key=lambda i: (
                round(abs(float(self._wavelength_nm[i]) - wavelength_nm), 3),
                self._names[i] != name,
                abs(np.log(self._fwhm_nm[i] / fwhm_nm)),
                i,
            ),
        )
        chosen = np.asarray([best], np.intp)
        return self._found(chosen, np.ones(1), self._row(name, wavelength_nm, chosen, "same"))

    def _resample(
        self, wavelength_nm: float, fwhm_nm: float
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Positions and weights of a weighted mean; none when the bands leave a gap."""
        gap_max_nm = max(GAP_MAX_NM, fwhm_nm)
        usable = np.flatnonzero(self._fwhm_nm <= gap_max_nm)
        centre_nm = self._wavelength_nm[usable]
        below = np.flatnonzero(centre_nm <= wavelength_nm)
        above = np.flatnonzero(centre_nm >= wavelength_nm)
        if not len(below) or not len(above):
            return np.empty(0, np.intp), np.empty(0)
        within = np.flatnonzero(np.abs(centre_nm - wavelength_nm) <= fwhm_nm / 2)
        inside = np.union1d(within, [below[-1], above[0]])
        if np.max(np.diff(centre_nm[inside]), initial=0.0) > gap_max_nm:
            return np.empty(0, np.intp), np.empty(0)
        weight = _gaussian_weights(centre_nm, self._fwhm_nm[usable], wavelength_nm, fwhm_nm)
        if weight is None:
            # One band when a wider one stands exactly there.
            neighbours = np.unique([below[-1], above[0]])
            return usable[neighbours], _linear_weights(centre_nm[neighbours], wavelength_nm)
        used = np.flatnonzero(weight)
        return usable[used], weight[used]

    def _row(
        self, name: str, wavelength_nm: float, chosen: NDArray[np.intp], action: Action
    ) -> MatchRow:
        distance_nm = np.abs(self._wavelength_nm[chosen] - wavelength_nm)
        nearest_nm = float(np.min(distance_nm, initial=np.inf))
        scene_bands = tuple(self._names[i] for i in chosen)
        return MatchRow(name, wavelength_nm, scene_bands, nearest_nm, action)

    def _found(
        self, chosen: NDArray[np.intp], weight: NDArray[np.float64], row: MatchRow
    ) -> _Found:
        band_index = self._band_index[chosen]
        order = np.argsort(band_index)
        return _Found(band_index[order], weight[order], row)


def _gaussian_weights(
    centre_nm: NDArray[np.float64],
    scene_fwhm_nm: NDArray[np.float64],
    wavelength_nm: float,
    fwhm_nm: float,
) -> NDArray[np.float64] | None:
    """Weights of scene bands whose mean has the model band's Gaussian response.

    Convolving a scene band (variance s²) with the weights (variance k²) gives s² + k², which
    must be the model band's m²: k² = m² - s². Weights are multiplied by each band's share of the
    wavelength axis, and by a line that makes their first moment exact (local linear regression).

    Returns:
        (C,) float64 summing to 1, or None when fewer than three bands lie in the response, the
        scene is as coarse as the model, or a weight would be clearly negative.
    """
    sigma_nm = fwhm_nm * SIGMA_PER_FWHM
    nearest = np.argmin(np.abs(centre_nm - wavelength_nm))
    scene_sigma_nm = scene_fwhm_nm[nearest] * SIGMA_PER_FWHM
    kernel_variance = sigma_nm**2 - scene_sigma_nm**2
    if kernel_variance <= 0:
        return None
    offset_nm = centre_nm - wavelength_nm
    kernel = np.exp(-0.5 * offset_nm**2 / kernel_variance)
    kernel[np.abs(offset_nm) > RESPONSE_REACH_SIGMA * np.sqrt(kernel_variance)] = 0.0
    kernel *= axis_share_nm(centre_nm, scene_fwhm_nm)
    if np.count_nonzero(kernel) < 3:
        return None
    moment0, moment1, moment2 = (float(np.sum(kernel * offset_nm**p)) for p in (0, 1, 2))
    weight = kernel * (moment2 - moment1 * offset_nm)
    determinant = moment0 * moment2 - moment1**2
    if determinant <= 0 or weight.min() < -1e-3 * determinant:
        return None
    return np.asarray(weight / determinant)


def axis_share_nm(
    centre_nm: NDArray[np.float64], scene_fwhm_nm: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Part of the wavelength axis that each band stands for, no more than twice its width."""
    edges_nm = (centre_nm[1:] + centre_nm[:-1]) / 2
    outer_nm = scene_fwhm_nm[[0, -1]] / 2
    edges_nm = np.concatenate(
        [[centre_nm[0] - outer_nm[0]], edges_nm, [centre_nm[-1] + outer_nm[1]]]
    )
    return np.minimum(np.diff(edges_nm), 2 * scene_fwhm_nm)


def _linear_weights(centre_nm: NDArray[np.float64], wavelength_nm: float) -> NDArray[np.float64]:
    """Weights of one band, of two neighbours by distance, or of two bands at one place."""
    span_nm = float(np.ptp(centre_nm))
    if span_nm == 0.0:
        return np.full(len(centre_nm), 1.0 / len(centre_nm))
    upper = (wavelength_nm - centre_nm[0]) / span_nm
    return np.asarray([1.0 - upper, upper])


def _width_notes(whose: str, estimated: NDArray[np.bool_]) -> tuple[str, ...]:
    """A note when widths were estimated."""
    count = int(np.count_nonzero(estimated))
    if not count:
        return ()
    return (
        f"The width (FWHM) of {count} of the {whose}'s bands is not stated and was estimated "
        "from the spacing of the bands.",
    )


def _gap_error(rows: tuple[MatchRow, ...]) -> BandMatchError:
    """The refusal: how many bands, where, and the table."""
    missing_nm = [row.model_wavelength_nm for row in rows if row.action == "too far"]
    return BandMatchError(
        f"The scene has no bands near {len(missing_nm)} of the {len(rows)} bands that the model "
        f"needs, between {min(missing_nm):.0f} and {max(missing_nm):.0f} nm.",
        "Choose a model for this sensor, or check the scene's wavelengths and bad bands.\n"
        + _rows_as_text(rows),
        rows,
    )


def _rows_as_text(rows: tuple[MatchRow, ...]) -> str:
    """Columns: model band, its centre, scene bands, distance, action."""
    cells = [("model band", "nm", "scene band(s)", "distance nm", "action")]
    cells += [
        (
            row.model_band,
            f"{row.model_wavelength_nm:.1f}",
            _names_as_text(row.scene_bands),
            f"{row.distance_nm:.2f}",
            row.action,
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    return "\n".join(
        f"{name:<{widths[0]}}  {centre:>{widths[1]}}  {bands:<{widths[2]}}  "
        f"{distance:>{widths[3]}}  {action}"
        for name, centre, bands, distance, action in cells
    )


def _names_as_text(names: tuple[str, ...]) -> str:
    """All names when they are few, otherwise the ends and their number."""
    if len(names) <= 3:
        return ", ".join(names)
    return f"{names[0]} … {names[-1]} ({len(names)})"

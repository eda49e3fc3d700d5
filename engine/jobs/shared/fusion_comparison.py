"""A fused image beside what it should be: a reference, or the two images that it was made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import BandMatchError, SceneError
from engine.feedback import Feedback
from engine.jobs.shared.fused_cube import Given, Overview
from engine.jobs.shared.pairs import ReadyPair
from engine.models.fusion.consistency import (
    degrade_known,
    known_pixels,
    measure_consistency,
    relative_difference,
)
from engine.raster.pair import Pair, fine_window
from engine.raster.pair_bands import find_usable, take_bands
from engine.raster.pair_grid import intersection, overlap, overlap_note, pixel_ratio
from engine.raster.pair_reader import PairReader
from engine.raster.pair_sample import as_tensors
from engine.raster.scene import Scene
from engine.raster.spectra import BandTable, match_bands
from engine.raster.tiles import Window
from engine.training.fusion_metrics import BLOCK_PX, FusionMeter, FusionScores

# Float64 bytes that are compared at a time; a few copies are held.
_WINDOW_BYTES = 32 * 2**20
_LARGEST_REFERENCE = 1.5  # pixels of the result along one of the reference, below which it is fine
_BLACK = 1e-3  # mean reflectance below which no difference is relative to a pixel


@dataclass(frozen=True, eq=False)
class Compared:
    """A result beside its reference.

    Args:
        scores: over the pixels that both have.
        bands: that were compared; None without wavelengths.
        names: of them.
        overview: (1, h, w) relative root mean square differences of some pixels, for a picture.
        notes: for people.
    """

    scores: FusionScores
    bands: BandTable | None
    names: tuple[str, ...]
    overview: NDArray[np.float32]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class GivenBack:
    """A result beside the two images that it was made of.

    Args:
        hsi: how well the hyperspectral image is given back, in one number.
        msi: likewise the multispectral one.
        hsi_scores: of the degraded result beside the hyperspectral image.
        msi_scores: of the result in the multispectral bands beside that image.
        bands: hyperspectral ones that were compared; None without wavelengths.
        names: of them.
        overview: (2, h, w) relative differences from both images, of some fine pixels.
    """

    hsi: Given
    msi: Given
    hsi_scores: FusionScores
    msi_scores: FusionScores
    bands: BandTable | None
    names: tuple[str, ...]
    overview: NDArray[np.float32]


def compare_with_reference(
    result: Scene, reference: Scene, ratio: float, feedback: Feedback
) -> Compared:
    """Score a result beside a reference of the same resolution, window by window.

    A reference on another grid is resampled onto the result's.

    Args:
        result: the fused image.
        reference: with the same bands, or more or fewer of them; its good ones are compared.
        ratio: coarse pixel / fine pixel, for ERGAS; NaN when not known.
        feedback: told the progress; asked about a cancel between windows.

    Raises:
        SceneError: the images do not overlap, or have no valid pixel in common; the reference's
            pixels are larger.
        BandMatchError: they have other bands.
    """
    _check_fine(result, reference)
    wanted, empty_notes = find_usable(reference)
    found = matching_bands(result, reference, wanted)
    window = overlap(result, reference, 1, (0.0, 0.0))
    pair = Pair(result, reference, 1, window, found, found, wanted)
    notes = [*empty_notes, *overlap_note(result, window)]
    if pair.resampled:
        notes.append(
            f"{reference.name} does not lie on the pixels of {result.name} and was {pair.resampled}"
            ": scores are lower for it."
        )
    meter = FusionMeter(len(found), ratio)
    overview = Overview(1, window)
    with PairReader(pair) as reader:
        for part in windows(window, len(found), feedback, "Comparing with the reference"):
            arrays = reader.read(part)
            valid = arrays.hsi_valid & arrays.msi_valid
            meter.update(arrays.hsi, arrays.msi, valid)
            error = np.square(arrays.hsi - arrays.msi).mean(axis=0)
            energy = np.maximum(np.square(arrays.msi).mean(axis=0), _BLACK**2)
            overview.keep(part, np.where(valid, np.sqrt(error / energy), np.nan)[None])
    bands = None if result.bands is None else take_bands(result.bands, found)
    return Compared(_scores(meter), bands, band_names(bands, found), overview.picture, tuple(notes))


def _check_fine(result: Scene, reference: Scene) -> None:
    """Refuse what is no truth at the result's resolution.

    Raises:
        SceneError: the reference's pixels are larger.
    """
    larger = pixel_ratio(reference, result)
    if larger >= _LARGEST_REFERENCE:
        raise SceneError(
            f"The pixels of {reference.name} are {larger:.2g} times as large as those of "
            f"{result.name}: it does not show what is true of them.",
            "Choose a reference of the same resolution; or compare with the two images that were "
            "fused.",
        )


def compare_with_inputs(result: Pair, ready: ReadyPair, feedback: Feedback) -> GivenBack:
    """Degrade a result as both sensors would, and score it beside both images.

    Args:
        result: the hyperspectral image, and the fused one as the finer image of the pair.
        ready: the hyperspectral and the multispectral image, at the same ratio.
        feedback: told the progress; asked about a cancel between windows.

    Raises:
        BandMatchError: the result has other bands than the hyperspectral image.
        SceneError: it does not lie where both images do, or no pixel is valid in all three.
    """
    comparison = _InputComparison(result, ready)
    with comparison.readers():
        step = "Comparing with both images"
        for part in windows(comparison.window, comparison.pixel_values, feedback, step):
            comparison.add(part)
    return comparison.given_back()


class _InputComparison:
    """What `compare_with_inputs` collects; use it inside ``readers()``.

    Args:
        result: the hyperspectral image, and the fused one as the finer image of the pair.
        ready: the two images that it was made of.
    """

    def __init__(self, result: Pair, ready: ReadyPair) -> None:
        pair = self._pair = ready.pair
        self._physics = ready.physics
        self._usable = pair.usable_hsi_index
        self._own = matching_bands(result.msi, pair.hsi, self._usable)
        window = intersection(result.window, pair.window)
        if window is None:
            raise SceneError(
                f"{result.msi.name} lies where {pair.hsi.name} and {pair.msi.name} do not overlap.",
                "Choose the images that it was made of.",
            )
        self.window = window
        self._inputs = PairReader(pair, self._usable)
        self._fused = PairReader(result, self._usable[:1], self._own)
        self._hsi_meter = FusionMeter(len(self._own), pair.ratio)
        self._msi_meter = FusionMeter(len(pair.msi_index), pair.ratio)
        self._hsi, self._msi = Given(), Given()
        self._overview = Overview(2, fine_window(window, pair.ratio))

    @property
    def pixel_values(self) -> int:
        """Values that are held for a coarse pixel."""
        return len(self._own) * self._pair.ratio**2

    @contextmanager
    def readers(self) -> Iterator[None]:
        """Hold the files open."""
        with self._inputs, self._fused:
            yield

    def add(self, part: Window) -> None:
        """Compare a window of coarse pixels, with as much around it as its degrading needs."""
        read = _with_margin(part, self.window, self._physics.spread.reach_px)
        images, made = as_tensors(self._inputs.read(read)), as_tensors(self._fused.read(read))
        known = replace(images, msi_valid=images.msi_valid & made.msi_valid)
        ratio = self._pair.ratio
        core = part.slices_in(read)
        fine = fine_window(part, ratio).slices_in(fine_window(read, ratio))
        spread, response = self._physics.spread, self._physics.response
        low, low_valid = degrade_known(made.msi, known_pixels(known), spread)
        hsi_valid = (low_valid & known.hsi_valid)[0]
        self._hsi_meter.update(low[0][:, *core], known.hsi[0][:, *core], hsi_valid[core])
        found = measure_consistency(made.msi, known, spread, response)
        self._msi_meter.update(
            response(made.msi)[0][:, *fine], known.msi[0][:, *fine], found.msi_valid[0][fine]
        )
        layers = found.layers()[0][:, *fine]
        self._hsi.add(layers[0].numpy(), layers[1].numpy())
        self._msi.add(layers[2].numpy(), layers[3].numpy())
        relative = relative_difference(layers[::2], layers[1::2])
        self._overview.keep(fine_window(part, ratio), relative.numpy())

    def given_back(self) -> GivenBack:
        """What was collected.

        Raises:
            SceneError: no pixel is valid in all three images.
        """
        table = self._pair.hsi.bands
        bands = None if table is None else take_bands(table, self._usable)
        return GivenBack(
            self._hsi,
            self._msi,
            _scores(self._hsi_meter),
            _scores(self._msi_meter),
            bands,
            band_names(bands, self._usable),
            self._overview.picture,
        )


def matching_bands(result: Scene, other: Scene, wanted: tuple[int, ...]) -> tuple[int, ...]:
    """Find bands of another image in a result, by wavelength.

    Args:
        result: to look into.
        other: with the bands that are wanted.
        wanted: 0-based bands of it; all of them have to be there.

    Returns:
        0-based bands of the result, in the order of ``wanted``.

    Raises:
        BandMatchError: one is missing or would have to be resampled.
    """
    if result.bands is None or other.bands is None:
        count = len(result.band_sources)
        if count == len(other.band_sources):
            return wanted
        raise BandMatchError(
            f"{result.name} has {count} bands and {other.name} {len(other.band_sources)}, and not "
            "both have wavelengths to match them by.",
            "Give band tables, or images of the same bands.",
        )
    try:
        match = match_bands(take_bands(other.bands, wanted), result.bands)
    except BandMatchError as error:
        table = error.remedy.partition("\n")[2]
        raise _other_bands(result, other, table, error.rows) from error
    if match.weights is not None:
        raise _other_bands(result, other, match.table(), match.rows)
    return match.scene_band_index


def _other_bands(result: Scene, other: Scene, table: str, rows: Sequence[Any]) -> BandMatchError:
    return BandMatchError(
        f"{result.name} has other bands than {other.name}.",
        f"Choose images that belong together, or give band tables.\n{table}",
        rows,
    )


def band_names(bands: BandTable | None, index: tuple[int, ...]) -> tuple[str, ...]:
    """Names of bands, or their numbers."""
    return tuple(f"band {i + 1}" for i in index) if bands is None else bands.names


def windows(window: Window, pixel_values: int, feedback: Feedback, step: str) -> Iterator[Window]:
    """Squares that cover a window, on multiples of the blocks of the quality indices.

    Args:
        window: to cover.
        pixel_values: values that a pixel needs.
        feedback: told the progress; asked about a cancel before each square.
        step: name of the work.
    """
    side = isqrt(_WINDOW_BYTES // (8 * pixel_values)) // BLOCK_PX * BLOCK_PX
    side = max(side, BLOCK_PX)
    rows = range(window.row_off, window.row_stop, side)
    cols = range(window.col_off, window.col_stop, side)
    for number, (row, col) in enumerate(product(rows, cols)):
        feedback.raise_if_cancelled()
        feedback.progress(number / (len(rows) * len(cols)), step)
        height, width = min(side, window.row_stop - row), min(side, window.col_stop - col)
        yield Window(row, col, height, width)


def _scores(meter: FusionMeter) -> FusionScores:
    """Scores, or the reason why there are none.

    Raises:
        SceneError: nothing was compared.
    """
    if not meter.pixels:
        raise SceneError(
            "The images have no valid pixel in common.", "Check their nodata values and places."
        )
    return meter.scores()


def _with_margin(part: Window, bounds: Window, margin_px: int) -> Window:
    """A window and what lies around it, inside the bounds."""
    row, col = (
        max(part.row_off - margin_px, bounds.row_off),
        max(part.col_off - margin_px, bounds.col_off),
    )
    row_stop = min(part.row_stop + margin_px, bounds.row_stop)
    col_stop = min(part.col_stop + margin_px, bounds.col_stop)
    return Window(row, col, row_stop - row, col_stop - col)

"""From two images of one place to a pair that can be fused: grids, shift, point spread, response.

Every job that fuses begins here, so that all of them bring images together in the same way, and
say the same about what they assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field, field_validator

from engine.errors import RequestError, SceneError
from engine.feedback import Feedback, StepFeedback
from engine.jobs.request import JobRequest
from engine.models.fusion.method import ImagePair
from engine.raster.pair import Pair, open_pair
from engine.raster.pair_bands import take_bands
from engine.raster.pair_stream import sample_pair
from engine.raster.responses import nominal_response
from engine.raster.spectra import BandTable
from engine.training.pair_physics import PairPhysics, ResponseChoice, estimate_physics
from engine.training.pair_shift import Shift, estimate_shift

Source = str | Sequence[str]

ESTIMATE = "estimate"

# Below it a shift is within what an estimate can tell, and moving the image would only blur it.
MIN_SHIFT_PX = 0.05
# A shift at which one image explains less of the other's detail may be chance: two images of
# different places come to a tenth, when they are small.
MIN_AGREEMENT = 0.15
# Images this far apart are fused visibly worse; the paper's authors test against shifts too.
MAX_RESIDUAL_SHIFT_PX = 0.3
# A band that so little of the hyperspectral image explains brings details that are not there.
MAX_RESPONSE_ERROR = 0.3


class PairSettings(JobRequest):
    """How two images are brought together.

    ``ratio`` is coarse pixel / fine pixel, found from the grids when left out. ``shift`` is
    "estimate", or where the multispectral image lies beside the hyperspectral one as "x,y", in
    coarse pixels to the right and down. ``response`` is "estimate", "nominal" or the path of a CSV
    with the response functions of the fine bands. ``bands`` and ``multispectral_bands`` are band
    tables. ``max_shift`` is the largest shift that is looked for, in coarse pixels.
    """

    ratio: int | None = Field(default=None, ge=2, le=64)
    shift: str = ESTIMATE
    response: str = ESTIMATE
    bands: str | None = None
    multispectral_bands: str | None = None
    max_shift: float = Field(default=3.0, ge=0.0, le=20.0)

    @field_validator("shift")
    @classmethod
    def _check_shift(cls, value: str) -> str:
        given_shift(value)
        return value


def given_shift(text: str) -> tuple[float, float] | None:
    """Read a shift "x,y"; None for "estimate".

    Raises:
        ValueError: it is neither.
    """
    if text == ESTIMATE:
        return None
    parts = text.split(",")
    try:
        x_px, y_px = (float(part) for part in parts)
    except ValueError:
        raise ValueError(
            f"{text!r} is no shift: give 'estimate', or 'x,y' in coarse pixels to the right and "
            "down"
        ) from None
    if not np.isfinite([x_px, y_px]).all():
        raise ValueError(f"{text!r} is no shift: both numbers must be finite")
    return x_px, y_px


@dataclass(frozen=True, eq=False)
class ReadyPair:
    """Two images that fit each other, and what is known about how they do.

    Args:
        pair: to read, the shift corrected.
        sample: of it, bounded in size; of the usable hyperspectral bands, and of the multispectral
            ones inside their range.
        physics: point spread and response, estimated on the sample, between these bands.
        found: what the estimate of the shift said; None when images lie too far apart for it.
        shift_text: where the shift that was corrected, ``pair.shift_px``, comes from, for people.
        warnings: all that may make results worse, as they were told to the user.
    """

    pair: Pair
    sample: tuple[ImagePair, ...]
    physics: PairPhysics
    found: Shift | None
    shift_text: str
    warnings: tuple[str, ...]

    @property
    def hsi_bands(self) -> BandTable | None:
        """The usable hyperspectral bands; None without wavelengths."""
        return usable_bands(self.pair)

    @property
    def msi_bands(self) -> BandTable | None:
        """The multispectral bands that are used; None without wavelengths."""
        return self.pair.msi_table

    @property
    def shift_words(self) -> str:
        """Where the multispectral image was found or said to lie, for people."""
        return shift_words(*self.pair.shift_px)

    @property
    def msi_names(self) -> tuple[str, ...]:
        """Names of the multispectral bands that are used, for people."""
        return _msi_names(self.pair)


def prepare_pair(
    hyperspectral: Source, multispectral: Source, settings: PairSettings, feedback: Feedback
) -> ReadyPair:
    """Bring two images together, and find out how one sensor would see what the other sees.

    Args:
        hyperspectral: a source of `open_scene`.
        multispectral: likewise.
        settings: how.
        feedback: told what was found, assumed and may be wrong.

    Raises:
        SceneError: an image cannot be read, they do not overlap, have no valid pixel in common,
            or lie further apart than ``max_shift``; the ratio is below 2.
        BandTableError: a band table does not fit, or wavelengths are needed and missing.
        RequestError: the response functions cannot be used.
    """
    teller = _Teller(feedback)
    feedback.progress(0.0, "Opening the images")
    pair = open_pair(
        hyperspectral,
        multispectral,
        ratio=settings.ratio,
        hsi_table=settings.bands,
        msi_table=settings.multispectral_bands,
    )
    for note in pair.notes:
        teller.warning(note)
    feedback.info(_grid_text(pair))
    feedback.progress(0.1, "Reading a sample")
    pair, sample, found, shift_text = _aligned(pair, settings, teller)
    feedback.progress(0.6, "Estimating point spread and response")
    physics = estimate_pair_physics(pair, sample, settings)
    _tell_physics(pair, physics, teller)
    feedback.progress(1.0, "The images fit")
    return ReadyPair(
        pair=pair,
        sample=tuple(sample),
        physics=physics,
        found=found,
        shift_text=shift_text,
        warnings=tuple(teller.warnings),
    )


def usable_bands(pair: Pair) -> BandTable | None:
    """The usable hyperspectral bands of a pair; None without wavelengths."""
    return None if pair.hsi.bands is None else take_bands(pair.hsi.bands, pair.usable_hsi_index)


def estimate_pair_physics(
    pair: Pair, sample: Sequence[ImagePair], settings: PairSettings
) -> PairPhysics:
    """Estimate point spread and response, starting from what the bands' tables say.

    Args:
        pair: whose bands they are; for several pairs, the first.
        sample: of one or several pairs, in the usable bands of this one.
        settings: for the response.

    Raises:
        RequestError: response functions are given for bands without wavelengths.
        BandTableError, BandMatchError: the response functions cannot be used.
        SceneError: too few pixels are valid in both images.
    """
    hsi_bands, msi_bands = usable_bands(pair), pair.msi_table
    response: ResponseChoice = "estimate" if settings.response == ESTIMATE else "nominal"
    nominal = None
    if settings.response not in (ESTIMATE, "nominal"):
        if hsi_bands is None:
            raise RequestError(
                f"The response functions {settings.response} need the wavelengths of "
                f"{pair.hsi.name}, which has none.",
                "Give its band table, or let the response be estimated.",
            )
        nominal = nominal_response(hsi_bands, msi_bands, settings.response)
    return estimate_physics(
        sample, hsi_bands=hsi_bands, msi_bands=msi_bands, nominal=nominal, response=response
    )


class _Teller(StepFeedback):
    """Feedback that remembers its warnings, and gives each of them once."""

    def __init__(self, feedback: Feedback) -> None:
        super().__init__(feedback, 0.0, 1.0)
        self.warnings: list[str] = []

    def warning(self, message: str) -> None:
        """Pass the warning on, when it is new."""
        if message not in self.warnings:
            self.warnings.append(message)
            super().warning(message)


def _aligned(
    pair: Pair, settings: PairSettings, teller: _Teller
) -> tuple[Pair, list[ImagePair], Shift | None, str]:
    """Correct the shift that was given or is found; and look what is left of one that was given.

    Raises:
        SceneError: it is larger than the limit, or no pixel is valid in both images.
    """
    given = given_shift(settings.shift)
    if given is not None:
        pair = pair.shifted(*given)
        sample = _sample(pair, teller)
        return pair, sample, _residual(sample, pair.ratio, settings.max_shift, teller), "given"
    sample = _sample(pair, teller)
    teller.progress(0.3, "Looking for a shift between the images")
    found = estimate_shift(sample, pair.ratio, limit_px=settings.max_shift)
    if not found.reliable or found.agreement < MIN_AGREEMENT:
        teller.warning(
            "No shift between the images stands out, so none is corrected: they show too little "
            "that both can see, or differ too much."
        )
        return pair, sample, found, "not found"
    teller.info(f"The multispectral image lies {shift_words(found.x_px, found.y_px)}.")
    if found.length_px < MIN_SHIFT_PX:
        return pair, sample, found, "estimated, and too small to correct"
    pair = pair.shifted(found.x_px, found.y_px)
    return pair, _sample(pair, teller), found, "estimated and corrected"


def _sample(pair: Pair, teller: _Teller) -> list[ImagePair]:
    """Take the sample that everything is fitted on.

    Raises:
        SceneError: no pixel is valid in both images.
    """
    return sample_pair(pair, hsi_index=pair.usable_hsi_index, feedback=teller)


def _residual(
    sample: Sequence[ImagePair], ratio: int, limit_px: float, teller: _Teller
) -> Shift | None:
    """Look how far apart images still are after a shift that was given."""
    try:
        found = estimate_shift(sample, ratio, limit_px=limit_px)
    except SceneError as error:
        teller.warning(f"With the shift that was given: {error.sentence}")
        return None
    if found.length_px > MAX_RESIDUAL_SHIFT_PX and found.agreement >= MIN_AGREEMENT:
        teller.warning(
            "With the shift that was given, the multispectral image still lies "
            f"{shift_words(found.x_px, found.y_px)}: let the shift be estimated."
        )
    return found


def shift_words(x_px: float, y_px: float) -> str:
    """A shift, coarse pixels, as people read it."""
    if not (x_px or y_px):
        return "where it should"
    sideways = f"{abs(x_px):.2f} px too far {'right' if x_px >= 0 else 'left'}"
    return f"{sideways} and {abs(y_px):.2f} px too far {'down' if y_px >= 0 else 'up'} (coarse px)"


def _grid_text(pair: Pair) -> str:
    window = pair.window
    return (
        f"{pair.hsi.name} ({len(pair.usable_hsi_index)} usable bands) and {pair.msi.name} "
        f"({len(pair.msi_index)} bands) share {window.width} x {window.height} coarse pixels; "
        f"ratio {pair.ratio}."
    )


def _tell_physics(pair: Pair, physics: PairPhysics, teller: _Teller) -> None:
    """Say what was estimated, and which fine bands the hyperspectral image cannot explain."""
    for note in physics.notes:
        teller.info(note)
    teller.info(
        f"Point spread: {physics.spread.fwhm_px:.1f} fine px wide (FWHM), "
        f"{physics.spread.fwhm_px / pair.ratio:.2f} coarse px."
    )
    names = _msi_names(pair)
    error = np.asarray(physics.response_error, dtype=np.float64).tolist()
    told = ", ".join(f"{name} {100 * e:.1f} %" for name, e in zip(names, error, strict=True))
    teller.info(f"Fine bands made of hyperspectral ones, relative error: {told}.")
    poor = [name for name, e in zip(names, error, strict=True) if e > MAX_RESPONSE_ERROR]
    if poor:
        teller.warning(
            f"The hyperspectral bands explain {', '.join(poor)} by less than "
            f"{1 - MAX_RESPONSE_ERROR:.0%}: the images may differ in date, calibration or place."
        )


def _msi_names(pair: Pair) -> tuple[str, ...]:
    table = pair.msi_table
    return tuple(f"band {i + 1}" for i in pair.msi_index) if table is None else table.names

"""Several pairs of images that train one model: the same bands, one ratio, one way of seeing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine.errors import BandMatchError, RequestError
from engine.feedback import Feedback, StepFeedback
from engine.jobs.shared.pairs import (
    PairSettings,
    ReadyPair,
    Source,
    estimate_pair_physics,
    prepare_pair,
)
from engine.models.fusion.method import ImagePair
from engine.raster.ground import box_in
from engine.raster.pair import Pair
from engine.raster.responses import nominal_response
from engine.raster.spectra import SIGMA_PER_FWHM, BandTable, match_bands
from engine.training.pair_physics import PairPhysics

# Of the width that a response without wavelengths is given: it is one number of an estimate.
_NARROWEST_NM = 1.0
# Of a coarse pixel: grids that touch overlap by less.
_TOUCH_PX = 0.5


@dataclass(frozen=True, eq=False)
class TrainingPairs:
    """Pairs that are ready to be trained on together.

    Args:
        pairs: one or more, each with the bands of the first, in its order.
        samples: of each pair, in the same order.
        physics: point spread and response, estimated on the samples of all.
        nominal: (M, L) responses that were known before; None when wavelengths are missing.
        hsi_bands: of the hyperspectral images; those that can be used.
        msi_bands: of the multispectral ones; where their wavelengths are not known, those of the
            response that was estimated.
    """

    pairs: tuple[ReadyPair, ...]
    samples: tuple[tuple[ImagePair, ...], ...]
    physics: PairPhysics
    nominal: NDArray[np.float64] | None
    hsi_bands: BandTable
    msi_bands: BandTable

    @property
    def ratio(self) -> int:
        """Fine pixels along one side of a coarse one."""
        return self.pairs[0].pair.ratio

    @property
    def sample(self) -> tuple[ImagePair, ...]:
        """Parts of all pairs."""
        return tuple(part for sample in self.samples for part in sample)

    @property
    def names(self) -> list[tuple[str, str]]:
        """The hyperspectral and the multispectral image of each pair."""
        return [(ready.pair.hsi.name, ready.pair.msi.name) for ready in self.pairs]

    @property
    def warnings(self) -> list[str]:
        """All that may make results worse, each thing once."""
        return list(dict.fromkeys(text for ready in self.pairs for text in ready.warnings))


def prepare_pairs(
    hyperspectral: Sequence[Source],
    multispectral: Sequence[Source],
    settings: PairSettings,
    feedback: Feedback,
) -> TrainingPairs:
    """Bring each pair together, and all pairs to the bands and the ratio of the first.

    Args:
        hyperspectral: sources of `open_scene`.
        multispectral: as many, in the same order.
        settings: how images are brought together; the same for all pairs.
        feedback: told what was found and assumed.

    Raises:
        RequestError: there are not as many of each.
        BandTableError: the first hyperspectral image has no wavelengths.
        BandMatchError: a pair has other bands than the first.
        SceneError: see `prepare_pair`.
    """
    if len(hyperspectral) != len(multispectral):
        raise RequestError(
            f"There are {len(hyperspectral)} hyperspectral and {len(multispectral)} multispectral "
            "images.",
            "Give as many of each, in the same order: the first of both are a pair, and so on.",
        )
    ready: list[ReadyPair] = []
    for number, sources in enumerate(zip(hyperspectral, multispectral, strict=True)):
        step = StepFeedback(
            feedback, number / len(hyperspectral), (number + 1) / len(hyperspectral)
        )
        pair = prepare_pair(*sources, settings, step)
        if not ready:
            pair.pair.hsi.require_bands()
            # What was found for the first pair holds for all.
            settings = settings.model_copy(update={"ratio": pair.pair.ratio})
        ready.append(with_bands_of(ready[0], pair) if ready else pair)
        ready[-1] = _told_of_shared_ground(ready, feedback)
    return _joined(tuple(ready), settings)


def _told_of_shared_ground(ready: Sequence[ReadyPair], feedback: Feedback) -> ReadyPair:
    """The last pair, with a warning where an earlier one shows the same ground.

    Places are held out of each pair by itself, so what one holds out another may teach.
    """
    last = ready[-1]
    for earlier in ready[:-1]:
        if not _share_ground(earlier.pair, last.pair):
            continue
        warning = (
            f"{earlier.pair.hsi.name} and {last.pair.hsi.name} show the same ground: what is held "
            "out of one pair may be learned from the other, so the scores may be too good."
        )
        feedback.warning(warning)
        return replace(last, warnings=(*last.warnings, warning))
    return last


def _share_ground(one: Pair, other: Pair) -> bool:
    """True when the used parts of both overlap; False where nothing says where they are."""
    if one.hsi.crs is None or other.hsi.crs is None:
        return False
    top, left, bottom, right = box_in(other.hsi, other.window, one.hsi)
    window = one.window
    rows = min(bottom, window.row_stop) - max(top, window.row_off)
    cols = min(right, window.col_stop) - max(left, window.col_off)
    return rows > _TOUCH_PX and cols > _TOUCH_PX


def with_bands_of(first: ReadyPair, other: ReadyPair) -> ReadyPair:
    """The other pair with the first one's bands, in the first one's order.

    Raises:
        BandMatchError: a band is missing or would have to be resampled; the message says which.
    """
    hsi = _positions(
        first.hsi_bands, other.hsi_bands, other.pair.hsi.name, len(other.pair.usable_hsi_index)
    )
    msi = _positions(
        first.msi_bands, other.msi_bands, other.pair.msi.name, len(other.pair.msi_index)
    )
    for name, found, wanted in (
        (other.pair.hsi.name, hsi, first.pair.usable_hsi_index),
        (other.pair.msi.name, msi, first.pair.msi_index),
    ):
        if len(found) != len(wanted):
            raise BandMatchError(
                f"{name} has {len(found)} bands without wavelengths that can be used, the image of "
                f"the first pair {len(wanted)}.",
                "Give band tables, or train on pairs of the same sensors.",
            )
    return replace(
        other,
        pair=replace(
            other.pair,
            usable_hsi_index=tuple(other.pair.usable_hsi_index[i] for i in hsi),
            msi_index=tuple(other.pair.msi_index[i] for i in msi),
        ),
        sample=tuple(_with_channels(part, hsi, msi) for part in other.sample),
    )


def _positions(
    first: BandTable | None, other: BandTable | None, name: str, count: int
) -> list[int]:
    """Where in the other table each band of the first one stands.

    Raises:
        BandMatchError: one does not.
    """
    if first is None or other is None:
        return list(range(count))
    try:
        match = match_bands(first, other)
    except BandMatchError as error:
        raise BandMatchError(
            f"{name} does not have the bands of the first pair. {error.sentence}",
            "Train on pairs of the same sensors.",
            error.rows,
        ) from error
    if match.weights is not None:
        raise BandMatchError(
            f"The bands of {name} are not those of the first pair: some would have to be "
            f"resampled.\n{match.table()}",
            "Train on pairs of the same sensors.",
            match.rows,
        )
    return list(match.scene_band_index)


def _with_channels(part: ImagePair, hsi: Sequence[int], msi: Sequence[int]) -> ImagePair:
    """A part of a pair with some of its bands, in another order."""
    return replace(part, hsi=part.hsi[:, torch.tensor(hsi)], msi=part.msi[:, torch.tensor(msi)])


def _joined(ready: tuple[ReadyPair, ...], settings: PairSettings) -> TrainingPairs:
    """Estimate on all samples together what is the same for all pairs: how the sensors see."""
    first = ready[0]
    physics = first.physics
    if len(ready) > 1:
        sample = [part for pair in ready for part in pair.sample]
        physics = estimate_pair_physics(first.pair, sample, settings)
    hsi_bands = first.hsi_bands
    if hsi_bands is None:  # refused before
        raise RuntimeError("The first pair has no wavelengths.")
    weights = physics.response.weights.double().numpy()
    return TrainingPairs(
        ready,
        tuple(pair.sample for pair in ready),
        physics,
        _nominal(first, hsi_bands, settings),
        hsi_bands,
        first.msi_bands or bands_of_response(weights, hsi_bands),
    )


def _nominal(
    first: ReadyPair, hsi_bands: BandTable, settings: PairSettings
) -> NDArray[np.float64] | None:
    """The responses that are known without looking at the images."""
    if first.msi_bands is None and len(first.pair.msi_index) > 1:
        return None
    table = None if settings.response in ("estimate", "nominal") else settings.response
    return nominal_response(hsi_bands, first.msi_bands, table)


def bands_of_response(weights: NDArray[np.floating[Any]], hsi_bands: BandTable) -> BandTable:
    """Describe fine bands of unknown wavelengths by the response that was estimated for them.

    Args:
        weights: (M, L), not negative.
        hsi_bands: (L) the bands that they are weights of.

    Returns:
        (M) centres of mass, and the full width of the Gaussian of the same spread.
    """
    share = np.maximum(weights, 0) / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
    centre_nm = share @ hsi_bands.wavelength_nm
    spread_nm = np.sqrt((share * (hsi_bands.wavelength_nm - centre_nm[:, None]) ** 2).sum(axis=1))
    count = len(weights)
    names = ("panchromatic",) if count == 1 else tuple(f"band {i + 1}" for i in range(count))
    return BandTable(
        names,
        centre_nm,
        np.maximum(spread_nm / SIGMA_PER_FWHM, _NARROWEST_NM),
        np.ones(count, dtype=np.bool_),
        "estimated from the images",
    )

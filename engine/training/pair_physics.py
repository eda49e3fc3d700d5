"""How the two sensors of a pair see one ground, and the pair as both would see it from further."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import BandMatchError, SceneError
from engine.models.fusion.degradation import PointSpread, SpectralResponse
from engine.models.fusion.method import ImagePair
from engine.raster.responses import find_response
from engine.raster.spectra import BandTable
from engine.training.pair_response import (
    ResponseFit,
    allowed_bands,
    estimate_response,
    relative_error,
)
from engine.training.pair_spread import estimate_spread

ResponseChoice = Literal["estimate", "nominal"]
# Coarse pixels, valid in both images, that a response is estimated from at least.
_MIN_PX = 30


@dataclass(frozen=True, eq=False)
class PairPhysics:
    """Point spread and response of a pair.

    Args:
        ratio: fine pixels along a coarse one.
        spread: how a coarse pixel takes in fine ones.
        response: multispectral bands as weighted sums of the hyperspectral ones.
        response_error: (M,) float64; what the response leaves of each band of the degraded
            multispectral image, root mean square, relative to that of the band.
        inside: (M,) bool, multispectral bands that the hyperspectral range covers by half or
            more; all where wavelengths are missing.
        spread_agreement: share of the multispectral detail, 0 to 1, that the hyperspectral image
            explains with this spread, whatever the response.
        spread_estimated: False where the pair does not tell the spread's width, and that of a
            coarse pixel was taken.
        notes: what was assumed, for the log and the report.
    """

    ratio: int
    spread: PointSpread
    response: SpectralResponse
    response_error: NDArray[np.float64]
    inside: NDArray[np.bool_]
    spread_agreement: float
    spread_estimated: bool
    notes: tuple[str, ...] = ()

    def to(self, device: torch.device | str) -> PairPhysics:
        """A copy with its tensors on ``device``."""
        return replace(
            self,
            spread=deepcopy(self.spread).to(device),
            response=deepcopy(self.response).to(device),
        )


def estimate_physics(
    sample: Sequence[ImagePair],
    *,
    hsi_bands: BandTable | None = None,
    msi_bands: BandTable | None = None,
    nominal: NDArray[np.float64] | None = None,
    response: ResponseChoice = "estimate",
) -> PairPhysics:
    """Find out how two sensors see, from what they saw.

    1. The spread's width, for which no response has to be known.
    2. The response, with the multispectral image degraded by that spread: estimated with the
       nominal one as a prior where there is one, or the nominal one as it is.

    Args:
        sample: pairs that lie on one another; of one ratio, and the same bands.
        hsi_bands: of the L hyperspectral bands; None where there are no wavelengths.
        msi_bands: of the M multispectral bands; None likewise.
        nominal: (M, L) response of the sensors, see `engine.raster.responses`; made of the band
            tables when None.
        response: "nominal" takes it as it is.

    Raises:
        SceneError: too few pixels are valid in both images.
        BandMatchError: the nominal response is asked for and not known.
    """
    nominal, inside, notes = _nominal(sample[0], hsi_bands, msi_bands, nominal)
    fit = estimate_spread(sample, sample[0].ratio)
    if not fit.estimated:
        notes += (
            "The images do not tell how wide the coarse sensor's point spread is: a Gaussian as "
            "wide as a coarse pixel is taken.",
        )
    hsi, msi_low = _matched_pixels(sample, fit.spread)
    if response == "nominal":
        found = _as_it_is(nominal, hsi, msi_low)
    else:
        found = estimate_response(hsi, msi_low, nominal, _allowed(nominal, hsi_bands, msi_low))
    return PairPhysics(
        ratio=sample[0].ratio,
        spread=fit.spread,
        response=SpectralResponse(torch.from_numpy(found.weights), torch.from_numpy(found.offset)),
        response_error=found.error,
        inside=inside,
        spread_agreement=fit.agreement,
        spread_estimated=fit.estimated,
        notes=notes,
    )


def degrade_pair(pair: ImagePair, physics: PairPhysics) -> tuple[ImagePair, Tensor, Tensor]:
    """Both images as their sensors would see them from ``ratio`` times as far (Wald's protocol).

    What is to be found at that scale is known: it is the hyperspectral image itself. The point
    spread is taken to be as wide in pixels of either image.

    Args:
        pair: (B, L, h, w) and (B, M, h*r, w*r); rows and columns beyond a multiple of the ratio
            are left out.
        physics: of the pair.

    Returns:
        The degraded pair, (B, L, h/r, w/r) and (B, M, h, w); the target (B, L, h, w); and where
        it is valid, (B, h, w) bool.

    Raises:
        SceneError: it is smaller than the ratio.
    """
    ratio = physics.ratio
    height, width = (size // ratio * ratio for size in pair.hsi.shape[-2:])
    if height == 0 or width == 0:
        raise SceneError(
            f"{pair.hsi.shape[-1]} x {pair.hsi.shape[-2]} hyperspectral pixels cannot be degraded "
            f"{ratio} times.",
            "Train on images that overlap by more.",
        )
    target = pair.crop(slice(height), slice(width))
    hsi, hsi_valid = physics.spread.degrade(target.hsi, target.hsi_valid)
    msi, msi_valid = physics.spread.degrade(target.msi, target.msi_valid)
    return ImagePair(hsi, msi, hsi_valid, msi_valid), target.hsi, target.hsi_valid


def _nominal(
    pair: ImagePair,
    hsi_bands: BandTable | None,
    msi_bands: BandTable | None,
    nominal: NDArray[np.float64] | None,
) -> tuple[NDArray[np.float64] | None, NDArray[np.bool_], tuple[str, ...]]:
    """The nominal response where it is known, bands inside the range, and what was assumed."""
    count = pair.msi.shape[1]
    notes: tuple[str, ...] = ()
    if nominal is None and hsi_bands is not None and (msi_bands is not None or count == 1):
        known = find_response(hsi_bands, msi_bands)
        return known.weights, known.inside, known.notes
    if nominal is None:
        notes = ("Without wavelengths of both images, the response is estimated freely.",)
        return None, np.ones(count, bool), notes
    return nominal, np.asarray(nominal.any(axis=1)), notes


def _allowed(
    nominal: NDArray[np.float64] | None, hsi_bands: BandTable | None, msi_low: NDArray[np.float64]
) -> NDArray[np.bool_] | None:
    """(M, L) where a weight may be: near the nominal response, never on a bad band."""
    if hsi_bands is None:
        return None
    if nominal is None:
        return np.tile(hsi_bands.good, (msi_low.shape[1], 1))
    return allowed_bands(nominal, hsi_bands.wavelength_nm) & hsi_bands.good


def _matched_pixels(
    sample: Sequence[ImagePair], spread: PointSpread
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N, L) and (N, M) of the coarse pixels that are valid in both images.

    Raises:
        SceneError: they are too few.
    """
    spectra, fine = [], []
    for pair in sample:
        low, valid = spread.degrade(pair.msi, pair.msi_valid)
        use = valid & pair.hsi_valid
        spectra.append(pair.hsi.movedim(1, -1)[use].numpy())
        fine.append(low.movedim(1, -1)[use].numpy())
    hsi, msi_low = np.concatenate(spectra), np.concatenate(fine)
    if len(hsi) < _MIN_PX:
        raise SceneError(
            f"Only {len(hsi)} coarse pixels are valid in both images; {_MIN_PX} are needed to "
            "find out how the two sensors see.",
            "Check the nodata values and the overlap of the images.",
        )
    return hsi.astype(np.float64), msi_low.astype(np.float64)


def _as_it_is(
    nominal: NDArray[np.float64] | None, hsi: NDArray[np.float64], msi_low: NDArray[np.float64]
) -> ResponseFit:
    """The nominal response, and how well it fits.

    Raises:
        BandMatchError: it is not known.
    """
    if nominal is None:
        raise BandMatchError(
            "The response of the multispectral bands is to be taken as it is known, but one of "
            "the images has no wavelengths.",
            "Give a band table or a table of response functions, or have the response estimated.",
        )
    error = relative_error(hsi @ nominal.T, msi_low)
    return ResponseFit(nominal, np.zeros(len(nominal)), error)

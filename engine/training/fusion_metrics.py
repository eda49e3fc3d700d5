"""Scores of a fused image beside its reference: errors, angles and quality indices, with masks.

All are sums, so an image of any size is scored window by window. Published code computes the
first four in the same way, without masks; `published_rmse` is its error in stored numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any] | Tensor

BLOCK_PX = 32  # of both quality indices, as the paper of Q2n has it
MIN_BLOCK_PX = 64  # valid pixels that make a block: the 8 x 8 window of the paper of the UIQI


@dataclass(frozen=True)
class Measure:
    """A score of `FusionScores`, as reports name it.

    Args:
        key: its field.
        title: for people.
        unit: "" for none.
        larger_is_better: whether it is a quality; else it is an error.
        decimals: that are worth showing.
    """

    key: str
    title: str
    unit: str
    larger_is_better: bool
    decimals: int


MEASURES = (
    Measure("psnr_db", "PSNR", "dB", True, 2),
    Measure("sam_deg", "Spectral angle", "°", False, 3),
    Measure("ergas", "ERGAS", "", False, 3),
    Measure("rmse", "RMSE", "", False, 5),
    Measure("uiqi", "UIQI", "", True, 4),
    Measure("q2n", "Q2n", "", True, 4),
)


@dataclass(frozen=True, eq=False)
class FusionScores:
    """How well a fused image agrees with its reference.

    Args:
        psnr_db: mean of the bands' peak signal-to-noise ratios; infinite when they are equal.
        psnr_band: (L,) dB, with the band's maximum in the reference as peak; NaN for a band whose
            maximum is not above zero.
        sam_deg: mean spectral angle, degrees; NaN when no pixel has a spectrum.
        ergas: relative global error, percent, by the ratio of the pixels.
        rmse: root of the mean squared error of all bands and pixels, in the image's unit.
        rmse_band: (L,) the same of each band.
        uiqi: mean universal image quality index of the bands, -1 to 1; NaN without a block.
        uiqi_band: (L,) the same of each band.
        q2n: the index of all bands together, 0 to 1; NaN without a block.
        pixels: that were compared.
    """

    psnr_db: float
    psnr_band: NDArray[np.float64]
    sam_deg: float
    ergas: float
    rmse: float
    rmse_band: NDArray[np.float64]
    uiqi: float
    uiqi_band: NDArray[np.float64]
    q2n: float
    pixels: int

    def summary(self) -> dict[str, float]:
        """Give the six numbers over all bands, by their names in the toolbox."""
        return {measure.key: float(getattr(self, measure.key)) for measure in MEASURES}


def score_fusion(
    result: Array,
    reference: Array,
    valid: Array | None,
    ratio: float,
    *,
    block_px: int | None = BLOCK_PX,
) -> FusionScores:
    """Score (L, H, W) of a result beside its reference, in the same unit.

    Args:
        result: any float type.
        reference: of the same shape.
        valid: (H, W), True = compare; None for all.
        ratio: coarse pixel / fine pixel, for ERGAS.
        block_px: side of the blocks of UIQI and Q2n; None leaves both out, as NaN.

    Raises:
        ValueError: shapes differ, or there is nothing to compare.
    """
    meter = FusionMeter(len(result), ratio, block_px=block_px)
    meter.update(result, reference, valid)
    return meter.scores()


def published_rmse(rmse: float, low: float, high: float, *, test_script: bool = False) -> float:
    """Turn an error on [0, 1] into stored numbers, as the published scripts do.

    Args:
        rmse: of images scaled by the reference's smallest and largest number.
        low: the smallest.
        high: the largest.
        test_script: the published test script adds ``low`` to the error, which is only right when
            ``low`` is zero; its training script does not.
    """
    return rmse * (high - low) + (low if test_script else 0.0)


class FusionMeter:
    """Scores collected window by window; windows begin on multiples of ``block_px``.

    Sums are float64. A value that is not finite where ``valid`` is True makes the scores NaN: a
    result without a number must never look better than one with a wrong number.

    Args:
        bands: L.
        ratio: coarse pixel / fine pixel.
        block_px: see `score_fusion`.
    """

    def __init__(self, bands: int, ratio: float, *, block_px: int | None = BLOCK_PX) -> None:
        self._ratio = ratio
        self._block_px = block_px
        self._pixels = 0
        self._squared = np.zeros(bands)
        self._reference_sum = np.zeros(bands)
        self._peak = np.full(bands, -np.inf)
        self._angle_sum, self._angles = 0.0, 0
        self._quality = _BlockQuality(bands)

    @property
    def pixels(self) -> int:
        """That were added so far."""
        return self._pixels

    def update(self, result: Array, reference: Array, valid: Array | None = None) -> None:
        """Add a window; see `score_fusion` for the arguments.

        Raises:
            ValueError: shapes differ.
        """
        image, truth = _numbers(result), _numbers(reference)
        if image.shape != truth.shape or image.ndim != 3 or len(image) != len(self._squared):
            raise ValueError(
                f"A result of shape {image.shape} cannot be compared with a reference of shape "
                f"{truth.shape} in {len(self._squared)} bands."
            )
        use = np.ones(image.shape[1:], np.bool_) if valid is None else _numbers(valid).astype(bool)
        if use.shape != image.shape[1:]:
            raise ValueError(f"A mask of shape {use.shape} is not for an image of {image.shape}.")
        self._add_pixels(image[:, use].astype(np.float64), truth[:, use].astype(np.float64))
        if self._block_px is not None:
            for rows, cols in _blocks(use.shape, self._block_px):
                inside = use[rows, cols]
                if int(inside.sum()) >= min(MIN_BLOCK_PX, self._block_px**2):
                    self._quality.add(
                        image[:, rows, cols][:, inside], truth[:, rows, cols][:, inside]
                    )

    def scores(self) -> FusionScores:
        """Score what was added so far.

        Raises:
            ValueError: nothing was.
        """
        if not self._pixels:
            raise ValueError("There is no pixel to score: none is valid in both images.")
        mse = self._squared / self._pixels
        mean = self._reference_sum / self._pixels
        psnr_band = _psnr_db(mse, self._peak)
        uiqi_band, q2n = self._quality.means()
        return FusionScores(
            psnr_db=_mean_where(psnr_band, self._peak > 0),
            psnr_band=psnr_band,
            sam_deg=self._angle_sum / self._angles if self._angles else float("nan"),
            ergas=_ergas(mse, mean, self._ratio),
            rmse=float(np.sqrt(mse.mean())),
            rmse_band=np.sqrt(mse),
            uiqi=float(uiqi_band.mean()),
            uiqi_band=uiqi_band,
            q2n=q2n,
            pixels=self._pixels,
        )

    def _add_pixels(self, image: NDArray[np.float64], truth: NDArray[np.float64]) -> None:
        """Add (L, N) pixels to all sums that need no neighbours."""
        if image.shape[1] == 0:
            return
        self._pixels += image.shape[1]
        self._squared += np.square(image - truth).sum(axis=1)
        self._reference_sum += truth.sum(axis=1)
        self._peak = np.maximum(self._peak, truth.max(axis=1))
        norms = np.linalg.norm(image, axis=0) * np.linalg.norm(truth, axis=0)
        has_angle = norms != 0  # and NaN has one, which stays NaN
        cosine = (image * truth).sum(axis=0)[has_angle] / norms[has_angle]
        self._angle_sum += float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))).sum())
        self._angles += int(has_angle.sum())


class _BlockQuality:
    """Sums of UIQI and Q2n over blocks, each weighted by its valid pixels.

    UIQI: Wang and Bovik, IEEE Signal Processing Letters 9(3), 2002. Q2n: Garzelli and Nencini,
    IEEE Geoscience and Remote Sensing Letters 6(4), 2009.

    Args:
        bands: L.
    """

    def __init__(self, bands: int) -> None:
        self._bands = bands
        self._weight = 0
        self._uiqi = np.zeros(bands)
        self._q2n = 0.0

    def add(self, image: NDArray[Any], truth: NDArray[Any]) -> None:
        """Add one block of (L, N) valid pixels."""
        x, y = image.astype(np.float64), truth.astype(np.float64)
        count = x.shape[1]
        x_mean, y_mean = x.mean(axis=1), y.mean(axis=1)
        x -= x_mean[:, None]
        y -= y_mean[:, None]
        cross = x @ y.T / count
        x_power, y_power = np.square(x).mean(axis=1), np.square(y).mean(axis=1)
        self._weight += count
        self._uiqi += count * _uiqi(x_mean, y_mean, x_power, y_power, np.diagonal(cross))
        self._q2n += count * _q2n(x_mean, y_mean, float(x_power.sum()), float(y_power.sum()), cross)

    def means(self) -> tuple[NDArray[np.float64], float]:
        """Give the (L,) UIQI of the bands and the Q2n; NaN without a block."""
        if not self._weight:
            return np.full(self._bands, np.nan), float("nan")
        return self._uiqi / self._weight, self._q2n / self._weight


def _uiqi(
    x_mean: NDArray[np.float64],
    y_mean: NDArray[np.float64],
    x_power: NDArray[np.float64],
    y_power: NDArray[np.float64],
    covariance: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Index of each band: correlation and contrast times luminance, each 1 where it is 0 / 0."""
    structure = _ratio_or_one(2 * covariance, x_power + y_power)
    luminance = _ratio_or_one(2 * x_mean * y_mean, np.square(x_mean) + np.square(y_mean))
    return structure * luminance


def _q2n(
    x_mean: NDArray[np.float64],
    y_mean: NDArray[np.float64],
    x_power: float,
    y_power: float,
    cross: NDArray[np.float64],
) -> float:
    """Index of all bands: the same with hypercomplex numbers, one component a band.

    The product of two hypercomplex numbers is a signed sum of products of components, so the mean
    of products over a block needs no more than the (L, L) covariances of the bands.
    """
    modulus = np.linalg.norm(_conjugate_product(cross))
    norms = np.array([np.linalg.norm(x_mean), np.linalg.norm(y_mean)])
    structure = _ratio_or_one(2 * modulus, np.asarray(x_power + y_power))
    luminance = _ratio_or_one(2 * norms.prod(), np.asarray(np.square(norms).sum()))
    return float(structure * luminance)


def _conjugate_product(cross: NDArray[np.float64]) -> NDArray[np.float64]:
    """Components of the mean of x · conj(y), from the (L, L) means of the products of theirs."""
    signs, places = _conjugate_table(len(cross))
    size = 1 << (len(cross) - 1).bit_length()
    components = np.zeros(size)
    np.add.at(components, places, signs * cross)
    return components


@lru_cache(maxsize=8)
def _conjugate_table(bands: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Signs and places, both (L, L): unit i times the conjugate of unit j is a sign times a unit.

    By the Cayley-Dickson construction, (a, b)(c, d) = (ac - d*b, da + bc*), which doubles the
    table until it holds all bands; the place is the exclusive or of both numbers.
    """
    product = np.ones((1, 1))
    while len(product) < bands:
        size = len(product)
        conjugate = np.r_[1.0, -np.ones(size - 1)]
        doubled = np.empty((2 * size, 2 * size))
        doubled[:size, :size] = product
        doubled[size:, size:] = -(conjugate[:, None] * product).T
        doubled[:size, size:] = product.T
        doubled[size:, :size] = product * conjugate
        product = doubled
    number = np.arange(bands)
    signs = product[:bands, :bands] * np.where(number == 0, 1.0, -1.0)
    return signs, np.bitwise_xor(number[:, None], number)


def _psnr_db(mse: NDArray[np.float64], peak: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        psnr: NDArray[np.float64] = 10.0 * np.log10(np.square(peak) / mse)
    psnr[~(peak > 0)] = np.nan
    return psnr


def _ergas(mse: NDArray[np.float64], mean: NDArray[np.float64], ratio: float) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = mse / np.square(mean)
    return 100.0 / ratio * float(np.sqrt(_mean_where(relative, mean != 0)))


def _mean_where(values: NDArray[np.float64], use: NDArray[np.bool_]) -> float:
    return float(values[use].mean()) if use.any() else float("nan")


def _ratio_or_one(top: Any, bottom: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide; 1 where both images are constant or zero, because then they do not differ in it."""
    return np.where(bottom == 0, 1.0, top / np.where(bottom == 0, 1.0, bottom))


def _blocks(shape: tuple[int, ...], side: int) -> list[tuple[slice, slice]]:
    """Squares that cover (H, W), the last ones cut off."""
    height, width = shape
    return [
        (slice(row, row + side), slice(col, col + side))
        for row in range(0, height, side)
        for col in range(0, width, side)
    ]


def _numbers(values: Array) -> NDArray[Any]:
    if isinstance(values, Tensor):
        array: NDArray[Any] = values.detach().cpu().numpy()
        return array
    return np.asarray(values)

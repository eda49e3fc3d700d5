"""How well a hyperspectral image explains a degraded multispectral one: what is looked for by eye.

Shift and point spread are found by it without knowing the response: at the right ones, linear
combinations of the hyperspectral bands come nearest to the multispectral image. Both lose their
local mean first, so that edges count and haze does not (ours; Simões et al. 2015 find the
response and then the spread by least squares, to the same end).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, max_pool2d

from engine.models.fusion.degradation import PointSpread
from engine.models.fusion.method import ImagePair

# More pixels make shift and spread no more exact than the images are.
_MAX_PX = 36_000
# The hyperspectral image in this many components: what lies beyond is mostly noise.
_COMPONENTS = 10
# Coarse pixels to each side of the local mean that is taken away.
_LOCAL_PX = 2
# Of fewer pixels nothing can be said.
MIN_PX = 60


@dataclass(frozen=True, eq=False)
class _Chip:
    """The hyperspectral image of one chip, ready to be compared.

    Args:
        pair: the chip.
        components: (1, K, h, w) float32, without their local mean.
        usable: (h, w) bool, True where they are known.
    """

    pair: ImagePair
    components: Tensor
    usable: Tensor


@dataclass(frozen=True, eq=False)
class _Swept:
    """The multispectral image of one chip wherever the coarse sensor may look.

    Args:
        values: (1, M, h*r, w*r) float32 as the coarse sensor sees it around each fine pixel; one
            more row and column, and corners of fine pixels, where the ratio is even.
        valid: the same places with one band, 1 where a whole block around is valid.
    """

    values: Tensor
    valid: Tensor


class Agreement:
    """What part of the multispectral image the hyperspectral one explains.

    Args:
        sample: pairs of one ratio and the same bands.
    """

    def __init__(self, sample: Sequence[ImagePair]) -> None:
        pairs = list(_few(sample))
        basis, mean = _leading(pairs)
        self._chips = [_Chip(pair, *_project(pair, basis, mean)) for pair in pairs]
        self._swept: list[_Swept] = []

    @property
    def coarse_shape(self) -> tuple[int, int]:
        """Height and width of the largest chip, coarse pixels."""
        shapes = [chip.usable.shape for chip in self._chips]
        return max(int(shape[0]) for shape in shapes), max(int(shape[1]) for shape in shapes)

    def sweep(self, spread: PointSpread) -> None:
        """Look through a point spread at all places, for `unexplained_at`."""
        self._swept = [_sweep(chip.pair, spread) for chip in self._chips]

    def unexplained(self, spread: PointSpread) -> float:
        """The share of the multispectral detail that is left with a point spread, unshifted.

        Returns:
            0 (explained whole) to about 1, mean over the bands, corrected for what chance
            explains; NaN when too few pixels are left to say.
        """
        return self._left_over(
            spread.degrade(chip.pair.msi, chip.pair.msi_valid) for chip in self._chips
        )

    def unexplained_at(self, x_px: float, y_px: float) -> float:
        """The same with the swept point spread, at a shift.

        Args:
            x_px: coarse pixels that the multispectral content lies to the right.
            y_px: the same down.
        """
        return self._left_over(
            _sampled(chip, swept, x_px, y_px)
            for chip, swept in zip(self._chips, self._swept, strict=True)
        )

    def _left_over(self, degraded: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Of the degraded multispectral images, (1, M, h, w) with (1, h, w) valid."""
        explaining, explained = [], []
        for chip, (values, valid) in zip(self._chips, degraded, strict=True):
            detail, whole = _without_local_mean(values, valid)
            use = whole[0] & chip.usable
            explaining.append(chip.components[0][:, use])
            explained.append(detail[0][:, use])
        return _left_over(torch.cat(explaining, 1).double(), torch.cat(explained, 1).double())


def _few(sample: Sequence[ImagePair]) -> Iterator[ImagePair]:
    """Single pairs, every n-th of them when they are many, in one place a pair."""
    singles = [
        ImagePair(
            pair.hsi[i : i + 1],
            pair.msi[i : i + 1],
            pair.hsi_valid[i : i + 1],
            pair.msi_valid[i : i + 1],
        )
        for pair in sample
        for i in range(len(pair.hsi))
    ]
    total = sum(pair.hsi_valid.numel() for pair in singles)
    kept = min(len(singles), max(1, -(-len(singles) * _MAX_PX // total)))
    for i in range(kept):
        yield singles[i * len(singles) // kept]


def _leading(pairs: Sequence[ImagePair]) -> tuple[Tensor, Tensor]:
    """(L, K) float32 leading directions of the valid spectra, and (L,) their mean.

    Bands count alike, so that one of noise alone, as bad ones are, stays out of the leading ones.
    """
    spectra = torch.cat([pair.hsi[0][:, pair.hsi_valid[0]] for pair in pairs], 1).T.double()
    mean = spectra.sum(0) / max(len(spectra), 1)
    centred = spectra - mean
    scale = centred.square().sum(0).sqrt()
    scale = torch.where(scale > 0, 1 / scale.clamp(min=1e-30), 0.0)
    centred *= scale
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    # A band's usual spread is 1 in its own units, whatever those of the others.
    basis = vectors[:, -_COMPONENTS:] * scale[:, None] * math.sqrt(max(len(spectra), 1))
    return basis.float(), mean.float()


def _project(pair: ImagePair, basis: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Components without their local mean (1, K, h, w), and where they are known (h, w)."""
    values = torch.einsum("bchw,ck->bkhw", pair.hsi - mean[:, None, None], basis)
    detail, whole = _without_local_mean(values, pair.hsi_valid)
    return detail, whole[0]


def _sweep(pair: ImagePair, spread: PointSpread) -> _Swept:
    """The fine image as the coarse sensor sees it everywhere, and where that may be used."""
    bad = (~pair.msi_valid[:, None]).float()
    # The block around, and half a pixel more, because the nearest place is looked up.
    window = spread.ratio + 2
    valid = 1 - max_pool2d(bad, window, 1, window // 2)
    return _Swept(spread.sweep(pair.msi, pair.msi_valid), valid)


def _sampled(chip: _Chip, swept: _Swept, x_px: float, y_px: float) -> tuple[Tensor, Tensor]:
    """The degraded multispectral image (1, M, h, w) at a shift, and (1, h, w) where it is."""
    height, width = chip.usable.shape
    # In the units of `grid_sample`: -1 and 1 are the image's outer edges. Of corners the first
    # and the last lie on them, of pixels they do not.
    x = (torch.arange(width) + 0.5 + x_px) * 2 / width - 1
    y = (torch.arange(height) + 0.5 + y_px) * 2 / height - 1
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    grid = torch.stack([columns, rows], -1)[None].float()
    corners = chip.pair.ratio % 2 == 0
    values = grid_sample(swept.values, grid, "bicubic", "border", align_corners=corners)
    valid = grid_sample(swept.valid, grid, "nearest", "zeros", align_corners=corners)
    return values, valid[:, 0] > 0


def _without_local_mean(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Values (1, C, h, w) less their local mean, and (1, h, w) where all of it is valid."""
    window = 2 * _LOCAL_PX + 1
    share = avg_pool2d(valid[:, None].float(), window, 1, _LOCAL_PX)
    mean = avg_pool2d(values, window, 1, _LOCAL_PX)
    # What lies beyond the image counts as not valid.
    return values - mean, share[:, 0] > 1 - 0.5 / window**2


def _left_over(explaining: Tensor, explained: Tensor) -> float:
    """1 - adjusted R² of (M, N) values by (K, N) ones, mean over the M; see `unexplained`."""
    terms, count = explaining.shape
    if count < max(MIN_PX, 3 * terms):
        return math.nan
    gram = explaining @ explaining.T
    gram = gram + torch.eye(terms) * (1e-6 * gram.diagonal().mean() + 1e-30)
    cross = explaining @ explained.T
    found = (cross * torch.linalg.solve(gram, cross)).sum(0)
    total = explained.square().sum(1)
    share = torch.where(total > 0, found / total.clamp(min=1e-30), 0.0)
    return float((1 - share).mean()) * count / (count - terms)

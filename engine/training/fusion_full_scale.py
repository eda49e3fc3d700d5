"""Crops at full resolution, where no target is known: the result has to give both images back.

The hyperspectral image at full resolution is the target of the degraded pair, so ground that is
held out there has to stay unseen here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.models.fusion.fuser import Fuser, FuserInputs
from engine.models.fusion.method import ImagePair
from engine.training.fusion_data import Triplet, to_fine, window_around
from engine.training.pair_physics import PairPhysics

MAX_PX = 4096  # coarse pixels that are kept; their fine spectra are ratio² times as many


@dataclass(frozen=True, eq=False)
class FullCrops:
    """Crops at full resolution.

    Args:
        inputs: of `Fuser.prepare`.
        truth: what has to be given back.
        use: (B, h, w) bool, coarse pixels that may be learned from.
    """

    inputs: FuserInputs
    truth: ImagePair
    use: Tensor


class FullScale:
    """Full-resolution crops, and how far a result is from giving both images back.

    Args:
        fuser: that prepares; on the device, its start fitted.
        pairs: at full resolution, one image each, on the CPU.
        ground: (h, w) bool a pair, coarse pixels that may be learned from; some at least.
        physics: of the pairs.
        crop_px: side of a crop in coarse pixels.
        seed: of what is drawn.
    """

    def __init__(
        self,
        fuser: Fuser,
        pairs: Sequence[ImagePair],
        ground: Sequence[Tensor],
        physics: PairPhysics,
        crop_px: int,
        seed: int,
    ) -> None:
        device = fuser.low.device
        self._fuser, self._seed = fuser, seed
        self._physics = physics.to(device)
        side = min(crop_px, *(min(pair.hsi.shape[-2:]) for pair in pairs))
        crops = _cut(pairs, ground, side, max(MAX_PX // side**2, 1), seed)
        with torch.no_grad():
            self._inputs = [fuser.prepare(crop.to(device)) for crop, _use in crops]
        self._crops = [(crop.to(device), use.to(device)) for crop, use in crops]

    def batch(self, step: int, size: int) -> FullCrops:
        """The crops of a step."""
        rng = np.random.default_rng([self._seed, step])
        chosen = rng.integers(len(self._crops), size=size)
        inputs = [
            torch.cat(parts) for parts in zip(*(self._inputs[i] for i in chosen), strict=True)
        ]
        crops, uses = zip(*(self._crops[index] for index in chosen), strict=True)
        truth = ImagePair(
            torch.cat([crop.hsi for crop in crops]),
            torch.cat([crop.msi for crop in crops]),
            torch.cat([crop.hsi_valid for crop in crops]),
            torch.cat([crop.msi_valid for crop in crops]),
        )
        return FullCrops(FuserInputs(*inputs), truth, torch.stack(uses))

    def loss(self, image: Tensor, crops: FullCrops) -> Tensor:
        """Smooth L1 to both images, on the fuser's scale: () with gradients.

        Args:
            image: (B, L, H, W) on the scale.
            crops: of `batch`.
        """
        spread, fuser, truth = self._physics.spread, self._fuser, crops.truth
        coarse, seen = spread.degrade(image, truth.msi_valid)
        inside = seen & truth.hsi_valid & _inner(truth.hsi_valid, spread.reach_px)
        given_back = _masked(coarse, fuser.to_scale(truth.hsi), inside & crops.use)
        fine = fuser.to_scale(self._physics.response(fuser.to_reflectance(image)))
        use = torch.stack([to_fine(mask, truth.ratio) for mask in crops.use])
        return given_back + _masked(fine, fuser.to_scale(truth.msi), truth.msi_valid & use)


def full_ground(
    full_pairs: Sequence[ImagePair], triplets: Sequence[Triplet], ground: Sequence[Tensor]
) -> tuple[list[ImagePair], list[Tensor]]:
    """The full-resolution images of triplets with some ground, and that ground in their pixels.

    Args:
        full_pairs: of any batch size, those that the triplets were degraded from among them, in
            the same order.
        triplets: by `engine.training.fusion_data.make_triplets`.
        ground: (h, w) bool a triplet.

    Returns:
        Pairs of one image, without the rows and columns that degrading left out, and (h*r, w*r)
        bool a pair.
    """
    singles = (
        ImagePair(
            *(part[i : i + 1] for part in (pair.hsi, pair.msi, pair.hsi_valid, pair.msi_valid))
        )
        for pair in full_pairs
        for i in range(len(pair.hsi))
    )
    pairs, masks = [], []
    for triplet, use in zip(triplets, ground, strict=True):
        rows, cols = (slice(size) for size in triplet.target.shape[-2:])
        origin = next(
            (pair for pair in singles if torch.equal(pair.hsi[..., rows, cols], triplet.target)),
            None,
        )
        if origin is not None and bool(use.any()):
            pairs.append(origin.crop(rows, cols))
            masks.append(to_fine(use, triplet.pair.ratio))
    return pairs, masks


def _masked(found: Tensor, truth: Tensor, use: Tensor) -> Tensor:
    error = F.smooth_l1_loss(found, truth, reduction="none")
    return torch.where(use[:, None], error, 0.0).sum() / (use.sum().clamp(min=1) * found.shape[1])


def _inner(mask: Tensor, border: int) -> Tensor:
    """(B, h, w) bool: False at the border, beyond which a point spread takes in what is unknown."""
    inside = torch.zeros_like(mask)
    inside[:, border : mask.shape[1] - border, border : mask.shape[2] - border] = True
    return inside


def _cut(
    pairs: Sequence[ImagePair], ground: Sequence[Tensor], side: int, count: int, seed: int
) -> list[tuple[ImagePair, Tensor]]:
    """Crops around pixels of the ground, spread by chance over all of it, and their ground."""
    rng = np.random.default_rng(seed)
    places = [np.argwhere(mask.cpu().numpy()) for mask in ground]
    sizes = np.array([len(found) for found in places], float)
    crops = []
    for number in rng.choice(len(pairs), size=count, p=sizes / sizes.sum()):
        pixel = places[number][rng.integers(len(places[number]))]
        rows, cols = (
            slice(first, first + side)
            for first in (
                window_around(int(centre), side, size, rng)
                for centre, size in zip(pixel, ground[number].shape, strict=True)
            )
        )
        crops.append((pairs[number].crop(rows, cols), ground[number][rows, cols]))
    return crops

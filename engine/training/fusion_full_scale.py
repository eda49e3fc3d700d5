"""Crops at full resolution, where no target is known: the result has to give both images back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.models.fusion.fuser import Fuser, FuserInputs
from engine.models.fusion.method import ImagePair
from engine.training.pair_physics import PairPhysics

MAX_PX = 4096  # coarse pixels that are kept; their fine spectra are ratio² times as many


class FullScale:
    """Full-resolution crops, and how far a result is from giving both images back.

    Args:
        fuser: that prepares; on the device, its start fitted.
        pairs: at full resolution, on the CPU.
        physics: of the pairs.
        crop_px: side of a crop in coarse pixels.
        seed: of what is drawn.
    """

    def __init__(
        self,
        fuser: Fuser,
        pairs: Sequence[ImagePair],
        physics: PairPhysics,
        crop_px: int,
        seed: int,
    ) -> None:
        device = fuser.low.device
        self._fuser, self._seed = fuser, seed
        self._physics = physics.to(device)
        side = min(crop_px, *(min(pair.hsi.shape[-2:]) for pair in pairs))
        crops = _cut(pairs, side, max(MAX_PX // side**2, 1), seed)
        with torch.no_grad():
            self._inputs = [fuser.prepare(crop.to(device)) for crop in crops]
        self._crops = [crop.to(device) for crop in crops]

    def batch(self, step: int, size: int) -> tuple[FuserInputs, ImagePair]:
        """The crops of a step, and what they have to give back."""
        rng = np.random.default_rng([self._seed, step])
        chosen = rng.integers(len(self._crops), size=size)
        inputs = [
            torch.cat(parts) for parts in zip(*(self._inputs[i] for i in chosen), strict=True)
        ]
        crops = [self._crops[index] for index in chosen]
        truth = ImagePair(
            torch.cat([crop.hsi for crop in crops]),
            torch.cat([crop.msi for crop in crops]),
            torch.cat([crop.hsi_valid for crop in crops]),
            torch.cat([crop.msi_valid for crop in crops]),
        )
        return FuserInputs(*inputs), truth

    def loss(self, image: Tensor, truth: ImagePair) -> Tensor:
        """Smooth L1 to both images, on the fuser's scale: () with gradients.

        Args:
            image: (B, L, H, W) on the scale.
            truth: the crops of `batch`.
        """
        spread, fuser = self._physics.spread, self._fuser
        coarse, seen = spread.degrade(image, truth.msi_valid)
        inside = seen & truth.hsi_valid & _inner(truth.hsi_valid, spread.reach_px)
        given_back = _masked(coarse, fuser.to_scale(truth.hsi), inside)
        fine = fuser.to_scale(self._physics.response(fuser.to_reflectance(image)))
        return given_back + _masked(fine, fuser.to_scale(truth.msi), truth.msi_valid)


def _masked(found: Tensor, truth: Tensor, use: Tensor) -> Tensor:
    error = F.smooth_l1_loss(found, truth, reduction="none")
    return torch.where(use[:, None], error, 0.0).sum() / (use.sum().clamp(min=1) * found.shape[1])


def _inner(mask: Tensor, border: int) -> Tensor:
    """(B, h, w) bool: False at the border, beyond which a point spread takes in what is unknown."""
    inside = torch.zeros_like(mask)
    inside[:, border : mask.shape[1] - border, border : mask.shape[2] - border] = True
    return inside


def _cut(pairs: Sequence[ImagePair], side: int, count: int, seed: int) -> list[ImagePair]:
    """Crops spread by chance over all pairs, by their sizes."""
    rng = np.random.default_rng(seed)
    sizes = np.array([pair.hsi.shape[-2] * pair.hsi.shape[-1] for pair in pairs], float)
    crops = []
    for number in rng.choice(len(pairs), size=count, p=sizes / sizes.sum()):
        height, width = pairs[number].hsi.shape[-2:]
        top, left = (int(rng.integers(size - side + 1)) for size in (height, width))
        crops.append(pairs[number].crop(slice(top, top + side), slice(left, left + side)))
    return crops

"""How tiles become the input of an adapted model, and its answers reflectance again.

Three scalings: by mean and spread of the training pixels, the same of spectra at unit length (both
ours), and by each chip's own range of each band (SpectralX, arXiv 2508.01731, as published).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.feedback import Feedback
from engine.models.spectral import spectrum_length, unit_length
from engine.models.spectralx.adapted import CHIP_RANGE_MIN, AdaptedViT, Scaling
from engine.training.held_out import ScaledTiles
from engine.training.scene_tiles import SceneTiles, TileBatch
from engine.training.tile_survey import MIN_STD


def network_input(adapted: AdaptedViT, batch: TileBatch) -> Tensor:
    """(B, C, P, P) float32 as the network sees tiles: 0 without data, 0 in bands not present."""
    x = adapted.normalise(batch.reflectance, batch.valid)
    return x.masked_fill_(~batch.band_present[:, :, None, None], 0.0)


def scale_tiles(adapted: AdaptedViT, batch: TileBatch) -> ScaledTiles:
    """What a model sees of tiles, and the way back to reflectance, for every scaling.

    Args:
        adapted: with its settings and statistics.
        batch: on its device.
    """
    x = network_input(adapted, batch)
    mean, std = adapted.band_mean[:, None, None], adapted.band_std[:, None, None]
    if adapted.config.scaling == "unit":
        length = spectrum_length(batch.reflectance, dim=1)
        return ScaledTiles(x, mean * length, std * length)
    if adapted.config.scaling == "chip":
        return ScaledTiles(x, *_chip_range(batch))
    return ScaledTiles(x, mean, std)


def scaled_statistics(
    tiles: SceneTiles, scaling: Scaling, batch_tiles: int, feedback: Feedback
) -> tuple[Tensor, Tensor]:
    """Mean and spread of the bands for a scaling: (C,) float32 each.

    Args:
        tiles: those to train on count.
        scaling: "chip" needs none: 0 and 1; "unit" is looked through once more.
        batch_tiles: tiles at a time.
        feedback: asked whether to go on.

    Raises:
        CancelledError: the user cancelled.
        SceneError: a scene cannot be read any more.
    """
    if scaling == "chip":
        return torch.zeros_like(tiles.mean), torch.ones_like(tiles.std)
    if scaling == "standard":
        return tiles.mean, tiles.std
    count, total, square = (np.zeros(len(tiles.bands)) for _sum in range(3))
    for batch in tiles.batches_of(tiles.plan.training, batch_tiles):
        feedback.raise_if_cancelled()
        exact, weight = _unit_spectra(batch)
        count += weight.sum(axis=0)
        total += (exact * weight).sum(axis=0)
        square += (np.square(exact) * weight).sum(axis=0)
    known = np.maximum(count, 1)
    mean = total / known
    spread = np.sqrt(np.maximum(square / known - np.square(mean), 0))
    std = np.where(count > 0, np.maximum(spread, MIN_STD), 1.0)
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()


def _unit_spectra(batch: TileBatch) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(M, C) valid spectra of unit length, and (M, C) 1 where the scene has the band."""
    unit = unit_length(batch.reflectance, dim=1).movedim(1, -1)[batch.valid]
    present = batch.band_present[:, None, None].expand(*batch.valid.shape, -1)[batch.valid]
    return unit.double().numpy(), present.double().numpy()


def _chip_range(batch: TileBatch) -> tuple[Tensor, Tensor]:
    """(B, C, 1, 1) lowest valid value and range of each band of each tile; see `normalise`."""
    use = batch.valid[:, None]
    low = batch.reflectance.masked_fill(~use, torch.inf).amin(dim=(2, 3), keepdim=True)
    high = batch.reflectance.masked_fill(~use, -torch.inf).amax(dim=(2, 3), keepdim=True)
    varies = high > low
    spread = torch.where(varies, high - low + CHIP_RANGE_MIN, 1.0)
    return torch.where(varies, low, 0.0), spread

"""Samples made by code: spectra of two or three classes, mixed along the borders of blocks."""

import numpy as np
import torch

from engine.training.samples import Samples

BANDS, CHIP_PX, CELL_PX = 6, 6, 4


def made_samples(chips=12, classes=3, seed=0, noise=0.01):
    """Chips of 6 x 6 px whose inner 4 x 4 px are labelled; the class is a slope in the spectrum.

    Every chip is a place. Its left half is one class and its right half another; the two columns
    in the middle are mixed.
    """
    rng = np.random.default_rng(seed)
    slopes = np.linspace(-0.3, 0.3, classes)[:, None] * np.linspace(-1, 1, BANDS) + 0.4
    reflectance, shares = [], []
    for number in range(chips):
        left, right = number % classes, (number + 1) % classes
        share = np.zeros((classes, CHIP_PX, CHIP_PX), np.float32)
        part = np.asarray([1.0, 1.0, 0.55, 0.45, 0.0, 0.0], np.float32)
        share[left] += part
        share[right] += 1 - part
        brightness = rng.uniform(0.7, 1.3, (1, CHIP_PX, CHIP_PX))
        chip = np.einsum("kc,khw->chw", slopes, share) * brightness
        reflectance.append(chip + noise * rng.standard_normal(chip.shape))
        shares.append(share)
    chip, row, col = (
        values.ravel()
        for values in np.meshgrid(np.arange(chips), np.arange(1, 5), np.arange(1, 5), indexing="ij")
    )
    labelled = torch.from_numpy(np.stack(shares)[chip, :, row, col])
    return Samples(
        torch.from_numpy(np.stack(reflectance).astype(np.float32)),
        torch.ones(chips, CHIP_PX, CHIP_PX, dtype=torch.bool),
        torch.from_numpy(chip),
        torch.from_numpy(row),
        torch.from_numpy(col),
        labelled,
        torch.ones(len(chip)),
        labelled.max(dim=1).values >= 0.6,
        torch.from_numpy(chip.copy()),
        torch.from_numpy(np.stack([np.zeros_like(chip), row + 6 * chip, col], axis=1)),
    )

"""Labelled chips for segmentation: read larger than a chip, cut at random while training.

A chip is read with a margin, so that each step takes another window of it and a pixel is learned
at every position that it may have in a tile of a prediction. All labelled pixels of the window
count, not only those in the chip's core; each counts as often as the others over an epoch, however
many chips it lies in. This way of cutting is ours: the published code resizes whole images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.training.samples import Samples, SampleSizes

# Bits of a row or column number in the key of a pixel; a scene has less than 2^20 of them, plus
# those of a margin above and to the left of it, which are negative.
_BITS, _MARGIN = 24, 1 << 20


class HasChip(Protocol):
    """Settings of a model that sees square chips."""

    @property
    def chip_px(self) -> int:
        """Side of a chip."""


def chip_sizes(config: HasChip, block_px: int) -> SampleSizes:
    """Sides of chips for the fit of a segmenter.

    The core is half a chip. Read is so much that every window of a chip's size in it holds the
    core, and the core may lie at any edge of the window.

    Args:
        config: of the segmenter.
        block_px: side of a block of ground, which is held out as a whole.
    """
    core_px = max(config.chip_px // 2, 1)
    return SampleSizes(2 * config.chip_px - core_px, core_px, block_px)


@dataclass(frozen=True, eq=False)
class ChipBatch:
    """What a step learns from, on the device.

    Args:
        reflectance: (B, C, P, P) float32, 0 where not valid.
        valid: (B, P, P) bool, True = use.
        target: (B, P, P, K) float32, all 0 where nothing is to be learned.
    """

    reflectance: Tensor
    valid: Tensor
    target: Tensor


@dataclass(frozen=True)
class Light:
    """How augmentation changes reflectance.

    Args:
        brightness: spread of the factor that a chip is multiplied by.
        noise: spread of the noise, in spreads of the band.
    """

    brightness: float = 0.05
    noise: float = 0.03


class LabelledChips:
    """The chips of samples, with the labels as maps on them.

    On a GPU they are kept there: samples are never larger than `samples.MAX_CHIP_BYTES`.

    Args:
        samples: chips of R x R px and their labelled pixels.
        chip_px: side of the window that is taken; the whole chip where that is smaller.
        device: where batches are wanted.
    """

    def __init__(self, samples: Samples, chip_px: int, device: torch.device) -> None:
        self._reflectance = samples.reflectance.to(device)
        self._valid = samples.valid.to(device)
        self._device = device
        self.read_px = samples.valid.shape[-1]
        self.chip_px = min(chip_px, self.read_px)
        self._sample_at = _sample_maps(samples)
        # How often a pixel is seen in an epoch, by its samples' number.
        self.visits = self._count_visits(len(samples.chip))
        self._sample_at = self._sample_at.to(device)
        self._chip = samples.chip

    def __len__(self) -> int:
        return len(self._valid)

    def chips_with(self, sample: Tensor) -> Tensor:
        """(N,) int64, the chips whose cores hold any of the samples where (M,) bool is True."""
        chips: Tensor = torch.unique(self._chip[sample])
        return chips

    def draw(
        self, index: Tensor, target: Tensor, light: Light, spread: Tensor, chance: torch.Generator
    ) -> ChipBatch:
        """A batch of windows at random places, turned and mirrored, in another light.

        Args:
            index: (B,) int64, chips.
            target: (M + 1, K) float32 on the device, of each sample; the last row, all 0, is of
                pixels without a label.
            light: see there.
            spread: (C,) float32 on the device, of the bands.
            chance: on the CPU.
        """
        room = self.read_px - self.chip_px + 1
        corners = torch.randint(room, (len(index), 2), generator=chance).tolist()
        cut = [
            (chip, slice(row, row + self.chip_px), slice(col, col + self.chip_px))
            for chip, (row, col) in zip(index.tolist(), corners, strict=True)
        ]
        reflectance = torch.stack([self._reflectance[chip, :, r, c] for chip, r, c in cut])
        valid = torch.stack([self._valid[chip, r, c] for chip, r, c in cut])
        sample = torch.stack([self._sample_at[chip, r, c] for chip, r, c in cut])
        turns, mirrored = (int(torch.randint(n, (), generator=chance)) for n in (4, 2))
        reflectance = _turned(reflectance, turns, mirrored)
        valid, sample = (_turned(values, turns, mirrored) for values in (valid, sample))
        reflectance = _in_another_light(reflectance, light, spread, chance)
        reflectance.masked_fill_(~valid[:, None], 0.0)
        return ChipBatch(reflectance, valid, target[sample.long()])

    def _count_visits(self, count: int) -> Tensor:
        """(M,) float32: windows of an epoch that each sample lies in, on average."""
        room = self.read_px - self.chip_px + 1
        at = torch.arange(self.read_px)
        first, last = (at - self.chip_px + 1).clamp_min(0), at.clamp_max(room - 1)
        share = (last - first + 1).float() / room
        weight = (share[:, None] * share).expand(self._sample_at.shape)
        visits = torch.zeros(count + 1)
        visits.index_add_(0, self._sample_at.flatten().long(), weight.flatten())
        return visits[:count]


def _sample_maps(samples: Samples) -> Tensor:
    """(N, R, R) int32, the number of the sample at each pixel of each chip; M where there is none.

    A chip shows the labelled pixels of its neighbours too.
    """
    count, read_px = len(samples.chip), samples.valid.shape[-1]
    n = len(samples.valid)
    origin = torch.zeros(n, 3, dtype=torch.int64)  # all samples of a chip agree on it
    offset = torch.stack([torch.zeros_like(samples.row), samples.row, samples.col], dim=1)
    origin[samples.chip] = samples.position - offset
    known, order = torch.sort(_keys(*samples.position.T))
    at = torch.arange(read_px)
    maps = torch.full((n, read_px, read_px), count, dtype=torch.int32)
    for number, (scene, top, left) in enumerate(origin):  # one by one: the keys take memory
        keys = _keys(scene, (top + at)[:, None], (left + at)[None])
        found = torch.searchsorted(known, keys).clamp_max(count - 1)
        maps[number] = torch.where(known[found] == keys, order[found], count).int()
    return maps


def _keys(scene: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """One int64 for each pixel of all scenes."""
    return (((scene << _BITS) + row + _MARGIN) << _BITS) + col + _MARGIN


def _turned(values: Tensor, turns: int, mirrored: int) -> Tensor:
    """Turn (B, …, P, P) by quarters, and mirror it."""
    turned: Tensor = torch.rot90(values, turns, (-2, -1))
    return turned.flip(-1) if mirrored else turned


def _in_another_light(
    reflectance: Tensor, light: Light, spread: Tensor, chance: torch.Generator
) -> Tensor:
    """Other light on the same ground, and a noisier sensor; changes the batch in place."""
    device = reflectance.device
    if light.brightness > 0:
        factor = torch.randn(len(reflectance), 1, 1, 1, generator=chance).to(device)
        reflectance.mul_(1 + light.brightness * factor)
    if light.noise > 0:
        # A generator of the device, seeded by the other: noise is as large as the chips.
        seed = int(torch.randint(2**31, (), generator=chance))
        grain_chance = torch.Generator(device).manual_seed(seed)
        grain = torch.randn(reflectance.shape, generator=grain_chance, device=device)
        reflectance.addcmul_(grain, light.noise * spread[:, None, None])
    return reflectance

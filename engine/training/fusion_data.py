"""What a fusion learns from: triplets, the places that each step may see, and batches of crops.

By Wald's protocol a pair degraded by its ratio is the input and the hyperspectral image itself the
target. Places are blocks of the degraded coarse grid: some are held out for the scores, some for
the gate, and a margin around both belongs to nobody, because a coarse pixel's point spread reaches
over its border.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from engine.errors import TrainingError
from engine.models.fusion.fuser import Fuser, FuserInputs
from engine.models.fusion.method import ImagePair
from engine.training.pair_physics import PairPhysics, degrade_pair

BLOCKS_ACROSS = 4  # along the shorter side of an image: large blocks lose little to margins
MIN_BLOCK_PX, MAX_BLOCK_PX = 3, 16  # coarse pixels
MARGIN_PX = 1  # coarse pixels around places that another step looks at
DRAWS = 8  # of which the fairest deal is taken; of very many it would be the same for each seed
KIND_COMPONENTS = 3  # of the spectra, whose signs tell kinds of ground apart


@dataclass(frozen=True, eq=False)
class Triplet:
    """One image to learn from: the inputs, and what is to be found.

    Args:
        pair: with a batch of 1.
        target: (1, L, h*r, w*r) float32 reflectance.
        target_valid: (1, h*r, w*r) bool, True = use.

    Raises:
        ValueError: the sizes do not fit one another.
    """

    pair: ImagePair
    target: Tensor
    target_valid: Tensor

    def __post_init__(self) -> None:
        fine = self.pair.msi.shape[-2:]
        if len(self.pair.hsi) != 1 or self.target.shape != (1, self.pair.hsi.shape[1], *fine):
            raise ValueError(
                f"A target of {tuple(self.target.shape)} does not fit a hyperspectral image of "
                f"{tuple(self.pair.hsi.shape)} at ratio {self.pair.ratio}."
            )
        if self.target_valid.shape != (1, *fine):
            raise ValueError(f"target_valid is {tuple(self.target_valid.shape)}.")

    def to(self, device: torch.device | str) -> Triplet:
        """The triplet on a device."""
        return Triplet(self.pair.to(device), self.target.to(device), self.target_valid.to(device))

    @property
    def learnable(self) -> Tensor:
        """(h, w) bool: coarse pixels with an input and a target below."""
        known = F.max_pool2d(self.target_valid.float()[:, None], self.pair.ratio)[0, 0] > 0
        return known & self.pair.hsi_valid[0]

    def within(self, ground: Tensor) -> Triplet:
        """The same with a target on some coarse pixels alone.

        Args:
            ground: (h, w) bool.
        """
        fine = to_fine(ground, self.pair.ratio)
        return Triplet(self.pair, self.target, self.target_valid & fine[None])


def make_triplets(sample: Iterable[ImagePair], physics: PairPhysics) -> list[Triplet]:
    """Triplets of pairs by Wald's protocol.

    Args:
        sample: parts of the pairs, of any batch size; those without a valid pixel are left out.
        physics: of the pairs.

    Raises:
        SceneError: a part is smaller than the ratio.
    """
    triplets = []
    for parts in sample:
        pair, target, target_valid = degrade_pair(parts, physics)
        for index in range(len(target)):
            one = slice(index, index + 1)
            lower = ImagePair(
                pair.hsi[one], pair.msi[one], pair.hsi_valid[one], pair.msi_valid[one]
            )
            triplet = Triplet(lower, target[one], target_valid[one])
            if bool(triplet.learnable.any()):
                triplets.append(triplet)
    return triplets


@dataclass(frozen=True, eq=False)
class Places:
    """Which coarse pixels of each triplet are for what; those of a margin are for nothing.

    Args:
        fit: (h, w) bool a triplet, to train on.
        inner: likewise, to choose the gate by.
        held_out: likewise, to score on.
        block_px: side of a place in coarse pixels.
        count: places that were dealt.
        held_out_count: places among them that are held out.
    """

    fit: tuple[Tensor, ...]
    inner: tuple[Tensor, ...]
    held_out: tuple[Tensor, ...]
    block_px: int
    count: int
    held_out_count: int

    @property
    def learned(self) -> tuple[Tensor, ...]:
        """All that training may see once the gate is chosen: `fit`, `inner` and what parts them."""
        return tuple(
            ~_grown(held) & learnable
            for held, learnable in zip(self.held_out, self._learnable, strict=True)
        )

    _learnable: tuple[Tensor, ...] = ()

    def describe(self, ratio: int) -> str:
        """What was held out, for the report."""
        if not self.held_out_count:
            return "Nothing was held out."
        side_px = self.block_px * ratio
        return (
            f"{self.held_out_count} of {self.count} places of {side_px} x {side_px} coarse pixels "
            "were held out."
        )


def deal_places(
    triplets: Sequence[Triplet],
    *,
    validation: float,
    inner: float,
    seed: int,
    block_px: int | None = None,
) -> Places:
    """Hold places out, for the scores and among the others for the gate.

    Args:
        triplets: to deal the ground of.
        validation: share of the ground for the scores, below 1; 0 for none.
        inner: share of the rest for the gate; 0 for none.
        seed: of the deal.
        block_px: side of a place in coarse pixels; a quarter of an image's shorter side when None.

    Raises:
        TrainingError: nothing is left to train on.
    """
    side = block_px or _block_px(triplets)
    learnable = [triplet.learnable.cpu() for triplet in triplets]
    place = _number_places(learnable, side)
    kind = _kinds(triplets)
    names = np.concatenate([place[i][learnable[i]].numpy() for i in range(len(triplets))])
    kinds = np.concatenate([kind[i][learnable[i]].numpy() for i in range(len(triplets))])
    held = _draw(kinds, names, validation, seed)
    rest = ~np.isin(names, held)
    chosen = _draw(kinds[rest], names[rest], inner, seed + 1)
    held_out = [torch.isin(numbers, torch.from_numpy(held)) for numbers in place]
    inside = [torch.isin(numbers, torch.from_numpy(chosen)) for numbers in place]
    fit = [
        known & ~_grown(out) & ~_grown(gate)
        for known, out, gate in zip(learnable, held_out, inside, strict=True)
    ]
    if not any(bool(mask.any()) for mask in fit):
        raise TrainingError(
            "The images are too small to hold places out: nothing is left to train on.",
            "Train on a larger overlap or on several pairs, or hold nothing out.",
        )
    return Places(
        tuple(fit),
        tuple(
            known & gate & ~_grown(out)
            for known, out, gate in zip(learnable, held_out, inside, strict=True)
        ),
        tuple(known & out for known, out in zip(learnable, held_out, strict=True)),
        side,
        len(np.unique(names)),
        len(held),
        tuple(learnable),
    )


def to_fine(ground: Tensor, ratio: int) -> Tensor:
    """(h, w) of coarse pixels to (h*r, w*r) of the fine ones in them."""
    return ground.repeat_interleave(ratio, 0).repeat_interleave(ratio, 1)


class Batch:
    """Crops as a network sees them.

    Args:
        inputs: of `Fuser.prepare`, cut out.
        target: (B, L, H, W) on the fuser's scale.
        valid: (B, H, W) bool, True = learn from.
    """

    def __init__(self, inputs: FuserInputs, target: Tensor, valid: Tensor) -> None:
        self.inputs, self.target, self.valid = inputs, target, valid


class Crops:
    """Batches of crops of prepared triplets, each a function of the seed and the step alone.

    Args:
        fuser: that prepares; on the device, its start fitted.
        triplets: on the CPU; they are kept on the fuser's device as it sees them.
        ground: (h, w) bool a triplet: where targets may be learned from.
        crop_px: side of a crop in coarse pixels; smaller where the images are.
        seed: of all that is drawn.

    Raises:
        TrainingError: there is no ground.
    """

    def __init__(
        self,
        fuser: Fuser,
        triplets: Sequence[Triplet],
        ground: Sequence[Tensor],
        crop_px: int,
        seed: int,
    ) -> None:
        self._ratio, self._seed = fuser.ratio, seed
        self._has_start = fuser.start is not None
        self._images: list[tuple[FuserInputs, Tensor, Tensor]] = []
        self._ground: list[NDArray[np.int64]] = []
        self.crop_px = min(crop_px, *(min(item.pair.hsi.shape[-2:]) for item in triplets))
        device = fuser.low.device
        for triplet, use in zip(triplets, ground, strict=True):
            if bool(use.any()):
                self._ground.append(np.argwhere(use.cpu().numpy()))
                self._images.append(prepared(fuser, triplet.within(use.cpu()).to(device)))
        if not self._ground:
            raise TrainingError("There is no ground to train on.", "Check the images' nodata.")
        sizes = np.array([len(places) for places in self._ground])
        self._share = sizes / sizes.sum()
        self.ground_px = int(sizes.sum())
        """Coarse pixels with something to learn."""

    def batch(self, step: int, size: int) -> Batch:
        """The batch of a step: ``size`` crops, each turned and mirrored by chance."""
        rng = np.random.default_rng([self._seed, step])
        crops = [self._crop(rng) for _ in range(size)]
        coarse, fine, start, target, valid = (
            torch.stack(part) for part in zip(*crops, strict=True)
        )
        return Batch(FuserInputs(coarse, fine, start), target, valid)

    def _crop(self, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """One crop around a pixel of the ground: inputs, target and mask."""
        number = int(rng.choice(len(self._ground), p=self._share))
        inputs, target, valid = self._images[number]
        row, col = self._ground[number][rng.integers(len(self._ground[number]))]
        height, width = inputs.coarse.shape[-2:]
        top = window_around(int(row), self.crop_px, height, rng)
        left = window_around(int(col), self.crop_px, width, rng)
        turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
        start = inputs.start if self._has_start else inputs.start[0]

        def cut(image: Tensor, factor: int) -> Tensor:
            side = self.crop_px * factor
            part = image[0][
                ..., top * factor : top * factor + side, left * factor : left * factor + side
            ]
            part = part.flip(-1) if mirrored else part
            return torch.rot90(part, turns, (-2, -1))

        ratio = self._ratio
        return (
            cut(inputs.coarse, 1),
            cut(inputs.fine, ratio),
            cut(start, ratio) if self._has_start else start,
            cut(target, ratio),
            cut(valid, ratio),
        )


@torch.no_grad()
def prepared(fuser: Fuser, triplet: Triplet) -> tuple[FuserInputs, Tensor, Tensor]:
    """A triplet as a fuser sees it: inputs, (1, L, H, W) target on its scale, and the mask."""
    return fuser.prepare(triplet.pair), fuser.to_scale(triplet.target), triplet.target_valid


def window_around(centre: int, side: int, size: int, rng: np.random.Generator) -> int:
    """The first of ``side`` pixels that hold ``centre`` and lie in an image of ``size``."""
    low, high = max(centre - side + 1, 0), min(centre, size - side)
    return int(rng.integers(low, high + 1))


def _block_px(triplets: Sequence[Triplet]) -> int:
    """A side of places that fits the smallest image."""
    shortest = min(min(triplet.pair.hsi.shape[-2:]) for triplet in triplets)
    return int(np.clip(-(-shortest // BLOCKS_ACROSS), MIN_BLOCK_PX, MAX_BLOCK_PX))


def _number_places(learnable: Sequence[Tensor], side: int) -> list[Tensor]:
    """(h, w) int64 a triplet: the number of each coarse pixel's place."""
    numbers, first = [], 0
    for mask in learnable:
        rows, cols = (-(-size // side) for size in mask.shape)
        grid = torch.arange(first, first + rows * cols).reshape(rows, cols)
        numbers.append(to_fine(grid, side)[: mask.shape[0], : mask.shape[1]])
        first += rows * cols
    return numbers


def _kinds(triplets: Sequence[Triplet]) -> list[Tensor]:
    """(h, w) int64 a triplet: a kind of ground, so that held-out places hold some of each.

    The signs of the strongest components of the spectra; no more is needed to deal fairly.
    """
    spectra = [triplet.pair.hsi[0].movedim(0, -1).cpu().double() for triplet in triplets]
    pixels = torch.cat(
        [item[triplet.learnable.cpu()] for item, triplet in zip(spectra, triplets, strict=True)]
    )
    mean = pixels.mean(0)
    _, vectors = torch.linalg.eigh((pixels - mean).T @ (pixels - mean))
    strongest = vectors[:, -KIND_COMPONENTS:]
    weight = 2 ** torch.arange(strongest.shape[1])
    return [(((item - mean) @ strongest > 0) * weight).sum(-1) for item in spectra]


def _draw(
    kinds: NDArray[np.int64], names: NDArray[np.int64], share: float, seed: int
) -> NDArray[np.int64]:
    """Numbers of the places that are chosen: of a few draws the one that is most like the whole."""
    places, number = np.unique(names, return_inverse=True)
    if share <= 0 or len(places) < 2:
        return np.empty(0, np.int64)
    counts = np.zeros((len(places), int(kinds.max()) + 1))
    np.add.at(counts, (number, kinds), 1)
    rng, count = np.random.default_rng(seed), max(round(share * len(places)), 1)
    draws = [rng.permutation(len(places))[:count] for _draw in range(DRAWS)]

    def unfairness(chosen: NDArray[np.int64]) -> float:
        return float(np.abs(counts[chosen].sum(0) - share * counts.sum(0)).sum())

    return np.sort(places[min(draws, key=unfairness)])


def _grown(mask: Tensor) -> Tensor:
    """(h, w) bool with its margin."""
    return F.max_pool2d(mask[None, None].float(), 2 * MARGIN_PX + 1, 1, MARGIN_PX)[0, 0] > 0

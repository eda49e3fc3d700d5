"""Samples: the labelled pixels of scenes, with the chips around them and the place they are in.

Scenes are cut into cells; a chip is a cell with a margin, so that every labelled pixel belongs to
one chip and the encoder sees what lies around it. Only chips with labels are read and kept. Places
are blocks of ground of a size of their own: what is held out together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import LabelError
from engine.feedback import Feedback
from engine.raster.labels import GroundBlocks
from engine.raster.reflectance import Reflectance, Scratch
from engine.raster.scene import Scene, SceneReader
from engine.raster.spectra import BandMatch
from engine.raster.tiles import Window
from engine.training.targets import PixelTargets, WindowTargets

MIN_PIXELS = 3  # two pixels cannot be in two places that are tested against each other
FEW_PIXELS = 10
MAX_PIXELS_PER_GROUP = 4000  # beyond, more pixels of the same places teach little
MAX_CHIP_BYTES = 512 * 1024**2


@dataclass(frozen=True, eq=False)
class ScenePixels:
    """A scene to train on: how to read it, and what is right in it."""

    scene: Scene
    match: BandMatch
    targets: PixelTargets


@dataclass(frozen=True)
class SampleSizes:
    """Sides of squares, in pixels.

    Args:
        chip_px: of what the encoder sees at a time.
        core_px: of the middle of a chip, whose pixels are its samples; not larger than the chip.
        block_px: of a block of ground, which is held out as a whole.
    """

    chip_px: int
    core_px: int
    block_px: int


@dataclass(frozen=True, eq=False)
class Samples:
    """Labelled chips, and their labelled pixels as one flat list.

    Args:
        reflectance: (N, C, P, P) float32 chips, 0 where not valid.
        valid: (N, P, P) bool, True = use.
        chip: (M,) int64, the chip of each labelled pixel.
        row: (M,) int64, its row in the chip.
        col: (M,) int64, its column in the chip.
        target: (M, K) float32, the share of each class in what is labelled, or one value.
        weight: (M,) float32, the labelled share of the pixel's area.
        pure: (M,) bool, True where one class, or the value, has most of the pixel; only these are
            scored.
        place: (M,) int64, number of the ground block.
        position: (M, 3) int64, scene, row and column, for maps.
    """

    reflectance: Tensor
    valid: Tensor
    chip: Tensor
    row: Tensor
    col: Tensor
    target: Tensor
    weight: Tensor
    pure: Tensor
    place: Tensor
    position: Tensor

    @property
    def shares(self) -> Tensor:
        """(M, K) float32, of classes; rows sum to 1."""
        return self.target

    @property
    def class_index(self) -> Tensor:
        """(M,) int64, the class with the largest share."""
        return self.target.argmax(dim=1)

    @property
    def value(self) -> Tensor:
        """(M,) float32, of samples of a quantity."""
        return self.target[:, 0]

    @property
    def spectra(self) -> Tensor:
        """(M, C) float32 reflectance."""
        return self.reflectance[self.chip, :, self.row, self.col]

    @property
    def num_classes(self) -> int:
        """K."""
        return self.target.shape[1]

    @property
    def num_places(self) -> int:
        """Ground blocks with labels."""
        return len(torch.unique(self.place))

    def class_pixels(self) -> list[int]:
        """Count the pure pixels of each class."""
        counted = torch.bincount(self.class_index[self.pure], minlength=self.num_classes)
        return [int(count) for count in counted]

    def reordered(self, order: Tensor) -> Samples:
        """The same pixels in another order, (M,) int64; chips stay where they are."""
        by_pixel = ("chip", "row", "col", "target", "weight", "pure", "place", "position")
        return replace(self, **{name: getattr(self, name)[order] for name in by_pixel})

    def subset(self, keep: Tensor) -> Samples:
        """The pixels where (M,) ``keep`` is True, with the chips that they lie in.

        Pixels that are left out can still be seen by the encoder around others, without labels.
        """
        chips, chip = torch.unique(self.chip[keep], return_inverse=True)
        return Samples(
            self.reflectance[chips],
            self.valid[chips],
            chip,
            self.row[keep],
            self.col[keep],
            self.target[keep],
            self.weight[keep],
            self.pure[keep],
            self.place[keep],
            self.position[keep],
        )


def collect_samples(
    scenes: Sequence[ScenePixels],
    *,
    sizes: SampleSizes,
    seed: int,
    feedback: Feedback,
) -> Samples:
    """Read the labelled pixels of all scenes.

    1. Count the labelled pixels of each group in each cell of each scene.
    2. Draw cells group by group, the rarest group first, until it has enough pixels.
    3. Read these cells with their margins.

    Args:
        scenes: with their labels, in the bands of the model.
        sizes: of chips, their cores and the blocks of ground.
        seed: of the draw.
        feedback: told what is read.

    Raises:
        LabelError: no labelled pixel lies on a valid pixel of a scene.
    """
    rng = np.random.default_rng(seed)
    cells = np.concatenate(
        [_count_cells(item, index, sizes.core_px, feedback) for index, item in enumerate(scenes)]
    )
    if not len(cells):
        raise LabelError(
            "The labels do not overlap the scene.",
            "Check that both show the same place and that the CRS of both is right.",
        )
    bands = len(scenes[0].match.rows)
    budget = max(MAX_CHIP_BYTES // (4 * bands * sizes.chip_px**2), 1)
    chosen = cells[draw_cells(cells[:, 3:], budget, rng)]
    first = scenes[0].scene
    blocks = GroundBlocks(first.crs, first.transform, sizes.block_px)
    parts = [
        _read_cells(item, index, chosen, sizes, blocks, feedback)
        for index, item in enumerate(scenes)
        if (chosen[:, 0] == index).any()
    ]
    samples = _join(parts)
    if not len(samples.chip):
        raise LabelError(
            "None of the labelled pixels is valid in the scene.",
            "Check the scene's nodata where the labels are.",
        )
    return samples.reordered(_order_by_block(samples.position, sizes.block_px))


def _order_by_block(position: Tensor, block_px: int) -> Tensor:
    """Sort pixels by scene, block of ``block_px`` and place in it.

    Fits deal pixels into batches by their number, so numbers must not depend on how chips are cut:
    a model whose encoder stays shut is the same to the bit with chips of any size.
    """
    scene, row, col = position.numpy().T
    return torch.from_numpy(np.lexsort((col, row, col // block_px, row // block_px, scene)))


def draw_cells(
    counts: NDArray[np.int64], budget: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Choose cells so that rare groups get all theirs and common ones no more than they need.

    Args:
        counts: (cells, groups) labelled pixels of each class or step of values.
        budget: cells at most.
        rng: decides the order within a group.

    Returns:
        indices of the chosen cells, ascending.
    """
    taken = np.zeros(len(counts), bool)
    order = rng.permutation(len(counts))
    for group in np.argsort(counts.sum(axis=0), kind="stable"):
        candidates = order[counts[order, group] > 0]
        # A share of the budget for each group, so that the first do not use it up.
        room = max(budget // counts.shape[1], 1)
        enough = int(counts[taken, group].sum())
        for cell in candidates[~taken[candidates]][:room]:
            if enough >= MAX_PIXELS_PER_GROUP:
                break
            taken[cell] = True
            enough += int(counts[cell, group])
    return np.flatnonzero(taken)[:budget]


def _count_cells(
    item: ScenePixels, scene_index: int, core_px: int, feedback: Feedback
) -> NDArray[np.int64]:
    """(cells, 3 + groups): scene, row and column offset, and labelled pixels of each group."""
    scene, groups = item.scene, item.targets.groups
    found = []
    for row_off in range(0, scene.height, core_px):
        feedback.raise_if_cancelled()
        rows = min(core_px, scene.height - row_off)
        targets = item.targets.read(Window(row_off, 0, rows, scene.width))
        row, col = np.nonzero(targets.used)
        if len(row):
            cols = -(-scene.width // core_px)
            counts = np.zeros((cols, groups), np.int64)
            np.add.at(counts, (col // core_px, targets.group[row, col]), 1)
            labelled = np.flatnonzero(counts.sum(axis=1))
            where = np.stack(
                [np.full_like(labelled, scene_index), np.full_like(labelled, row_off),
                 labelled * core_px],
                axis=1,
            )  # fmt: skip
            found.append(np.concatenate([where, counts[labelled]], axis=1))
    return np.concatenate(found) if found else np.empty((0, 3 + groups), np.int64)


def _read_cells(
    item: ScenePixels,
    scene_index: int,
    chosen: NDArray[np.int64],
    sizes: SampleSizes,
    blocks: GroundBlocks,
    feedback: Feedback,
) -> Samples:
    """Read the chosen cells of one scene, in the order of its rows."""
    core_px = sizes.core_px
    to_reflectance = Reflectance(item.scene, item.match, torch.device("cpu"))
    places = chosen[chosen[:, 0] == scene_index, 1:3]
    parts = []
    with SceneReader(item.scene, item.match.scene_band_index) as reader:
        for number, (row_off, col_off) in enumerate(places.tolist()):
            feedback.raise_if_cancelled()
            feedback.progress(number / len(places), f"Reading samples of {item.scene.name}")
            cell = Window(
                row_off,
                col_off,
                min(core_px, item.scene.height - row_off),
                min(core_px, item.scene.width - col_off),
            )
            chip, valid, origin = _read_chip(
                reader, to_reflectance, item.scene, cell, sizes.chip_px
            )
            targets = item.targets.read(cell)
            parts.append(_samples_of(chip, valid, origin, cell, targets, scene_index))
    joined = _join(parts)
    row, col = joined.position[:, 1].numpy(), joined.position[:, 2].numpy()
    block = blocks.block_of(item.scene, row, col)
    # One number a block: rows and columns stay far below 2^30 on any grid.
    joined.place.copy_(torch.from_numpy((block[:, 0] << 31) + block[:, 1]))
    return joined


def _read_chip(
    reader: SceneReader, to_reflectance: Reflectance, scene: Scene, cell: Window, chip_px: int
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """A chip around a cell; what lies outside the scene is not valid.

    Returns:
        (C, P, P) float32, (P, P) bool, and row and column of the chip's first pixel in the scene.
    """
    margin = (chip_px - cell.height) // 2, (chip_px - cell.width) // 2
    top, left = cell.row_off - margin[0], cell.col_off - margin[1]
    row, col = max(top, 0), max(left, 0)
    window = Window(
        row, col, min(top + chip_px, scene.height) - row, min(left + chip_px, scene.width) - col
    )
    piece = to_reflectance.load(reader.read(window))
    whole = slice(0, window.height), slice(0, window.width)
    (read,), (read_valid,) = to_reflectance.batch(piece, [whole], Scratch(torch.device("cpu")))
    inside = np.s_[row - top : row - top + window.height, col - left : col - left + window.width]
    chip = torch.zeros(len(read), chip_px, chip_px)
    valid = torch.zeros(chip_px, chip_px, dtype=torch.bool)
    chip[(slice(None), *inside)] = read
    valid[inside] = read_valid
    return chip, valid, (top, left)


def _samples_of(
    chip: Tensor,
    valid: Tensor,
    origin: tuple[int, int],
    cell: Window,
    targets: WindowTargets,
    scene_index: int,
) -> Samples:
    """The labelled pixels of one chip; its place is filled in later."""
    top, left = cell.row_off - origin[0], cell.col_off - origin[1]
    in_cell = valid[top : top + cell.height, left : left + cell.width].numpy()
    row, col = np.nonzero(targets.used & in_cell)
    position = np.stack([np.full_like(row, scene_index), row + cell.row_off, col + cell.col_off], 1)
    return Samples(
        chip[None],
        valid[None],
        torch.zeros(len(row), dtype=torch.int64),
        torch.from_numpy(row + top),
        torch.from_numpy(col + left),
        torch.from_numpy(targets.target[:, row, col].T.copy()),
        torch.from_numpy(targets.weight[row, col]),
        torch.from_numpy(targets.pure[row, col]),
        torch.zeros(len(row), dtype=torch.int64),
        torch.from_numpy(position),
    )


def _join(parts: Sequence[Samples]) -> Samples:
    """Samples of several chips or scenes as one."""
    offsets = np.cumsum([0] + [len(part.reflectance) for part in parts[:-1]])
    chip = [part.chip + int(offset) for part, offset in zip(parts, offsets, strict=True)]
    return Samples(
        torch.cat([part.reflectance for part in parts]),
        torch.cat([part.valid for part in parts]),
        torch.cat(chip),
        *(
            torch.cat([getattr(part, name) for part in parts])
            for name in ("row", "col", "target", "weight", "pure", "place", "position")
        ),
    )

"""What all tiles are looked through for: enough data in each, and the statistics of the bands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from engine.errors import SceneError
from engine.feedback import Feedback
from engine.training.tile_plan import Anchor, TilePlan
from engine.training.tile_reader import StoredScenes, TileReader

MIN_VALID_SHARE = 0.5  # of a tile's pixels, and of a token's
# One unit of stored reflectance x 10^4: below it a band's spread is that of its storage.
MIN_STD = 1e-4


@dataclass(frozen=True)
class TileShape:
    """How large tiles are, and how much of one must have been measured.

    Args:
        tile_px: side of a tile.
        patch_px: side of a token; divides the tile.
        kept_tokens: tokens of a tile that a model is shown, and that must hold data.

    Raises:
        ValueError: the tile is no whole number of tokens.
    """

    tile_px: int
    patch_px: int
    kept_tokens: int = 1

    def __post_init__(self) -> None:
        if self.tile_px % self.patch_px:
            raise ValueError(
                f"A tile of {self.tile_px} px is no whole number of tokens of {self.patch_px} px."
            )

    def is_usable(self, valid: NDArray[np.bool_]) -> bool:
        """Whether (P, P) valid pixels are enough: half of all, and of as many tokens as needed."""
        if valid.all():
            return True
        tokens = valid_tokens(torch.from_numpy(valid)[None], self.patch_px)
        enough = int(tokens.sum()) >= self.kept_tokens
        return enough and float(valid.mean()) >= MIN_VALID_SHARE


def valid_tokens(valid: Tensor, patch_px: int) -> Tensor:
    """Tell which tokens hold data: at least half of their pixels are valid.

    Args:
        valid: (B, H, W) bool, sides divisible by ``patch_px``.
        patch_px: side of a token.

    Returns:
        (B, N) bool, tokens in row order.
    """
    share = F.avg_pool2d(valid[:, None].float(), patch_px)
    return share.flatten(1) >= MIN_VALID_SHARE


class _Statistics:
    """Mean and spread of bands over pixels, one tile after the other."""

    def __init__(self, channels: int) -> None:
        self._count = np.zeros(channels)
        self._sum = np.zeros(channels)
        self._square = np.zeros(channels)

    def add(self, values: NDArray[np.float32], present: NDArray[np.bool_]) -> None:
        """Add (P, N) valid pixels of the bands that are present."""
        exact = values.astype(np.float64)
        self._count[present] += values.shape[1]
        self._sum[present] += exact.sum(axis=1)
        self._square[present] += np.square(exact).sum(axis=1)

    def result(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(C,) mean and (C,) spread; 0 and 1 for a band without a training pixel."""
        count = np.maximum(self._count, 1)
        mean = self._sum / count
        variance = np.maximum(self._square / count - np.square(mean), 0)
        std = np.where(self._count > 0, np.maximum(np.sqrt(variance), MIN_STD), 1.0)
        return mean.astype(np.float32), std.astype(np.float32)


def survey(
    stored: StoredScenes, plan: TilePlan, shape: TileShape, channels: int, feedback: Feedback
) -> tuple[TilePlan, NDArray[np.float32], NDArray[np.float32]]:
    """Read all tiles once.

    Args:
        stored: the scenes.
        plan: their tiles.
        shape: of a tile, and what makes it usable.
        channels: C.
        feedback: told what is left out.

    Returns:
        the plan without the tiles that cannot be used; (C,) float32 mean and (C,) spread of the
        valid pixels of the training tiles.

    Raises:
        SceneError: a scene cannot be read, or no training tile has enough data.
    """
    anchors = sorted(
        (*plan.training, *plan.held_out), key=lambda a: (a.scene_index, a.row_off, a.col_off)
    )
    trained = frozenset(plan.training)
    statistics = _Statistics(channels)
    unusable = []
    with TileReader(stored, channels) as reader:
        for number, anchor in enumerate(anchors):
            feedback.raise_if_cancelled()
            feedback.progress(number / len(anchors), "Looking through the scenes")
            values, valid = reader.read(anchor.scene_index, plan.window(anchor))
            if not shape.is_usable(valid):
                unusable.append(anchor)
            elif anchor in trained:
                present = stored.bands[anchor.scene_index].present
                statistics.add(values[:, valid], present)
    _tell_unusable(stored, anchors, unusable, shape, feedback)
    usable_plan = plan.without(frozenset(unusable))
    if not usable_plan.training:
        raise SceneError(
            f"None of the {len(plan.training)} tiles of {shape.tile_px} px to train on has enough "
            f"data: half of the pixels, and {shape.kept_tokens} tokens.",
            "Choose scenes with less nodata, a preset with smaller tiles, or a higher mask ratio.",
        )
    return usable_plan, *statistics.result()


def _tell_unusable(
    stored: StoredScenes,
    anchors: Sequence[Anchor],
    unusable: Sequence[Anchor],
    shape: TileShape,
    feedback: Feedback,
) -> None:
    """Say how many tiles of which scene are left out."""
    for index, scene in enumerate(stored.scenes):
        without = sum(anchor.scene_index == index for anchor in unusable)
        if without:
            total = sum(anchor.scene_index == index for anchor in anchors)
            feedback.warning(
                f"{without} of {total} tiles of {scene.name} are left out: less than half of "
                f"their pixels have data, or fewer than {shape.kept_tokens} of their tokens."
            )

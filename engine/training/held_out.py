"""Reconstructions of tiles that were held out: their scores, and some of them as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.feedback import Feedback
from engine.models.mae import StudentOutput, compose
from engine.training.masking import MaskingSettings, TokenMask, draw_mask
from engine.training.reconstruction import ReconstructionResult, ReconstructionScores, pixels_of
from engine.training.scene_tiles import SceneTiles, TileBatch
from engine.training.tile_plan import Anchor
from engine.training.tile_survey import valid_tokens

MAX_PICTURES = 4
MASK_SEED = 0  # the same tiles are always shown in the same part, whatever was trained how


@dataclass(frozen=True, eq=False)
class ScaledTiles:
    """Tiles as a model sees them, and the way back: reflectance = x * spread + offset.

    Args:
        x: (B, C, P, P) float32, 0 where not valid and where a band is not present.
        offset: reflectance, in a shape that broadcasts to that of ``x``.
        spread: likewise.
    """

    x: Tensor
    offset: Tensor
    spread: Tensor

    @classmethod
    def standardised(cls, batch: TileBatch, mean: Tensor, std: Tensor) -> ScaledTiles:
        """By (C,) mean and (C,) spread, the same for all tiles."""
        return cls(batch.standardised(mean, std), mean[:, None, None], std[:, None, None])

    def reflectance(self, image: Tensor) -> Tensor:
        """(B, C, P, P) float32 reflectance of an image in the model's units."""
        return image.float() * self.spread + self.offset


class Reconstructor(Protocol):
    """A trained masked autoencoder of any kind."""

    @property
    def patch_px(self) -> int:
        """Side of a token."""

    def scaled(self, batch: TileBatch) -> ScaledTiles:
        """What the model sees of tiles that are on its device."""

    def predict(self, x: Tensor, ids_keep: Tensor) -> StudentOutput:
        """Predict the tokens that are not kept."""


@dataclass(frozen=True, eq=False)
class TilePicture:
    """One tile with its reconstruction, on the CPU.

    Args:
        scene_name: of its scene.
        anchor: where it lies.
        reflectance: (C, P, P) float32 as measured.
        reconstructed: (C, P, P) float32, as measured where it was shown, else predicted.
        hidden: (P, P) bool, True where it was not shown.
        valid: (P, P) bool, True = measured.
        band_present: (C,) bool.
        patch_px: side of a token.
    """

    scene_name: str
    anchor: Anchor
    reflectance: NDArray[np.float32]
    reconstructed: NDArray[np.float32]
    hidden: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    band_present: NDArray[np.bool_]
    patch_px: int


@dataclass(frozen=True, eq=False)
class HeldOutCheck:
    """How well tiles are reconstructed that training did not see.

    Args:
        scores: None when no tile was held out.
        pictures: of held-out tiles; of training tiles when none was held out.
    """

    scores: ReconstructionResult | None
    pictures: tuple[TilePicture, ...]


@torch.no_grad()
def check_held_out(
    model: Reconstructor,
    tiles: SceneTiles,
    mask_ratio: float,
    *,
    batch_tiles: int,
    device: torch.device,
    feedback: Feedback,
) -> HeldOutCheck:
    """Reconstruct the held-out tiles from a random part of their tokens.

    What is shown is drawn by chance alone and the same for every model, so that the scores of
    models that were trained with other masks can be compared.

    Args:
        model: trained, in eval mode, on the device.
        tiles: where some may be held out.
        mask_ratio: share of the tokens to hide.
        batch_tiles: tiles at a time.
        device: of the model.
        feedback: asked whether to go on.

    Raises:
        CancelledError: the user cancelled.
        SceneError: a scene cannot be read any more.
    """
    held_out = tiles.plan.held_out
    scores = ReconstructionScores()
    pictures: list[TilePicture] = []
    anchors = held_out or _spread(tiles.plan.training)
    shown = set(_spread(anchors))
    generator = torch.Generator().manual_seed(MASK_SEED)
    for start, batch in zip(
        range(0, len(anchors), batch_tiles), tiles.batches_of(anchors, batch_tiles), strict=True
    ):
        feedback.raise_if_cancelled()
        here = batch.to(device)
        mask = random_mask(here, model.patch_px, mask_ratio, generator)
        seen = model.scaled(here)
        composite = seen.reflectance(compose(seen.x, model.predict(seen.x, mask.ids_keep)))
        if held_out:
            _count(scores, composite, seen, here, mask)
        pictures += [
            _picture(tiles, anchor, model, batch, index, composite, mask)
            for index, anchor in enumerate(anchors[start : start + batch_tiles])
            if anchor in shown
        ]
    return HeldOutCheck(scores.result() if held_out else None, tuple(pictures))


def random_mask(
    batch: TileBatch, patch_px: int, mask_ratio: float, generator: torch.Generator
) -> TokenMask:
    """Draw a mask by chance alone; tokens without data are hidden."""
    token_valid = valid_tokens(batch.valid, patch_px)
    scores = torch.zeros(token_valid.shape, device=token_valid.device)
    return draw_mask(scores, token_valid, MaskingSettings(mask_ratio, guided_share=0.0), generator)


def _count(
    scores: ReconstructionScores,
    composite: Tensor,
    seen: ScaledTiles,
    batch: TileBatch,
    mask: TokenMask,
) -> None:
    """Add a batch to the scores; both images are in reflectance already."""
    mean = composite.new_zeros(composite.shape[1])
    scores.update(
        composite,
        seen.reflectance(seen.x),
        batch.valid,
        batch.band_present,
        mask.masked,
        mean,
        torch.ones_like(mean),
    )


def _spread(anchors: Sequence[Anchor]) -> tuple[Anchor, ...]:
    """A few of the tiles, far from one another in the list."""
    chosen = np.linspace(0, len(anchors) - 1, min(len(anchors), MAX_PICTURES)).astype(int)
    return tuple(anchors[i] for i in chosen)


def _picture(
    tiles: SceneTiles,
    anchor: Anchor,
    model: Reconstructor,
    batch: TileBatch,
    index: int,
    composite: Tensor,
    mask: TokenMask,
) -> TilePicture:
    """Keep one tile of a batch; ``batch`` is on the CPU, the rest on the device.

    ``composite`` is in reflectance.
    """
    valid = batch.valid[index]
    known = valid & batch.band_present[index][:, None, None]
    reconstructed = composite[index].cpu() * known
    hidden = pixels_of(mask.masked[index : index + 1], valid.shape)[0].cpu()
    return TilePicture(
        tiles.scenes[anchor.scene_index].name,
        anchor,
        batch.reflectance[index].numpy(),
        reconstructed.numpy(),
        hidden.numpy(),
        valid.numpy(),
        batch.band_present[index].numpy(),
        model.patch_px,
    )

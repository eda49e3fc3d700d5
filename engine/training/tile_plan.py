"""Which tiles are trained on and which are held out: windows of scenes, and where they lie.

Every scene is cut into blocks of the tile's size. Blocks are dealt by place, so that two scenes of
one place hold out the same ground. Training tiles move about, but never onto held-out ground.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import SceneError
from engine.raster.ground import box_in, place_of
from engine.raster.scene import Scene
from engine.raster.tiles import Window
from engine.training.places import hold_out

JITTER_TRIES = 8  # where half of the ground around is held out, one in 200 tiles stays in its place
# A strip narrower than this share of a tile beyond the last block is left to jitter alone.
EDGE_SHARE = 0.25
_TOUCH_PX = 1e-3  # as with grids: below it two edges are one


@dataclass(frozen=True)
class Anchor:
    """A tile in its place: scene, and row and column of its first pixel, all 0-based."""

    scene_index: int
    row_off: int
    col_off: int


@dataclass(frozen=True, eq=False)
class TilePlan:
    """The tiles of all scenes.

    Args:
        tile_px: side of a tile.
        sizes_px: (height, width) of each scene.
        training: tiles to train on; no two held-out pixels and none of these share ground.
        held_out: tiles for the scores.
        keep_out: for each scene (K, 4) float64, the held-out ground in its pixels: first row,
            first column, row stop, column stop.
    """

    tile_px: int
    sizes_px: tuple[tuple[int, int], ...]
    training: tuple[Anchor, ...]
    held_out: tuple[Anchor, ...]
    keep_out: tuple[NDArray[np.float64], ...]

    def window(self, anchor: Anchor) -> Window:
        """The pixels of a tile in its place."""
        return Window(anchor.row_off, anchor.col_off, self.tile_px, self.tile_px)

    def jittered(self, anchor: Anchor, rng: np.random.Generator) -> Iterator[Window]:
        """Windows around a training tile, best first: moved by up to half a tile, then in place.

        None of them touches held-out ground, and all lie inside the scene.
        """
        p = self.tile_px
        height, width = self.sizes_px[anchor.scene_index]
        boxes = self.keep_out[anchor.scene_index]
        low = max(anchor.row_off - p // 2, 0), max(anchor.col_off - p // 2, 0)
        high = min(anchor.row_off + p // 2, height - p), min(anchor.col_off + p // 2, width - p)
        for _try in range(JITTER_TRIES):
            row, col = (int(value) for value in rng.integers(low, high, endpoint=True))
            if not touches(boxes, row, col, p):
                yield Window(row, col, p, p)
        yield self.window(anchor)

    def without(self, unusable: frozenset[Anchor]) -> TilePlan:
        """The same plan without some tiles; held-out ground stays out of bounds."""
        return TilePlan(
            self.tile_px,
            self.sizes_px,
            tuple(anchor for anchor in self.training if anchor not in unusable),
            tuple(anchor for anchor in self.held_out if anchor not in unusable),
            self.keep_out,
        )


def plan_tiles(
    scenes: Sequence[Scene],
    tile_px: int,
    validation: float,
    seed: int,
    *,
    scored: int | None = None,
) -> TilePlan:
    """Cut scenes into tiles and deal them.

    Args:
        scenes: one or more.
        tile_px: side of a tile.
        validation: share of the blocks to hold out, 0 to below 1; at least one block unless 0,
            and never all blocks of a scene.
        seed: of the deal.
        scored: how many scenes, from the first on, hold ground out for the scores; None: all.
            The others are trained on wherever they do not show that ground.

    Raises:
        SceneError: a scene is smaller than a tile.
    """
    for scene in scenes:
        _check_size(scene, tile_px)
    blocks = [
        anchor for index, scene in enumerate(scenes) for anchor in _blocks(index, scene, tile_px)
    ]
    dealt = [anchor for anchor in blocks if scored is None or anchor.scene_index < scored]
    held = set(_deal(scenes, dealt, tile_px, validation, seed))
    keep_out = tuple(_keep_out(scenes, index, held, tile_px) for index in range(len(scenes)))
    edges = [
        anchor for index, scene in enumerate(scenes) for anchor in _edges(index, scene, tile_px)
    ]
    training = [
        anchor
        for anchor in (*blocks, *edges)
        if anchor not in held
        and not touches(keep_out[anchor.scene_index], anchor.row_off, anchor.col_off, tile_px)
    ]
    return TilePlan(
        tile_px,
        tuple((scene.height, scene.width) for scene in scenes),
        tuple(training),
        tuple(anchor for anchor in blocks if anchor in held),
        keep_out,
    )


def touches(boxes: NDArray[np.float64], row_off: int, col_off: int, side_px: int) -> bool:
    """Whether a square shares ground with any of (K, 4) boxes."""
    apart = (
        (boxes[:, 0] > row_off + side_px - _TOUCH_PX)
        | (boxes[:, 1] > col_off + side_px - _TOUCH_PX)
        | (boxes[:, 2] < row_off + _TOUCH_PX)
        | (boxes[:, 3] < col_off + _TOUCH_PX)
    )
    return not bool(apart.all())


def _check_size(scene: Scene, tile_px: int) -> None:
    if min(scene.height, scene.width) < tile_px:
        raise SceneError(
            f"{scene.name} is {scene.width} x {scene.height} px, smaller than a tile of "
            f"{tile_px} x {tile_px} px.",
            "Choose a preset with smaller tiles, or leave this scene out.",
        )


def _blocks(index: int, scene: Scene, tile_px: int) -> list[Anchor]:
    """The whole blocks of a scene, in rows from its first pixel."""
    return [
        Anchor(index, row, col)
        for row in range(0, scene.height - tile_px + 1, tile_px)
        for col in range(0, scene.width - tile_px + 1, tile_px)
    ]


def _edges(index: int, scene: Scene, tile_px: int) -> list[Anchor]:
    """Tiles at the far edges that reach what the blocks leave over; for training only."""
    rows, cols = (
        list(range(0, side - tile_px + 1, tile_px)) for side in (scene.height, scene.width)
    )
    last_row, last_col = scene.height - tile_px, scene.width - tile_px
    wide = EDGE_SHARE * tile_px
    more_rows = [last_row] if last_row - rows[-1] >= wide else []
    more_cols = [last_col] if last_col - cols[-1] >= wide else []
    places = [(row, col) for row in rows for col in more_cols]
    places += [(row, col) for row in more_rows for col in (*cols, *more_cols)]
    return [Anchor(index, row, col) for row, col in places]


def _deal(
    scenes: Sequence[Scene], blocks: Sequence[Anchor], tile_px: int, validation: float, seed: int
) -> list[Anchor]:
    """The blocks that are held out: the same share of every scene, whole places over all scenes."""
    place = np.asarray([_place(scenes, anchor, tile_px) for anchor in blocks])
    scene_index = np.asarray([anchor.scene_index for anchor in blocks])
    _names, number = np.unique(place, axis=0, return_inverse=True)
    held = hold_out(scene_index, number.ravel(), validation, seed)
    return [anchor for anchor, is_held in zip(blocks, held, strict=True) if is_held]


def _place(scenes: Sequence[Scene], anchor: Anchor, tile_px: int) -> tuple[int, int, int]:
    """Name the ground around a block's centre, in blocks of the first scene that shares a CRS."""
    scene = scenes[anchor.scene_index]
    first = next(i for i, other in enumerate(scenes) if _comparable(scene, other))
    middle_row, middle_col = (
        np.asarray([offset + tile_px / 2]) for offset in (anchor.row_off, anchor.col_off)
    )
    rows, cols = place_of(scene, middle_row, middle_col, scenes[first])
    row, col = float(rows[0]) / tile_px, float(cols[0]) / tile_px
    if not np.isfinite((row, col)).all():  # nowhere in that CRS: ground of its own
        return -1 - anchor.scene_index, anchor.row_off, anchor.col_off
    return first, int(np.floor(row)), int(np.floor(col))


def _comparable(scene: Scene, other: Scene) -> bool:
    """Whether the places of two scenes can be told apart: both have a CRS, or none has.

    Scenes without one are taken to lie in one plane, so that two dates of a place stay together.
    """
    return (scene.crs is None) == (other.crs is None)


def _keep_out(
    scenes: Sequence[Scene], index: int, held: set[Anchor], tile_px: int
) -> NDArray[np.float64]:
    """(K, 4) the held-out ground of all scenes in the pixels of one, where it shows any."""
    scene = scenes[index]
    boxes = [
        box_in(
            scenes[anchor.scene_index],
            Window(anchor.row_off, anchor.col_off, tile_px, tile_px),
            scene,
        )
        for anchor in sorted(held, key=lambda a: (a.scene_index, a.row_off, a.col_off))
        if _comparable(scenes[anchor.scene_index], scene)
    ]
    found = np.asarray(boxes, np.float64).reshape(-1, 4)
    inside = (
        np.isfinite(found).all(axis=1)
        & (found[:, 0] < scene.height)
        & (found[:, 1] < scene.width)
        & (found[:, 2] > 0)
        & (found[:, 3] > 0)
    )
    return found[inside]

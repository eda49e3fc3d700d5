"""Scenes as an endless supply of tiles: read on the fly, dealt by place, the same for a seed.

What a batch holds depends on the seed, the epoch and the tile's turn in it, and on nothing that
happened before. So a run can go on from any step, and every process of several can make its own
part of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.feedback import Feedback
from engine.raster.band_presence import PresentBands, match_present_bands, select_bands
from engine.raster.ground import pixel_size_m
from engine.raster.scene import Scene
from engine.raster.spectra import BandTable
from engine.raster.threads import Crew, Relay
from engine.training.tile_plan import Anchor, TilePlan, plan_tiles
from engine.training.tile_reader import StoredScenes, TileReader
from engine.training.tile_survey import TileShape, survey

_WAITING_BATCHES = 2  # one is used, one waits, one is read

T = TypeVar("T")
A = TypeVar("A", bound=np.generic)


@dataclass(frozen=True, eq=False)
class TileBatch:
    """Tiles of one size, as a model is trained on them.

    Args:
        reflectance: (B, C, P, P) float32, 0 where not valid and where a band is not present.
        valid: (B, P, P) bool, True = use.
        band_present: (B, C) bool, True where the tile's scene has the band.
        scene_index: (B,) int64.
        pixel_size_m: (B,) float32.
    """

    reflectance: Tensor
    valid: Tensor
    band_present: Tensor
    scene_index: Tensor
    pixel_size_m: Tensor

    def __len__(self) -> int:
        return len(self.reflectance)

    def to(self, device: torch.device) -> TileBatch:
        """The same batch on a device."""
        return TileBatch(*(value.to(device, non_blocking=True) for value in self._values()))

    def standardised(self, mean: Tensor, std: Tensor) -> Tensor:
        """What a model sees of the tiles.

        In place after the first step: fresh memory for each would cost as much as the steps.

        Args:
            mean: (C,) of the normalisation.
            std: (C,) of the normalisation.

        Returns:
            (B, C, P, P) float32, 0 where not valid and where a band is not present.
        """
        x = self.reflectance.sub(mean[:, None, None]).div_(std[:, None, None])
        x.masked_fill_(~self.valid[:, None], 0.0)
        return x.masked_fill_(~self.band_present[:, :, None, None], 0.0)

    def pinned(self) -> TileBatch:
        """The same batch in memory that a GPU can fetch by itself."""
        return TileBatch(*(value.pin_memory() for value in self._values()))

    def _values(self) -> tuple[Tensor, ...]:
        return (
            self.reflectance,
            self.valid,
            self.band_present,
            self.scene_index,
            self.pixel_size_m,
        )


class SceneTiles:
    """Tiles of any number of scenes of any size; see `SceneTiles.open`.

    Args:
        stored: the scenes, and what each gives of the bands.
        bands: C, the model's.
        shape: of the tiles.
        plan: which tiles there are.
        mean: (C,) float32 reflectance over the valid pixels of the training tiles.
        std: (C,) float32, at least `engine.training.tile_survey.MIN_STD`.
        seed: of everything that is drawn.
    """

    def __init__(
        self,
        stored: StoredScenes,
        bands: BandTable,
        shape: TileShape,
        plan: TilePlan,
        mean: NDArray[np.float32],
        std: NDArray[np.float32],
        seed: int,
    ) -> None:
        self.stored = stored
        self.bands = bands
        self.shape = shape
        self.plan = plan
        self.mean = torch.from_numpy(mean)
        self.std = torch.from_numpy(std)
        self.seed = seed
        self.present = np.stack([item.present for item in stored.bands])
        self._pixel_size_m = np.asarray([pixel_size_m(scene) for scene in stored.scenes])

    @classmethod
    def open(
        cls,
        scenes: Sequence[Scene],
        bands: BandTable,
        shape: TileShape,
        *,
        validation: float,
        seed: int,
        feedback: Feedback,
        scored: int | None = None,
    ) -> SceneTiles:
        """Look through scenes once, and prepare to read their tiles.

        1. Find the model's bands in every scene; those that no scene has are left out.
        2. Deal the tiles into training and held out.
        3. Read all tiles: leave out those with too little data, and compute the statistics of the
           training tiles.

        Args:
            scenes: one or more; the first is the anchor of the ground that is held out.
            bands: that the model is to have.
            shape: of the tiles.
            validation: share of the ground to hold out, 0 to below 1.
            seed: of everything that is drawn.
            feedback: told what is missing.
            scored: how many scenes, from the first on, hold ground out; None: all.

        Raises:
            SceneError: a scene cannot be read or is smaller than a tile, or no tile has enough
                data.
            BandMatchError: a scene has none of the bands.
        """
        found = [match_present_bands(bands, scene) for scene in scenes]
        bands, found = _bands_of_any(bands, found, feedback)
        for note in dict.fromkeys(note for item in found for note in item.notes):
            feedback.warning(note)
        stored = StoredScenes(scenes, found)
        plan = plan_tiles(scenes, shape.tile_px, validation, seed, scored=scored)
        plan, mean, std = survey(stored, plan, shape, len(bands), feedback)
        if validation > 0 and not plan.held_out:
            feedback.warning(
                "No tile could be held out, so that all scores would be of ground that was "
                "trained on: there are none. Add a scene, or choose a preset with smaller tiles."
            )
        return cls(stored, bands, shape, plan, mean, std, seed)

    @property
    def scenes(self) -> tuple[Scene, ...]:
        """The scenes, in order."""
        return self.stored.scenes

    def steps_per_epoch(self, batch_tiles: int) -> int:
        """Full batches that come nearest to one visit to each training tile."""
        return max(round(len(self.plan.training) / batch_tiles), 1)

    def training_batches(
        self, batch_tiles: int, steps: range, *, rank: int = 0, ranks: int = 1, pin: bool = False
    ) -> Iterator[TileBatch]:
        """Read batches of training tiles: moved, turned and mirrored; a thread reads ahead.

        Args:
            batch_tiles: tiles of a batch over all processes, a multiple of ``ranks``.
            steps: numbers of the steps to read for, counted from the start of the training.
            rank: of this process, from 0.
            ranks: how many processes share a batch.
            pin: put batches where a GPU can fetch them.

        Raises:
            SceneError: a scene cannot be read.
        """
        share = batch_tiles // ranks

        def make(reader: TileReader, step: int) -> TileBatch:
            draws = self._draws(step, batch_tiles)[rank * share : (rank + 1) * share]
            batch = self._batch(reader, draws, augment=True)
            return batch.pinned() if pin else batch

        return self._read_ahead(list(steps), make)

    def held_out_batches(self, batch_tiles: int) -> Iterator[TileBatch]:
        """Read the held-out tiles as they are, in order; the last batch may be smaller."""
        return self.batches_of(self.plan.held_out, batch_tiles)

    def batches_of(self, anchors: Sequence[Anchor], batch_tiles: int) -> Iterator[TileBatch]:
        """Read tiles in their places; the last batch may be smaller."""
        parts = [anchors[i : i + batch_tiles] for i in range(0, len(anchors), batch_tiles)]

        def make(reader: TileReader, part: Sequence[Anchor]) -> TileBatch:
            return self._batch(reader, [(anchor, None) for anchor in part], augment=False)

        return self._read_ahead(parts, make)

    def _draws(self, step: int, batch_tiles: int) -> list[tuple[Anchor, np.random.Generator]]:
        """The tiles of one batch, each with the generator of its own chance."""
        per_epoch = self.steps_per_epoch(batch_tiles)
        epoch, place = divmod(step, per_epoch)
        anchors = self.plan.training
        order = np.random.default_rng([self.seed, epoch]).permutation(len(anchors))
        turns = range(place * batch_tiles, (place + 1) * batch_tiles)
        return [
            (anchors[order[turn % len(order)]], np.random.default_rng([self.seed, epoch, turn]))
            for turn in turns
        ]

    def _batch(
        self,
        reader: TileReader,
        draws: Sequence[tuple[Anchor, np.random.Generator | None]],
        *,
        augment: bool,
    ) -> TileBatch:
        """Read the tiles of one batch."""
        p = self.shape.tile_px
        reflectance = np.zeros((len(draws), len(self.bands), p, p), np.float32)
        valid = np.empty((len(draws), p, p), np.bool_)
        for place, (anchor, rng) in enumerate(draws):
            present = self.present[anchor.scene_index]
            values, usable = self._read(reader, anchor, rng)
            if augment and rng is not None:
                turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
                values = _turned(values, turns, mirror)
                usable = _turned(usable, turns, mirror)
            if present.all():
                reflectance[place] = values
            else:
                reflectance[place, present] = values
            valid[place] = usable
        index = np.asarray([anchor.scene_index for anchor, _rng in draws], np.int64)
        return TileBatch(
            torch.from_numpy(reflectance),
            torch.from_numpy(valid),
            torch.from_numpy(self.present[index]),
            torch.from_numpy(index),
            torch.from_numpy(self._pixel_size_m[index].astype(np.float32)),
        )

    def _read(
        self, reader: TileReader, anchor: Anchor, rng: np.random.Generator | None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Read a tile: the first of the windows around its place that has enough data."""
        if rng is None:
            return reader.read(anchor.scene_index, self.plan.window(anchor))
        values, valid = None, None
        for window in self.plan.jittered(anchor, rng):
            values, valid = reader.read(anchor.scene_index, window)
            if self.shape.is_usable(valid):
                break
        if values is None or valid is None:
            raise RuntimeError("A tile always has the window of its own place.")
        return values, valid

    def _read_ahead(
        self, items: Sequence[T], make: Callable[[TileReader, T], TileBatch]
    ) -> Iterator[TileBatch]:
        """Make batches in a thread, a few before they are asked for."""
        with Crew() as crew:
            relay: Relay[TileBatch] = crew.relay(_WAITING_BATCHES)

            def read() -> None:
                with TileReader(self.stored, len(self.bands)) as reader:
                    for item in items:
                        relay.put(make(reader, item))

            crew.start("tile reader", read, abandon=True)
            for _item in items:
                yield relay.get()


def _turned(values: NDArray[A], turns: int, mirror: bool) -> NDArray[A]:
    """Turn (…, P, P) by quarters and mirror it, as a view."""
    turned = np.rot90(values, turns, axes=(-2, -1))
    return turned[..., ::-1] if mirror else turned


def _bands_of_any(
    bands: BandTable, found: Sequence[PresentBands], feedback: Feedback
) -> tuple[BandTable, list[PresentBands]]:
    """Leave out the bands that no scene has: nothing could be learned of them."""
    anywhere = np.any([item.present for item in found], axis=0)
    if anywhere.all():
        return bands, list(found)
    missing = ", ".join(f"{value:.0f}" for value in bands.wavelength_nm[~anywhere])
    feedback.warning(
        f"{int((~anywhere).sum())} of {len(bands)} bands are empty in every scene and are left "
        f"out: {missing} nm."
    )
    kept = [PresentBands(item.match, item.present[anywhere], ()) for item in found]
    notes = [
        PresentBands(item.match, item.present, () if item.present.all() else before.notes)
        for item, before in zip(kept, found, strict=True)
    ]
    return select_bands(bands, anywhere), notes

"""HyperKD's distillation: a student of all bands learns from tiles, and from a teacher of few.

Inverse distillation (arXiv 2508.09453): the simpler teacher gets the student's tile reduced to
its own bands, both see the same tokens, and the student fills in the others. How the parts are set
is our choice wherever the paper is silent; all of it is in `DistillationSettings`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from engine.errors import BandMatchError, TrainingError
from engine.feedback import Feedback
from engine.models.hyperkd import HyperKDEncoder
from engine.models.mae import (
    PRESETS,
    FeatureLayers,
    HyperKDStudent,
    StudentOutput,
    StudentPreset,
    tap_blocks,
)
from engine.packages.teachers import Teacher
from engine.raster.alignment import Alignment, BandAlignment, Response, align_bands
from engine.raster.band_presence import ENMAP_DROP_RANGES_NM, student_bands
from engine.raster.scene import Scene
from engine.training.distillation_loss import DistillationLoss, LossSettings
from engine.training.held_out import HeldOutCheck, ScaledTiles, check_held_out
from engine.training.masked_fit import FitHistory, FitSettings, run_task
from engine.training.masking import MaskingSettings, TokenMask, draw_mask, token_scores
from engine.training.reconstruction import ReconstructionResult
from engine.training.run_checkpoint import RunCheckpoint, RunState
from engine.training.scene_tiles import SceneTiles, TileBatch
from engine.training.teacher_blocks import copy_blocks, num_heads
from engine.training.tile_survey import TileShape, valid_tokens

# Small students on few tiles need larger steps than the recipe for millions of images.
PRESET_RATES: Mapping[str, float] = {"laptop": 3e-3, "small64": 5e-4}


@dataclass(frozen=True)
class DistillationSettings:
    """All that decides a distillation, beside the tiles and the teacher.

    Args:
        preset: sizes of the student.
        masking: which tokens are hidden.
        loss: its terms and weights.
        feature_layers: which blocks are compared with the teacher's.
        alignment: how bands become the teacher's.
        responses: of the teacher's bands, for "response"; None: Gaussians.
        epochs: visits to each training tile.
        batch_tiles: tiles a step; None: the preset's.
        learning_rate: at its highest; None: the preset's, or the recipe's for the batch.
        copy_teacher: begin with the teacher's blocks.
        seed: of the student's first weights and of all masks.
    """

    preset: StudentPreset = PRESETS["laptop"]
    masking: MaskingSettings = field(default_factory=MaskingSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    feature_layers: FeatureLayers = "last"
    alignment: Alignment = "mean"
    responses: Mapping[str, Response] | None = None
    epochs: int = 200
    batch_tiles: int | None = None
    learning_rate: float | None = None
    copy_teacher: bool = False
    seed: int = 0

    @property
    def fit(self) -> FitSettings:
        """The part for the training loop."""
        batch_tiles = self.batch_tiles or self.preset.batch_tiles
        rate = self.learning_rate or PRESET_RATES.get(self.preset.name)
        return FitSettings.of(self.epochs, batch_tiles, rate, self.seed)


@dataclass(frozen=True, eq=False)
class DistilledBackbone:
    """What a distillation gives.

    Args:
        student: trained, on its device, in eval mode.
        alignment: for each scene how its bands became the teacher's; none without a teacher.
        history: what was logged.
        held_out: scores and pictures of tiles that training did not see.
    """

    student: HyperKDStudent
    alignment: tuple[BandAlignment, ...]
    history: FitHistory
    held_out: HeldOutCheck

    @property
    def scores(self) -> ReconstructionResult | None:
        """Of the held-out tiles; None when there are none."""
        return self.held_out.scores

    @property
    def encoder(self) -> HyperKDEncoder:
        """The part that is kept."""
        return self.student.encoder


def open_tiles(
    scenes: Sequence[Scene],
    preset: StudentPreset,
    *,
    mask_ratio: float = 0.75,
    drop_ranges_nm: Sequence[tuple[float, float]] = ENMAP_DROP_RANGES_NM,
    validation: float = 0.2,
    seed: int = 0,
    feedback: Feedback,
) -> SceneTiles:
    """Prepare the tiles of a student: the bands of the first scene without the dropped ranges.

    Args:
        scenes: one or more.
        preset: of the student.
        mask_ratio: share of the tokens that will be hidden; the others must hold data.
        drop_ranges_nm: (lowest, highest) wavelengths to leave out.
        validation: share of the ground to hold out.
        seed: of the deal, and of where training tiles move.
        feedback: told what is missing.

    Raises:
        SceneError, BandTableError, BandMatchError: see `SceneTiles.open`.
    """
    bands = student_bands(scenes[0].require_bands(), drop_ranges_nm)
    kept = MaskingSettings(mask_ratio).num_kept(preset.num_tokens)
    shape = TileShape(preset.tile_size_px, preset.patch_px, kept)
    return SceneTiles.open(
        scenes, bands, shape, validation=validation, seed=seed, feedback=feedback
    )


def distill(
    tiles: SceneTiles,
    teacher: Teacher | None,
    settings: DistillationSettings,
    *,
    fabric: Fabric,
    feedback: Feedback,
    checkpoint: RunCheckpoint | None = None,
    resume: RunState | None = None,
) -> DistilledBackbone:
    """Train a student.

    Args:
        tiles: of the preset's size.
        teacher: what to learn from; None for the plain masked autoencoder. It is not called when
            the weight of its features is 0.
        settings: see there.
        fabric: device and precision.
        feedback: told of progress; asked whether to go on.
        checkpoint: where to keep the state.
        resume: a state to go on from.

    Returns:
        the student; the same for the same arguments on a CPU.

    Raises:
        BandMatchError: a scene does not cover the teacher's bands.
        CancelledError, TrainingError, SceneError: see `engine.training.masked_fit.fit`.
    """
    task = DistillationTask(tiles, teacher, settings)
    return run_task(
        task,
        tiles,
        settings.fit,
        fabric=fabric,
        feedback=feedback,
        checkpoint=checkpoint,
        resume=resume,
    )


class DistillationTask:
    """Student, frozen teacher, alignment, masks and loss: what `masked_fit` trains.

    Args:
        tiles: whose bands and statistics the student gets.
        teacher: see `distill`.
        settings: see there.

    Raises:
        BandMatchError: a scene does not cover the teacher's bands.
        TrainingError: the tiles are of another size than the preset's, or blocks are to be copied
            from a teacher of other sizes.
    """

    def __init__(
        self, tiles: SceneTiles, teacher: Teacher | None, settings: DistillationSettings
    ) -> None:
        preset = settings.preset
        if (tiles.shape.tile_px, tiles.shape.patch_px) != (preset.tile_size_px, preset.patch_px):
            raise TrainingError(
                f"The tiles are of {tiles.shape.tile_px} px with tokens of {tiles.shape.patch_px} "
                f"px; the preset {preset.name} has {preset.tile_size_px} and {preset.patch_px} px."
            )
        self.settings = settings
        self._loss = DistillationLoss(settings.loss)
        used = teacher if settings.loss.features > 0 else None
        self._teacher = None if used is None else used.network
        self._taps = () if used is None else tap_blocks(used.network.depth, settings.feature_layers)
        self.alignment = () if used is None else align_scenes(tiles, used, settings)
        self._weights = torch.from_numpy(
            np.stack([item.weights for item in self.alignment])
            if self.alignment
            else np.zeros((len(tiles.scenes), 0, len(tiles.bands)), np.float32)
        )
        self.student = _new_student(tiles, teacher, used, settings)

    def attach(self, fabric: Fabric) -> None:
        """Bring what is not trained to a device; the model is the loop's."""
        self._weights = self._weights.to(fabric.device)
        if self._teacher is not None:
            self._teacher.to(fabric.device)

    @property
    def model(self) -> HyperKDStudent:
        """What is trained."""
        return self.student

    @property
    def patch_px(self) -> int:
        """Side of a token."""
        return self.settings.preset.patch_px

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """(C,) mean and (C,) spread of the normalisation."""
        return self.student.encoder.band_mean, self.student.encoder.band_std

    def scaled(self, batch: TileBatch) -> ScaledTiles:
        """What the network sees of tiles that are on its device."""
        return ScaledTiles.standardised(batch, *self.statistics)

    def predict(self, x: Tensor, ids_keep: Tensor) -> StudentOutput:
        """Predict the tokens that are not kept."""
        output: StudentOutput = self.student(x, ids_keep)
        return output

    def losses(
        self, model: nn.Module, batch: TileBatch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The loss of a batch and its terms; see `masked_fit.MaskedTask`."""
        mask = self.draw(batch, self.settings.masking, generator)
        x = batch.standardised(*self.statistics)
        output: StudentOutput = model(x, mask.ids_keep)
        theirs = self.teacher_features(batch, mask)
        return self._loss(
            output, x, batch.valid, batch.band_present, theirs, *self.statistics, generator
        )

    def draw(
        self, batch: TileBatch, masking: MaskingSettings, generator: torch.Generator
    ) -> TokenMask:
        """Draw the tokens to hide, by the brightness of the bands that are present."""
        token_valid = valid_tokens(batch.valid, self.patch_px)
        if masking.guided_share > 0:
            bands = batch.band_present.sum(dim=1).clamp_min(1)
            guide = batch.reflectance.sum(dim=1) / bands[:, None, None]
            scores = token_scores(guide, batch.valid, self.patch_px, masking)
        else:
            scores = torch.zeros(token_valid.shape, device=token_valid.device)
        return draw_mask(scores, token_valid, masking, generator)

    def finish(
        self, tiles: SceneTiles, history: FitHistory, device: torch.device, feedback: Feedback
    ) -> DistilledBackbone:
        """Look at the held-out tiles with a student that is trained, on the device."""
        self.student.eval()
        held_out = check_held_out(
            self,
            tiles,
            self.settings.masking.mask_ratio,
            batch_tiles=self.settings.fit.batch_tiles,
            device=device,
            feedback=feedback,
        )
        return DistilledBackbone(self.student, self.alignment, history, held_out)

    @torch.no_grad()
    def teacher_features(self, batch: TileBatch, mask: TokenMask) -> tuple[Tensor, ...]:
        """What the teacher says of the tokens that are shown; nothing without a teacher.

        In float32 whatever the student's precision is: in bfloat16 the features of Galileo move
        by a fifth of their mean size.
        """
        if self._teacher is None:
            return ()
        side = batch.valid.shape[-1] // self.patch_px
        aligned = self._weights[batch.scene_index] @ batch.reflectance.flatten(2)
        features: tuple[Tensor, ...] = self._teacher.features(
            aligned.view(*aligned.shape[:2], *batch.valid.shape[1:]),
            rows=side,
            cols=side,
            ids_keep=mask.ids_keep,
            pixel_size_m=batch.pixel_size_m,
            taps=self._taps,
        )
        return features


def align_scenes(
    tiles: SceneTiles, teacher: Teacher, settings: DistillationSettings
) -> tuple[BandAlignment, ...]:
    """Find the teacher's bands in each scene.

    Raises:
        BandMatchError: a scene does not cover some; it and all of them are named.
    """
    found = []
    for scene, present in zip(tiles.scenes, tiles.present, strict=True):
        try:
            found.append(
                align_bands(
                    tiles.bands,
                    teacher.bands,
                    settings.alignment,
                    present=present,
                    responses=settings.responses,
                )
            )
        except BandMatchError as error:
            raise BandMatchError(
                f"{scene.name}: {error.sentence}", error.remedy, error.rows
            ) from error
    return tuple(found)


def _new_student(
    tiles: SceneTiles,
    teacher: Teacher | None,
    used: Teacher | None,
    settings: DistillationSettings,
) -> HyperKDStudent:
    """A student with the first weights of the seed, and the statistics of the tiles.

    Args:
        tiles: see `DistillationTask`.
        teacher: whose blocks may be copied.
        used: the same, or None when its features have no weight.
        settings: see `DistillationTask`.
    """
    encoder = settings.preset.encoder(len(tiles.bands))
    copied = teacher if settings.copy_teacher else None
    if settings.copy_teacher and teacher is None:
        raise TrainingError(
            "There is no teacher to copy blocks from.", "Choose one, or do not copy its blocks."
        )
    if copied is not None and copied.network.width == encoder.embed_dim:
        # Copied queries and keys mean something for the heads that they were trained for.
        encoder = replace(encoder, num_heads=num_heads(copied))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        student = HyperKDStudent(
            encoder,
            settings.preset.decoder,
            None if used is None else used.network.width,
            () if used is None else tap_blocks(encoder.depth, settings.feature_layers),
        )
    student.encoder.band_mean.copy_(tiles.mean)
    student.encoder.band_std.copy_(tiles.std)
    if copied is not None:
        copy_blocks(student.encoder, copied)
    return student

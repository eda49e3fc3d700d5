"""A teacher of the user's own: a multispectral masked autoencoder, trained on scenes alone.

The network is Prithvi's with one date and the bands of the scenes; mask and loss are those of the
masked autoencoder (arXiv 2111.06377): chance, and the squared error of what was hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from engine.errors import TrainingError
from engine.feedback import Feedback
from engine.models.mae import DecoderConfig, StudentOutput, StudentPreset, other_ids
from engine.models.patches import take_tokens
from engine.models.prithvi import PrithviConfig, PrithviMAE
from engine.raster.band_presence import student_bands
from engine.raster.scene import Scene
from engine.training.distillation_loss import DistillationLoss, LossSettings
from engine.training.held_out import HeldOutCheck, ScaledTiles, check_held_out, random_mask
from engine.training.masked_fit import FitHistory, FitSettings, run_task
from engine.training.masking import MaskingSettings
from engine.training.reconstruction import ReconstructionResult
from engine.training.run_checkpoint import RunCheckpoint, RunState
from engine.training.scene_tiles import SceneTiles, TileBatch
from engine.training.tile_survey import TileShape

TEACHER_PRESETS: Mapping[str, StudentPreset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            StudentPreset("prithvi-100m", "As large as Prithvi-100M", 224, 16, 768, 12, 12,
                          DecoderConfig(512, 8, 16), 32),
            StudentPreset("small", "Tiles of 64 px, a small GPU", 64, 8, 256, 6, 8,
                          DecoderConfig(128, 2, 4), 32),
            StudentPreset("laptop", "Tiles of 32 px, no GPU", 32, 4, 128, 4, 4,
                          DecoderConfig(96, 2, 4), 16),
        )
    }
)  # fmt: skip
"""Sizes of teachers. The first is the public one's, the others are our choice."""

# As for students: few tiles want larger steps than millions of images.
PRESET_RATES: Mapping[str, float] = {"laptop": 1e-3, "small": 5e-4}


@dataclass(frozen=True)
class PretrainingSettings:
    """All that decides the pre-training of a teacher, beside the tiles.

    Args:
        preset: its sizes.
        mask_ratio: share of hidden tokens.
        epochs: visits to each training tile.
        batch_tiles: tiles a step; None: the preset's.
        learning_rate: at its highest; None: the preset's, or the recipe's for the batch.
        seed: of the first weights and of all masks.
    """

    preset: StudentPreset = TEACHER_PRESETS["laptop"]
    mask_ratio: float = 0.75
    epochs: int = 200
    batch_tiles: int | None = None
    learning_rate: float | None = None
    seed: int = 0

    @property
    def fit(self) -> FitSettings:
        """The part for the training loop."""
        batch_tiles = self.batch_tiles or self.preset.batch_tiles
        rate = self.learning_rate or PRESET_RATES.get(self.preset.name)
        return FitSettings.of(self.epochs, batch_tiles, rate, self.seed)


@dataclass(frozen=True, eq=False)
class PretrainedTeacher:
    """What a pre-training gives.

    Args:
        network: trained, on its device, in eval mode.
        history: what was logged.
        held_out: scores and pictures of tiles that training did not see.
    """

    network: PrithviMAE
    history: FitHistory
    held_out: HeldOutCheck

    @property
    def scores(self) -> ReconstructionResult | None:
        """Of the held-out tiles; None when there are none."""
        return self.held_out.scores


def open_teacher_tiles(
    scenes: Sequence[Scene],
    preset: StudentPreset,
    *,
    mask_ratio: float = 0.75,
    validation: float = 0.2,
    seed: int = 0,
    feedback: Feedback,
) -> SceneTiles:
    """Prepare the tiles of a teacher, with all good bands of the first scene.

    Args and Raises: see `engine.training.distillation.open_tiles`.
    """
    bands = student_bands(scenes[0].require_bands(), ())
    kept = MaskingSettings(mask_ratio).num_kept(preset.num_tokens)
    shape = TileShape(preset.tile_size_px, preset.patch_px, kept)
    return SceneTiles.open(
        scenes, bands, shape, validation=validation, seed=seed, feedback=feedback
    )


def pretrain(
    tiles: SceneTiles,
    settings: PretrainingSettings,
    *,
    fabric: Fabric,
    feedback: Feedback,
    checkpoint: RunCheckpoint | None = None,
    resume: RunState | None = None,
) -> PretrainedTeacher:
    """Train a teacher.

    Args and Raises: see `engine.training.distillation.distill`.
    """
    task = PretrainingTask(tiles, settings)
    return run_task(
        task,
        tiles,
        settings.fit,
        fabric=fabric,
        feedback=feedback,
        checkpoint=checkpoint,
        resume=resume,
    )


class PretrainingTask:
    """Network, masks and loss: what `masked_fit` trains.

    Args:
        tiles: whose bands and statistics the network gets.
        settings: see there.

    Raises:
        TrainingError: the tiles are of another size than the preset's.
    """

    def __init__(self, tiles: SceneTiles, settings: PretrainingSettings) -> None:
        preset = settings.preset
        if (tiles.shape.tile_px, tiles.shape.patch_px) != (preset.tile_size_px, preset.patch_px):
            raise TrainingError(
                f"The tiles are of {tiles.shape.tile_px} px with tokens of {tiles.shape.patch_px} "
                f"px; the preset {preset.name} has {preset.tile_size_px} and {preset.patch_px} px."
            )
        self.settings = settings
        self._loss = DistillationLoss(LossSettings(mse=1.0, ssim=0.0, features=0.0))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.network = PrithviMAE(teacher_config(preset, len(tiles.bands)))
        self.network.band_mean.copy_(tiles.mean)
        self.network.band_std.copy_(tiles.std)
        self.model = _HiddenTokens(self.network)

    @property
    def patch_px(self) -> int:
        """Side of a token."""
        return self.settings.preset.patch_px

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """(C,) mean and (C,) spread of the normalisation."""
        return self.network.band_mean, self.network.band_std

    def attach(self, fabric: Fabric) -> None:
        """Nothing but the model has to be brought to the device."""

    def scaled(self, batch: TileBatch) -> ScaledTiles:
        """What the network sees of tiles that are on its device."""
        return ScaledTiles.standardised(batch, *self.statistics)

    def predict(self, x: Tensor, ids_keep: Tensor) -> StudentOutput:
        """Predict the tokens that are not kept."""
        output: StudentOutput = self.model(x, ids_keep)
        return output

    def losses(
        self, model: nn.Module, batch: TileBatch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The loss of a batch; see `masked_fit.MaskedTask`."""
        mask = random_mask(batch, self.patch_px, self.settings.mask_ratio, generator)
        x = batch.standardised(*self.statistics)
        output: StudentOutput = model(x, mask.ids_keep)
        return self._loss(
            output, x, batch.valid, batch.band_present, (), *self.statistics, generator
        )

    def finish(
        self, tiles: SceneTiles, history: FitHistory, device: torch.device, feedback: Feedback
    ) -> PretrainedTeacher:
        """Look at the held-out tiles with a network that is trained, on the device."""
        self.network.eval()
        held_out = check_held_out(
            self,
            tiles,
            self.settings.mask_ratio,
            batch_tiles=self.settings.fit.batch_tiles,
            device=device,
            feedback=feedback,
        )
        return PretrainedTeacher(self.network, history, held_out)


class _HiddenTokens(nn.Module):
    """The network with the student's way to answer: only the tokens that were hidden."""

    def __init__(self, network: PrithviMAE) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, ids_keep: Tensor) -> StudentOutput:
        """As `engine.models.mae.HyperKDStudent`, for one date."""
        frames = x[:, :, None]
        _frames, rows, cols = self.network.token_grid(frames)
        _latent, prediction = self.network.reconstruct(frames, ids_keep)
        ids_masked = other_ids(ids_keep, rows * cols)
        return StudentOutput(take_tokens(prediction, ids_masked), ids_masked, ())


def teacher_config(preset: StudentPreset, in_channels: int) -> PrithviConfig:
    """The settings of a preset's network for a number of bands."""
    return PrithviConfig(
        in_channels=in_channels,
        img_size=preset.tile_size_px,
        patch_px=preset.patch_px,
        embed_dim=preset.embed_dim,
        depth=preset.depth,
        num_heads=preset.num_heads,
        decoder_embed_dim=preset.decoder.embed_dim,
        decoder_depth=preset.decoder.depth,
        decoder_num_heads=preset.decoder.num_heads,
    )

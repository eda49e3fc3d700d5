"""SpectralX's first stage: a frozen foundation model learns to read chips of many bands.

Spectral modality adaptation (arXiv 2508.01731): most tokens of a chip are hidden, and a tokenizer
for all bands, mixtures of adapters and the norms learn to tell them, without a label. Chips are
taken from scenes at their own resolution, training goes by steps that depend on their number
alone, and it is validated on places of the source; all this is ours. The published code resizes
images, and chooses its weights by images of the target.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from engine.errors import PackageError, TrainingError
from engine.feedback import Feedback
from engine.models.mae import StudentOutput
from engine.models.spectralx.adapted import AdaptedConfig, AdaptedViT, Scaling
from engine.models.spectralx.decoders import DecoderSource, make_decoder
from engine.models.spectralx.masked import MaskedOutput, MaskedSpectralX
from engine.models.spectralx.presets import PRESETS, PUBLISHED, SegmentPreset
from engine.models.vit import Positions
from engine.packages.foundations import Foundation
from engine.raster.band_presence import student_bands
from engine.raster.scene import Scene
from engine.training.held_out import HeldOutCheck, ScaledTiles, check_held_out, random_mask
from engine.training.masked_fit import FitHistory, FitSettings, run_task
from engine.training.masking import MaskingSettings
from engine.training.memory import StepMemory, measure_step
from engine.training.reconstruction import ReconstructionResult
from engine.training.run_checkpoint import RunCheckpoint, RunState
from engine.training.scene_tiles import SceneTiles, TileBatch
from engine.training.tile_scaling import network_input, scale_tiles, scaled_statistics
from engine.training.tile_survey import TileShape

PUBLISHED_WEIGHT_DECAY = 1e-4
DEFAULT_EPOCHS = 400
"""A minute on one core for the few tiles of a small scene; the published number is in steps."""
_SEEDS = 2**62  # as many as a generator is asked to choose from


@dataclass(frozen=True)
class AdaptationSettings:
    """All that decides an adaptation, beside the tiles and the foundation.

    Args:
        preset: sizes, and what the settings below are where they are None.
        mask_ratio: share of hidden tokens, above 0 and below 1.
        mask_input: hide pixels from the tokenizer too (the figure), or only tokens behind it (the
            published code).
        train_tokenizer: train the tokenizer's core too (the figure), or leave it at random (the
            published code).
        scaling: how reflectance becomes the network's input.
        load_balancing: weight of the loss that spreads tokens over experts; published: 0.
        epochs: visits to each training tile.
        batch_tiles: tiles a step.
        learning_rate: at its highest.
        seed: of the first weights, of all masks, and of the experts' noise.
    """

    preset: SegmentPreset = PRESETS["laptop"]
    mask_ratio: float = 0.75
    mask_input: bool | None = None
    train_tokenizer: bool | None = None
    scaling: Scaling | None = None
    load_balancing: float = 0.0
    epochs: int = DEFAULT_EPOCHS
    batch_tiles: int | None = None
    learning_rate: float | None = None
    seed: int = 0

    @property
    def fit(self) -> FitSettings:
        """The part for the training loop."""
        settings = FitSettings.of(
            self.epochs,
            self.batch_tiles or self.preset.batch_chips,
            self.learning_rate or self.preset.adapt_learning_rate,
            self.seed,
        )
        if self.preset.name == PUBLISHED:
            return FitSettings(
                settings.epochs,
                settings.batch_tiles,
                settings.learning_rate,
                weight_decay=PUBLISHED_WEIGHT_DECAY,
                seed=settings.seed,
            )
        return settings

    @property
    def hides_pixels(self) -> bool:
        """Whether hidden pixels are hidden from the tokenizer too."""
        return self.preset.mask_input if self.mask_input is None else self.mask_input

    def config(self, wavelength_nm: Sequence[float], foundation: Foundation) -> AdaptedConfig:
        """The settings of the model.

        Args:
            wavelength_nm: (C,) centres of the bands.
            foundation: whose ViT is adapted.

        Raises:
            PackageError: the foundation cannot be adapted in this preset's sizes.
        """
        given = {"train_tokenizer": self.train_tokenizer, "scaling": self.scaling}
        changes = {name: value for name, value in given.items() if value is not None}
        try:
            return self.preset.adapted(
                wavelength_nm=wavelength_nm,
                vit=foundation.vit.config,
                foundation=foundation.identity,
                load_balancing=self.load_balancing,
                **changes,
            )
        except ValueError as error:
            raise PackageError(
                f"The backbone {foundation.identity.name} cannot be adapted with the preset "
                f"{self.preset.name}: {error}",
                "Choose another backbone or another preset.",
            ) from error


@dataclass(frozen=True, eq=False)
class AdaptedBackbone:
    """What an adaptation gives.

    Args:
        model: trained, on its device, in eval mode.
        history: what was logged.
        held_out: scores and pictures of tiles that training did not see.
        counts: values that were trained, by part; those of the decoder are not in ``model``.
    """

    model: AdaptedViT
    history: FitHistory
    held_out: HeldOutCheck
    counts: dict[str, int]

    @property
    def scores(self) -> ReconstructionResult | None:
        """Of the held-out tiles; None when there are none."""
        return self.held_out.scores


def open_adaptation_tiles(
    scenes: Sequence[Scene],
    preset: SegmentPreset,
    *,
    mask_ratio: float = 0.75,
    validation: float = 0.2,
    seed: int = 0,
    feedback: Feedback,
    scored: int | None = None,
) -> SceneTiles:
    """Prepare the tiles of an adaptation, with all good bands of the first scene.

    Args:
        scenes: one or more; those of the source first.
        preset: of the model.
        mask_ratio: share of the tokens that will be hidden; the others must hold data.
        validation: share of the source's ground to hold out.
        seed: of the deal, and of where training tiles move.
        feedback: told what is missing.
        scored: how many scenes are the source's; None: all.

    Raises:
        SceneError, BandTableError, BandMatchError: see `SceneTiles.open`.
    """
    bands = student_bands(scenes[0].require_bands(), ())
    kept = MaskingSettings(mask_ratio).num_kept(preset.grid**2)
    shape = TileShape(preset.chip_px, preset.patch_px, kept)
    return SceneTiles.open(
        scenes, bands, shape, validation=validation, seed=seed, feedback=feedback, scored=scored
    )


def adapt(
    tiles: SceneTiles,
    foundation: Foundation,
    settings: AdaptationSettings,
    *,
    fabric: Fabric,
    feedback: Feedback,
    checkpoint: RunCheckpoint | None = None,
    resume: RunState | None = None,
) -> AdaptedBackbone:
    """Adapt a foundation model.

    Args:
        tiles: of the preset's size.
        foundation: its tensors are the same to the last bit afterwards.
        settings: see there.
        fabric: device and precision.
        feedback: told of progress; asked whether to go on.
        checkpoint: where to keep the state.
        resume: a state to go on from.

    Returns:
        the adapted model without its decoder; the same for the same arguments on a CPU.

    Raises:
        CancelledError, TrainingError, SceneError: see `engine.training.masked_fit.fit`.
        PackageError: the foundation cannot be adapted in the preset's sizes.
    """
    task = AdaptationTask(tiles, foundation, settings, feedback)
    return run_task(
        task,
        tiles,
        settings.fit,
        fabric=fabric,
        feedback=feedback,
        checkpoint=checkpoint,
        resume=resume,
    )


class AdaptationTask:
    """Model, decoder, masks and loss: what `masked_fit` trains.

    Args:
        tiles: whose bands and statistics the model gets.
        foundation: see `adapt`.
        settings: see there.
        feedback: asked whether to go on, where the scaling needs statistics of its own.

    Raises:
        TrainingError: the tiles are of another size than the preset's.
        PackageError: see `adapt`.
    """

    def __init__(
        self,
        tiles: SceneTiles,
        foundation: Foundation,
        settings: AdaptationSettings,
        feedback: Feedback,
    ) -> None:
        preset = settings.preset
        if (tiles.shape.tile_px, tiles.shape.patch_px) != (preset.chip_px, preset.patch_px):
            raise TrainingError(
                f"The tiles are of {tiles.shape.tile_px} px with tokens of {tiles.shape.patch_px} "
                f"px; the preset {preset.name} has {preset.chip_px} and {preset.patch_px} px."
            )
        self.settings = settings
        config = settings.config(tiles.bands.wavelength_nm.tolist(), foundation)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.network = build_masked(config, foundation, settings)
        mean, std = scaled_statistics(tiles, config.scaling, settings.fit.batch_tiles, feedback)
        self.network.adapted.band_mean.copy_(mean)
        self.network.adapted.band_std.copy_(std)
        # Settings may be read without it; a decoder takes part in the training alone.
        self.counts = self.network.trainable_counts()

    @property
    def model(self) -> MaskedSpectralX:
        """What is trained, and what it stands on."""
        return self.network

    @property
    def patch_px(self) -> int:
        """Side of a token."""
        return self.settings.preset.patch_px

    def attach(self, fabric: Fabric) -> None:
        """Nothing but the model has to be brought to the device."""

    def scaled(self, batch: TileBatch) -> ScaledTiles:
        """What the model sees of tiles that are on its device."""
        return scale_tiles(self.network.adapted, batch)

    def predict(self, x: Tensor, ids_keep: Tensor) -> StudentOutput:
        """Predict the tokens that are not kept."""
        return self.network.predict(x, ids_keep)

    def losses(
        self, model: nn.Module, batch: TileBatch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The loss of a batch; see `masked_fit.MaskedTask`."""
        mask = random_mask(batch, self.patch_px, self.settings.mask_ratio, generator)
        x = network_input(self.network.adapted, batch)
        with drawing_from(generator, x.device):
            output: MaskedOutput = model(x, mask.ids_keep)
        return self.network.losses(x, output, mask.ids_keep, batch.valid, batch.band_present)

    def finish(
        self, tiles: SceneTiles, history: FitHistory, device: torch.device, feedback: Feedback
    ) -> AdaptedBackbone:
        """Look at the held-out tiles with a model that is trained, on the device."""
        self.network.eval()
        held_out = check_held_out(
            self,
            tiles,
            self.settings.mask_ratio,
            batch_tiles=self.settings.fit.batch_tiles,
            device=device,
            feedback=feedback,
        )
        return AdaptedBackbone(self.network.adapted, history, held_out, self.counts)


def build_masked(
    config: AdaptedConfig, foundation: Foundation, settings: AdaptationSettings
) -> MaskedSpectralX:
    """The model of stage 1 with its first weights, drawn from torch's generator.

    Args:
        config: of the part that is kept.
        foundation: whose ViT, and whose decoder where it has one that fits.
        settings: see there.

    Raises:
        PackageError: the tensors of the foundation's decoder contradict one another.
    """
    source = DecoderSource(foundation.decoder, foundation.decoder_num_heads)
    published = settings.preset.name == PUBLISHED
    try:
        adapted = AdaptedViT(config, foundation.vit)
        decoder = make_decoder(config, source, settings.preset.decoder, train_output=not published)
    except ValueError as error:
        raise PackageError(
            f"The backbone {foundation.identity.name} cannot be adapted: {error}",
            "Its file may be of another model than its names say: choose another one.",
        ) from error
    # Published: other positions for ScaleMAE than in the second stage.
    positions: Positions | None = "gsd" if published and source.kind == "scalemae" else None
    return MaskedSpectralX(adapted, decoder, mask_input=settings.hides_pixels, positions=positions)


def estimate_memory(
    config: AdaptedConfig, foundation: Foundation, settings: AdaptationSettings
) -> StepMemory:
    """The memory that a step of an adaptation takes, in float32.

    Args:
        config: of the model.
        foundation: stays as it is.
        settings: see there.

    Raises:
        PackageError: see `build_masked`.
    """
    with torch.random.fork_rng(devices=[]):
        network = build_masked(config, foundation, settings).train()
    side, bands, tokens = config.chip_px, config.in_channels, config.grid**2
    x = torch.zeros(1, bands, side, side)
    ids_keep = torch.arange(MaskingSettings(settings.mask_ratio).num_kept(tokens))[None]
    valid, present = torch.ones(1, side, side).bool(), torch.ones(1, bands).bool()

    def loss() -> Tensor:
        return network.losses(x, network(x, ids_keep), ids_keep, valid, present)["loss"]

    return measure_step(network, loss)


@contextmanager
def drawing_from(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Let layers that draw by themselves draw the same in the same step.

    The routers' noise and dropped branches come from torch's own generators, whose state is not
    among what a checkpoint keeps.

    Args:
        generator: of the step, on the CPU; gives one number.
        device: where is drawn.
    """
    seed = int(torch.randint(_SEEDS, (1,), generator=generator))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield

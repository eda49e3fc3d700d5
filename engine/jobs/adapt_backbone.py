"""adapt_backbone: scenes and a frozen foundation model in, a package with its adapters out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from engine.errors import PackageError
from engine.feedback import Feedback, StepFeedback
from engine.jobs.shared.masked_package import TrainedModel, describe, scene_names, write_report
from engine.jobs.shared.masked_training import (
    Devices,
    MaskedTrainingRequest,
    check_training_outputs,
    choose_devices,
    open_checkpoint,
    open_scenes,
    require_bytes,
    score_values,
    tell_scores,
    train,
)
from engine.jobs.shared.training import as_list
from engine.models.spectralx.presets import PRESETS
from engine.packages.foundations import Foundation, load_foundation, remember_foundation
from engine.packages.package import save_package
from engine.raster.band_presence import student_bands
from engine.raster.scene import Scene, open_scene
from engine.training.adaptation import (
    DEFAULT_EPOCHS,
    AdaptationSettings,
    AdaptationTask,
    AdaptedBackbone,
    estimate_memory,
    open_adaptation_tiles,
)
from engine.training.memory import StepMemory
from engine.training.scene_tiles import SceneTiles

ARCHITECTURE = "spectralx-adapted"


class Request(MaskedTrainingRequest):
    """The parameters, beside those of every training on scenes alone.

    ``backbone`` is the name of an installed one, a package, or a file of weights; it stays as it
    is. ``targets`` are further scenes that the model will be applied to: they are trained on as
    well, since no label is looked at, but hold no ground out and count for no score.
    ``mask_input``, ``train_tokenizer`` and ``scaling`` are the preset's when left out.
    """

    backbone: str = "galileo-nano"
    preset: Literal["paper", "large", "medium", "laptop"] = "laptop"
    epochs: int = Field(default=DEFAULT_EPOCHS, ge=1, le=100_000)
    targets: Annotated[list[str | list[str]], BeforeValidator(as_list)] = Field(default=[])
    mask_input: bool | None = None
    train_tokenizer: bool | None = None
    scaling: Literal["standard", "unit", "chip"] | None = None
    load_balancing: float = Field(default=0.0, ge=0.0, le=1000.0)


def adapt_backbone(request: Request, feedback: Feedback) -> dict[str, Any]:
    """Adapt a backbone and save what was added to it as a package.

    Returns:
        as `engine.jobs.distill_backbone.distill_backbone`, and ``trainable_parameters``, how many
        values of the package were trained.

    Raises:
        DeviceError, CapacityError: a GPU is required and there is none; too little memory.
        SceneError, BandTableError, BandMatchError: a scene cannot be read, is too small, has no
            wavelengths, or is of another sensor.
        PackageError: the backbone is not there, or cannot be adapted.
        TrainingError: the checkpoint is of another run, or the training diverged.
        OutputError: an output cannot be written.
    """
    settings = _settings(request)
    devices = choose_devices(request, feedback)
    scenes = [*open_scenes(request, feedback), *_open_targets(request, feedback)]
    check_training_outputs(request, scenes, [request.backbone])
    foundation = _load_backbone(request, feedback)
    _check_memory(settings, scenes, foundation, devices)
    checkpoint, state = open_checkpoint(
        request,
        scenes,
        feedback,
        backbone=foundation.identity.sha256,
        # The ground that is held out is that of the others.
        targets=str(len(request.targets)),
    )
    tiles = open_adaptation_tiles(
        scenes,
        settings.preset,
        mask_ratio=request.mask_ratio,
        validation=request.validation,
        seed=request.seed,
        feedback=StepFeedback(feedback, 0.0, 0.05),
        scored=len(request.input),
    )
    task = AdaptationTask(tiles, foundation, settings, StepFeedback(feedback, 0.05, 0.05))
    _tell_work(tiles, task, feedback)
    step = StepFeedback(feedback, 0.05, 0.95)
    trained, run = train(task, tiles, settings.fit, devices, checkpoint, state, step)
    tell_scores(trained.scores, feedback)

    feedback.progress(0.95, "Saving what was trained")
    feedback.raise_if_cancelled()
    facts = _facts(trained, foundation)
    model = _model(tiles, trained, foundation)
    info = describe(request, tiles, model, trained, run, facts)
    output = save_package(request.output, info, trained.model.own_state())
    remember_foundation(foundation.identity, request.backbone)
    feedback.progress(0.97, "Writing the report")
    report = write_report(
        "adapt_backbone.html",
        request,
        info,
        tiles,
        trained,
        run,
        foundation=asdict(foundation.identity),
        scaling=trained.model.config.scaling,
        target_names=[scene.name for scene in scenes[len(request.input) :]],
        trainable_parts=list(trained.counts.items()),
        trainable_total=sum(trained.counts.values()),
        all_values=sum(parameter.numel() for parameter in task.model.parameters()),
    )
    checkpoint.delete()
    feedback.progress(1.0, "Done")
    return {
        "output": str(output),
        **report,
        **score_values(trained.scores),
        "trainable_parameters": facts["trainable_parameters"],
        "seconds": run.seconds,
        "device": devices.text,
    }


def _settings(request: Request) -> AdaptationSettings:
    """The settings of the method."""
    return AdaptationSettings(
        preset=PRESETS[request.preset],
        mask_ratio=request.mask_ratio,
        mask_input=request.mask_input,
        train_tokenizer=request.train_tokenizer,
        scaling=request.scaling,
        load_balancing=request.load_balancing,
        epochs=request.epochs,
        batch_tiles=request.batch_size,
        learning_rate=request.learning_rate,
        seed=request.seed,
    )


def _open_targets(request: Request, feedback: Feedback) -> list[Scene]:
    """Open the scenes that are trained on without scores, and pass on what was assumed."""
    scenes = [open_scene(source, request.bands) for source in request.targets]
    for note in (note for scene in scenes for note in scene.notes):
        feedback.warning(note)
    return scenes


def _load_backbone(request: Request, feedback: Feedback) -> Foundation:
    """Load the backbone, and say whose it is."""
    foundation = load_foundation(request.backbone)
    about = foundation.identity
    feedback.info(
        f"Backbone: {about.name} ({about.kind}), {about.source}, licence {about.licence} (SHA-256 "
        f"{about.sha256})"
    )
    return foundation


def _check_memory(
    settings: AdaptationSettings,
    scenes: Sequence[Scene],
    foundation: Foundation,
    devices: Devices,
) -> None:
    """Refuse what the memory will not hold.

    Raises:
        CapacityError: see `require_bytes`.
        PackageError: the backbone cannot be adapted in the preset's sizes.
    """
    wavelength_nm = student_bands(scenes[0].require_bands(), ()).wavelength_nm.tolist()

    @cache
    def memory(name: str) -> StepMemory:
        one = replace(settings, preset=PRESETS[name])
        return estimate_memory(one.config(wavelength_nm, foundation), foundation, one)

    def needed(name: str, tiles: int) -> int:
        return memory(name).bytes_for(tiles)

    # First of all the one that was asked for: whatever is wrong with it is said.
    memory(settings.preset.name)
    batches = {
        name: settings.batch_tiles or one.batch_chips
        for name, one in PRESETS.items()
        if _is_possible(name, settings, wavelength_nm, foundation)
    }
    require_bytes(batches, settings.preset.name, len(wavelength_nm), devices, needed)


def _is_possible(
    name: str, settings: AdaptationSettings, wavelength_nm: list[float], foundation: Foundation
) -> bool:
    """Whether a backbone can be adapted in a preset's sizes."""
    try:
        replace(settings, preset=PRESETS[name]).config(wavelength_nm, foundation)
    except PackageError:
        return False
    return True


def _tell_work(tiles: SceneTiles, task: AdaptationTask, feedback: Feedback) -> None:
    """Say what will be trained, and on how much."""
    parts = ", ".join(f"{name} {count:,}" for name, count in task.counts.items())
    feedback.info(
        f"{len(tiles.plan.training)} tiles to train on, {len(tiles.plan.held_out)} held out; "
        f"{len(tiles.bands)} bands. {sum(task.counts.values()):,} values are trained: {parts}."
    )


def _facts(trained: AdaptedBackbone, foundation: Foundation) -> dict[str, Any]:
    """What the package says about its training, beside what every package says."""
    counts = {name: count for name, count in trained.counts.items() if "decoder" not in name}
    return {
        "backbone": asdict(foundation.identity),
        "trainable_parameters": sum(counts.values()),
        "trainable_parts": counts,
    }


def _model(tiles: SceneTiles, trained: AdaptedBackbone, foundation: Foundation) -> TrainedModel:
    """What was added to the backbone, as it is saved."""
    model, names = trained.model, scene_names(tiles)
    backbone = foundation.identity.name
    return TrainedModel(
        ARCHITECTURE,
        model.config,
        model.band_mean,
        model.band_std,
        f"{backbone} adapted to {names}",
        f"Adapters of {len(tiles.bands)} bands for the backbone {backbone}, trained on {names} "
        "without labels. To begin the training of segmentations with.",
    )

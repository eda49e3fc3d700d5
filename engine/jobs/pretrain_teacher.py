"""pretrain_teacher: multispectral scenes in, a package with a teacher out."""

from __future__ import annotations

from typing import Any, Literal

from engine.feedback import Feedback, StepFeedback
from engine.jobs.shared.masked_package import TrainedModel, describe, scene_names, write_report
from engine.jobs.shared.masked_training import (
    MaskedTrainingRequest,
    check_training_outputs,
    choose_devices,
    open_checkpoint,
    open_scenes,
    require_memory,
    score_values,
    tell_scores,
    train,
)
from engine.packages.package import save_package
from engine.training.scene_tiles import SceneTiles
from engine.training.teacher_pretraining import (
    TEACHER_PRESETS,
    PretrainedTeacher,
    PretrainingSettings,
    PretrainingTask,
    open_teacher_tiles,
)

ARCHITECTURE = "prithvi-mae"


class Request(MaskedTrainingRequest):
    """The parameters: those of every training on scenes alone, and the size."""

    preset: Literal["prithvi-100m", "small", "laptop"] = "laptop"


def pretrain_teacher(request: Request, feedback: Feedback) -> dict[str, Any]:
    """Train a teacher and save it as a package.

    Returns:
        as `engine.jobs.distill_backbone.distill_backbone`.

    Raises:
        DeviceError, CapacityError: a GPU is required and there is none; too little memory.
        SceneError, BandTableError, BandMatchError: a scene cannot be read, is too small, or is of
            another sensor.
        TrainingError: the checkpoint is of another run, or the training diverged.
        OutputError: an output cannot be written.
    """
    settings = PretrainingSettings(
        preset=TEACHER_PRESETS[request.preset],
        mask_ratio=request.mask_ratio,
        epochs=request.epochs,
        batch_tiles=request.batch_size,
        learning_rate=request.learning_rate,
        seed=request.seed,
    )
    devices = choose_devices(request, feedback)
    scenes = open_scenes(request, feedback)
    check_training_outputs(request, scenes)
    band_count = int(scenes[0].require_bands().good.sum())
    preset = settings.preset
    require_memory(TEACHER_PRESETS, preset, band_count, settings.batch_tiles, devices)
    checkpoint, state = open_checkpoint(request, scenes, feedback)
    tiles = open_teacher_tiles(
        scenes,
        preset,
        mask_ratio=request.mask_ratio,
        validation=request.validation,
        seed=request.seed,
        feedback=StepFeedback(feedback, 0.0, 0.05),
    )
    feedback.info(
        f"{len(tiles.plan.training)} tiles to train on, {len(tiles.plan.held_out)} held out; "
        f"bands {', '.join(tiles.bands.names)}."
    )
    task = PretrainingTask(tiles, settings)
    step = StepFeedback(feedback, 0.05, 0.95)
    trained, run = train(task, tiles, settings.fit, devices, checkpoint, state, step)
    tell_scores(trained.scores, feedback)

    feedback.progress(0.95, "Saving the teacher")
    feedback.raise_if_cancelled()
    info = describe(request, tiles, _model(tiles, trained), trained, run)
    output = save_package(request.output, info, trained.network.state_dict())
    feedback.progress(0.97, "Writing the report")
    report = write_report("pretrain_teacher.html", request, info, tiles, trained, run)
    checkpoint.delete()
    feedback.progress(1.0, "Done")
    return {
        "output": str(output),
        **report,
        **score_values(trained.scores),
        "seconds": run.seconds,
        "device": devices.text,
    }


def _model(tiles: SceneTiles, trained: PretrainedTeacher) -> TrainedModel:
    """The network, as it is saved."""
    network, names = trained.network, scene_names(tiles)
    return TrainedModel(
        ARCHITECTURE,
        network.config,
        network.band_mean,
        network.band_std,
        f"Teacher of {names}",
        f"A masked autoencoder of {len(tiles.bands)} bands, trained on {names}. A teacher for the "
        "distillation of backbones.",
    )

"""distill_backbone: scenes and a teacher in, a package with an encoder of all bands out."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from pydantic import Field

from engine.errors import RequestError
from engine.feedback import Feedback, StepFeedback
from engine.jobs.shared.masked_package import TrainedModel, describe, scene_names, write_report
from engine.jobs.shared.masked_training import (
    Devices,
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
from engine.models.backbone import BackboneConfig
from engine.models.mae import PRESETS, StudentPreset
from engine.packages.package import save_package
from engine.packages.teachers import Teacher, load_teacher
from engine.raster.alignment import align_bands, read_responses
from engine.raster.band_presence import parse_ranges, student_bands
from engine.raster.scene import Scene
from engine.raster.spectra import BandTable
from engine.training.distillation import (
    DistillationSettings,
    DistillationTask,
    DistilledBackbone,
    open_tiles,
)
from engine.training.distillation_loss import LossSettings
from engine.training.masking import MaskingSettings
from engine.training.scene_tiles import SceneTiles

ARCHITECTURE = "hyperkd-backbone"
# A teacher's layers, kept for a moment: about this many values for each token and unit of width.
_TEACHER_VALUES = 24


class Request(MaskedTrainingRequest):
    """The parameters, beside those of every training on scenes alone.

    ``teacher`` is the name of an installed teacher, a package, or a file of weights; it is not
    read when its weight is 0. ``guided_share`` is how far the mask follows the image, ``hide``
    what is hidden first. ``drop_ranges`` are wavelengths in nanometres, or "none". ``responses``
    is a CSV for the alignment by response.
    """

    teacher: str = "galileo-nano"
    preset: Literal["vit_b", "d512", "base128", "small64", "laptop"] = "laptop"
    guided_share: float = Field(default=0.25, ge=0.0, le=1.0)
    hide: Literal["informative", "plain"] = "informative"
    mse_weight: float = Field(default=1.0, ge=0.0, le=1000.0)
    ssim_weight: float = Field(default=0.1, ge=0.0, le=1000.0)
    feature_weight: float = Field(default=1.0, ge=0.0, le=1000.0)
    spectral_weight: float = Field(default=0.0, ge=0.0, le=1000.0)
    temperature: float = Field(default=2.0, gt=0.0, le=100.0)
    feature_loss: Literal["kl", "mse"] = "kl"
    feature_layers: Literal["last", "quarters"] = "last"
    alignment: Literal["mean", "response", "nearest"] = "mean"
    responses: str | None = None
    drop_ranges: str = "1358-1453, 1814-1961"
    copy_teacher: bool = False


def distill_backbone(request: Request, feedback: Feedback) -> dict[str, Any]:
    """Distil an encoder and save it as a package.

    Returns:
        ``output`` and, when asked for, ``report`` (paths); ``psnr_db``, ``ssim`` and
        ``spectral_angle_deg`` of hidden tokens of held-out tiles, and the same with ``_whole`` of
        whole tiles, null without held-out tiles; ``seconds`` of the training; ``device``.

    Raises:
        DeviceError, CapacityError: a GPU is required and there is none; too little memory.
        SceneError, BandTableError, BandMatchError: a scene cannot be read, is too small, or does
            not cover the teacher's bands.
        PackageError: the teacher cannot be used.
        TrainingError: the checkpoint is of another run, or the training diverged.
        OutputError: an output cannot be written.
    """
    settings = _settings(request)
    devices = choose_devices(request, feedback)
    scenes = open_scenes(request, feedback)
    check_training_outputs(request, scenes, filter(None, (request.teacher, request.responses)))
    teacher = _load_teacher(request, feedback)
    drop_ranges_nm = parse_ranges(request.drop_ranges)
    bands = student_bands(scenes[0].require_bands(), drop_ranges_nm)
    _check_memory(settings, bands, teacher, devices)
    if teacher is not None and settings.loss.features > 0:
        _tell_alignment(scenes[0], bands, teacher, settings, feedback)
    checkpoint, state = open_checkpoint(
        request, scenes, feedback, teacher=None if teacher is None else teacher.sha256
    )
    tiles = open_tiles(
        scenes,
        settings.preset,
        mask_ratio=request.mask_ratio,
        drop_ranges_nm=drop_ranges_nm,
        validation=request.validation,
        seed=request.seed,
        feedback=StepFeedback(feedback, 0.0, 0.05),
    )
    feedback.info(
        f"{len(tiles.plan.training)} tiles to train on, {len(tiles.plan.held_out)} held out; "
        f"{len(tiles.bands)} bands."
    )
    task = DistillationTask(tiles, teacher, settings)
    step = StepFeedback(feedback, 0.05, 0.95)
    trained, run = train(task, tiles, settings.fit, devices, checkpoint, state, step)
    tell_scores(trained.scores, feedback)

    feedback.progress(0.95, "Saving the backbone")
    feedback.raise_if_cancelled()
    model = _model(tiles, teacher, trained)
    info = describe(request, tiles, model, trained, run, {"teacher": _teacher_facts(teacher)})
    state_dict = {f"encoder.{name}": part for name, part in trained.encoder.state_dict().items()}
    output = save_package(request.output, info, state_dict)
    feedback.progress(0.97, "Writing the report")
    report = write_report(
        "distill_backbone.html",
        request,
        info,
        tiles,
        trained,
        run,
        teacher=info.training["teacher"],
        alignment=trained.alignment[0].rows if trained.alignment else (),
    )
    checkpoint.delete()
    feedback.progress(1.0, "Done")
    return {
        "output": str(output),
        **report,
        **score_values(trained.scores),
        "seconds": run.seconds,
        "device": devices.text,
    }


def _settings(request: Request) -> DistillationSettings:
    """The settings of the method.

    Raises:
        RequestError: no term of the loss has a weight, or responses are given that are not used.
    """
    weights = (
        request.mse_weight, request.ssim_weight, request.feature_weight, request.spectral_weight
    )  # fmt: skip
    if not any(weights):
        raise RequestError("All weights of the loss are 0.", "Give mse_weight one.")
    if request.responses is not None and request.alignment != "response":
        raise RequestError(
            f"Responses are given, but the alignment is {request.alignment!r}.",
            "Choose the alignment 'response', or leave them out.",
        )
    return DistillationSettings(
        preset=PRESETS[request.preset],
        masking=MaskingSettings(request.mask_ratio, request.guided_share, request.hide),
        loss=LossSettings(
            *weights, temperature=request.temperature, feature_loss=request.feature_loss
        ),
        feature_layers=request.feature_layers,
        alignment=request.alignment,
        responses=None if request.responses is None else read_responses(request.responses),
        epochs=request.epochs,
        batch_tiles=request.batch_size,
        learning_rate=request.learning_rate,
        copy_teacher=request.copy_teacher,
        seed=request.seed,
    )


def _load_teacher(request: Request, feedback: Feedback) -> Teacher | None:
    """Load the teacher where it is needed, and say whose it is."""
    if request.feature_weight == 0 and not request.copy_teacher:
        feedback.info("No teacher: the weight of its features is 0.")
        return None
    teacher = load_teacher(request.teacher)
    feedback.info(
        f"Teacher: {teacher.name}, {teacher.source}, licence {teacher.licence} (SHA-256 "
        f"{teacher.sha256})"
    )
    return teacher


def _check_memory(
    settings: DistillationSettings, bands: BandTable, teacher: Teacher | None, devices: Devices
) -> None:
    """Refuse what the memory will not hold."""
    preset, batch_tiles = settings.preset, settings.fit.batch_tiles
    extra_bytes = 0 if teacher is None else _teacher_bytes(teacher, preset, batch_tiles, devices)
    require_memory(PRESETS, preset, len(bands), settings.batch_tiles, devices, extra_bytes)


def _teacher_bytes(
    teacher: Teacher, preset: StudentPreset, batch_tiles: int, devices: Devices
) -> int:
    """Weights of the teacher, and what it keeps of one batch; it has no gradients."""
    parameters = sum(weight.numel() for weight in teacher.network.parameters())
    tokens = preset.num_tokens * -(-batch_tiles // devices.count)
    return 4 * (parameters + tokens * teacher.network.width * _TEACHER_VALUES)


def _tell_alignment(
    scene: Scene,
    bands: BandTable,
    teacher: Teacher,
    settings: DistillationSettings,
    feedback: Feedback,
) -> None:
    """Show which bands become the teacher's, before the scenes are looked through."""
    found = align_bands(bands, teacher.bands, settings.alignment, responses=settings.responses)
    feedback.info(f"Bands of the teacher in {scene.name}:\n{found.table()}")
    for note in found.notes:
        feedback.warning(note)


def _teacher_facts(teacher: Teacher | None) -> dict[str, str] | None:
    """What the package says about the teacher."""
    if teacher is None:
        return None
    return {
        "name": teacher.name,
        "sha256": teacher.sha256,
        "licence": teacher.licence,
        "source": teacher.source,
    }


def _model(tiles: SceneTiles, teacher: Teacher | None, trained: DistilledBackbone) -> TrainedModel:
    """The encoder, as it is saved."""
    encoder, names = trained.encoder, scene_names(tiles)
    taught = f"taught by {teacher.name}" if teacher is not None else "without a teacher"
    config = BackboneConfig(**asdict(encoder.config), tile_size_px=tiles.shape.tile_px)
    return TrainedModel(
        ARCHITECTURE,
        config,
        encoder.band_mean,
        encoder.band_std,
        f"Backbone of {names}, {taught}",
        f"An encoder of {len(tiles.bands)} bands, distilled from {names}, {taught}. To begin the "
        "training of classifiers and regressions with.",
    )

"""train_segmentation: scenes and labelled places in, adapters and head of a foundation out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Any, Literal

from lightning_fabric import Fabric
from pydantic import Field

from engine.device import choose_device
from engine.feedback import Feedback, StepFeedback
from engine.jobs.shared.class_training import (
    ClassRequest,
    choose_classes,
    class_facts,
    collect_labelled,
    score_values,
    tell_scores,
)
from engine.jobs.shared.masked_training import Devices, require_bytes
from engine.jobs.shared.segmenter_start import SegmenterStart, load_start
from engine.jobs.shared.training import (
    LabelledRequest,
    check_training_outputs,
    good_bands,
    open_scenes,
    package_name,
    shareable,
    training_area,
)
from engine.models.spectralx.presets import PRESETS, PUBLISHED
from engine.models.spectralx.segmenter import SegmenterConfig
from engine.packages.metadata import ModelInfo, Normalisation
from engine.packages.package import save_package
from engine.packages.parts import ModelParts
from engine.raster.labels import open_labels
from engine.raster.scene import Scene
from engine.raster.tiles import Tiling
from engine.report import render_report
from engine.training.classes import LabelClass
from engine.training.samples import Samples
from engine.training.segmentation import TrainedSegmenter, estimate_memory, train_segmenter
from engine.training.segmentation_chips import Light, chip_sizes
from engine.training.segmentation_report import segmentation_values
from engine.training.segmentation_steps import SegmentationSettings
from engine.version import engine_version

ARCHITECTURE = "spectralx-segmenter"
CHECKS = 10  # of the places of each fold in a training


class Request(LabelledRequest):
    """The parameters, beside those of every training on labels.

    ``class_field`` and ``classes`` say where the classes stand. ``adapted`` is a package that
    `adapt_backbone` made; training begins with it, and its settings hold. ``backbone`` is the name
    of an installed one, a package, or a file of weights; it stays as it is. What is left out is
    the preset's.
    """

    class_field: str | None = None
    classes: list[ClassRequest] | None = None
    adapted: str | None = None
    backbone: str = "galileo-nano"
    preset: Literal["paper", "large", "medium", "laptop"] = "laptop"
    adaptation: Literal["spectralx", "full", "frozen", "lora", "slr"] = "spectralx"
    train_tokenizer: bool | None = None
    scaling: Literal["standard", "unit", "chip"] | None = None
    load_balancing: float = Field(default=0.0, ge=0.0, le=1000.0)
    refine: bool | None = None
    match: Literal["hard", "soft"] | None = None
    spectral_path: bool | None = None
    epochs: int = Field(default=40, ge=1, le=10_000)
    batch_size: int | None = Field(default=None, ge=1, le=4096)
    learning_rate: float | None = Field(default=None, gt=0.0, le=1.0)


def train_segmentation(request: Request, feedback: Feedback) -> dict[str, Any]:
    """Train a segmentation and save what was added to its backbone as a package.

    Returns:
        ``output`` and, when asked for, ``report`` (paths); ``overall_accuracy``,
        ``balanced_accuracy``, ``kappa``, ``f1_macro``, ``iou_macro`` and ``ece`` on the places
        that were held out, null without any; ``trainable_parameters``; ``seconds``; ``device``.

    Raises:
        DeviceError, CapacityError: a GPU is required and there is none; too little memory.
        SceneError, BandTableError, BandMatchError: a scene cannot be read, or differs too much.
        LabelError: the labels cannot be used.
        PackageError: the backbone or what was adapted from it cannot be used.
        RequestError: the request contradicts what was adapted.
        TrainingError: the training diverged.
        OutputError: an output cannot be written.
    """
    start_s = time.monotonic()
    devices = _choose_devices(request, feedback)
    scenes = open_scenes(request, feedback)
    others = [path for path in (request.adapted, request.backbone) if path]
    check_training_outputs(request, scenes, others)
    start = load_start(request, good_bands(scenes[0].require_bands()), feedback)
    labels = open_labels(request.training, request.class_field, scenes[0].crs)
    classes = choose_classes(request.classes, labels, request.training, feedback)
    config = start.config(request, request.preset, len(classes))
    settings = _settings(request)
    _check_memory(request, start, config, settings, devices)
    warn_small(scenes, config.chip_px, feedback)

    samples = collect_labelled(
        scenes,
        start.bands,
        labels,
        classes,
        chip_sizes(config, request.block_size),
        request.seed,
        feedback,
        StepFeedback(feedback, 0.0, 0.05),
    )
    trained = train_segmenter(
        samples,
        config,
        start.foundation,
        settings,
        adapted_state=start.adapted_state,
        fabric=Fabric(
            accelerator=devices.choice.device.type, devices=1, precision=devices.precision
        ),
        feedback=StepFeedback(feedback, 0.05, 0.95),
    )
    _tell_training(trained, feedback)

    feedback.progress(0.95, "Saving the model")
    feedback.raise_if_cancelled()
    info = _describe(request, scenes, start, classes, samples, trained)
    parts = ModelParts(trained.support, trained.calibration.temperature)
    output = save_package(request.output, info, trained.model.own_state() | parts.state())
    result: dict[str, Any] = {
        "output": str(output),
        **score_values(trained.scores),
        "ece": trained.calibration.ece,
        "trainable_parameters": sum(trained.counts.values()),
    }
    if request.report is not None:
        feedback.progress(0.98, "Writing the report")
        shown = segmentation_values(
            trained, samples, [item.info for item in classes], [scene.name for scene in scenes]
        )
        report = render_report(
            "train_segmentation.html", request.report, info=info, package=str(output), **shown
        )
        result["report"] = str(report)
    feedback.progress(1.0, "Done")
    return {**result, "seconds": time.monotonic() - start_s, "device": devices.text}


def _choose_devices(request: Request, feedback: Feedback) -> Devices:
    """One device; bfloat16 on GPUs that are made for it, else only when asked for."""
    choice = choose_device(request.device, request.require_gpu, request.precision)
    is_free = choice.device.type == "cuda" or request.precision != "auto"
    rough = is_free and choice.precision == "bfloat16"
    devices = Devices(choice, 1, "bf16-mixed" if rough else "32-true")
    feedback.info(f"Device: {devices.text}")
    return devices


def _settings(request: Request) -> SegmentationSettings:
    """The settings of the training: the request's, or the preset's."""
    preset = PRESETS[request.preset]
    settings = SegmentationSettings(
        epochs=request.epochs,
        batch_chips=request.batch_size or preset.batch_chips,
        learning_rate=request.learning_rate or preset.learning_rate,
        validation=request.validation,
        seed=request.seed,
        check_epochs=max(request.epochs // CHECKS, 1),
    )
    if preset.name != PUBLISHED:
        return settings
    # Folds stay: they say how long to train, and give the temperature.
    return replace(settings, cosine=False, balanced=False, light=Light(0.0, 0.0))


def warn_small(scenes: Sequence[Scene], chip_px: int, feedback: Feedback) -> None:
    """Say which scenes do not fill a chip: the rest of it is shown to the network as empty."""
    for scene in scenes:
        if min(scene.height, scene.width) < chip_px:
            feedback.warning(
                f"{scene.name} has {scene.width} x {scene.height} px, less than a chip of "
                f"{chip_px} px, so part of every chip is empty. A preset of smaller chips learns "
                "more from it."
            )


def _check_memory(
    request: Request,
    start: SegmenterStart,
    config: SegmenterConfig,
    settings: SegmentationSettings,
    devices: Devices,
) -> None:
    """Refuse what the memory will not hold, before the work begins.

    Raises:
        CapacityError: see `require_bytes`.
    """

    @cache
    def memory(name: str) -> Any:
        one = start.config(request, name, config.num_classes)
        return estimate_memory(one, start.foundation)

    batches = {
        name: request.batch_size or preset.batch_chips
        for name, preset in PRESETS.items()
        if name == request.preset or start.is_possible(request, name, config.num_classes)
    }
    batches[request.preset] = settings.batch_chips
    require_bytes(
        batches,
        request.preset,
        config.in_channels,
        devices,
        lambda name, chips: int(memory(name).bytes_for(chips)),
    )


def _tell_training(trained: TrainedSegmenter, feedback: Feedback) -> None:
    """Say what was trained, what the network adds, and how good it is where it was not trained."""
    counts = ", ".join(f"{name} {count:,}" for name, count in trained.counts.items())
    feedback.info(f"{sum(trained.counts.values()):,} values were trained: {counts}.")
    choice = trained.history.choice
    if trained.history.spectral is not None and choice.gate == 0:
        feedback.info(
            "The network adds nothing: blocks held out within the training did not confirm that "
            "it helps. The model answers for each pixel by its spectrum."
        )
    elif trained.history.held_out is not None:
        feedback.info(
            f"The network was trained for {choice.epochs} epochs and its answer weighs "
            f"{choice.gate:g}: best on blocks held out within the training."
        )
    tell_scores(trained.scores, trained.baselines, feedback)


def _describe(
    request: Request,
    scenes: Sequence[Scene],
    start: SegmenterStart,
    classes: Sequence[LabelClass],
    samples: Samples,
    trained: TrainedSegmenter,
) -> ModelInfo:
    """What the package says about the model."""
    model, bands = trained.model, start.bands
    adapted = model.adapted
    names = ", ".join(item.info.name for item in classes)
    backbone = start.foundation.identity.name
    return ModelInfo(
        name=package_name(request.output),
        title=request.title or f"Segmentation: {names}",
        description=request.description
        or f"Segments {len(bands)} bands into {names}, on the backbone {backbone}. Trained on "
        + scenes[0].name
        + (f" and {len(scenes) - 1} more." if len(scenes) > 1 else "."),
        version="1.0.0",
        architecture=ARCHITECTURE,
        config=asdict(model.config),
        bands=bands,
        classes=tuple(item.info for item in classes),
        normalisation=Normalisation.of(adapted.band_mean.numpy(), adapted.band_std.numpy()),
        tiling=Tiling(model.tile_size_px, model.halo_px, model.blend),
        licence=request.licence,
        attribution=request.attribution,
        training=_training_facts(request, start, classes, samples, trained),
        scores={} if trained.scores is None else trained.scores.summary(),
        training_area=training_area(scenes),
        engine_version=engine_version(),
    )


def _training_facts(
    request: Request,
    start: SegmenterStart,
    classes: Sequence[LabelClass],
    samples: Samples,
    trained: TrainedSegmenter,
) -> dict[str, Any]:
    """How the model was trained, and the request that trains it again."""
    history = trained.history
    facts = {
        "request": shareable(request),
        "backbone": asdict(start.foundation.identity),
        "adapted_sha256": start.adapted_sha256,
        **class_facts(trained, samples, classes),
        "epochs": history.choice.epochs,
        "network_weight": history.choice.gate,
        "trainable_parameters": sum(trained.counts.values()),
        "trainable_parts": trained.counts,
    }
    return {name: value for name, value in facts.items() if value is not None}

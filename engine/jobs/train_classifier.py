"""train_classifier: scenes and labelled places in, a model package and a report out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lightning_fabric import Fabric

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
from engine.jobs.shared.training import (
    PlacesRequest,
    check_training_outputs,
    good_bands,
    load_backbone,
    open_scenes,
    package_name,
    sample_sizes,
    shareable,
    tell_parts,
    training_area,
)
from engine.models.classifier import ClassifierConfig
from engine.packages.metadata import ModelInfo, Normalisation
from engine.packages.package import save_package
from engine.packages.parts import ModelParts
from engine.raster.labels import open_labels
from engine.raster.scene import Scene
from engine.raster.spectra import BandTable
from engine.raster.tiles import Tiling
from engine.report import render_report
from engine.training.classes import LabelClass
from engine.training.classifier import TrainedClassifier, bfloat16_agreement, train_on_samples
from engine.training.model_fit import TrainingSettings
from engine.training.report_values import report_values
from engine.training.samples import Samples
from engine.version import engine_version

ARCHITECTURE = "hyperkd-classifier"


class Request(PlacesRequest):
    """The parameters of `PlacesRequest`, and where the classes stand."""

    class_field: str | None = None
    classes: list[ClassRequest] | None = None


def train_classifier(request: Request, feedback: Feedback) -> dict[str, Any]:
    """Train a land cover classifier and save it as a model package.

    Returns:
        ``output`` and, when asked for, ``report`` (paths); ``overall_accuracy``,
        ``balanced_accuracy``, ``kappa``, ``f1_macro``, ``iou_macro`` and ``ece``, the expected
        calibration error, on the places that were held out, null without any.

    Raises:
        DeviceError: a GPU is required and there is none.
        SceneError, BandTableError, BandMatchError: a scene cannot be read, or differs too much.
        LabelError: the labels cannot be used.
        PackageError: the backbone cannot be used.
        OutputError: an output cannot be written.
    """
    choice = choose_device(request.device, request.require_gpu, request.precision)
    feedback.info(f"Device: {choice.reason}")
    scenes = open_scenes(request, feedback)
    check_training_outputs(request, scenes)
    backbone = load_backbone(request)
    bands = backbone.bands if backbone else good_bands(scenes[0].require_bands())
    labels = open_labels(request.training, request.class_field, scenes[0].crs)
    classes = choose_classes(request.classes, labels, request.training, feedback)
    config = ClassifierConfig(len(bands), len(classes))
    if backbone is not None:
        config = backbone.configure(config)

    samples = collect_labelled(
        scenes,
        bands,
        labels,
        classes,
        sample_sizes(config, request.block_size),
        request.seed,
        feedback,
        StepFeedback(feedback, 0.0, 0.1),
    )

    # float32: training small models in bfloat16 gains no time and loses the last epochs' steps.
    fabric = Fabric(accelerator=choice.device.type, devices=1, precision="32-true")
    trained = train_on_samples(
        samples,
        config,
        TrainingSettings.of(request.epochs, request.validation, request.seed),
        start=backbone.start if backbone else None,
        fabric=fabric,
        feedback=StepFeedback(feedback, 0.1, 0.95),
    )
    _tell_training(trained, feedback)

    feedback.progress(0.95, "Saving the model")
    feedback.raise_if_cancelled()
    info = _describe(request, scenes, bands, classes, samples, trained)
    parts = ModelParts(trained.support, trained.calibration.temperature)
    output = save_package(request.output, info, trained.model.state_dict() | parts.state())
    result: dict[str, Any] = {
        "output": str(output),
        **score_values(trained.scores),
        "ece": trained.calibration.ece,
    }
    if request.report is not None:
        feedback.progress(0.98, "Writing the report")
        shown = report_values(
            trained, samples, [item.info for item in classes], [scene.name for scene in scenes]
        )
        report = render_report(
            "train_classifier.html", request.report, info=info, package=str(output), **shown
        )
        result["report"] = str(report)
    feedback.progress(1.0, "Done")
    return result


def _tell_training(trained: TrainedClassifier, feedback: Feedback) -> None:
    """Say what the encoder adds, and how good the model is where it was not trained."""
    tell_parts(trained.heads.choice, trained.context.choice, feedback)
    tell_scores(trained.scores, trained.baselines, feedback)


def _describe(
    request: Request,
    scenes: Sequence[Scene],
    bands: BandTable,
    classes: Sequence[LabelClass],
    samples: Samples,
    trained: TrainedClassifier,
) -> ModelInfo:
    """What the package says about the model."""
    model = trained.model
    names = ", ".join(item.info.name for item in classes)
    spectral = model.spectral
    return ModelInfo(
        name=package_name(request.output),
        title=request.title or f"Land cover: {names}",
        description=request.description
        or f"Classifies {len(bands)} bands into {names}. Trained on {scenes[0].name}"
        + (f" and {len(scenes) - 1} more." if len(scenes) > 1 else "."),
        version="1.0.0",
        architecture=ARCHITECTURE,
        config=asdict(model.config),
        bands=bands,
        classes=tuple(item.info for item in classes),
        normalisation=Normalisation.of(spectral.band_mean.numpy(), spectral.band_std.numpy()),
        tiling=Tiling(model.tile_size_px, model.halo_px, model.blend),
        licence=request.licence,
        attribution=request.attribution,
        training=_training_facts(request, classes, samples, trained),
        scores={} if trained.scores is None else trained.scores.summary(),
        training_area=training_area(scenes),
        engine_version=engine_version(),
    )


def _training_facts(
    request: Request,
    classes: Sequence[LabelClass],
    samples: Samples,
    trained: TrainedClassifier,
) -> dict[str, Any]:
    """How the model was trained, and the request that trains it again."""
    facts = {
        "request": shareable(request),
        **class_facts(trained, samples, classes),
        "epochs": trained.spectral.best_epoch + 1,
        "heads_share": trained.heads.choice.gate,
        "encoder_gate": trained.context.choice.gate,
        "cross_validated": {
            "linear": trained.heads.choice.without[1],
            "with_heads": trained.context.choice.without[1],
        },
        "bfloat16_agreement": bfloat16_agreement(trained.model, samples),
    }
    return facts

"""train_classifier: scenes and labelled places in, a model package and a report out."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from lightning_fabric import Fabric
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from rasterio.warp import transform_bounds
from torch import Tensor

from engine.device import choose_device
from engine.errors import PackageError
from engine.feedback import Feedback, StepFeedback
from engine.jobs.request import DeviceRequest
from engine.models.classifier import ClassifierConfig
from engine.packages.metadata import ModelInfo, Normalisation
from engine.packages.package import ModelPackage, check_place, load_package, save_package
from engine.raster.labels import FieldValue, Labels, open_labels
from engine.raster.scene import Scene, open_scene
from engine.raster.spectra import BandTable, match_bands
from engine.raster.style import ClassInfo
from engine.raster.tiles import Tiling
from engine.raster.writer import check_outputs
from engine.report import render_report
from engine.training.classes import (
    LabelClass,
    categorical_color,
    check_class_pixels,
    classes_of_values,
    present_classes,
)
from engine.training.classifier import (
    TrainedClassifier,
    TrainingSettings,
    bfloat16_agreement,
    train_on_samples,
)
from engine.training.report_values import report_values
from engine.training.samples import Samples, ScenePixels, collect_samples
from engine.version import engine_version

ARCHITECTURE = "hyperkd-classifier"
# Below this many bands spectra say too little for a model of spectra; RGB and NIR are four.
MIN_BANDS = 3


class ClassRequest(BaseModel):
    """A class as the layer's categories have it; ``field_value`` is ``value`` when left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: int = Field(ge=1, le=255)
    name: str = Field(min_length=1)
    color: str | None = Field(default=None, pattern="^#[0-9a-fA-F]{6}$")
    field_value: int | str | float | None = None


def _as_list(value: Any) -> Any:
    """A single source is a list of one."""
    return [value] if isinstance(value, str) else value


class Request(DeviceRequest):
    """The parameters.

    ``input`` lists scenes; a scene is a source that GDAL opens, or a list of single-band files.
    ``validation`` is the share of ground blocks that are held out for the scores; ``block_size``
    is the side of a block in pixels of the first scene. ``title`` to ``attribution`` go into the
    package as they are.
    """

    input: Annotated[list[str | list[str]], BeforeValidator(_as_list)] = Field(min_length=1)
    training: str
    class_field: str | None = None
    classes: list[ClassRequest] | None = None
    backbone: str | None = None
    epochs: int = Field(default=100, ge=1, le=10_000)
    validation: float = Field(default=0.25, ge=0.0, le=0.5)
    seed: int = Field(default=0, ge=0, lt=2**31)
    block_size: int = Field(default=10, ge=1, le=1000)
    output: str
    report: str | None = None
    bands: str | None = None
    title: str | None = None
    description: str | None = None
    licence: str = "other"
    attribution: str = ""


def train_classifier(request: Request, feedback: Feedback) -> dict[str, Any]:
    """Train a land cover classifier and save it as a model package.

    Returns:
        ``output`` and, when asked for, ``report`` (paths); ``overall_accuracy``,
        ``balanced_accuracy``, ``kappa``, ``f1_macro`` and ``iou_macro`` on the places that were
        held out, null without any.

    Raises:
        DeviceError: a GPU is required and there is none.
        SceneError, BandTableError, BandMatchError: a scene cannot be read, or differs too much.
        LabelError: the labels cannot be used.
        PackageError: the backbone cannot be used.
        OutputError: an output cannot be written.
    """
    choice = choose_device(request.device, request.require_gpu, request.precision)
    feedback.info(f"Device: {choice.reason}")
    scenes = _open_scenes(request, feedback)
    _check_outputs(request, scenes)
    backbone = load_package(request.backbone) if request.backbone else None
    bands = backbone.info.bands if backbone else _good_bands(scenes[0].require_bands())
    labels = open_labels(request.training, request.class_field, scenes[0].crs)
    classes = _choose_classes(request, labels, feedback)
    config = _config(backbone, len(bands), len(classes))

    samples = collect_samples(
        [_pixels_of(scene, bands, labels, feedback) for scene in scenes],
        [item.field_value for item in classes],
        cell_px=request.block_size,
        chip_px=max(config.chip_px, request.block_size),
        seed=request.seed,
        feedback=StepFeedback(feedback, 0.0, 0.1),
    )
    for warning in check_class_pixels(samples, classes):
        feedback.warning(warning)
    _tell_samples(samples, classes, feedback)

    # float32: training small models in bfloat16 gains no time and loses the last epochs' steps.
    fabric = Fabric(accelerator=choice.device.type, devices=1, precision="32-true")
    trained = train_on_samples(
        samples,
        config,
        TrainingSettings.of(request.epochs, request.validation, request.seed),
        backbone=_encoder_weights(backbone) if backbone else None,
        fabric=fabric,
        feedback=StepFeedback(feedback, 0.1, 0.95),
    )
    _tell_training(trained, feedback)

    feedback.progress(0.95, "Saving the model")
    feedback.raise_if_cancelled()
    info = _describe(request, scenes, bands, classes, samples, trained)
    output = save_package(request.output, info, trained.model.state_dict())
    result: dict[str, Any] = {"output": str(output), **_scores(trained)}
    if request.report is not None:
        feedback.progress(0.98, "Writing the report")
        values = report_values(
            trained, samples, [item.info for item in classes], [scene.name for scene in scenes]
        )
        report = render_report(
            "train_classifier.html", request.report, info=info, package=str(output), **values
        )
        result["report"] = str(report)
    feedback.progress(1.0, "Done")
    return result


def _open_scenes(request: Request, feedback: Feedback) -> list[Scene]:
    """Open all scenes and pass on what was assumed about them."""
    scenes = [open_scene(source, request.bands) for source in request.input]
    for scene in scenes:
        for note in scene.notes:
            feedback.warning(note)
        if scene.crs is None:
            feedback.warning(f"{scene.name} has no CRS: labels are taken to be in its own.")
    return scenes


def _check_outputs(request: Request, scenes: Sequence[Scene]) -> None:
    """Refuse outputs that cannot be written, before work begins."""
    inputs = [*(file for scene in scenes for file in scene.files), request.training]
    output = Path(request.output)
    check_place(output)
    if not output.is_dir():  # else an older package, which the new one replaces
        check_outputs([request.output], inputs, suffixes=(".zip", output.suffix))
    check_outputs([request.report], inputs, suffixes=(".html", ".htm"))


def _good_bands(table: BandTable) -> BandTable:
    """The bands that a new model reads: those that are not marked as bad."""
    used = np.flatnonzero(table.good)
    if len(used) < MIN_BANDS:
        raise PackageError(
            f"The first scene has {len(used)} good bands.",
            f"A classifier of spectra needs {MIN_BANDS} or more: choose another scene.",
        )
    return BandTable(
        tuple(table.names[i] for i in used),
        table.wavelength_nm[used],
        table.fwhm_nm[used],
        table.good[used],
        table.origin,
    )


def _choose_classes(request: Request, labels: Labels, feedback: Feedback) -> tuple[LabelClass, ...]:
    """The classes of the request that have labels, or all that the labels have."""
    for note in labels.notes:
        feedback.warning(note)
    if request.classes is None:
        wanted = classes_of_values(labels.values)
    else:
        wanted = tuple(
            LabelClass(
                ClassInfo(item.value, item.name, item.color or categorical_color(index)),
                _field_value(item),
            )
            for index, item in enumerate(request.classes)
        )
    classes, notes = present_classes(wanted, labels.values, request.training)
    for note in notes:
        feedback.warning(note)
    return classes


def _field_value(item: ClassRequest) -> FieldValue:
    """The value of the class field; QGIS gives whole numbers of real fields as floats."""
    value = item.value if item.field_value is None else item.field_value
    if isinstance(value, float):
        return int(value) if value.is_integer() else str(value)
    return value


def _config(backbone: ModelPackage | None, bands: int, classes: int) -> ClassifierConfig:
    """The settings of the classifier; the encoder's are those of the backbone, if any."""
    if backbone is None:
        return ClassifierConfig(in_channels=bands, num_classes=classes)
    _encoder_weights(backbone)  # refuse it before the samples are read
    values = {**backbone.info.config, "num_classes": classes, "encoder_gate": 0.0}
    return ClassifierConfig(**values)


def _encoder_weights(backbone: ModelPackage) -> dict[str, Tensor]:
    """The weights of a package's encoder, by their names in the encoder."""
    weights = {
        name.removeprefix("encoder."): tensor
        for name, tensor in backbone.state.items()
        if name.startswith("encoder.")
    }
    if backbone.info.architecture != ARCHITECTURE or not weights:
        raise PackageError(
            f"The model {backbone.info.name!r} has no encoder to begin with.",
            "Choose a package that this engine trained, or leave the backbone out.",
        )
    return weights


def _pixels_of(scene: Scene, bands: BandTable, labels: Labels, feedback: Feedback) -> ScenePixels:
    """Match a scene's bands to the model's and bring the labels to its grid."""
    match = match_bands(bands, scene.require_bands())
    if any(row.action != "same" for row in match.rows):
        feedback.info(f"Bands of the model in {scene.name}:\n{match.table()}")
    return ScenePixels(scene, match, labels.on(scene))


def _tell_samples(samples: Samples, classes: Sequence[LabelClass], feedback: Feedback) -> None:
    """Say how many pixels of each class there are."""
    counts = ", ".join(
        f"{item.info.name} {count}"
        for item, count in zip(classes, samples.class_pixels(), strict=True)
    )
    feedback.info(
        f"{len(samples.chip)} labelled pixels in {samples.num_places} blocks; with most "
        f"of the pixel in one class: {counts}."
    )


def _tell_training(trained: TrainedClassifier, feedback: Feedback) -> None:
    """Say what the encoder adds, and how good the model is where it was not trained."""
    share, gate = trained.heads.choice.gate, trained.context.choice.gate
    feedback.info(
        f"Small networks have a share of {share:.0%} in the answer from the spectrum, a linear "
        "layer the rest: best on blocks held out within the training."
    )
    feedback.info(
        f"The encoder adds with a weight of {gate:g}: these blocks confirmed it."
        if gate > 0
        else "The encoder adds nothing: these blocks did not confirm that it helps. The model "
        "classifies each pixel by its spectrum."
    )
    if trained.scores is None:
        feedback.warning("No pixel was held out, so the accuracy is not known.")
        return
    for name, scores in {"This model": trained.scores, **trained.baselines}.items():
        feedback.info(
            f"{name}: balanced accuracy {scores.balanced_accuracy:.3f}, overall "
            f"{scores.overall_accuracy:.3f} on blocks that were held out."
        )


def _scores(trained: TrainedClassifier) -> dict[str, float | None]:
    """The five numbers of the result; null where there are none."""
    if trained.scores is None:
        names = ("overall_accuracy", "balanced_accuracy", "kappa", "f1_macro", "iou_macro")
        return dict.fromkeys(names)
    return {
        name: None if np.isnan(value) else value for name, value in trained.scores.summary().items()
    }


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
        name=_package_name(request.output),
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
        training_area=_training_area(scenes),
        engine_version=engine_version(),
    )


def _package_name(output: str) -> str:
    """A valid name from the output's file name."""
    stem = Path(output).name.removesuffix(".zip")
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-_.")
    return name if re.fullmatch(r"[A-Za-z].+", name) and len(name) >= 3 else f"model-{name or '1'}"


def _training_facts(
    request: Request,
    classes: Sequence[LabelClass],
    samples: Samples,
    trained: TrainedClassifier,
) -> dict[str, Any]:
    """How the model was trained, and the request that trains it again."""
    held_out = torch.from_numpy(trained.held_out)
    facts = {
        "request": _shareable(request),
        "labelled_pixels": len(samples.chip),
        "held_out_pixels": int((held_out & samples.pure).sum()),
        "blocks": samples.num_places,
        "held_out_blocks": samples.subset(held_out).num_places,
        "pixels_by_class": {
            item.info.name: count
            for item, count in zip(classes, samples.class_pixels(), strict=True)
        },
        "epochs": trained.spectral.best_epoch + 1,
        "heads_share": trained.heads.choice.gate,
        "encoder_gate": trained.context.choice.gate,
        "cross_validated": {
            "linear": trained.heads.choice.without[1],
            "with_heads": trained.context.choice.without[1],
        },
        "baselines": {name: scores.balanced_accuracy for name, scores in trained.baselines.items()},
        "bfloat16_agreement": bfloat16_agreement(trained.model, samples),
    }
    return facts


def _shareable(request: Request) -> dict[str, Any]:
    """The request with file names instead of paths: packages are passed on to others."""

    def name_only(source: Any) -> Any:
        return (
            [name_only(item) for item in source] if isinstance(source, list) else Path(source).name
        )

    values: dict[str, Any] = json.loads(request.model_dump_json(exclude_none=True))
    for key in ("input", "training", "output", "report", "backbone", "bands"):
        if key in values:
            values[key] = name_only(values[key])
    return values


def _training_area(scenes: Sequence[Scene]) -> tuple[float, float, float, float] | None:
    """Degrees around all scenes that know where they are."""
    boxes = []
    for scene in scenes:
        if scene.crs is not None:
            corners = [
                scene.transform @ corner
                for corner in (
                    (0, 0), (scene.width, 0), (scene.width, scene.height), (0, scene.height),
                )
            ]  # fmt: skip
            xs, ys = zip(*corners, strict=True)
            box = transform_bounds(scene.crs, "EPSG:4326", min(xs), min(ys), max(xs), max(ys))
            boxes.append(box)
    if not boxes or not np.isfinite(boxes).all():
        return None
    west, south, east, north = zip(*boxes, strict=True)
    return min(west), min(south), max(east), max(north)

"""train_regression: scenes and places with measured values in, a model package and a report out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric import Fabric

from engine.device import choose_device
from engine.feedback import Feedback, StepFeedback
from engine.jobs.shared.training import (
    PlacesRequest,
    check_training_outputs,
    good_bands,
    load_backbone,
    match_scene,
    open_scenes,
    package_name,
    sample_sizes,
    shareable,
    tell_parts,
    training_area,
)
from engine.models.regressor import RegressorConfig
from engine.packages.metadata import ModelInfo, Normalisation, Quantity
from engine.packages.package import save_package
from engine.raster.scene import Scene
from engine.raster.spectra import BandTable
from engine.raster.tiles import Tiling
from engine.raster.values import open_values
from engine.raster.vector import parse_layer
from engine.report import render_report
from engine.training.model_fit import TrainingSettings
from engine.training.regression import (
    TrainedRegressor,
    bfloat16_agreement,
    check_value_pixels,
    train_on_values,
)
from engine.training.samples import Samples, collect_samples
from engine.training.targets import ValueTargets, value_steps
from engine.training.value_report import value_report_values
from engine.version import engine_version

ARCHITECTURE = "hyperkd-regressor"
SCORES = ("rmse", "mae", "r2")


class Request(PlacesRequest):
    """The parameters of `PlacesRequest`, and what the values are.

    ``value_field`` holds them; a raster needs none. ``quantity`` is their name, that of the field
    when left out, and ``unit`` their unit.
    """

    value_field: str | None = None
    quantity: str = ""
    unit: str = ""


def train_regression(request: Request, feedback: Feedback) -> dict[str, Any]:
    """Train a model of a quantity and save it as a model package.

    Returns:
        ``output`` and, when asked for, ``report`` (paths); ``rmse`` and ``mae`` in the quantity's
        unit, and ``r2``, on the places that were held out, null without any.

    Raises:
        DeviceError: a GPU is required and there is none.
        SceneError, BandTableError, BandMatchError: a scene cannot be read, or differs too much.
        LabelError: the values cannot be used.
        PackageError: the backbone cannot be used.
        OutputError: an output cannot be written.
    """
    choice = choose_device(request.device, request.require_gpu, request.precision)
    feedback.info(f"Device: {choice.reason}")
    scenes = open_scenes(request, feedback)
    check_training_outputs(request, scenes)
    backbone = load_backbone(request)
    bands = backbone.bands if backbone else good_bands(scenes[0].require_bands())
    config = RegressorConfig(len(bands))
    if backbone is not None:
        config = backbone.configure(config)
    samples = _collect(request, scenes, bands, config, StepFeedback(feedback, 0.0, 0.1))

    # float32: training small models in bfloat16 gains no time and loses the last epochs' steps.
    fabric = Fabric(accelerator=choice.device.type, devices=1, precision="32-true")
    trained = train_on_values(
        samples,
        config,
        TrainingSettings.of(request.epochs, request.validation, request.seed),
        start=backbone.start if backbone else None,
        fabric=fabric,
        feedback=StepFeedback(feedback, 0.1, 0.95),
    )
    quantity = Quantity(_quantity_name(request), request.unit.strip(), *trained.value_range)
    _tell_training(trained, quantity, feedback)

    feedback.progress(0.95, "Saving the model")
    feedback.raise_if_cancelled()
    info = _describe(request, scenes, bands, quantity, samples, trained)
    output = save_package(request.output, info, trained.model.state_dict())
    result: dict[str, Any] = {"output": str(output), **_scores(trained)}
    if request.report is not None:
        feedback.progress(0.98, "Writing the report")
        shown = value_report_values(trained, samples, quantity, [scene.name for scene in scenes])
        report = render_report(
            "train_regression.html", request.report, info=info, package=str(output), **shown
        )
        result["report"] = str(report)
    feedback.progress(1.0, "Done")
    return result


def _collect(
    request: Request,
    scenes: Sequence[Scene],
    bands: BandTable,
    config: RegressorConfig,
    feedback: Feedback,
) -> Samples:
    """Read the pixels of all scenes whose value is known."""
    values = open_values(request.training, request.value_field, scenes[0].crs)
    for note in values.notes:
        feedback.warning(note)
    steps = value_steps(values.levels)
    samples = collect_samples(
        [
            match_scene(scene, bands, ValueTargets(values.on(scene), steps), feedback)
            for scene in scenes
        ],
        sizes=sample_sizes(config, request.block_size),
        seed=request.seed,
        feedback=feedback,
    )
    for warning in check_value_pixels(samples):
        feedback.warning(warning)
    feedback.info(f"{len(samples.chip)} pixels with a value in {samples.num_places} blocks.")
    return samples


def _quantity_name(request: Request) -> str:
    """What the user calls it, else the field, else the raster's file name."""
    path = parse_layer(request.training).path
    return request.quantity.strip() or request.value_field or Path(path).stem


def _tell_training(trained: TrainedRegressor, quantity: Quantity, feedback: Feedback) -> None:
    """Say how the values were learned, what each part adds, and how good the model is."""
    if trained.is_log:
        feedback.info(
            "The training values are strongly skewed and never negative: their logarithm, "
            "log(1 + value), was learned."
        )
    tell_parts(trained.heads.choice, trained.context.choice, feedback)
    if trained.scores is None:
        feedback.warning("No pixel was held out, so the accuracy is not known.")
        return
    unit = f" {quantity.unit}" if quantity.unit else ""
    for name, scores in {"This model": trained.scores, **trained.baselines}.items():
        feedback.info(
            f"{name}: RMSE {scores.rmse:.4g}{unit}, MAE {scores.mae:.4g}{unit}, R² "
            f"{scores.r2:.3f} on blocks that were held out."
        )


def _scores(trained: TrainedRegressor) -> dict[str, float | None]:
    """The three numbers of the result; null where there are none."""
    if trained.scores is None:
        return dict.fromkeys(SCORES)
    return {
        name: None if np.isnan(value) else value for name, value in trained.scores.summary().items()
    }


def _describe(
    request: Request,
    scenes: Sequence[Scene],
    bands: BandTable,
    quantity: Quantity,
    samples: Samples,
    trained: TrainedRegressor,
) -> ModelInfo:
    """What the package says about the model."""
    model = trained.model
    spectral = model.spectral
    return ModelInfo(
        name=package_name(request.output),
        title=request.title or quantity.label[:1].upper() + quantity.label[1:],
        description=request.description
        or f"Estimates {quantity.label} from {len(bands)} bands. Trained on {scenes[0].name}"
        + (f" and {len(scenes) - 1} more." if len(scenes) > 1 else "."),
        version="1.0.0",
        architecture=ARCHITECTURE,
        config=asdict(model.config),
        bands=bands,
        classes=(),
        normalisation=Normalisation.of(spectral.band_mean.numpy(), spectral.band_std.numpy()),
        tiling=Tiling(model.tile_size_px, model.halo_px, model.blend),
        licence=request.licence,
        task="regression",
        quantity=quantity,
        attribution=request.attribution,
        training=_training_facts(request, samples, trained),
        scores={} if trained.scores is None else trained.scores.summary(),
        training_area=training_area(scenes),
        engine_version=engine_version(),
    )


def _training_facts(
    request: Request, samples: Samples, trained: TrainedRegressor
) -> dict[str, Any]:
    """How the model was trained, and the request that trains it again."""
    return {
        "request": shareable(request),
        "labelled_pixels": len(samples.chip),
        "held_out_pixels": len(trained.tested),
        "blocks": samples.num_places,
        "held_out_blocks": len(np.unique(samples.place.numpy()[trained.held_out])),
        "log1p": trained.is_log,
        "epochs": trained.spectral.best_epoch + 1,
        "heads_share": trained.heads.choice.gate,
        "encoder_gate": trained.context.choice.gate,
        "cross_validated_r2": {
            "linear": trained.heads.choice.without[1],
            "with_heads": trained.context.choice.without[1],
        },
        "baselines_rmse": {name: scores.rmse for name, scores in trained.baselines.items()},
        "bfloat16_agreement": bfloat16_agreement(trained.model, samples),
    }

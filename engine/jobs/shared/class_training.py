"""What the jobs share that train a model of classes: the classes, and what is said about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from engine.feedback import Feedback
from engine.jobs.shared.training import match_scene
from engine.raster.labels import FieldValue, Labels
from engine.raster.scene import Scene
from engine.raster.spectra import BandTable
from engine.raster.style import ClassInfo
from engine.training.classes import (
    LabelClass,
    categorical_color,
    check_class_pixels,
    classes_of_values,
    present_classes,
)
from engine.training.metrics import Scores
from engine.training.report_values import TrainedOnPlaces
from engine.training.samples import Samples, SampleSizes, collect_samples
from engine.training.targets import ClassTargets

SCORES = ("overall_accuracy", "balanced_accuracy", "kappa", "f1_macro", "iou_macro")


class ClassRequest(BaseModel):
    """A class as the layer's categories have it; ``field_value`` is ``value`` when left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: int = Field(ge=1, le=255)
    name: str = Field(min_length=1)
    color: str | None = Field(default=None, pattern="^#[0-9a-fA-F]{6}$")
    field_value: int | str | float | None = None


def choose_classes(
    wanted: Sequence[ClassRequest] | None, labels: Labels, source: str, feedback: Feedback
) -> tuple[LabelClass, ...]:
    """The classes of the request that have labels, or all that the labels have.

    Args:
        wanted: of the request; None: all.
        labels: that were opened.
        source: of the labels, for messages.
        feedback: told what is left out.

    Raises:
        LabelError: fewer than two classes are left.
    """
    for note in labels.notes:
        feedback.warning(note)
    if wanted is None:
        listed = classes_of_values(labels.values)
    else:
        listed = tuple(
            LabelClass(
                ClassInfo(item.value, item.name, item.color or categorical_color(index)),
                _field_value(item),
            )
            for index, item in enumerate(wanted)
        )
    classes, notes = present_classes(listed, labels.values, source)
    for note in notes:
        feedback.warning(note)
    return classes


def collect_labelled(
    scenes: Sequence[Scene],
    bands: BandTable,
    labels: Labels,
    classes: Sequence[LabelClass],
    sizes: SampleSizes,
    seed: int,
    feedback: Feedback,
    reading: Feedback,
) -> Samples:
    """Read the labelled pixels of all scenes, and say how many there are of each class.

    Args:
        scenes: to read.
        bands: of the model.
        labels: where the classes are.
        classes: in the model's order.
        sizes: of chips, cores and blocks.
        seed: of the draw.
        feedback: told what was found.
        reading: told of the progress.

    Raises:
        LabelError: no labelled pixel is valid, or a class has too few.
    """
    values = [item.field_value for item in classes]
    samples = collect_samples(
        [
            match_scene(scene, bands, ClassTargets(labels.on(scene), values), feedback)
            for scene in scenes
        ],
        sizes=sizes,
        seed=seed,
        feedback=reading,
    )
    for warning in check_class_pixels(samples, classes):
        feedback.warning(warning)
    _tell_samples(samples, classes, feedback)
    return samples


def class_facts(
    trained: TrainedOnPlaces, samples: Samples, classes: Sequence[LabelClass]
) -> dict[str, Any]:
    """What every package with classes says of its training: labels, calibration, comparisons."""
    held_out = torch.from_numpy(trained.held_out)
    return {
        "labelled_pixels": len(samples.chip),
        "held_out_pixels": int((held_out & samples.pure).sum()),
        "blocks": samples.num_places,
        "held_out_blocks": samples.subset(held_out).num_places,
        "pixels_by_class": {
            item.info.name: count
            for item, count in zip(classes, samples.class_pixels(), strict=True)
        },
        "baselines": {name: scores.balanced_accuracy for name, scores in trained.baselines.items()},
        "temperature": trained.calibration.temperature,
        "ece": trained.calibration.ece,
    }


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


def tell_scores(scores: Scores | None, baselines: Mapping[str, Scores], feedback: Feedback) -> None:
    """Say how good the model is where it was not trained, beside classical classifiers."""
    if scores is None:
        feedback.warning("No pixel was held out, so the accuracy is not known.")
        return
    for name, found in {"This model": scores, **baselines}.items():
        feedback.info(
            f"{name}: balanced accuracy {found.balanced_accuracy:.3f}, overall "
            f"{found.overall_accuracy:.3f} on blocks that were held out."
        )


def score_values(scores: Scores | None) -> dict[str, float | None]:
    """The five numbers of the result; null where there are none."""
    if scores is None:
        return dict.fromkeys(SCORES)
    return {name: None if np.isnan(value) else value for name, value in scores.summary().items()}


def _field_value(item: ClassRequest) -> FieldValue:
    """The value of the class field; QGIS gives whole numbers of real fields as floats."""
    value = item.value if item.field_value is None else item.field_value
    if isinstance(value, float):
        return int(value) if value.is_integer() else str(value)
    return value

"""The whole procedure of stage 2, from samples to a scored segmenter that knows its limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from engine.feedback import Feedback, StepFeedback
from engine.models.spectralx.segmenter import SegmenterConfig, SpectralXSegmenter
from engine.models.support import Support
from engine.packages.foundations import Foundation
from engine.training.baselines import fit_baselines
from engine.training.calibration import Calibration, calibrate, fit_temperature
from engine.training.metrics import ConfusionScores, Scores
from engine.training.model_fit import hold_out_places
from engine.training.samples import Samples
from engine.training.segmentation_fit import (
    SegmentationSettings,
    SegmenterHistory,
    fit_segmenter,
    predict_samples,
)
from engine.training.support_fit import fit_support_to_places


@dataclass(frozen=True, eq=False)
class TrainedSegmenter:
    """A segmenter and all that is to be said about its training.

    Args:
        model: on the CPU, in evaluation mode.
        held_out: (M,) bool, the samples that training did not see.
        scores: on the pure pixels among them; None when nothing was held out.
        baselines: scores of the classical classifiers, by name.
        history: of the fit.
        calibration: the temperature of its logits, and what it does on the held-out pixels.
        support: how familiar a spectrum is; None when all labels lie in one place.
        counts: values that were trained, by part of the model.
    """

    model: SpectralXSegmenter
    held_out: NDArray[np.bool_]
    scores: Scores | None
    baselines: dict[str, Scores]
    history: SegmenterHistory
    calibration: Calibration
    support: Support | None
    counts: dict[str, int]


def train_segmenter(
    samples: Samples,
    config: SegmenterConfig,
    foundation: Foundation,
    settings: SegmentationSettings,
    *,
    adapted_state: Mapping[str, Tensor] | None = None,
    fabric: Fabric,
    feedback: Feedback,
) -> TrainedSegmenter:
    """Train on some places and score on the others.

    1. Hold places out; nothing below sees them before step 4, but for the support's scale.
    2. Fit the model, see `fit_segmenter`.
    3. Fit its temperature on what its folds have answered for places that they had not seen.
    4. Score on the places held out, beside classical classifiers trained on the same pixels.

    Args:
        samples: see `fit_segmenter`.
        config: likewise.
        foundation: likewise.
        settings: likewise, and the share of places to hold out.
        adapted_state: likewise.
        fabric: likewise.
        feedback: told what is done; asked for a cancel at every batch.

    Raises:
        LabelError: too few places to hold any out.
        TrainingError: the loss is no longer a number.
    """
    held_out = hold_out_places(samples, samples.class_index, settings)
    training = samples.subset(~torch.from_numpy(held_out))
    model, history = fit_segmenter(
        training,
        config,
        foundation,
        settings,
        adapted_state=adapted_state,
        fabric=fabric,
        feedback=StepFeedback(feedback, 0.0, 0.9),
    )
    temperature = _temperature(training, history)
    outside = samples.subset(torch.from_numpy(held_out))
    support = fit_support_to_places(training, outside, settings.seed)
    test = samples.subset(torch.from_numpy(held_out) & samples.pure)
    last = StepFeedback(feedback, 0.9, 1.0)
    scores, baselines, calibration = _score(model, training, test, temperature, settings.seed, last)
    counts = model.trainable_counts()
    return TrainedSegmenter(
        model, held_out, scores, baselines, history, calibration, support, counts
    )


def _temperature(training: Samples, history: SegmenterHistory) -> float:
    """Fit the temperature to answers for places that the answering fit has not seen."""
    if history.held_out is None:
        return 1.0
    pure = training.pure
    return fit_temperature(history.held_out[pure], training.class_index[pure])


def _score(
    model: SpectralXSegmenter,
    training: Samples,
    test: Samples,
    temperature: float,
    seed: int,
    feedback: Feedback,
) -> tuple[Scores | None, dict[str, Scores], Calibration]:
    """Score model and baselines on the pure pixels that were held out."""
    if not len(test.chip):
        return None, {}, Calibration(temperature)
    feedback.progress(0.0, "Scoring on held-out places, beside classical classifiers")
    logits = predict_samples(model, test)
    calibration = calibrate(temperature, logits, test.class_index)
    pure = training.pure
    found = fit_baselines(
        training.spectra[pure].numpy(),
        training.class_index[pure].numpy(),
        test.spectra.numpy(),
        seed,
        feedback,
    )
    baselines = {
        name: _scores_of(test.class_index, torch.from_numpy(predicted), test.num_classes)
        for name, predicted in found
    }
    scores = _scores_of(test.class_index, logits.argmax(dim=1), test.num_classes)
    return scores, baselines, calibration


def _scores_of(reference: Tensor, predicted: Tensor, num_classes: int) -> Scores:
    confusion = ConfusionScores(num_classes)
    confusion.update(reference, predicted)
    return confusion.scores()

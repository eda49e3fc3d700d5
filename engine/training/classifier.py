"""The whole training procedure, from samples to a scored classifier."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from engine.feedback import Feedback, StepFeedback
from engine.models.classifier import ClassifierConfig
from engine.models.pixel_model import PixelModel
from engine.models.support import Support
from engine.training.baselines import fit_baselines
from engine.training.calibration import Calibration, calibrate, fit_temperature
from engine.training.context_fit import ContextFit, EncoderStart
from engine.training.heads_fit import HeadsFit
from engine.training.metrics import ConfusionScores, Scores
from engine.training.model_fit import (
    TrainingSettings,
    fit_model,
    hold_out_places,
    predict_samples,
)
from engine.training.objective import ClassObjective
from engine.training.samples import Samples
from engine.training.spectral_fit import SpectralFit
from engine.training.support_fit import fit_support_to_places


@dataclass(frozen=True, eq=False)
class TrainedClassifier:
    """A classifier and all that is to be said about its training.

    Args:
        model: on the CPU, in evaluation mode.
        held_out: (M,) bool, the samples that training did not see.
        scores: on the pure pixels among them; None when nothing was held out.
        baselines: scores of the classical classifiers, by name.
        spectral: the linear path's fit.
        heads: the small networks' fit.
        context: the encoder's fit.
        calibration: the temperature of its logits, and what it does on the held-out pixels.
        support: how familiar a spectrum is; None when all labels lie in one place.
    """

    model: PixelModel
    held_out: NDArray[np.bool_]
    scores: Scores | None
    baselines: dict[str, Scores]
    spectral: SpectralFit
    heads: HeadsFit
    context: ContextFit
    calibration: Calibration
    support: Support | None


def train_on_samples(
    samples: Samples,
    config: ClassifierConfig,
    settings: TrainingSettings,
    *,
    start: EncoderStart | None,
    fabric: Fabric,
    feedback: Feedback,
) -> TrainedClassifier:
    """Train on some places and score on the others.

    1. Hold places out; nothing below sees them before step 3.
    2. Fit the model, see `fit_model`.
    3. Fit the temperature to cross-fitted answers for places within the training, and the support
       to the training spectra; only its scale looks at the places held out.
    4. Score on the places held out, beside classical classifiers trained on the same pixels.

    Raises:
        LabelError: too few places to hold any out.
    """
    held_out = hold_out_places(samples, samples.class_index, settings)
    training = samples.subset(~torch.from_numpy(held_out))
    device = fabric.device
    objective = ClassObjective(
        training.shares.to(device), training.weight.to(device), training.pure.to(device)
    )
    fit = fit_model(
        training,
        objective,
        training.class_index,
        config,
        settings,
        start=start,
        fabric=fabric,
        feedback=StepFeedback(feedback, 0.0, 0.9),
    )
    temperature = _temperature(training, fit.context.held_out.cpu())
    outside = samples.subset(torch.from_numpy(held_out))
    support = fit_support_to_places(training, outside, settings.seed)
    test = outside.subset(outside.pure)
    last = StepFeedback(feedback, 0.9, 1.0)
    scores, baselines, calibration = _score(
        fit.model, training, test, temperature, settings.seed, last
    )
    return TrainedClassifier(
        fit.model, held_out, scores, baselines, fit.spectral, fit.heads, fit.context,
        calibration, support,
    )  # fmt: skip


def _temperature(training: Samples, cross_fitted: Tensor) -> float:
    """Fit the temperature to (M, K) answers for places that the answering fit has not seen."""
    if training.num_places < 2:  # then no place was held out within the training
        return 1.0
    pure = training.pure
    return fit_temperature(cross_fitted[pure], training.class_index[pure])


def _score(
    model: PixelModel,
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
    return scores, baselines, calibrate(temperature, logits, test.class_index)


def _scores_of(reference: Tensor, predicted: Tensor, num_classes: int) -> Scores:
    confusion = ConfusionScores(num_classes)
    confusion.update(reference, predicted)
    return confusion.scores()


def bfloat16_agreement(model: PixelModel, samples: Samples) -> float:
    """Share of the labelled pixels that get the same class in bfloat16 as in float32."""
    exact = predict_samples(model, samples).argmax(dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = predict_samples(model, samples).argmax(dim=1)
    return float((exact == rough).float().mean())

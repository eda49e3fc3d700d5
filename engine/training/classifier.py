"""The whole training procedure, from samples to a scored classifier."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray

from engine.feedback import Feedback, StepFeedback
from engine.models.classifier import ClassifierConfig
from engine.models.pixel_model import PixelModel
from engine.models.support import Support
from engine.training.calibration import Calibration
from engine.training.context_fit import ContextFit, EncoderStart
from engine.training.heads_fit import HeadsFit
from engine.training.metrics import Scores
from engine.training.model_fit import (
    TrainingSettings,
    fit_model,
    hold_out_places,
    predict_samples,
)
from engine.training.objective import ClassObjective
from engine.training.samples import Samples
from engine.training.scoring import fitted_temperature, judge_model
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
    temperature = fitted_temperature(training, fit.context.held_out.cpu())
    outside = samples.subset(torch.from_numpy(held_out))
    support = fit_support_to_places(training, outside, settings.seed)
    test = outside.subset(outside.pure)
    last = StepFeedback(feedback, 0.9, 1.0)
    predict = partial(predict_samples, fit.model)
    judged = judge_model(predict, training, test, temperature, settings.seed, last)
    return TrainedClassifier(
        fit.model, held_out, judged.scores, judged.baselines, fit.spectral, fit.heads, fit.context,
        judged.calibration, support,
    )  # fmt: skip


def bfloat16_agreement(model: PixelModel, samples: Samples) -> float:
    """Share of the labelled pixels that get the same class in bfloat16 as in float32."""
    exact = predict_samples(model, samples).argmax(dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = predict_samples(model, samples).argmax(dim=1)
    return float((exact == rough).float().mean())

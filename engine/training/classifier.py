"""The whole training procedure, from samples to a scored classifier."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import LabelError
from engine.feedback import Feedback, StepFeedback
from engine.models.classifier import ClassifierConfig, HyperKDClassifier
from engine.training.baselines import fit_baselines
from engine.training.context_fit import ContextFit, ContextSettings, fit_context
from engine.training.heads_fit import HeadsFit, HeadsSettings, fit_heads
from engine.training.metrics import ConfusionScores, Scores
from engine.training.places import hold_out, place_folds
from engine.training.samples import Samples
from engine.training.spectral_fit import (
    SpectralFit,
    SpectralSettings,
    TrainingPixels,
    fit_spectral_path,
)

PREDICT_CHIPS = 16


@dataclass(frozen=True)
class TrainingSettings:
    """How a classifier is trained.

    Args:
        validation: share of the places that training does not see at all, for the scores.
        folds: of the other places, for early stopping and the gate.
        seed: of everything that is drawn.
        spectral: see there.
        heads: see there.
        context: see there.
    """

    validation: float = 0.25
    folds: int = 4
    seed: int = 0
    spectral: SpectralSettings = field(default_factory=SpectralSettings)
    heads: HeadsSettings = field(default_factory=HeadsSettings)
    context: ContextSettings = field(default_factory=ContextSettings)

    @classmethod
    def of(cls, epochs: int, validation: float, seed: int) -> Self:
        """Settings for the user's choices; the encoder trains for its share of the epochs."""
        context = max(epochs * ContextSettings.epochs // SpectralSettings.epochs, 1)
        return cls(
            validation=validation,
            seed=seed,
            spectral=SpectralSettings(epochs=epochs),
            heads=HeadsSettings(epochs=epochs),
            context=ContextSettings(
                epochs=context, check_epochs=min(ContextSettings.check_epochs, context)
            ),
        )


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
    """

    model: HyperKDClassifier
    held_out: NDArray[np.bool_]
    scores: Scores | None
    baselines: dict[str, Scores]
    spectral: SpectralFit
    heads: HeadsFit
    context: ContextFit


def train_on_samples(
    samples: Samples,
    config: ClassifierConfig,
    settings: TrainingSettings,
    *,
    backbone: dict[str, Tensor] | None,
    fabric: Fabric,
    feedback: Feedback,
) -> TrainedClassifier:
    """Train on some places and score on the others.

    1. Hold places out; nothing below sees them before step 5.
    2. Fit the linear path; folds of the remaining places decide when to stop.
    3. Train small networks on the spectra; the same folds decide their share beside it.
    4. Train the encoder on top; the same folds decide how far its gate opens.
    5. Score on the places held out, beside classical classifiers trained on the same pixels.

    Raises:
        LabelError: too few places to hold any out.
    """
    held_out = _hold_out(samples, settings)
    training = samples.subset(~torch.from_numpy(held_out))
    pixels = _training_pixels(training, settings, fabric.device)
    spectral = fit_spectral_path(
        pixels, settings.spectral, settings.seed, StepFeedback(feedback, 0.0, 0.15)
    )
    heads = fit_heads(
        pixels,
        training.place.to(fabric.device),
        spectral,
        settings.heads,
        members=config.heads,
        hidden=config.heads_hidden,
        seed=settings.seed,
        feedback=StepFeedback(feedback, 0.15, 0.5),
    )
    context = fit_context(
        training,
        pixels,
        spectral,
        heads,
        config,
        settings.context,
        backbone=backbone,
        seed=settings.seed,
        fabric=fabric,
        feedback=StepFeedback(feedback, 0.5, 0.9),
    )
    last = StepFeedback(feedback, 0.9, 1.0)
    scores, baselines = _score(context.model, training, samples, held_out, settings.seed, last)
    return TrainedClassifier(context.model, held_out, scores, baselines, spectral, heads, context)


def predict_samples(model: HyperKDClassifier, samples: Samples) -> Tensor:
    """(M, K) float32 logits of the labelled pixels, each seen in its chip."""
    if model.config.encoder_gate == 0:
        spectra = samples.spectra
        valid = torch.ones(1, len(spectra), 1, dtype=torch.bool)
        with torch.inference_mode():
            logits: Tensor = model(spectra.T[None, :, :, None], valid)
        return logits[0, :, :, 0].T
    parts = []
    for index in torch.split(torch.arange(len(samples.valid)), PREDICT_CHIPS):
        with torch.inference_mode():
            parts.append(model(samples.reflectance[index], samples.valid[index]))
    return torch.cat(parts)[samples.chip, :, samples.row, samples.col]


def _hold_out(samples: Samples, settings: TrainingSettings) -> NDArray[np.bool_]:
    """Choose the places for the scores; see `hold_out`."""
    place = samples.place.numpy()
    if settings.validation > 0 and len(np.unique(place)) < 2:
        raise LabelError(
            "All labels lie in one place, so none can be held out to test the model.",
            "Label other places too, or set the share of validation blocks to 0.",
        )
    return hold_out(samples.class_index.numpy(), place, settings.validation, settings.seed)


def _training_pixels(
    training: Samples, settings: TrainingSettings, device: torch.device
) -> TrainingPixels:
    """The samples as the linear path wants them, with their folds."""
    fold = place_folds(
        training.class_index.numpy(), training.place.numpy(), settings.folds, settings.seed
    )
    return TrainingPixels(
        training.spectra.to(device),
        training.shares.to(device),
        training.weight.to(device),
        training.pure.to(device),
        torch.from_numpy(fold).to(device),
    )


def _score(
    model: HyperKDClassifier,
    training: Samples,
    samples: Samples,
    held_out: NDArray[np.bool_],
    seed: int,
    feedback: Feedback,
) -> tuple[Scores | None, dict[str, Scores]]:
    """Score model and baselines on the pure pixels that were held out."""
    tested = torch.from_numpy(held_out) & samples.pure
    if not tested.any():
        return None, {}
    test = samples.subset(tested)
    feedback.progress(0.0, "Scoring on held-out places, beside classical classifiers")
    scores = _scores_of(test.class_index, predict_samples(model, test).argmax(dim=1), samples)
    pure = training.pure
    found = fit_baselines(
        training.spectra[pure].numpy(),
        training.class_index[pure].numpy(),
        test.spectra.numpy(),
        seed,
        feedback,
    )
    baselines = {
        name: _scores_of(test.class_index, torch.from_numpy(predicted), samples)
        for name, predicted in found
    }
    return scores, baselines


def _scores_of(reference: Tensor, predicted: Tensor, samples: Samples) -> Scores:
    confusion = ConfusionScores(samples.num_classes)
    confusion.update(reference, predicted)
    return confusion.scores()


def bfloat16_agreement(model: HyperKDClassifier, samples: Samples) -> float:
    """Share of the labelled pixels that get the same class in bfloat16 as in float32."""
    exact = predict_samples(model, samples).argmax(dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = predict_samples(model, samples).argmax(dim=1)
    return float((exact == rough).float().mean())

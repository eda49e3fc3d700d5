"""What every model of classes is judged by on places that its training has not seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.feedback import Feedback
from engine.training.baselines import fit_baselines
from engine.training.calibration import Calibration, calibrate, fit_temperature
from engine.training.metrics import ConfusionScores, Scores
from engine.training.samples import Samples


@dataclass(frozen=True, eq=False)
class Judgement:
    """How good a model is where it was not trained.

    Args:
        scores: on the pure pixels held out; None when there are none.
        baselines: scores of the classical classifiers on them, by name.
        calibration: the temperature of the logits, and what it does on them.
    """

    scores: Scores | None
    baselines: dict[str, Scores]
    calibration: Calibration


def fitted_temperature(training: Samples, cross_fitted: Tensor | None) -> float:
    """Fit the temperature to (M, K) answers for places that the answering fit has not seen.

    Args:
        training: the samples, all of them.
        cross_fitted: the answers; None, or of one place alone, gives 1.
    """
    if cross_fitted is None or training.num_places < 2:
        return 1.0
    pure = training.pure
    return fit_temperature(cross_fitted[pure], training.class_index[pure])


def judge_model(
    predict: Callable[[Samples], Tensor],
    training: Samples,
    test: Samples,
    temperature: float,
    seed: int,
    feedback: Feedback,
) -> Judgement:
    """Score a model beside classical classifiers that learn from the same pixels.

    Args:
        predict: the model's (M, K) logits for samples.
        training: that all have learned from.
        test: pure pixels of other places; may be empty.
        temperature: of the logits.
        seed: of the classical classifiers.
        feedback: told what is done; asked for a cancel between classifiers.
    """
    if not len(test.chip):
        return Judgement(None, {}, Calibration(temperature))
    feedback.progress(0.0, "Scoring on held-out places, beside classical classifiers")
    logits = predict(test)
    pure = training.pure
    found = fit_baselines(
        training.spectra[pure].numpy(),
        training.class_index[pure].numpy(),
        test.spectra.numpy(),
        seed,
        feedback,
    )
    baselines = {name: _scores_of(test, torch.from_numpy(answer)) for name, answer in found}
    scores = _scores_of(test, logits.argmax(dim=1))
    return Judgement(scores, baselines, calibrate(temperature, logits, test.class_index))


def _scores_of(test: Samples, predicted: Tensor) -> Scores:
    confusion = ConfusionScores(test.num_classes)
    confusion.update(test.class_index, predicted)
    return confusion.scores()

"""The whole training procedure for a quantity, from samples to a scored regressor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import LabelError
from engine.feedback import Feedback, StepFeedback
from engine.models.pixel_model import PixelModel
from engine.models.regressor import HyperKDRegressor, RegressorConfig
from engine.training.context_fit import ContextFit, EncoderStart
from engine.training.heads_fit import HeadsFit
from engine.training.model_fit import (
    TrainingSettings,
    fit_model,
    hold_out_places,
    predict_samples,
)
from engine.training.objective import ValueObjective
from engine.training.places import place_folds
from engine.training.samples import Samples
from engine.training.spectral_fit import SpectralFit
from engine.training.value_baselines import fit_value_baselines
from engine.training.value_metrics import ValueScores, score_values

MIN_PIXELS = 10  # fewer cannot be split into places that test each other
FEW_PIXELS = 50
# The skewness of an exponential distribution is 2, that of a normal one 0.
STRONG_SKEW = 1.0
SPLIT_GROUPS = 5
BFLOAT16_TOLERANCE = 0.01  # of the training values' spread


@dataclass(frozen=True, eq=False)
class TrainedRegressor:
    """A regressor and all that is to be said about its training.

    Args:
        model: on the CPU, in evaluation mode.
        held_out: (M,) bool, the samples that training did not see.
        tested: (T,) int64, the samples among them that are scored.
        estimated: (T,) float64, the model's estimates for them.
        scores: on these; None when nothing was held out.
        baselines: scores of the classical regressions, by name.
        value_range: lowest and highest value that training saw.
        spectral: the linear path's fit.
        heads: the small networks' fit.
        context: the encoder's fit.
    """

    model: HyperKDRegressor
    held_out: NDArray[np.bool_]
    tested: NDArray[np.int64]
    estimated: NDArray[np.float64]
    scores: ValueScores | None
    baselines: dict[str, ValueScores]
    value_range: tuple[float, float]
    spectral: SpectralFit
    heads: HeadsFit
    context: ContextFit

    @property
    def is_log(self) -> bool:
        """Whether the logarithm was learned."""
        return self.model.config.log1p


def check_value_pixels(samples: Samples) -> tuple[str, ...]:
    """Refuse values with which nothing can be learned.

    Returns:
        warnings.

    Raises:
        LabelError: there are fewer than ten pixels, or all have the same value.
    """
    count = len(samples.chip)
    if count < MIN_PIXELS:
        raise LabelError(
            f"Only {count} pixels of the scene have a value.",
            f"A regression needs {MIN_PIXELS} or more, better {FEW_PIXELS} in several places: "
            "measure more, or check that values and scene show the same place.",
        )
    _check_that_values_differ(samples, "with a value")
    if count < FEW_PIXELS:
        return (f"Only {count} pixels have a value: the scores say little.",)
    return ()


def _check_that_values_differ(samples: Samples, which: str) -> None:
    low, high = float(samples.value.min()), float(samples.value.max())
    if not high > low:
        raise LabelError(
            f"All {len(samples.chip)} pixels {which} have the same, {low:g}.",
            "There is nothing to learn from a constant: choose measured values that differ.",
        )


def train_on_values(
    samples: Samples,
    config: RegressorConfig,
    settings: TrainingSettings,
    *,
    start: EncoderStart | None,
    fabric: Fabric,
    feedback: Feedback,
) -> TrainedRegressor:
    """Train on some places and score on the others.

    1. Hold places out; nothing below sees them before step 4.
    2. Choose the scale that the values are learned on.
    3. Fit the model, see `fit_model`.
    4. Score on the places held out, beside classical regressions trained on the same pixels.

    Args:
        samples: all.
        config: of the regressor; scale and shares are ignored.
        settings: see there.
        start: an encoder to start from.
        fabric: device and precision.
        feedback: told what is done.

    Raises:
        LabelError: too few places to hold any out, or the others have one value only.
    """
    held_out = hold_out_places(samples, value_groups(samples.value), settings)
    training = samples.subset(~torch.from_numpy(held_out))
    _check_that_values_differ(training, "in the blocks to learn from")
    config = scaled_config(config, training.value)
    device = fabric.device
    objective = ValueObjective(
        to_standard(training.value, config).to(device),
        training.weight.to(device),
        training.pure.to(device),
    )
    fit = fit_model(
        training,
        objective,
        value_groups(training.value),
        config,
        settings,
        start=start,
        fabric=fabric,
        feedback=StepFeedback(feedback, 0.0, 0.9),
    )
    last = StepFeedback(feedback, 0.9, 1.0)
    tested = np.flatnonzero(held_out & samples.pure.numpy())
    model = cast(HyperKDRegressor, fit.model)  # as its settings say
    estimated, scores, baselines = _score(model, training, samples, tested, settings, last)
    return TrainedRegressor(
        model,
        held_out,
        tested,
        estimated,
        scores,
        baselines,
        (float(training.value.min()), float(training.value.max())),
        fit.spectral,
        fit.heads,
        fit.context,
    )


def scaled_config(config: RegressorConfig, value: Tensor) -> RegressorConfig:
    """Choose the scale that (M,) training values are learned on.

    Their logarithm is learned when none is negative and their distribution is strongly skewed,
    unless the logarithm is hardly less so.
    """
    plain = value.double()
    log = plain.clamp_min(0).log1p()
    skew = skewness(plain)
    is_log = bool(plain.min() >= 0 and skew > STRONG_SKEW and abs(skewness(log)) < skew / 2)
    learned = log if is_log else plain
    return replace(
        config,
        log1p=is_log,
        value_mean=float(learned.mean()),
        value_std=float(learned.std(correction=0)),
    )


def skewness(value: Tensor) -> float:
    """Third standardised moment of (M,) values; 0 when they do not differ."""
    centred = value - value.mean()
    spread = centred.square().mean().sqrt()
    return float((centred / spread).pow(3).mean()) if spread > 0 else 0.0


def to_standard(value: Tensor, config: RegressorConfig) -> Tensor:
    """Bring values to the scale that the model answers on; `HyperKDRegressor.to_unit` undoes it."""
    learned = value.double().log1p() if config.log1p else value.double()
    standard: Tensor = ((learned - config.value_mean) / config.value_std).float()
    return standard


def value_groups(value: Tensor) -> Tensor:
    """(M,) int64: fifths of the values, so that a split holds low and high ones alike."""
    steps = torch.quantile(value.double(), torch.linspace(0, 1, SPLIT_GROUPS + 1).double()[1:-1])
    return torch.bucketize(value.double(), steps, right=True)


def _score(
    model: HyperKDRegressor,
    training: Samples,
    samples: Samples,
    tested: NDArray[np.int64],
    settings: TrainingSettings,
    feedback: Feedback,
) -> tuple[NDArray[np.float64], ValueScores | None, dict[str, ValueScores]]:
    """Estimates, scores and baselines on the held-out pixels that are known for the most part."""
    if not len(tested):
        return np.empty(0), None, {}
    feedback.progress(0.0, "Scoring on held-out places, beside classical regressions")
    test = samples.subset(_mask(tested, len(samples.chip)))
    estimated = predict_samples(model, test)[:, 0].double().numpy()
    measured = test.value.numpy()
    pure = training.pure if training.pure.any() else torch.ones_like(training.pure)
    known = training.subset(pure)
    found = fit_value_baselines(
        known.spectra.numpy(),
        to_standard(known.value, model.config).numpy(),
        place_folds(
            value_groups(known.value).numpy(), known.place.numpy(), settings.folds, settings.seed
        ),
        test.spectra.numpy(),
        settings.seed,
        feedback,
    )
    baselines = {
        name: score_values(measured, model.to_unit(torch.from_numpy(answer)).numpy())
        for name, answer in found
    }
    return estimated, score_values(measured, estimated), baselines


def _mask(index: NDArray[np.int64], count: int) -> Tensor:
    mask = torch.zeros(count, dtype=torch.bool)
    mask[torch.from_numpy(index)] = True
    return mask


def bfloat16_agreement(model: PixelModel, samples: Samples) -> float:
    """Share of the labelled pixels whose estimate is the same in bfloat16 as in float32.

    The same to a hundredth of the values' spread, which is far below what a model can tell.
    """
    exact = predict_samples(model, samples)[:, 0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = predict_samples(model, samples)[:, 0]
    tolerance = BFLOAT16_TOLERANCE * samples.value.std(correction=0)
    return float(((exact - rough).abs() <= tolerance).float().mean())

"""The whole procedure of stage 2, from samples to a scored segmenter that knows its limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.feedback import Feedback, StepFeedback
from engine.models.spectralx.segmenter import SegmenterConfig, SpectralXSegmenter
from engine.models.support import Support
from engine.packages.foundations import Foundation
from engine.training.calibration import Calibration
from engine.training.memory import StepMemory, measure_step
from engine.training.metrics import Scores
from engine.training.model_fit import hold_out_places
from engine.training.samples import Samples
from engine.training.scoring import fitted_temperature, judge_model
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
    outside = samples.subset(torch.from_numpy(held_out))
    support = fit_support_to_places(training, outside, settings.seed)
    fabric.to_device(model)
    judged = judge_model(
        partial(predict_samples, model),
        training,
        outside.subset(outside.pure),
        fitted_temperature(training, history.held_out),
        settings.seed,
        StepFeedback(feedback, 0.9, 1.0),
    )
    model.cpu()
    return TrainedSegmenter(
        model, held_out, judged.scores, judged.baselines, history, judged.calibration, support,
        model.trainable_counts(),
    )  # fmt: skip


def estimate_memory(config: SegmenterConfig, foundation: Foundation) -> StepMemory:
    """The memory that a step of a segmenter's training takes, in float32.

    Args:
        config: of the model.
        foundation: stays as it is.

    Raises:
        ValueError: the foundation does not fit the settings.
    """
    with torch.random.fork_rng(devices=[]):
        model = SpectralXSegmenter(config, foundation.vit).train()
    model.set_trainable()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # which one chip alone cannot train
            module.eval()
    side = config.chip_px
    chip = torch.zeros(1, config.in_channels, side, side)
    valid = torch.ones(1, side, side, dtype=torch.bool)
    return measure_step(model, lambda: model(chip, valid).square().mean())

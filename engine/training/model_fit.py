"""The fit of a whole model of pixels, be its answers classes or values.

Held-out folds of places decide the epochs of each part and its share of the answer, so that a part
that learned the place instead of the thing gets none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import LabelError
from engine.feedback import Feedback, StepFeedback
from engine.models.pixel_model import PixelModel, PixelModelConfig
from engine.training.context_fit import ContextFit, ContextSettings, EncoderStart, fit_context
from engine.training.heads_fit import HeadsFit, HeadsSettings, fit_heads
from engine.training.objective import Objective
from engine.training.places import hold_out, place_folds
from engine.training.samples import Samples
from engine.training.spectral_fit import (
    SpectralFit,
    SpectralSettings,
    TrainingPixels,
    fit_spectral_path,
)

PREDICT_PX = 16_384  # of chips at a time


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained.

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
class ModelFit:
    """A fitted model and its parts.

    Args:
        model: on the CPU, in evaluation mode.
        spectral: the linear path's fit.
        heads: the small networks' fit.
        context: the encoder's fit.
    """

    model: PixelModel
    spectral: SpectralFit
    heads: HeadsFit
    context: ContextFit


class SplitSettings(Protocol):
    """What says which places are held out."""

    @property
    def validation(self) -> float:
        """Their share."""

    @property
    def seed(self) -> int:
        """Of the choice."""


def hold_out_places(samples: Samples, group: Tensor, settings: SplitSettings) -> NDArray[np.bool_]:
    """Choose the places for the scores; see `hold_out`.

    Args:
        samples: all.
        group: (M,) int64, class or step of values, to be held out in equal shares.
        settings: share and seed.

    Raises:
        LabelError: too few places to hold any out.
    """
    place = samples.place.numpy()
    if settings.validation > 0 and len(np.unique(place)) < 2:
        raise LabelError(
            "All labels lie in one place, so none can be held out to test the model.",
            "Label other places too, or set the share of validation blocks to 0.",
        )
    return hold_out(group.numpy(), place, settings.validation, settings.seed)


def fit_model(
    samples: Samples,
    objective: Objective,
    group: Tensor,
    config: PixelModelConfig,
    settings: TrainingSettings,
    *,
    start: EncoderStart | None,
    fabric: Fabric,
    feedback: Feedback,
) -> ModelFit:
    """Fit a model to samples, all of which it may see.

    1. Fit the linear path; folds of places decide when to stop.
    2. Train small networks on the spectra; the same folds decide their share beside it.
    3. Train the encoder on top; the same folds decide how far its gate opens.

    Args:
        samples: to learn from.
        objective: what is right for them, on the device of ``fabric``.
        group: (M,) int64, class or step of values; folds have as equal shares as can be.
        config: of the model; its shares are ignored.
        settings: see there.
        start: an encoder to start from.
        fabric: device and precision.
        feedback: told what is fitted.
    """
    fold = place_folds(group.numpy(), samples.place.numpy(), settings.folds, settings.seed)
    device = fabric.device
    pixels = TrainingPixels(
        samples.spectra.to(device),
        samples.weight.to(device),
        torch.from_numpy(fold).to(device),
        objective,
    )
    spectral = fit_spectral_path(
        pixels, settings.spectral, settings.seed, StepFeedback(feedback, 0.0, 0.17)
    )
    heads = fit_heads(
        pixels,
        samples.place.to(device),
        spectral,
        settings.heads,
        members=config.heads,
        hidden=config.heads_hidden,
        seed=settings.seed,
        feedback=StepFeedback(feedback, 0.17, 0.55),
    )
    context = fit_context(
        samples,
        pixels,
        spectral,
        heads,
        config,
        settings.context,
        start=start,
        seed=settings.seed,
        fabric=fabric,
        feedback=StepFeedback(feedback, 0.55, 1.0),
    )
    return ModelFit(context.model, spectral, heads, context)


@torch.inference_mode()
def predict_samples(model: PixelModel, samples: Samples) -> Tensor:
    """(M, K) float32 output of a model for the labelled pixels, each seen in its chip."""
    if model.config.encoder_gate == 0:
        spectra = samples.spectra
        valid = torch.ones(1, len(spectra), 1, dtype=torch.bool)
        output: Tensor = model(spectra.T[None, :, :, None], valid)
        return output[0, :, :, 0].T
    chips = max(PREDICT_PX // samples.valid[0].numel(), 1)
    parts = [
        model(samples.reflectance[index], samples.valid[index])
        for index in torch.split(torch.arange(len(samples.valid)), chips)
    ]
    return torch.cat(parts)[samples.chip, :, samples.row, samples.col]

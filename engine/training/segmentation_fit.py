"""The fit of a SpectralX segmenter (stage 2): places that it has not seen decide what it may add.

Trained until its own places teach no more, a network of a million numbers knows few places by
heart. So it is trained without each fold of places, asked about them, and then trained on all
places for as long as the folds say. Where the model has a spectral path, that is fitted first; the
network learns what is left, and is let in as far as the folds confirm it. Folds, gate and path are
ours (the published code trains for a fixed number of steps; arXiv 2508.01731, stage 2).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from engine.feedback import Feedback, StepFeedback
from engine.models.spectralx.segmenter import SegmenterConfig, SpectralXSegmenter
from engine.packages.foundations import Foundation
from engine.training.gate import GateChoice, GateScore, choose_gate, is_likely
from engine.training.heads_fit import HeadsFit, fit_heads
from engine.training.objective import judge
from engine.training.places import place_folds
from engine.training.samples import Samples
from engine.training.segmentation_steps import (
    PixelFit,
    SegmentationSettings,
    SegmenterTrainer,
    predict_samples,
)
from engine.training.spectral_fit import SpectralFit, TrainingPixels, fit_spectral_path

__all__ = [
    "SegmentationSettings",
    "SegmenterHistory",
    "fit_segmenter",
    "predict_samples",
]

GATES = (0.25, 0.5, 1.0)
SPECTRAL_SHARE = 0.1  # of the progress


@dataclass(frozen=True, eq=False)
class SegmenterHistory:
    """How a fit went.

    Args:
        spectral: the linear path's fit; None where the model has none.
        heads: that of the small networks beside it; None where it has none.
        choice: for how many epochs the network was trained and how much of its answer is added,
            and why.
        losses: of each epoch of the last training, with augmentation.
        fold: (M,) int64, of each sample; all 0 without folds.
        held_out: (M, K) answers of fits that have not seen the place, as the model would give
            them; None without folds.
        steps: of all trainings together.
        seconds: that these took.
    """

    spectral: SpectralFit | None
    heads: HeadsFit | None
    choice: GateChoice
    losses: tuple[float, ...]
    fold: Tensor
    held_out: Tensor | None
    steps: int
    seconds: float

    def curve(self) -> list[GateScore]:
        """What the folds said by epoch, at the weight that was chosen, or at the whole answer."""
        gate = self.choice.gate or max((item.gate for item in self.choice.tried), default=0.0)
        return [item for item in self.choice.tried if item.gate == gate]


def fit_segmenter(
    samples: Samples,
    config: SegmenterConfig,
    foundation: Foundation,
    settings: SegmentationSettings,
    *,
    adapted_state: Mapping[str, Tensor] | None = None,
    fabric: Fabric,
    feedback: Feedback,
) -> tuple[SpectralXSegmenter, SegmenterHistory]:
    """Fit a segmenter to samples, all of which it may see.

    1. Fit the spectral path, if there is one.
    2. Train the network without each fold of places, and ask it about them.
    3. Choose how long to train and how much of its answer to add by what it said.
    4. Train it on all places.

    Args:
        samples: chips read as `segmentation_chips.chip_sizes` says, and their labelled pixels.
        config: of the segmenter.
        foundation: that it adapts; left as it is, whatever is trained.
        settings: see there.
        adapted_state: of `AdaptedViT.own_state`, from stage 1; None for fresh adapters.
        fabric: device and precision.
        feedback: told the loss; asked for a cancel at every batch.

    Returns:
        the model on the CPU, in evaluation mode, and how it went.

    Raises:
        TrainingError: the loss is no longer a number.
        ValueError: the samples have other bands or classes than the settings.
    """
    return _Fit(samples, config, foundation, settings, adapted_state, fabric).run(feedback)


class _Fit:
    """One fit; see `fit_segmenter`."""

    def __init__(
        self,
        samples: Samples,
        config: SegmenterConfig,
        foundation: Foundation,
        settings: SegmentationSettings,
        adapted_state: Mapping[str, Tensor] | None,
        fabric: Fabric,
    ) -> None:
        self._samples, self._config, self._settings = samples, config, settings
        self._trainer = SegmenterTrainer(
            samples, config, foundation, settings, fabric, adapted_state
        )
        self._objective = self._trainer.objective
        self._device = fabric.device
        label, place = samples.class_index.numpy(), samples.place.numpy()
        fold = place_folds(label, place, settings.folds, settings.seed)
        self._fold = torch.from_numpy(fold)
        # With all labels in one place there is nothing to hold out.
        self._folds = int(fold.max()) + 1 if fold.max() > 0 else 0

    def run(self, feedback: Feedback) -> tuple[SpectralXSegmenter, SegmenterHistory]:
        """Do all of it."""
        start_s = time.perf_counter()
        pixel = self._fit_pixel(StepFeedback(feedback, 0.0, SPECTRAL_SHARE))
        base = None if pixel is None else pixel.held_out
        runs = self._folds + 1
        ends = [SPECTRAL_SHARE + (1 - SPECTRAL_SHARE) * n / runs for n in range(runs + 1)]
        added: dict[int, Tensor] = {}
        for fold in range(self._folds):
            part = StepFeedback(feedback, ends[fold], ends[fold + 1])
            self._ask(fold, pixel, added, part)
        choice = self._choose(base, added)
        seed = self._settings.seed
        model = self._trainer.model(seed, pixel, None)
        losses: list[float] = []
        if choice.gate > 0:
            last = StepFeedback(feedback, ends[-2], 1.0)
            everything = torch.ones_like(self._fold, dtype=torch.bool)
            title = "Network, all training places"
            losses = self._trainer.train(model, everything, choice.epochs, seed, last, title=title)
        if choice.gate > 0:
            _scale_answer(model, choice.gate)
        else:
            model.config = replace(model.config, network=False)
        model.set_trainable()  # the spectral path was trained as well, and counts
        history = SegmenterHistory(
            None if pixel is None else pixel.spectral,
            None if pixel is None else pixel.heads,
            choice,
            tuple(losses),
            self._fold,
            self._answers(base, added, choice),
            self._trainer.steps,
            time.perf_counter() - start_s,
        )
        return model.eval().cpu(), history

    def _fit_pixel(self, feedback: Feedback) -> PixelFit | None:
        """Fit the answer from each pixel's own spectrum, with the folds of the network."""
        config, settings = self._config, self._settings
        if not config.spectral_path:
            return None
        pixels = TrainingPixels(
            self._samples.spectra.to(self._device),
            self._samples.weight.to(self._device),
            self._fold.to(self._device),
            self._objective,
        )
        first = StepFeedback(feedback, 0.0, 0.3 if config.spectral_heads else 1.0)
        spectral = fit_spectral_path(pixels, settings.spectral, settings.seed, first)
        if not config.spectral_heads:
            return PixelFit(spectral, None)
        heads = fit_heads(
            pixels,
            self._samples.place.to(self._device),
            spectral,
            settings.heads,
            members=config.spectral_heads,
            hidden=config.spectral_hidden,
            seed=settings.seed,
            feedback=StepFeedback(feedback, 0.3, 1.0),
        )
        return PixelFit(spectral, heads)

    def _ask(
        self, fold: int, pixel: PixelFit | None, added: dict[int, Tensor], feedback: Feedback
    ) -> None:
        """Train without a fold and keep what the network answers for its samples, by epoch."""
        members = self._fold == fold
        asked = self._samples.subset(members)
        seed = self._settings.seed + fold + 1
        model = self._trainer.model(seed, pixel, fold)
        empty = torch.zeros(len(members), self._config.num_classes, device=self._device)

        def look(epoch: int, run: nn.Module) -> None:
            answers = predict_samples(model, asked, run=run) - _pixel_answers(model, asked)
            added.setdefault(epoch, empty.clone())[members.to(self._device)] = answers.to(
                self._device
            )

        title = f"Network, fold {fold + 1} of {self._folds}"
        self._trainer.train(model, ~members, self._settings.epochs, seed, feedback, look, title)

    def _choose(self, base: Tensor | None, added: Mapping[int, Tensor]) -> GateChoice:
        """Choose epochs and weight by what the folds said."""
        epochs, place = self._settings.epochs, self._samples.place.to(self._device)
        if base is None:
            base = torch.zeros(len(place), self._config.num_classes, device=self._device)
            if not added:
                return GateChoice(1.0, epochs, judge(self._objective, base), ())
            return choose_gate(self._objective, place, base, added, (1.0,), epochs, _anything)
        if not added and self._settings.folds < 2:  # nobody was to be asked
            return GateChoice(1.0, epochs, judge(self._objective, base), ())
        return choose_gate(self._objective, place, base, added, GATES, epochs, is_likely)

    def _answers(
        self, base: Tensor | None, added: Mapping[int, Tensor], choice: GateChoice
    ) -> Tensor | None:
        """(M, K) cross-fitted answers of the model as it was chosen."""
        if not self._folds:
            return None
        if choice.gate == 0 or choice.epochs not in added:
            return None if base is None else base.cpu()
        part = choice.gate * added[choice.epochs]
        return (part if base is None else base + part).cpu()


@torch.no_grad()
def _pixel_answers(model: SpectralXSegmenter, samples: Samples) -> Tensor:
    """(M, K) answers of each labelled pixel's own spectrum, on the CPU."""
    device = next(model.parameters()).device
    answers = model.pixel_answers(samples.spectra.T[None, :, :, None].to(device))
    return answers[0, :, :, 0].T.cpu()


@torch.no_grad()
def _scale_answer(model: SpectralXSegmenter, gate: float) -> None:
    """Weigh the network's answer in its last layer, so that nothing else needs to know."""
    for parameter in model.head.classes.parameters():
        parameter.mul_(gate)


def _anything(_score: GateScore, _without: tuple[float, float]) -> bool:
    """Without a spectral path the network answers alone."""
    return True

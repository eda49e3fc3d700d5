"""The loop that trains teacher and student together, as CSAKD does (arXiv 2406.19666).

Published: in each step the teacher learns from the target, and the student from the target and
from what the teacher answered before its own step; AdamW; the teacher's rate falls as a cosine.
Ours: both rates warm up and fall as a cosine, gradients are clipped, steps whose loss is not a
number are left out, and full-resolution crops may have to give both images back.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from engine.errors import CancelledError, TrainingError
from engine.feedback import Feedback
from engine.models.fusion.fuser import Fuser, FuserInputs, Refined
from engine.models.fusion.presets import FusionPreset
from engine.training.fusion_data import Batch, Crops
from engine.training.fusion_full_scale import FullScale
from engine.training.fusion_loss import (
    FusionLossSettings,
    student_loss,
    teacher_loss,
    with_noise,
)
from engine.training.fusion_settings import FusionSettings
from engine.training.masked_fit import CHECKPOINT_MIN_S, CHECKPOINT_PATIENCE
from engine.training.run_checkpoint import (
    RunCheckpoint,
    RunState,
    model_tensors,
    optimiser_tensors,
    restore,
)

logger = logging.getLogger(__name__)

BETAS = (0.9, 0.99)  # a run has hundreds of steps, not the thousands that 0.999 looks back
WARM_UP = 0.05  # share of the steps
CLIP_NORM = 1.0  # of each network's gradient, of losses that begin at about 1
MAX_SKIPPED = 0.05  # share of the steps that may be left out before a training is given up
MAX_ROWS = 100  # of the history
Terms = dict[str, Tensor]


class CoTraining(nn.Module):
    """Teacher and student side by side, so that one wrapper of a device serves both.

    Args:
        student: with its start and scales, see `fusion_models`.
        teacher: likewise, of the same inputs.
    """

    def __init__(self, student: Fuser, teacher: Fuser) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher

    def forward(self, student: FuserInputs, teacher: FuserInputs) -> tuple[Refined, Refined]:
        """The student's answer and the teacher's."""
        return self.student.refine(student), self.teacher.refine(teacher)


@dataclass(frozen=True, eq=False)
class Stage:
    """A part of a training.

    Args:
        crops: to learn from.
        steps: how many.
        rate: factor of both learning rates.
        name: for the user.
        full_scale: crops that shall give both images back; None for none.
    """

    crops: Crops
    steps: int
    rate: float
    name: str
    full_scale: FullScale | None = None


class FusionFit:
    """One training of teacher and student, in stages.

    Args:
        models: to train, on the device.
        settings: see there.
        sizes: the preset with what the settings change.
        total: steps of all stages.
        fabric: device and precision.
        feedback: told the loss; asked at every step whether to go on.
        checkpoint: where to keep the state, or None.
    """

    def __init__(
        self,
        models: CoTraining,
        settings: FusionSettings,
        sizes: FusionPreset,
        total: int,
        *,
        fabric: Fabric,
        feedback: Feedback,
        checkpoint: RunCheckpoint | None = None,
    ) -> None:
        self.models, self._settings, self._sizes = models, settings, sizes
        self._fabric, self._feedback = fabric, feedback
        self._checkpoint = checkpoint
        self._losses = replace(
            settings.losses.distilling(settings.distillation), zero=_zero_of(models.student)
        )
        self._optimiser = _optimiser(models, settings, sizes)
        self._run, self._wrapped = fabric.setup(models, self._optimiser)
        self._total = total
        self._unit = 1.0
        self._sums: dict[str, Tensor | float] = {}
        self._summed, self._skipped = 0, 0
        self._saved_s, self._save_takes_s = time.monotonic(), 0.0
        self.done = 0
        """Steps of all stages."""
        self.history: list[dict[str, float]] = []
        """One row of mean terms for every few steps, with "epoch"."""
        self.extra: dict[str, Tensor] = {}
        """What a caller wants to find again after a resume; no name begins as the models' do."""

    def go_on_from(self, state: RunState) -> None:
        """Bring everything to a state.

        Raises:
            TrainingError: the state is of another model.
        """
        restore(state, self.models, self._optimiser)
        self.done, self.history = state.step, list(state.history)
        own = ("model.", "optimiser.")
        device = self._fabric.device
        self.extra = {
            name: value.to(device)
            for name, value in state.tensors.items()
            if not name.startswith(own)
        }

    def train(self, stage: Stage, first: int) -> None:
        """Do the steps of a stage that are not done yet.

        Args:
            stage: what to do.
            first: number of its first step.

        Raises:
            CancelledError: the user cancelled; the state was kept.
            TrainingError: too many losses are no numbers.
        """
        self._unit = _unit(stage.crops.batch(first, self._sizes.batch), self._losses)
        self.models.train()
        while self.done < first + stage.steps:
            self._stop_if_cancelled()
            self._set_rates(stage, self.done - first)
            self._step(stage)
            self.done += 1
            self._after(stage, self.done - first)
        self.models.eval()

    def _step(self, stage: Stage) -> None:
        """One step of both networks."""
        batch = stage.crops.batch(self.done, self._sizes.batch)
        chance = _generator(self._settings.seed, self.done)
        student, teacher = self._run(self._noisy(batch, chance), self._noisy(batch, chance))
        terms = self._terms(batch, student, teacher)
        if stage.full_scale is not None:
            terms |= self._consistency(stage.full_scale, terms)
        loss = self._unit * (terms["student"] + terms["teacher"])
        self._wrapped.zero_grad()
        self._fabric.backward(loss)
        norms = [
            nn.utils.clip_grad_norm_(model.network.parameters(), CLIP_NORM)
            for model in (self.models.student, self.models.teacher)
        ]
        # One look at the device a step: a step that would break the weights is not done.
        if not bool(torch.isfinite(torch.stack(norms)).all()):
            self._skip()
            return
        self._wrapped.step()
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().float()
        self._summed += 1

    def _terms(self, batch: Batch, student: Refined, teacher: Refined) -> Terms:
        """The losses of both, and what they are made of."""
        taught = teacher_loss(teacher.image, batch.target, self._losses, batch.valid)
        learned = student_loss(
            student.image,
            student.features,
            batch.target,
            teacher.image,
            teacher.features,
            self._losses,
            batch.valid,
        )
        return {
            "student": learned.total,
            "teacher": taught.total,
            **{f"student_{name}": value for name, value in learned.terms.items()},
            **{f"teacher_{name}": value for name, value in taught.terms.items()},
        }

    def _consistency(self, full: FullScale, terms: Terms) -> Terms:
        """The losses with what is wrong at full resolution, and that alone."""
        weight = self._settings.consistency_weight
        crops = full.batch(self.done, self._sizes.batch)
        student, teacher = self._run(crops.inputs, crops.inputs)
        found = {
            name: full.loss(refined.image, crops)
            for name, refined in (("student", student), ("teacher", teacher))
        }
        return {
            **{name: terms[name] + weight * value for name, value in found.items()},
            **{f"{name}_consistency": value for name, value in found.items()},
        }

    def _noisy(self, batch: Batch, chance: torch.Generator) -> FuserInputs:
        """The inputs with noise of their own, where there shall be any."""
        snr_db, inputs = self._settings.noise_snr_db, batch.inputs
        if snr_db is None:
            return inputs
        noise = torch.randn(inputs.coarse.shape, generator=chance).to(inputs.coarse.device)
        return inputs._replace(coarse=with_noise(inputs.coarse, noise, snr_db))

    def _set_rates(self, stage: Stage, step: int) -> None:
        """Set both learning rates, by the stage's step alone, so that resuming is exact."""
        factor = stage.rate * _warm_cosine(step, stage.steps)
        rates = (self._sizes.student_learning_rate, self._sizes.teacher_learning_rate)
        for group, rate in zip(self._optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * factor

    def _skip(self) -> None:
        """Leave a step out; give up when that happens too often."""
        self._skipped += 1
        if self._skipped > max(MAX_SKIPPED * self._total, 3):
            raise TrainingError(
                f"{self._skipped} of {self.done + 1} steps had a loss that is no number: the "
                "training has diverged.",
                "Choose a lower learning rate, or check the scenes for values that are no "
                "reflectance.",
            )

    def _after(self, stage: Stage, step: int) -> None:
        """Log now and then; keep the state when it is time to."""
        every = max(self._total // MAX_ROWS, 1)
        if (self.done % every == 0 or step == stage.steps) and self._summed:
            self._log(stage)
        said = f", loss {self.history[-1]['student']:.3g}" if self.history else ""
        self._feedback.progress(
            self.done / self._total, f"{stage.name}: step {step} of {stage.steps}{said}"
        )
        waited_s = time.monotonic() - self._saved_s
        due = waited_s > max(CHECKPOINT_MIN_S, CHECKPOINT_PATIENCE * self._save_takes_s)
        # The first step at once: a checkpoint that cannot be written should not be found late.
        if due or self.done in (1, self._total) or step == stage.steps:
            self._save()

    def _log(self, stage: Stage) -> None:
        """Write the means of the last steps down."""
        row = {"epoch": self.done * self._sizes.epochs / self._total}
        row |= {name: float(value) / self._summed for name, value in self._sums.items()}
        row["learning_rate"] = self._optimiser.param_groups[0]["lr"]
        self.history.append(row)
        self._sums, self._summed = {}, 0

    def _stop_if_cancelled(self) -> None:
        """Keep the state when the user wants to stop."""
        try:
            self._feedback.raise_if_cancelled()
        except CancelledError:
            self._save()
            raise

    def _save(self) -> None:
        """Keep the state."""
        if self._checkpoint is None or not self._fabric.is_global_zero:
            return
        start_s = time.monotonic()
        tensors = {
            **model_tensors(self.models),
            **optimiser_tensors(self._optimiser),
            **self.extra,
        }
        self._checkpoint.save(RunState(self.done, tensors, self.history))
        self._saved_s = time.monotonic()
        self._save_takes_s = self._saved_s - start_s


def steps_per_epoch(ground_px: int, crop_px: int, sizes: FusionPreset) -> int:
    """Steps in which so many coarse pixels are shown as there are to learn from."""
    return max(-(-ground_px // (crop_px**2 * sizes.batch)), 1)


def _optimiser(
    models: CoTraining, settings: FusionSettings, sizes: FusionPreset
) -> torch.optim.AdamW:
    """One optimiser; the networks do not touch each other's gradients."""
    groups = [
        {"params": list(models.student.network.parameters()), "lr": sizes.student_learning_rate},
        {"params": list(models.teacher.network.parameters()), "lr": sizes.teacher_learning_rate},
    ]
    return torch.optim.AdamW(groups, betas=BETAS, weight_decay=settings.weight_decay, fused=True)


def _zero_of(fuser: Fuser) -> float:
    """What no reflectance is on the fuser's scale."""
    return float(fuser.to_scale(torch.zeros_like(fuser.low)))


@torch.no_grad()
def _unit(batch: Batch, losses: FusionLossSettings) -> float:
    """What makes the loss begin at about 1, so that clipping means the same for every scene."""
    start = batch.inputs.start.expand_as(batch.target)
    return 1.0 / max(float(teacher_loss(start, batch.target, losses, batch.valid).total), 1e-8)


def _warm_cosine(step: int, steps: int) -> float:
    """A short rise, then a cosine to 0."""
    warm_up = WARM_UP * steps
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))


def _generator(seed: int, step: int) -> torch.Generator:
    """The chance of one step."""
    (state,) = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state) >> 1)

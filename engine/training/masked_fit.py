"""The loop that distillation and the pre-training of teachers share.

Optimiser and schedule are the published recipe of the masked autoencoder (arXiv 2111.06377):
AdamW with betas 0.9 and 0.95 and weight decay 0.05 on matrices, warm-up and a cosine to 0. Those
of HyperKD are not known. Nothing in a step waits for the device; losses are looked at once an
epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeVar

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from engine.errors import CancelledError, TrainingError
from engine.feedback import Feedback
from engine.training.run_checkpoint import (
    RunCheckpoint,
    RunState,
    model_tensors,
    optimiser_tensors,
    restore,
)
from engine.training.scene_tiles import SceneTiles, TileBatch

TrainedT = TypeVar("TrainedT", covariant=True)

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.05
MAE_RATE, MAE_BATCH = 1.5e-4, 256  # the learning rate grows with the batch
CHECKS = 20  # how often in a run the held-out tiles are looked at
# A checkpoint is written when this many times its own duration has passed since the last one, so
# that it costs a twentieth of the time at most; and not every moment.
CHECKPOINT_PATIENCE = 20
CHECKPOINT_MIN_S = 5.0
HELD_OUT = "held_out_"  # before a term's name in the history


@dataclass(frozen=True)
class FitSettings:
    """How long and how fast to train.

    Args:
        epochs: visits to each training tile.
        batch_tiles: tiles a step, over all devices together.
        learning_rate: at its highest, for this batch.
        weight_decay: of matrices; vectors and tokens have none.
        warm_up: share of the steps in which the rate grows from 0.
        seed: of masks and of what a task draws.

    Raises:
        ValueError: a setting is out of range.
    """

    epochs: int
    batch_tiles: int
    learning_rate: float
    weight_decay: float = WEIGHT_DECAY
    warm_up: float = 0.05
    seed: int = 0

    @classmethod
    def of(cls, epochs: int, batch_tiles: int, learning_rate: float | None, seed: int) -> Self:
        """Settings with the rate of the masked autoencoder's recipe where none is given."""
        return cls(epochs, batch_tiles, learning_rate or mae_learning_rate(batch_tiles), seed=seed)

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_tiles < 1:
            raise ValueError("A training needs at least one epoch and one tile a step.")
        if not self.learning_rate > 0 or not 0.0 <= self.warm_up < 1.0 or self.weight_decay < 0:
            raise ValueError("The learning rate is above 0, the warm-up a share below 1.")


def mae_learning_rate(batch_tiles: int) -> float:
    """The learning rate of the masked autoencoder's recipe for a batch."""
    return MAE_RATE * batch_tiles / MAE_BATCH


class MaskedTask(Protocol):
    """What is trained, and by which loss."""

    @property
    def model(self) -> nn.Module:
        """The module whose parameters are trained."""

    def losses(
        self, model: nn.Module, batch: TileBatch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Compute the loss of a batch.

        Args:
            model: `model`, perhaps wrapped for a device; call this one.
            batch: on the device.
            generator: on the CPU, for all that is drawn.

        Returns:
            scalars by name: "loss", which is minimised, and every term of it.
        """


@dataclass(frozen=True, eq=False)
class FitHistory:
    """What was logged: for each epoch its terms, "epoch", "learning_rate" and held-out terms."""

    rows: list[dict[str, float]] = field(default_factory=list)

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Epochs and values of one name, where it was logged."""
        found = [(row["epoch"], row[name]) for row in self.rows if name in row]
        return [epoch for epoch, _value in found], [value for _epoch, value in found]

    @property
    def terms(self) -> list[str]:
        """Names of the terms of the loss, "loss" first."""
        known = {name: None for row in self.rows for name in row}
        return [
            name
            for name in known
            if name not in ("epoch", "learning_rate") and not name.startswith(HELD_OUT)
        ]


class TrainableTask(MaskedTask, Protocol[TrainedT]):
    """A task that can be brought to a device, and looked at when it is trained."""

    def attach(self, fabric: Fabric) -> None:
        """Bring what is not trained to the device."""

    def finish(
        self, tiles: SceneTiles, history: FitHistory, device: torch.device, feedback: Feedback
    ) -> TrainedT:
        """Look at the held-out tiles."""


def run_task(
    task: TrainableTask[TrainedT],
    tiles: SceneTiles,
    settings: FitSettings,
    *,
    fabric: Fabric,
    feedback: Feedback,
    checkpoint: RunCheckpoint | None = None,
    resume: RunState | None = None,
) -> TrainedT:
    """Bring a task to the device, train it, and look at the held-out tiles.

    Args and Raises: see `fit`.
    """
    task.attach(fabric)
    history = fit(
        task,
        tiles,
        settings,
        fabric=fabric,
        feedback=feedback,
        checkpoint=checkpoint,
        resume=resume,
    )
    return task.finish(tiles, history, fabric.device, feedback)


def fit(
    task: MaskedTask,
    tiles: SceneTiles,
    settings: FitSettings,
    *,
    fabric: Fabric,
    feedback: Feedback,
    checkpoint: RunCheckpoint | None = None,
    resume: RunState | None = None,
) -> FitHistory:
    """Train.

    Args:
        task: what to train; its model is changed in place.
        tiles: to train on.
        settings: see there.
        fabric: device and precision; launched when it has several devices.
        feedback: told each epoch; asked between steps whether to go on.
        checkpoint: where to keep the state; it is kept after a cancel and after the last step.
        resume: a state to go on from.

    Returns:
        what was logged, with that of the run before a resume.

    Raises:
        CancelledError: the user cancelled; the state was kept.
        TrainingError: the loss is no longer a number, or the state is of another model.
        SceneError: a scene cannot be read any more.
    """
    return _Fit(task, tiles, settings, fabric, feedback, checkpoint).run(resume)


class _Fit:
    """One training; see `fit`."""

    def __init__(
        self,
        task: MaskedTask,
        tiles: SceneTiles,
        settings: FitSettings,
        fabric: Fabric,
        feedback: Feedback,
        checkpoint: RunCheckpoint | None,
    ) -> None:
        if settings.batch_tiles % fabric.world_size:
            raise TrainingError(
                f"{settings.batch_tiles} tiles a step cannot be shared by {fabric.world_size} "
                "devices.",
                "Choose a multiple of the number of devices.",
            )
        self._task = task
        self._tiles = tiles
        self._settings = settings
        self._fabric = fabric
        self._feedback = feedback
        self._checkpoint = checkpoint if fabric.is_global_zero else None
        self._saved_s, self._save_takes_s = time.monotonic(), 0.0
        self._started_s, self._started_at = time.monotonic(), 0
        self._per_epoch = tiles.steps_per_epoch(settings.batch_tiles)
        self._total = settings.epochs * self._per_epoch
        self._sums: dict[str, Tensor] = {}
        self._history: list[dict[str, float]] = []

    def run(self, resume: RunState | None) -> FitHistory:
        """Do all steps that are not done yet."""
        model, fabric = self._task.model, self._fabric
        self._optimiser = _optimiser(model, self._settings)
        wrapped, wrapped_optimiser = fabric.setup(model, self._optimiser)
        model.train()
        done = self._started_at = self._go_on_from(resume)
        self._started_s = time.monotonic()
        with closing(self._batches(done)) as batches:
            for batch in batches:
                self._stop_if_cancelled(done)
                self._set_rate(done)
                terms = self._task.losses(wrapped, batch, self._generator(done))
                wrapped_optimiser.zero_grad()
                fabric.backward(terms["loss"])
                wrapped_optimiser.step()
                self._add(terms)
                done += 1
                self._after(done)
        return FitHistory(self._history)

    def _go_on_from(self, state: RunState | None) -> int:
        """Bring everything to a state; returns the steps that are done."""
        if state is None:
            return 0
        # On the device already, because moments follow the weights only when they are loaded.
        restore(state, self._task.model, self._optimiser)
        self._history = list(state.history)
        self._sums = {
            name.removeprefix("sums."): value.to(self._fabric.device)
            for name, value in state.tensors.items()
            if name.startswith("sums.")
        }
        return state.step

    def _batches(self, start: int) -> Generator[TileBatch, None, None]:
        """The batches of this process from a step on, on its device."""
        fabric = self._fabric
        batches = self._tiles.training_batches(
            self._settings.batch_tiles,
            range(start, self._total),
            rank=fabric.global_rank,
            ranks=fabric.world_size,
            pin=fabric.device.type == "cuda",
        )
        for batch in batches:
            yield batch.to(fabric.device)

    def _stop_if_cancelled(self, done: int) -> None:
        """Keep the state when the user wants to stop."""
        try:
            self._feedback.raise_if_cancelled()
        except CancelledError:
            self._save(done)
            raise

    def _set_rate(self, step: int) -> None:
        """Set the learning rate of a step."""
        rate = self._rate(step)
        for group in self._optimiser.param_groups:
            group["lr"] = rate

    def _rate(self, step: int) -> float:
        """Warm-up, then a cosine to 0; a function of the step alone, so that resuming is exact."""
        warm_up = self._settings.warm_up * self._total
        if step < warm_up:
            return self._settings.learning_rate * (step + 1) / (warm_up + 1)
        progress = (step - warm_up) / max(self._total - warm_up, 1)
        return self._settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))

    def _generator(self, step: int) -> torch.Generator:
        """The chance of one step in one process."""
        return _generator(self._settings.seed, step, self._fabric.global_rank)

    def _add(self, terms: dict[str, Tensor]) -> None:
        """Add to the epoch's sums, without waiting for the device."""
        for name, value in terms.items():
            value = value.detach().float()
            # A copy, because a loss of one term is that term, and a checkpoint holds both.
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()

    def _after(self, done: int) -> None:
        """Log at the end of an epoch; keep the state when it is time to."""
        epoch, within = divmod(done, self._per_epoch)
        if within == 0:
            self._log(epoch)
            if done - self._started_at in range(1, self._per_epoch + 1):
                self._tell_time(done)
        loss = self._history[-1]["loss"] if self._history else math.nan
        said = f", loss {loss:.4f}" if self._history else ""
        shown = min(epoch + 1, self._settings.epochs)
        self._feedback.progress(
            done / self._total, f"Epoch {shown} of {self._settings.epochs}{said}"
        )
        waited_s = time.monotonic() - self._saved_s
        due = waited_s > max(CHECKPOINT_MIN_S, CHECKPOINT_PATIENCE * self._save_takes_s)
        # The first epoch at once: a checkpoint that cannot be written should not be found late.
        if due or done in (self._per_epoch, self._total):
            self._save(done)

    def _tell_time(self, done: int) -> None:
        """Say after the first epoch how long the others will take."""
        step_s = (time.monotonic() - self._started_s) / (done - self._started_at)
        left_s = step_s * (self._total - done)
        left = f"{left_s / 60:.0f} min" if left_s >= 90 else f"{left_s:.0f} s"
        self._feedback.info(
            f"{self._settings.batch_tiles / step_s:.1f} tiles a second, "
            f"{step_s * self._per_epoch:.2g} s an epoch: about {left} left."
        )

    def _log(self, epoch: int) -> None:
        """Write the epoch's means down, and now and then those of the held-out tiles."""
        row = {"epoch": float(epoch), **self._means()}
        if not math.isfinite(row["loss"]):
            raise TrainingError(
                f"The loss is {row['loss']} in epoch {epoch}: the training has diverged.",
                "Choose a lower learning rate, or check the scenes for values that are no "
                "reflectance.",
            )
        row["learning_rate"] = self._rate(epoch * self._per_epoch - 1)
        every = max(self._settings.epochs // CHECKS, 1)
        if epoch % every == 0 or epoch == self._settings.epochs:
            row |= self._held_out()
        self._history.append(row)

    def _means(self) -> dict[str, float]:
        """The means of the epoch over its steps and all processes; the sums start anew."""
        names = list(self._sums)
        summed = torch.stack([self._sums[name] for name in names])
        if self._fabric.world_size > 1:
            torch.distributed.all_reduce(summed)
            summed = summed / self._fabric.world_size
        self._sums = {}
        means = (summed / self._per_epoch).tolist()
        return dict(zip(names, means, strict=True))

    @torch.no_grad()
    def _held_out(self) -> dict[str, float]:
        """The terms on the held-out tiles, with the same masks at each call."""
        model = self._task.model
        sums: dict[str, Tensor] = {}
        model.eval()
        batches = self._tiles.held_out_batches(self._settings.batch_tiles)
        count = 0
        for number, batch in enumerate(batches):
            generator = _generator(self._settings.seed, number, -1)
            terms = self._task.losses(model, batch.to(self._fabric.device), generator)
            for name, value in terms.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value * len(batch)
            count += len(batch)
        model.train()
        return {f"{HELD_OUT}{name}": float(value) / count for name, value in sums.items()}

    def _save(self, done: int) -> None:
        """Keep the state."""
        if self._checkpoint is None:
            return
        start_s = time.monotonic()
        tensors = {
            **model_tensors(self._task.model),
            **optimiser_tensors(self._optimiser),
            **{f"sums.{name}": value for name, value in self._sums.items()},
        }
        self._checkpoint.save(RunState(done, tensors, self._history))
        self._saved_s = time.monotonic()
        self._save_takes_s = self._saved_s - start_s


def _optimiser(model: nn.Module, settings: FitSettings) -> torch.optim.AdamW:
    """AdamW without decay on biases, norms and learnt tokens."""
    decayed: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or name.endswith("_token")
            (others if plain else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    # Fused: one pass over the weights instead of ten.
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS, fused=True)


def _generator(seed: int, number: int, rank: int) -> torch.Generator:
    """A generator of its own for every seed, step and process; rank -1 is for held-out tiles."""
    (state,) = np.random.SeedSequence([seed, number, rank + 1]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state) >> 1)

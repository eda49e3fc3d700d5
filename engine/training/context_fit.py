"""Training the encoder and its head on top of the pixel's own answer, and the gate between.

Neighbourhood teaches the place rather than the thing when labels are few, so the encoder starts
outside: for each fold of places it is trained without them, on top of pixels' answers that have not
seen them either, and asked about them. The gate opens as far as these answers confirm it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from lightning_fabric import Fabric
from torch import Tensor

from engine.feedback import Feedback, StepFeedback
from engine.models.pixel_model import PixelModel, PixelModelConfig
from engine.training.gate import GateChoice, choose_gate, is_confirmed
from engine.training.heads_fit import HeadsFit
from engine.training.samples import Samples
from engine.training.spectral_fit import SpectralFit, TrainingPixels

GATES = (0.25, 0.5, 1.0)


@dataclass(frozen=True)
class ContextSettings:
    """How the encoder is trained.

    Args:
        epochs: of each fold's encoder and of the last.
        check_epochs: epochs between two looks at the held-out places.
        batch_px: pixels of chips a step, at least one chip.
        lr: of AdamW, after a warm-up of one tenth, falling to 0 as a cosine.
        backbone_lr: of an encoder that starts from a backbone, in parts of ``lr``.
        weight_decay: of AdamW.
        dropout: in encoder and head.
        brightness: see `SpectralSettings`; one factor a chip.
        noise: see `SpectralSettings`.
    """

    epochs: int = 20
    check_epochs: int = 5
    batch_px: int = 3200
    lr: float = 1e-3
    backbone_lr: float = 0.1
    weight_decay: float = 0.05
    dropout: float = 0.1
    brightness: float = 0.05
    noise: float = 0.03


@dataclass(frozen=True, eq=False)
class EncoderStart:
    """An encoder that was trained before.

    Args:
        weights: by their names in the encoder, normalisation included.
        frozen: they stay as they are, to the bit; else they are trained on.
    """

    weights: dict[str, Tensor]
    frozen: bool = False


@dataclass(frozen=True, eq=False)
class ContextFit:
    """The trained model and why the encoder's gate is where it is.

    Args:
        model: with heads' share and gate set in its configuration, in evaluation mode.
        choice: the gate and its reasons.
        held_out: (M, K) cross-fitted answers of the whole model, on the device of the fit.
    """

    model: PixelModel
    choice: GateChoice
    held_out: Tensor


def fit_context(
    samples: Samples,
    pixels: TrainingPixels,
    spectral: SpectralFit,
    heads: HeadsFit,
    config: PixelModelConfig,
    settings: ContextSettings,
    *,
    start: EncoderStart | None,
    seed: int,
    fabric: Fabric,
    feedback: Feedback,
) -> ContextFit:
    """Train the encoder for each fold of places, choose the gate, and train it on all places.

    Args:
        samples: chips and their labelled pixels.
        pixels: the same pixels with their folds.
        spectral: the linear path fitted on them.
        heads: the networks fitted on them.
        config: of the model; its shares are ignored.
        settings: see there.
        start: an encoder to start from; None for fresh weights.
        seed: of initial weights, batches and augmentation.
        fabric: device and precision.
        feedback: told the loss; asked for a cancel at every batch.
    """
    trainer = _Trainer(samples, pixels, settings, fabric)
    config = replace(
        config, heads_share=heads.choice.gate, encoder_gate=1.0, dropout=settings.dropout
    )
    # With all labels in one place there is nothing to hold out, and the gate stays closed.
    folds = pixels.num_folds if pixels.num_folds > 1 else 0
    runs = folds + 1
    added: dict[int, Tensor] = {}
    for fold in range(folds):
        part = StepFeedback(feedback, fold / runs, (fold + 1) / runs)
        model = _model(config, start, seed + fold, spectral, heads, fold)
        answers = trainer.train(model, start, fold, seed + fold, settings.epochs, part)
        members = pixels.fold == fold
        for epoch, answer in answers.items():
            added.setdefault(epoch, torch.zeros_like(heads.held_out))[members] = answer[members]
    place = samples.place.to(fabric.device)
    choice = choose_gate(
        pixels.objective, place, heads.held_out, added, GATES, settings.epochs, is_confirmed
    )
    config = replace(config, encoder_gate=choice.gate)
    model = _model(config, start, seed, spectral, heads, None)
    last = StepFeedback(feedback, folds / runs, 1.0)
    trainer.train(model, start, None, seed, choice.epochs, last)
    held_out = heads.held_out
    if choice.gate > 0:
        held_out = held_out + choice.gate * added[choice.epochs]
    return ContextFit(model.eval().cpu(), choice, held_out)


def _model(
    config: PixelModelConfig,
    start: EncoderStart | None,
    seed: int,
    spectral: SpectralFit,
    heads: HeadsFit,
    fold: int | None,
) -> PixelModel:
    """A model whose answers from the pixel are fitted, without a fold or on all places (None).

    Its encoder has fresh weights, or those to start from.
    """
    state = heads.state if fold is None else heads.fold_states[fold]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # A fold has fewer networks than the model.
        model = replace(config, heads=len(state["bias1"])).build()
    path = spectral.path
    weight = path.weight if fold is None else spectral.fold_weight[fold]
    bias = path.bias if fold is None else spectral.fold_bias[fold]
    model.spectral.load_state_dict({**path.state_dict(), "weight": weight, "bias": bias})
    model.spectral.requires_grad_(False)
    model.heads.load_state_dict(state)
    model.heads.requires_grad_(False)
    model.encoder.band_mean.copy_(path.band_mean)
    model.encoder.band_std.copy_(path.band_std)
    if start is not None:  # with the normalisation that it was trained with
        model.encoder.load_state_dict(start.weights)
        model.encoder.requires_grad_(not start.frozen)
    return model


class _Trainer:
    """Trains encoders on the chips of one set of samples."""

    def __init__(
        self, samples: Samples, pixels: TrainingPixels, settings: ContextSettings, fabric: Fabric
    ) -> None:
        self._samples = samples
        self._settings = settings
        self._fabric = fabric
        self._objective = pixels.objective
        target = pixels.objective.target.cpu()
        n, _c, p, _p = samples.reflectance.shape
        self._batch_chips = max(settings.batch_px // p**2, 1)
        where = samples.chip, samples.row, samples.col
        # Targets as maps beside the chips, 0 where there is no label: (N, P, P, T).
        self._target = torch.zeros(n, p, p, target.shape[1])
        self._target[where] = target
        self._scale = n / len(target)  # so that a chip's loss is about 1
        self._fold = torch.full((n, p, p), -2)
        self._fold[where] = pixels.fold.cpu()

    def train(
        self,
        model: PixelModel,
        start: EncoderStart | None,
        fold: int | None,
        seed: int,
        epochs: int,
        feedback: Feedback,
    ) -> dict[int, Tensor]:
        """Train on all places outside a fold (None: on all).

        Returns:
            by number of epochs: (M, K) that the encoder adds to the answers for labelled pixels,
            on their device; empty when there is no fold to ask about.
        """
        settings = self._settings
        device = self._fabric.device
        target = self._target
        if fold is not None:
            target = target * (self._fold != fold)[..., None]
        chips = torch.nonzero((target != 0).flatten(1).any(dim=1)).flatten()
        optimiser = self._optimiser(model, start)
        steps = epochs * -(-len(chips) // self._batch_chips)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _warm_up_and_cosine(steps))
        wrapped, optimiser = self._fabric.setup(model, optimiser)
        wrapped.mark_forward_method("context")
        answers: dict[int, Tensor] = {}
        frozen = start is not None and start.frozen
        generator = torch.Generator().manual_seed(seed)
        cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):  # dropout draws from the global generators
            torch.manual_seed(seed)
            for epoch in range(1, epochs + 1):
                wrapped.train()
                model.encoder.train(not frozen)
                order = chips[torch.randperm(len(chips), generator=generator)]
                loss = 0.0
                for index in torch.split(order, self._batch_chips):
                    feedback.raise_if_cancelled()
                    batch_loss = self._loss(model, wrapped, index, target[index], generator)
                    optimiser.zero_grad()
                    self._fabric.backward(batch_loss)
                    optimiser.step()
                    schedule.step()
                    loss += float(batch_loss.detach()) * len(index) / len(order)
                feedback.progress(epoch / epochs, f"Encoder, epoch {epoch}: loss {loss:.3f}")
                if fold is not None and epoch % settings.check_epochs == 0:
                    answers[epoch] = self._added(wrapped, feedback)
        return answers

    def _optimiser(self, model: PixelModel, start: EncoderStart | None) -> torch.optim.Optimizer:
        """The head learns at full rate; an encoder that knows something already, more slowly."""
        settings = self._settings
        groups = [{"params": list(model.head.parameters()), "lr": settings.lr}]
        if start is None:
            groups.append({"params": list(model.encoder.parameters()), "lr": settings.lr})
        elif not start.frozen:
            slower = settings.lr * settings.backbone_lr
            groups.append({"params": list(model.encoder.parameters()), "lr": slower})
        return torch.optim.AdamW(groups, weight_decay=settings.weight_decay)

    def _loss(
        self,
        model: PixelModel,
        wrapped: torch.nn.Module,
        index: Tensor,
        target: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Loss of one batch of augmented chips."""
        device = self._fabric.device
        chips, valid = self._samples.reflectance[index], self._samples.valid[index]
        chips = self._augmented(chips, model, generator)
        turns = int(torch.randint(4, (), generator=generator))
        chips, valid = torch.rot90(chips, turns, (2, 3)), torch.rot90(valid, turns, (1, 2))
        target = torch.rot90(target, turns, (1, 2))
        if bool(torch.randint(2, (), generator=generator)):
            chips, valid, target = chips.flip(3), valid.flip(2), target.flip(2)
        chips, valid, target = chips.to(device), valid.to(device), target.to(device)
        chips = chips.masked_fill(~valid[:, None], 0.0)
        with torch.no_grad():
            base = model.pixel_answers(chips)
        answers = base + wrapped.context(chips, valid)  # type: ignore[operator]
        loss = self._objective.loss(answers.permute(0, 2, 3, 1), target)
        return loss.sum() * (self._scale / len(index))

    def _augmented(self, chips: Tensor, model: PixelModel, generator: torch.Generator) -> Tensor:
        """Other light on the same ground, and a noisier sensor."""
        factor = torch.randn(len(chips), 1, 1, 1, generator=generator)
        noise = torch.randn(chips.shape, generator=generator)
        spread = model.spectral.band_std.cpu()[:, None, None]
        brighter = chips * (1 + self._settings.brightness * factor)
        return brighter + self._settings.noise * spread * noise

    @torch.no_grad()
    def _added(self, wrapped: torch.nn.Module, feedback: Feedback) -> Tensor:
        """(M, K) that the encoder adds to the answers for all labelled pixels."""
        wrapped.eval()
        device = self._fabric.device
        parts = []
        samples = self._samples
        for index in torch.split(torch.arange(len(samples.valid)), self._batch_chips):
            feedback.raise_if_cancelled()
            chips, valid = samples.reflectance[index].to(device), samples.valid[index].to(device)
            parts.append(wrapped.context(chips, valid).float().cpu())  # type: ignore[operator]
        maps = torch.cat(parts)
        return maps[samples.chip, :, samples.row, samples.col].to(device)


def _warm_up_and_cosine(steps: int):  # type: ignore[no-untyped-def]  # noqa: ANN202
    """Factor of the learning rate by step."""
    warm_up = max(steps // 10, 1)

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        progress = (step - warm_up) / max(steps - warm_up, 1)
        return 0.5 * (1 + math.cos(math.pi * progress))

    return factor

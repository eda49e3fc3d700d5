"""Training a model's linear path, with its own held-out places deciding when to stop.

The path is fitted several times side by side: once without each fold of places, and once on all.
Every epoch the first are asked about the places that they have not seen; the step at which they
are best together is the step at which the last is kept. Nothing is fitted twice, no place is lost
to the final fit, and the cross-fitted answers say later whether the encoder adds to them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.feedback import Feedback
from engine.models.spectral import SpectralPath
from engine.training.objective import Objective, judge


@dataclass(frozen=True)
class SpectralSettings:
    """How the linear path is trained; the reasons are in docs/accuracy.md.

    Args:
        epochs: at most; with few pixels, an epoch is several passes through them.
        patience: epochs without a better held-out loss before it ends.
        min_steps: of an epoch.
        batch_px: pixels a step.
        lr: of AdamW.
        weight_decay: of AdamW.
        brightness: spread of the factor that augmentation multiplies a spectrum by.
        noise: spread of the noise that augmentation adds, in spreads of the band.
    """

    epochs: int = 100
    patience: int = 25
    min_steps: int = 4
    batch_px: int = 2048
    lr: float = 3e-3
    weight_decay: float = 1e-2
    brightness: float = 0.03
    noise: float = 0.03


@dataclass(frozen=True, eq=False)
class TrainingPixels:
    """What the path learns from.

    Args:
        spectra: (M, C) float32 reflectance.
        weight: (M,) float32, how much each counts for the mean spectrum.
        fold: (M,) int64, 0 to F - 1.
        objective: what is right for them, on their device.
    """

    spectra: Tensor
    weight: Tensor
    fold: Tensor
    objective: Objective

    @property
    def num_folds(self) -> int:
        """F, at least 1."""
        return int(self.fold.max()) + 1


@dataclass(frozen=True)
class EpochScore:
    """An epoch, as its curve shows it.

    Args:
        train_loss: of the fit on all places, with augmentation.
        held_out_loss: on places that each fit has not seen, as the objective judges.
        held_out_accuracy: on the same pixels.
    """

    train_loss: float
    held_out_loss: float
    held_out_accuracy: float


@dataclass(frozen=True, eq=False)
class SpectralFit:
    """The trained path.

    Args:
        path: fitted on all places.
        fold_weight: (F, K, 2 C), of the fits without each fold.
        fold_bias: (F, K).
        held_out: (M, K) answer for each pixel by the fit that has not seen its place.
        curve: one entry an epoch.
        best_epoch: 0-based.
    """

    path: SpectralPath
    fold_weight: Tensor
    fold_bias: Tensor
    held_out: Tensor
    curve: tuple[EpochScore, ...]
    best_epoch: int


def fit_spectral_path(
    pixels: TrainingPixels, settings: SpectralSettings, seed: int, feedback: Feedback
) -> SpectralFit:
    """Train the linear path; the same seed gives the same path on one kind of device.

    Args:
        pixels: to learn from, on the device to train on.
        settings: see there.
        seed: of the order of batches and the augmentation.
        feedback: told loss and accuracy; asked for a cancel after every epoch.
    """
    device = pixels.spectra.device
    generator = torch.Generator(device).manual_seed(seed)
    objective = pixels.objective
    path = SpectralPath(pixels.spectra.shape[1], objective.outputs).to(device)
    path.fit_views(pixels.spectra, pixels.weight)
    stack = _Stack(path, pixels, settings)
    views = path.views(pixels.spectra)
    curve: list[EpochScore] = []
    best_epoch = 0
    for epoch in range(settings.epochs):
        feedback.raise_if_cancelled()
        train_loss = stack.train_epoch(generator)
        held_out = stack.held_out_answers(views)
        curve.append(EpochScore(train_loss, *judge(objective, held_out)))
        if curve[-1].held_out_loss <= curve[best_epoch].held_out_loss:
            best_epoch = epoch
            stack.keep(held_out)
        if epoch - best_epoch >= settings.patience:
            break
        feedback.progress(
            (epoch + 1) / settings.epochs,
            f"Spectra, epoch {epoch + 1}: loss {curve[-1].held_out_loss:.3f}, "
            f"{objective.accuracy_name} {curve[-1].held_out_accuracy:.3f} on held-out places",
        )
    return stack.best(tuple(curve), best_epoch)


def epoch_batches(
    target: Tensor, batch_px: int, min_steps: int, generator: torch.Generator | None = None
) -> tuple[Tensor, ...]:
    """Deal pixels into batches, in random order; few pixels are gone through several times.

    Args:
        target: (M, T) of the pixels.
        batch_px: pixels a batch, at most.
        min_steps: batches an epoch, at least.
        generator: of the order; None for torch's own.

    Returns:
        Indices into the pixels, one tensor a batch.
    """
    count = len(target)
    passes = -(-min_steps // -(-count // batch_px))
    order = [
        torch.randperm(count, generator=generator, device=target.device) for _pass in range(passes)
    ]
    return torch.split(torch.cat(order), min(batch_px, count))


def augmented(
    spectra: Tensor,
    band_std: Tensor,
    brightness: float,
    noise: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Other light on the same ground, and a noisier sensor.

    Args:
        spectra: (N, C) reflectance.
        band_std: (C,) spread of each band.
        brightness: spread of the factor on each spectrum.
        noise: spread of the noise, in spreads of the band.
        generator: on the device of the spectra; None for the global one.
    """
    device = spectra.device
    factor = torch.randn(len(spectra), 1, generator=generator, device=device)
    grain = torch.randn(spectra.shape, generator=generator, device=device)
    return spectra * (1 + brightness * factor) + noise * band_std * grain


class _Stack:
    """The F + 1 fits side by side: one weight tensor, one optimiser, one matrix product."""

    def __init__(
        self, path: SpectralPath, pixels: TrainingPixels, settings: SpectralSettings
    ) -> None:
        self._path = path
        self._pixels = pixels
        self._settings = settings
        folds = pixels.num_folds
        k, d = path.weight.shape
        device = pixels.spectra.device
        self._weight = torch.zeros(folds + 1, d, k, device=device, requires_grad=True)
        self._bias = torch.zeros(folds + 1, 1, k, device=device, requires_grad=True)
        self._optimiser = torch.optim.AdamW(
            [self._weight, self._bias], lr=settings.lr, weight_decay=settings.weight_decay
        )
        # (F + 1, M): a fit does not see its own fold; the last sees all.
        seen = torch.arange(folds + 1, device=device)[:, None] != pixels.fold[None]
        if folds == 1:  # all in one place: there is nothing to hold out
            seen[:] = True
        self._objective = pixels.objective
        self._target = pixels.objective.target
        self._seen = seen.float()
        self.keep(torch.zeros(len(self._target), k, device=device))

    def train_epoch(self, generator: torch.Generator) -> float:
        """Go through all pixels; returns the loss of the fit on all of them."""
        settings = self._settings
        batches = epoch_batches(self._target, settings.batch_px, settings.min_steps, generator)
        total = 0.0
        for index in batches:
            spectra = augmented(
                self._pixels.spectra[index],
                self._path.band_std,
                settings.brightness,
                settings.noise,
                generator,
            )
            views = self._path.views(spectra)
            answers = torch.einsum("nd,fdk->fnk", views, self._weight) + self._bias
            loss = self._objective.loss(answers, self._target[index])
            loss = (loss * self._seen[:, index]).sum(dim=1) / len(index)
            self._optimiser.zero_grad()
            torch.autograd.backward(loss.sum())
            self._optimiser.step()
            total += float(loss[-1].detach()) * len(index)
        return total / sum(map(len, batches))

    @torch.no_grad()
    def held_out_answers(self, views: Tensor) -> Tensor:
        """(M, K) answer for each pixel by the fit that has not seen its fold."""
        answers = torch.empty(len(views), self._objective.outputs, device=views.device)
        for fold in range(len(self._weight) - 1):
            members = self._pixels.fold == fold
            answers[members] = views[members] @ self._weight[fold] + self._bias[fold]
        return answers

    @torch.no_grad()
    def keep(self, held_out: Tensor) -> None:
        """Remember this state as the best so far."""
        self._best = self._weight.clone(), self._bias.clone(), held_out

    def best(self, curve: tuple[EpochScore, ...], best_epoch: int) -> SpectralFit:
        """Give back the state that was kept."""
        weight, bias, held_out = self._best
        with torch.no_grad():
            self._path.weight.copy_(weight[-1].T)
            self._path.bias.copy_(bias[-1, 0])
        return SpectralFit(
            self._path, weight[:-1].mT.contiguous(), bias[:-1, 0], held_out, curve, best_epoch
        )

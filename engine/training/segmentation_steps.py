"""The training of one segmenter (stage 2): its settings, its model, and the loop of steps.

Cross entropy, AdamW with betas 0.9 and 0.95 and its weight decay are the published code's (arXiv
2508.01731, stage 2); the balance of classes, the cosine and the light are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from engine.errors import TrainingError
from engine.feedback import Feedback
from engine.models.spectral import SpectralPath
from engine.models.spectralx.adapted import AdaptedViT
from engine.models.spectralx.segmenter import SegmenterConfig, SpectralXSegmenter
from engine.packages.foundations import Foundation
from engine.training.heads_fit import HeadsFit, HeadsSettings
from engine.training.objective import ClassObjective
from engine.training.samples import Samples
from engine.training.segmentation_chips import ChipBatch, LabelledChips, Light
from engine.training.spectral_fit import SpectralFit, SpectralSettings

BETAS = (0.9, 0.95)
PREDICT_PX = 65_536  # of chips at a time
WARM_UP = 0.1  # of the steps
Look = Callable[[int, nn.Module], None]


@dataclass(frozen=True)
class SegmentationSettings:
    """How a segmenter is trained; the reasons are in docs/accuracy.md.

    Args:
        epochs: windows of each chip, at most.
        batch_chips: chips a step.
        learning_rate: of AdamW, at its highest.
        weight_decay: of AdamW.
        validation: share of the places that training does not see at all, for the scores.
        folds: of the other places, for the epochs and the gate; below 2 for none: then all epochs
            are trained, and a network beside a spectral path adds its whole answer.
        seed: of everything that is drawn.
        check_epochs: epochs between two looks at the places of a fold.
        cosine: warm up and fall to 0 as a cosine; else constant, as published.
        balanced: rare classes, and pure pixels, weigh more; else all alike, as published.
        light: of augmentation; published is none.
        spectral: of the spectral path, where there is one.
        heads: of the small networks beside it, where there are any.

    Raises:
        ValueError: a setting is out of range.
    """

    epochs: int = 30
    batch_chips: int = 4
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    validation: float = 0.25
    folds: int = 3
    seed: int = 0
    check_epochs: int = 5
    cosine: bool = True
    balanced: bool = True
    light: Light = field(default_factory=Light)
    spectral: SpectralSettings = field(default_factory=SpectralSettings)
    heads: HeadsSettings = field(default_factory=HeadsSettings)

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_chips, self.check_epochs) < 1:
            raise ValueError("A training needs one epoch and one chip a step or more.")
        if not self.learning_rate > 0 or self.weight_decay < 0:
            raise ValueError("The learning rate is above 0, the weight decay not below.")
        if not 0.0 <= self.validation < 1.0:
            raise ValueError(f"The share of held-out places is below 1, not {self.validation}.")


@dataclass(frozen=True, eq=False)
class PixelFit:
    """The fitted answer from each pixel's own spectrum.

    Args:
        spectral: the linear path's fit.
        heads: the small networks' fit; None where there are none.
    """

    spectral: SpectralFit
    heads: HeadsFit | None

    @property
    def held_out(self) -> Tensor:
        """(M, K) answers of fits that have not seen the pixel's place."""
        return self.spectral.held_out if self.heads is None else self.heads.held_out

    def configure(self, config: SegmenterConfig, fold: int | None) -> SegmenterConfig:
        """The settings of a model that holds it, or its part that does not know a fold."""
        if self.heads is None or self.heads.choice.gate == 0:
            return replace(config, spectral_heads=0, spectral_share=0.0)
        # A fold has fewer networks than the model.
        count = len(self._heads_state(fold)["bias1"])
        return replace(config, spectral_heads=count, spectral_share=self.heads.choice.gate)

    def fill(self, model: SpectralXSegmenter, fold: int | None) -> None:
        """Put it into a model, where no training changes it."""
        path = self.spectral.path
        weight = path.weight if fold is None else self.spectral.fold_weight[fold]
        bias = path.bias if fold is None else self.spectral.fold_bias[fold]
        state = {**path.state_dict(), "weight": weight, "bias": bias}
        for module, tensors in (
            (model.spectral, state),
            (model.spectral_heads, self._heads_state(fold)),
        ):
            if module is not None:
                module.load_state_dict(tensors)
                module.requires_grad_(False)

    def _heads_state(self, fold: int | None) -> dict[str, Tensor]:
        if self.heads is None:
            return {}
        return self.heads.state if fold is None else self.heads.fold_states[fold]


class SegmenterTrainer:
    """Makes segmenters and trains them on one set of samples.

    Args:
        samples: chips read as `segmentation_chips.chip_sizes` says, and their labelled pixels.
        config: of the segmenters.
        foundation: that they adapt.
        settings: see there.
        fabric: device and precision.
        adapted_state: of `AdaptedViT.own_state`, from stage 1; None for fresh adapters.

    Raises:
        ValueError: the samples have other bands or classes than the settings.
    """

    def __init__(
        self,
        samples: Samples,
        config: SegmenterConfig,
        foundation: Foundation,
        settings: SegmentationSettings,
        fabric: Fabric,
        adapted_state: Mapping[str, Tensor] | None,
    ) -> None:
        _check_sizes(samples, config)
        self._samples, self._config, self._settings = samples, config, settings
        self._foundation, self._fabric, self._adapted_state = foundation, fabric, adapted_state
        device = fabric.device
        shares, weight = samples.shares.to(device), samples.weight.to(device)
        self.objective = ClassObjective(shares, weight, samples.pure.to(device))
        self._chips = LabelledChips(samples, config.chip_px, device)
        self._target = self._weighted_target(shares, weight)
        self._spread = samples.spectra.std(dim=0, correction=0).to(device)
        self.steps = 0
        """That were done by all trainings so far."""

    def model(self, seed: int, pixel: PixelFit | None, fold: int | None) -> SpectralXSegmenter:
        """A model with fresh parts, but for what stage 1 and the spectral path have learned.

        Args:
            seed: of the fresh parts.
            pixel: the spectral path's fit; None where the model has none.
            fold: of places that the path must not know of; None: it knows all.
        """
        config = self._config if pixel is None else pixel.configure(self._config, fold)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = SpectralXSegmenter(config, self._foundation.vit)
        if self._adapted_state is None:
            _fit_normalisation(model.adapted, self._samples)
        else:
            model.adapted.load_own_state(self._adapted_state)
        model.set_trainable()
        if pixel is not None:
            pixel.fill(model, fold)
        return model

    def train(
        self,
        model: SpectralXSegmenter,
        learned: Tensor,
        epochs: int,
        seed: int,
        feedback: Feedback,
        look: Look | None = None,
        title: str = "Network",
    ) -> list[float]:
        """Train on some of the samples.

        Args:
            model: is moved to the device.
            learned: (M,) bool, the samples to learn from.
            epochs: to train for; the rate falls as if it were all that the settings have, so that
                a shorter training is the beginning of a longer one.
            seed: of windows, batches and dropout.
            feedback: told the loss; asked for a cancel at every batch.
            look: called every few epochs with the epoch and the model as Fabric runs it.
            title: of this training, in what the feedback is told.

        Returns:
            the mean loss of each epoch.

        Raises:
            TrainingError: the loss is no longer a number.
        """
        settings, fabric = self._settings, self._fabric
        chips = self._chips.chips_with(learned)
        steps = -(-len(chips) // settings.batch_chips)  # batches are as equal as they can be
        optimiser = _optimiser(model, settings)
        rate = _rate(settings, steps * settings.epochs)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
        run, wrapped = fabric.setup(model, optimiser)
        target = self._target * torch.cat([learned, learned.new_zeros(1)]).to(self._target)[:, None]
        chance = torch.Generator().manual_seed(seed)
        losses: list[float] = []
        cuda = [fabric.device] if fabric.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):  # dropout and gates draw from the global ones
            torch.manual_seed(seed)
            for epoch in range(1, epochs + 1):
                model.train()
                total = torch.zeros((), device=fabric.device)
                order = chips[torch.randperm(len(chips), generator=chance)]
                for index in torch.tensor_split(order, steps):
                    feedback.raise_if_cancelled()
                    # Batch norm needs two: a lone chip is looked at through two windows.
                    shown = index.repeat(2) if len(index) == 1 else index
                    batch = self._chips.draw(shown, target, settings.light, self._spread, chance)
                    loss = self._loss(model, run, batch)
                    wrapped.zero_grad()
                    fabric.backward(loss)
                    wrapped.step()
                    schedule.step()
                    total += loss.detach() * len(index) / len(chips)
                self.steps += steps
                losses.append(_finite(float(total), epoch))
                feedback.progress(
                    epoch / epochs, f"{title}, epoch {epoch} of {epochs}: loss {total:.3f}"
                )
                if look is not None and (epoch % settings.check_epochs == 0 or epoch == epochs):
                    look(epoch, run)
        return losses

    def _weighted_target(self, shares: Tensor, weight: Tensor) -> Tensor:
        """(M + 1, K): what each pixel adds to the loss in one visit; the last row is 0."""
        plain = shares * weight[:, None]
        target = self.objective.target if self._settings.balanced else plain
        target = target / target.sum() * len(self._chips)  # so that a chip's loss is about 1
        visits = self._chips.visits.to(shares).clamp_min(1e-6)
        return torch.cat([target / visits[:, None], torch.zeros_like(target[:1])])

    def _loss(self, model: SpectralXSegmenter, run: nn.Module, batch: ChipBatch) -> Tensor:
        """Cross entropy of a batch, and the load of the experts where that is asked for."""
        answers = run(batch.reflectance, batch.valid)
        loss = self.objective.loss(answers.permute(0, 2, 3, 1), batch.target)
        return loss.sum() / len(batch.valid) + model.adapted.balance()


@torch.inference_mode()
def predict_samples(
    model: SpectralXSegmenter, samples: Samples, *, run: nn.Module | None = None
) -> Tensor:
    """Answer for labelled pixels, each seen in the middle window of its chip.

    Args:
        model: on any device; its training mode is left as it is found.
        samples: chips as large as the model's, or read with a margin.
        run: the same model as Fabric runs it; None: the model itself.

    Returns:
        (M, K) float32 logits, on the CPU.
    """
    chip_px = model.config.chip_px
    device = next(model.parameters()).device
    read_px = samples.valid.shape[-1]
    start, chips = max((read_px - chip_px) // 2, 0), max(PREDICT_PX // chip_px**2, 1)
    inside = slice(start, start + chip_px)
    was_training = model.training
    model.eval()
    answers = torch.empty(len(samples.chip), model.config.num_classes)
    order = torch.argsort(samples.chip, stable=True)
    first = torch.searchsorted(samples.chip[order], torch.arange(0, len(samples.valid), chips))
    for number, members in enumerate(torch.tensor_split(order, first[1:])):
        batch = slice(number * chips, (number + 1) * chips)
        maps = (run or model)(
            samples.reflectance[batch, :, inside, inside].to(device),
            samples.valid[batch, inside, inside].to(device),
        )
        chip = samples.chip[members] - batch.start
        row, col = samples.row[members] - start, samples.col[members] - start
        answers[members] = maps.float().cpu()[chip, :, row, col]
    model.train(was_training)
    return answers


@torch.no_grad()
def _fit_normalisation(adapted: AdaptedViT, samples: Samples) -> None:
    """Set mean and spread of each band from the labelled pixels."""
    path = SpectralPath(samples.reflectance.shape[1], 1)
    path.fit_views(samples.spectra, samples.weight)
    is_unit = adapted.config.scaling == "unit"
    adapted.band_mean.copy_(path.unit_mean if is_unit else path.band_mean)
    adapted.band_std.copy_(path.unit_std if is_unit else path.band_std)


def _check_sizes(samples: Samples, config: SegmenterConfig) -> None:
    bands = samples.reflectance.shape[1]
    if (bands, samples.num_classes) != (config.in_channels, config.num_classes):
        raise ValueError(
            f"The samples have {bands} bands and {samples.num_classes} classes; the model has "
            f"{config.in_channels} and {config.num_classes}."
        )


def _optimiser(model: nn.Module, settings: SegmentationSettings) -> torch.optim.AdamW:
    """AdamW over all that is trained, alike."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        trained,
        lr=settings.learning_rate,
        betas=BETAS,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def _rate(settings: SegmentationSettings, steps: int) -> Callable[[int], float]:
    """Factor of the learning rate by step."""
    warm_up = max(WARM_UP * steps, 1.0)

    def factor(step: int) -> float:
        if not settings.cosine:
            return 1.0
        if step < warm_up:
            return (step + 1) / (warm_up + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))

    return factor


def _finite(loss: float, epoch: int) -> float:
    if not math.isfinite(loss):
        raise TrainingError(
            f"The loss is {loss} in epoch {epoch}: the training has diverged.",
            "Choose a lower learning rate, or check the scenes for values that are no reflectance.",
        )
    return loss

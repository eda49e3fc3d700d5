"""Training the small networks on spectra, and their share beside the linear path.

As with the linear path, all are trained side by side: some without each fold of places, to be
asked about it, and the others on all places, to be kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.feedback import Feedback
from engine.models.spectral import CHUNK_PX, SpectralHeads
from engine.training.gate import GateChoice, choose_gate, is_better
from engine.training.spectral_fit import (
    SpectralFit,
    TrainingPixels,
    augmented,
    epoch_batches,
)

SHARES = (0.5, 1.0)


@dataclass(frozen=True)
class HeadsSettings:
    """How the networks are trained.

    Args:
        epochs: at most; with few pixels, an epoch is several passes through them.
        check_epochs: epochs between two looks at the held-out places.
        min_steps: of an epoch.
        batch_px: pixels a step.
        fold_members: networks that are trained without each fold.
        lr: of AdamW.
        weight_decay: of AdamW.
        dropout: after both hidden layers.
        brightness: see `SpectralSettings`.
        noise: see `SpectralSettings`.
    """

    epochs: int = 100
    check_epochs: int = 10
    min_steps: int = 4
    batch_px: int = 2048
    fold_members: int = 2
    lr: float = 2e-3
    weight_decay: float = 0.05
    dropout: float = 0.3
    brightness: float = 0.05
    noise: float = 0.05


@dataclass(frozen=True, eq=False)
class HeadsFit:
    """The trained networks.

    Args:
        state: of a `SpectralHeads`, those trained on all places.
        fold_states: of those trained without each fold.
        choice: their share and its reasons.
        held_out: (M, K) cross-fitted answers of the mixture with this share.
    """

    state: dict[str, Tensor]
    fold_states: tuple[dict[str, Tensor], ...]
    choice: GateChoice
    held_out: Tensor


def fit_heads(
    pixels: TrainingPixels,
    place: Tensor,
    spectral: SpectralFit,
    settings: HeadsSettings,
    *,
    members: int,
    hidden: int,
    seed: int,
    feedback: Feedback,
) -> HeadsFit:
    """Train the networks and choose their share.

    Args:
        pixels: to learn from, on the device to train on.
        place: (M,) the place of each.
        spectral: the linear path fitted on them, whose views they share.
        settings: see there.
        members: networks to keep.
        hidden: their width.
        seed: of initial weights, dropout, batches and augmentation.
        feedback: told the loss; asked for a cancel after every epoch.
    """
    device = pixels.spectra.device
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):  # dropout draws from the global generators
        torch.manual_seed(seed)
        stack = _Stack(pixels, spectral, settings, members, hidden)
        added: dict[int, Tensor] = {}
        states: dict[int, dict[str, Tensor]] = {}
        for epoch in range(1, settings.epochs + 1):
            feedback.raise_if_cancelled()
            loss = stack.train_epoch()
            if epoch % settings.check_epochs == 0 or epoch == settings.epochs:
                added[epoch] = stack.held_out_answers() - spectral.held_out
                states[epoch] = stack.state()
            feedback.progress(
                epoch / settings.epochs, f"Networks on spectra, epoch {epoch}: loss {loss:.3f}"
            )
    tried = added if pixels.num_folds > 1 else {}
    choice = choose_gate(
        pixels.objective, place, spectral.held_out, tried, SHARES, settings.epochs, is_better
    )
    mixture = spectral.held_out + choice.gate * added[choice.epochs]
    kept, *without = stack.split(states[choice.epochs])
    return HeadsFit(kept, tuple(without), choice, mixture)


class _Stack:
    """All networks side by side: those of each fold first, those on all places last."""

    def __init__(
        self,
        pixels: TrainingPixels,
        spectral: SpectralFit,
        settings: HeadsSettings,
        members: int,
        hidden: int,
    ) -> None:
        self._pixels = pixels
        self._path = spectral.path
        self._settings = settings
        self._members = members
        device = pixels.spectra.device
        owner = torch.arange(pixels.num_folds, device=device).repeat_interleave(
            settings.fold_members
        )
        self._owner = torch.cat([owner, torch.full((members,), -1, device=device)])
        bands, outputs = pixels.spectra.shape[1], pixels.objective.outputs
        count = len(self._owner)
        self._heads = SpectralHeads(bands, outputs, count, hidden, settings.dropout).to(device)
        self._optimiser = torch.optim.AdamW(
            self._heads.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        seen = self._owner[:, None] != pixels.fold[None]
        self._seen = (seen | (pixels.num_folds == 1)).float()  # (networks, M)
        self._objective = pixels.objective
        self._target = pixels.objective.target

    def train_epoch(self) -> float:
        """Go through all pixels; returns the mean loss of the networks that are kept."""
        settings = self._settings
        batches = epoch_batches(self._target, settings.batch_px, settings.min_steps)
        total = 0.0
        self._heads.train()
        for index in batches:
            spectra = augmented(
                self._pixels.spectra[index],
                self._path.band_std,
                settings.brightness,
                settings.noise,
            )
            with torch.no_grad():
                views = self._path.views(spectra)
            loss = self._objective.loss(self._heads(views), self._target[index])
            loss = (loss * self._seen[:, index]).sum(dim=1) / len(index)
            self._optimiser.zero_grad()
            torch.autograd.backward(loss.sum())
            self._optimiser.step()
            total += float(loss[-self._members :].detach().mean()) * len(index)
        return total / sum(map(len, batches))

    @torch.no_grad()
    def held_out_answers(self) -> Tensor:
        """(M, K) mean answer for each pixel by the networks that have not seen its fold."""
        self._heads.eval()
        found = []
        all_pixels = torch.arange(len(self._target), device=self._target.device)
        for index in torch.split(all_pixels, CHUNK_PX):
            answers = self._heads(self._path.views(self._pixels.spectra[index]))
            # (networks, n): those that answer for the fold that each pixel is in.
            asked = (self._owner[:, None] == self._pixels.fold[index]).float()[..., None]
            found.append((answers * asked).sum(dim=0) / asked.sum(dim=0))
        return torch.cat(found)

    def state(self) -> dict[str, Tensor]:
        """A copy of all networks as they are now."""
        return {name: tensor.clone() for name, tensor in self._heads.state_dict().items()}

    def split(self, state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Take all networks apart: first those on all places, then those of each fold."""
        owners = [-1, *range(self._pixels.num_folds)]
        return [
            {name: tensor[self._owner == owner] for name, tensor in state.items()}
            for owner in owners
        ]

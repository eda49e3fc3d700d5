"""How much a part of a model adds, decided on places that it has not seen.

A part that sees nothing but the pixel's own spectrum needs only to make the loss on held-out places
lower. One that sees the neighbourhood can learn the place instead of the thing: it has to be
better by more than chance over places, and must not cost accuracy there. How much more is for the
caller to say: a fresh encoder has to prove itself, adapters of a public foundation need to be
likely to help.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.training.objective import Objective, judge

CONFIRMED_ERRORS = 3.0  # standard errors over places: a dozen weights are tried, chance finds two
LIKELY_ERRORS = 1.0  # the rule of one standard error, as for the pruning of trees


def is_better(score: GateScore, without: tuple[float, float]) -> bool:
    """The loss on held-out places is lower."""
    return score.loss < without[0]


def is_confirmed(score: GateScore, without: tuple[float, float]) -> bool:
    """The loss is lower by more than chance, and the accuracy is not."""
    return score.gain_errors >= CONFIRMED_ERRORS and score.accuracy >= without[1]


def is_likely(score: GateScore, without: tuple[float, float]) -> bool:
    """The loss is lower by one standard error over places, and the accuracy is not."""
    return score.gain_errors >= LIKELY_ERRORS and score.accuracy >= without[1]


@dataclass(frozen=True)
class GateScore:
    """One weight after so many epochs, on held-out places.

    Args:
        epoch: number of epochs trained.
        gate: weight of what is added.
        loss: as the objective judges.
        accuracy: likewise: balanced accuracy of classes, R² of values.
        gain_errors: how many standard errors over places the loss is better than without.
    """

    epoch: int
    gate: float
    loss: float
    accuracy: float
    gain_errors: float


@dataclass(frozen=True)
class GateChoice:
    """What was chosen, and from what.

    Args:
        gate: 0 when nothing was confirmed.
        epochs: to train for; all of them when nothing was confirmed.
        without: loss and accuracy with nothing added.
        tried: all weights and epochs.
    """

    gate: float
    epochs: int
    without: tuple[float, float]
    tried: tuple[GateScore, ...]


def choose_gate(
    objective: Objective,
    place: Tensor,
    base: Tensor,
    added: Mapping[int, Tensor],
    gates: Sequence[float],
    epochs: int,
    accept: Callable[[GateScore, tuple[float, float]], bool],
) -> GateChoice:
    """Choose the weight with the lowest loss among those that may be taken.

    Args:
        objective: that judges.
        place: (M,) the place of each pixel.
        base: (M, K) cross-fitted answers without the part.
        added: by number of epochs, (M, K) that weight 1 adds to them.
        gates: weights to try.
        epochs: that were trained at most.
        accept: whether a weight may be taken, by its score and the loss and accuracy without.
    """
    base_loss = objective.pixel_loss(base)
    without = judge(objective, base)
    tried = []
    for epoch, part in added.items():
        for gate in gates:
            joined = base + gate * part
            errors = _gain_errors(base_loss - objective.pixel_loss(joined), place)
            tried.append(GateScore(epoch, gate, *judge(objective, joined), errors))
    accepted = [item for item in tried if accept(item, without)]
    best = min(accepted, key=lambda item: item.loss, default=None)
    if best is None:
        return GateChoice(0.0, epochs, without, tuple(tried))
    return GateChoice(best.gate, best.epoch, without, tuple(tried))


def _gain_errors(gain: Tensor, place: Tensor) -> float:
    """The sum of (M,) gains in standard errors, with places as the independent samples."""
    names, number = torch.unique(place, return_inverse=True)
    if len(names) < 2:
        return 0.0
    by_place = torch.zeros(len(names), device=gain.device).index_add(0, number, gain)
    error = by_place.std() * len(names) ** 0.5
    return float(by_place.sum() / error.clamp_min(1e-9))

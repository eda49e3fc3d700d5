"""What the fits of a classifier and of a regressor strive for, and what they are judged by.

All fits ask the same questions: how wrong is an answer for a target, and how good are the answers
for pixels in places that they have not seen? An objective has both, so that there is one fit of
the linear path, one of the small networks and one of the encoder.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

# Halfway between classes as frequent as they are (0) and classes that all weigh the same (1).
CLASS_BALANCE = 0.5
# A pure pixel weighs so much more than a mixed one of equal area: maps are scored on them.
PURE_WEIGHT = 6.0


class Objective(Protocol):
    """A loss over M pixels, and a judgement of held-out answers."""

    outputs: int
    """K, numbers that answer for a pixel."""

    target: Tensor
    """(M, T) float32: what is right, and how much it counts. All 0: it does not count."""

    accuracy_name: str
    """What `accuracy` is called in messages."""

    def loss(self, answers: Tensor, target: Tensor) -> Tensor:
        """How wrong (…, K) answers are for (…, T) targets: (…), about 1 at the start."""

    def pixel_loss(self, answers: Tensor) -> Tensor:
        """(M,) contributions of cross-fitted (M, K) answers to the loss by which they are judged.

        It is counted over the pixels that are scored.
        """

    def accuracy(self, answers: Tensor) -> float:
        """How good cross-fitted (M, K) answers are; more is better, 1 is perfect."""


def judge(objective: Objective, answers: Tensor) -> tuple[float, float]:
    """Loss and accuracy of cross-fitted (M, K) answers."""
    return float(objective.pixel_loss(answers).sum()), objective.accuracy(answers)


class ClassObjective:
    """Cross entropy with the shares of classes in a pixel.

    Answers are logits. Judged are the pure pixels, all classes alike: the mean loss over classes,
    and balanced accuracy. A class of which no pixel is pure is judged by its shares.

    Args:
        shares: (M, K) float32, rows sum to 1.
        weight: (M,) float32, how much each pixel counts.
        pure: (M,) bool, the pixels that are scored.
    """

    accuracy_name = "accuracy"

    def __init__(self, shares: Tensor, weight: Tensor, pure: Tensor) -> None:
        self.outputs = shares.shape[1]
        self.target = _balanced_target(shares, weight, pure)
        label = shares.argmax(dim=1)
        counted = torch.bincount(label[pure], minlength=self.outputs)
        scored = pure | (counted[label] == 0)
        part = shares * scored[:, None]
        mass = part.sum(dim=0)
        present = mass > 0
        self._share = part / mass.clamp_min(1e-6) / present.sum()
        self._label = label[scored]
        self._scored = scored

    def loss(self, answers: Tensor, target: Tensor) -> Tensor:
        """See `Objective.loss`."""
        loss: Tensor = -(target * answers.log_softmax(dim=-1)).sum(dim=-1)
        return loss

    def pixel_loss(self, answers: Tensor) -> Tensor:
        """See `Objective.pixel_loss`; their sum is the mean over classes."""
        return self.loss(answers, self._share)

    def accuracy(self, answers: Tensor) -> float:
        """Mean recall of the classes that are there."""
        hit = (answers.argmax(dim=1)[self._scored] == self._label).float()
        count = torch.bincount(self._label, minlength=self.outputs)
        hits = torch.bincount(self._label, weights=hit, minlength=self.outputs)
        return float((hits[count > 0] / count[count > 0]).mean())


class ValueObjective:
    """The squared error of one number in standard units.

    Judged are the pixels that are known for the most part: the mean squared error, and R².

    Args:
        value: (M,) float32 in standard units.
        weight: (M,) float32, how much each pixel counts.
        scored: (M,) bool, the pixels that are judged.
    """

    accuracy_name = "R²"
    outputs = 1

    def __init__(self, value: Tensor, weight: Tensor, scored: Tensor) -> None:
        self.target = torch.stack([value, weight / weight.mean()], dim=1)
        self._value = value
        scored = scored if scored.any() else torch.ones_like(scored)
        self._share = scored / scored.sum()

    def loss(self, answers: Tensor, target: Tensor) -> Tensor:
        """See `Objective.loss`."""
        loss: Tensor = target[..., 1] * (answers[..., 0] - target[..., 0]).square()
        return loss

    def pixel_loss(self, answers: Tensor) -> Tensor:
        """See `Objective.pixel_loss`; their sum is the mean squared error."""
        loss: Tensor = self._share * (answers[:, 0] - self._value).square()
        return loss

    def accuracy(self, answers: Tensor) -> float:
        """R²: the share of the values' variance that the answers explain; below 0 when none."""
        mean = (self._share * self._value).sum()
        variance = (self._share * (self._value - mean).square()).sum().clamp_min(1e-12)
        return float(1 - self.pixel_loss(answers).sum() / variance)


def class_weights(shares: Tensor, weight: Tensor, balance: float) -> Tensor:
    """(K,) weights that make classes count alike to the degree ``balance``, 1 on average."""
    mass = (shares * weight[:, None]).sum(dim=0).clamp_min(1e-6)
    factor = (mass.sum() / (len(mass) * mass)) ** balance
    weights: Tensor = factor * mass.sum() / (factor * mass).sum()
    return weights


def _balanced_target(shares: Tensor, weight: Tensor, pure: Tensor) -> Tensor:
    """(M, K) shares with the weights of pixel and class, 1 a pixel on average."""
    weight = weight * torch.where(pure, PURE_WEIGHT, 1.0)
    balance = class_weights(shares, weight, CLASS_BALANCE)
    target = shares * balance * weight[:, None]
    weighted: Tensor = target / target.sum() * len(target)
    return weighted

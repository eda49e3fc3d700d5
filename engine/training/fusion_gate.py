"""How much of a network's answer is added to the start, decided on places that it has not seen.

A network learns residuals of places that the start was fitted to; elsewhere they may be others. So
its answer is shrunk, each coefficient by as much as other places say, and left out where it would
make the image or its spectra worse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.models.fusion.fuser import Fuser
from engine.training.fusion_data import Triplet

UNIFORM = (1.0, 0.75, 0.5, 0.25)  # gates that are tried for all coefficients alike
MAX_PX = 20_000  # pixels that judge


@dataclass(frozen=True)
class GateChoice:
    """What was chosen, and what it is worth on the places that chose it.

    Args:
        gate: mean over the coefficients, 0 to 1; 0 when nothing was confirmed.
        gain_db: of the PSNR.
        angle_ratio: spectral angle, as a share of the start's.
    """

    gate: float
    gain_db: float
    angle_ratio: float

    @property
    def gains(self) -> tuple[float, float]:
        """Both gains."""
        return self.gain_db, self.angle_ratio


@torch.no_grad()
def choose_gate(fuser: Fuser, triplets: Sequence[Triplet]) -> GateChoice:
    """Set a fuser's gate by targets that it has not learned from.

    Candidates are a common factor, and the least-squares factor of each coefficient. The one with
    the largest gain of PSNR and angle together is taken, if neither is worse than the start's.

    Args:
        fuser: trained, with a start, in evaluation mode; its gate is replaced.
        triplets: with targets on those places, on the fuser's device; one valid pixel at least.
    """
    fuser.gate.fill_(1.0)
    parts = [_pixels(fuser, triplet) for triplet in triplets]
    start, answer, truth = (torch.cat(item) for item in zip(*parts, strict=True))
    judge = _Judge(start, truth, fuser)
    best, best_gain = torch.zeros_like(fuser.gate), (0.0, 1.0)
    for gate in [*(torch.full_like(best, value) for value in UNIFORM), judge.fitted(answer)]:
        gain_db, angle_ratio = judge.gains(answer * gate)
        if gain_db < 0 or angle_ratio > 1:
            continue
        if _together(gain_db, angle_ratio) > _together(*best_gain):
            best, best_gain = gate, (gain_db, angle_ratio)
    fuser.gate.copy_(best)
    return GateChoice(float(best.mean()), *best_gain)


class _Judge:
    """Compares answers with the start, on (N, L) pixels of the fuser's scale."""

    def __init__(self, start: Tensor, truth: Tensor, fuser: Fuser) -> None:
        self._start, self._truth, self._fuser = start, truth, fuser
        self._error = _band_errors(start, truth)
        self._angle = self._mean_angle(start)

    def fitted(self, answer: Tensor) -> Tensor:
        """(K,) least-squares factor of each coefficient, 0 to 1."""
        left = self._truth - self._start
        if self._fuser.config.basis_size is not None:
            left = left @ self._fuser.basis
        energy = answer.square().sum(0).clamp(min=1e-12)
        return ((answer * left).sum(0) / energy).clamp(0.0, 1.0)

    def gains(self, answer: Tensor) -> tuple[float, float]:
        """PSNR gained, dB, and spectral angle as a share of the start's."""
        if self._fuser.config.basis_size is not None:
            answer = answer @ self._fuser.basis.T
        image = self._start + answer
        ratio = self._error / _band_errors(image, self._truth)
        gain_db = float(10 * torch.log10(ratio).mean())
        return gain_db, self._mean_angle(image) / max(self._angle, 1e-9)

    def _mean_angle(self, image: Tensor) -> float:
        found, truth = (self._fuser.to_reflectance(item) for item in (image, self._truth))
        cosine = torch.cosine_similarity(found, truth, dim=1)
        return float(cosine.clamp(-1.0, 1.0).arccos().mean())


def _band_errors(image: Tensor, truth: Tensor) -> Tensor:
    """(L,) mean squared errors, never 0."""
    return (image - truth).square().mean(0).clamp(min=1e-12)


def _together(gain_db: float, angle_ratio: float) -> float:
    """Both gains in decibels."""
    return gain_db - 20 * math.log10(max(angle_ratio, 1e-9))


def _pixels(fuser: Fuser, triplet: Triplet) -> tuple[Tensor, Tensor, Tensor]:
    """(N, L) start, (N, K) answer before the basis, and (N, L) truth, where that is known."""
    use = triplet.target_valid
    inputs = fuser.prepare(triplet.pair)
    answer = fuser.answer(inputs)[0]
    truth = fuser.to_scale(triplet.target)
    images = [item.movedim(1, -1)[use] for item in (inputs.start, answer, truth)]
    every = max(len(images[0]) // MAX_PX, 1)
    start, answer, truth = (item[::every] for item in images)
    return start, answer, truth

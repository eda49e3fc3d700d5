"""Small triplets and small settings, so that a training takes a second."""

from __future__ import annotations

from dataclasses import replace

from engine.models.fusion.presets import PRESETS
from engine.training.fusion_data import Triplet
from engine.training.fusion_settings import FusionSettings
from tests.engine.models.fusion.made_pairs import known

TINY = replace(
    PRESETS["laptop"],
    width=8,
    basis_size=4,
    teacher_blocks=(0, 0, 0, 1),
    student_blocks=(0, 1, 0, 0),
    crop_px=18,
    batch=2,
    epochs=2,
)


def triplet(rows: int = 16, columns: int = 18, *, seed: int = 0) -> Triplet:
    """A pair whose fine image is known, at ratio 3."""
    at = known(rows, columns, seed=seed, noise=1e-3)
    return Triplet(at.pair, at.target, at.target_valid)


def settings(**changes) -> FusionSettings:
    """A training of a few steps."""
    return FusionSettings(**{"preset": TINY, **changes})

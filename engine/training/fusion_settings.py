"""How a fusion is trained: what a request may ask for, and what a preset says otherwise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self, get_args

from engine.models.fusion.attention import FUSIONS, Fusion
from engine.models.fusion.fuser import STARTS, Start
from engine.models.fusion.presets import DEFAULT, PRESETS, PUBLISHED, FusionPreset
from engine.training.fusion_loss import Distillation, FusionLossSettings

DISTILLATIONS: tuple[Distillation, ...] = get_args(Distillation)
LOSSES = FusionLossSettings(response=0.3, feature=1e-3)
"""Ours. The published tenth for features costs the student what it shall learn: beside a smooth L1
of 1e-4 a cross entropy of 0.7 is all that it sees, and it stays up to 1.7 dB behind its teacher."""
PUBLISHED_NOISE_DB = 35.0


@dataclass(frozen=True)
class FusionSettings:
    """How teacher and student are trained; the reasons are in docs/fusion_results.md.

    Args:
        preset: name of sizes, or the sizes themselves.
        epochs: of the preset when None; in an epoch, crops cover the training ground once.
        crop_px: side of a crop in fine pixels, likewise.
        batch: crops a step, likewise.
        teacher_learning_rate: of AdamW at its highest, likewise.
        student_learning_rate: likewise.
        weight_decay: of AdamW.
        seed: of places, weights, crops and noise.
        start: what the networks add to.
        fusion: of the streams; the preset's when None.
        distillation: what the student learns from the teacher.
        losses: weights of the terms.
        noise_snr_db: of noise added to the hyperspectral input in training; none when None.
        consistency_weight: of giving both images back at full resolution, where they are given.
        validation: share of the ground that training does not see at all, for the scores.
        inner: share of the rest by which the gate is chosen.

    Raises:
        ValueError: a setting is out of range or unknown.
    """

    preset: str | FusionPreset = DEFAULT
    epochs: int | None = None
    crop_px: int | None = None
    batch: int | None = None
    teacher_learning_rate: float | None = None
    student_learning_rate: float | None = None
    weight_decay: float = 1e-2
    seed: int = 0
    start: Start = "injection"
    fusion: Fusion | None = None
    distillation: Distillation = "both"
    losses: FusionLossSettings = LOSSES
    noise_snr_db: float | None = None
    consistency_weight: float = 0.1
    validation: float = 0.25
    inner: float = 0.2

    def __post_init__(self) -> None:
        if isinstance(self.preset, str) and self.preset not in PRESETS:
            raise ValueError(f"There is no preset {self.preset!r}; there are {', '.join(PRESETS)}.")
        for name, known in (("start", STARTS), ("distillation", DISTILLATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, not {getattr(self, name)}.")
        if self.fusion is not None and self.fusion not in FUSIONS:
            raise ValueError(f"There is no fusion {self.fusion!r}; there are {', '.join(FUSIONS)}.")
        for name in ("validation", "inner"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is a share below 1, not {getattr(self, name)}.")
        for name in ("weight_decay", "consistency_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is not below 0.")

    @classmethod
    def of(cls, preset: str, **given: Any) -> Self:
        """The settings that belong to a preset, but for what is given.

        The published preset is trained as published: from nothing, with noise, with the published
        weights of the losses and without weight decay.

        Args:
            preset: name of sizes.
            given: other fields.

        Raises:
            ValueError: see the class.
        """
        published: dict[str, Any] = {
            "start": "none",
            "losses": FusionLossSettings(),
            "noise_snr_db": PUBLISHED_NOISE_DB,
            "weight_decay": 0.0,
        }
        return cls(preset=preset, **{**(published if preset == PUBLISHED else {}), **given})

    def sizes(self) -> FusionPreset:
        """The preset with what the settings change."""
        preset = PRESETS[self.preset] if isinstance(self.preset, str) else self.preset
        names = ("epochs", "crop_px", "batch", "teacher_learning_rate", "student_learning_rate")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if any(value <= 0 for value in given.values()):
            raise ValueError(f"Settings of a training are above 0: {given}.")
        return replace(preset, **given)

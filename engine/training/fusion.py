"""The whole procedure of a fusion: from triplets to a student, its teacher and their scores.

1. Places are held out, for the scores and for the gate.
2. The start is fitted, and teacher and student learn together what it leaves.
3. Places that neither has seen say how much of each network's answer is added: perhaps nothing.
4. The start is fitted again with those places, and both networks go on with them.
5. Student, teacher, start and the classical methods are scored where nobody has learned.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from lightning_fabric import Fabric
from torch import Tensor

from engine.feedback import Feedback, StepFeedback
from engine.models.fusion.classical import CLASSICAL
from engine.models.fusion.degradation import PointSpread
from engine.models.fusion.fuser import Fuser
from engine.models.fusion.method import FusionMethod, ImagePair
from engine.models.fusion.noise import missing_noise, with_noise
from engine.training.fusion_data import Crops, Places, Triplet, deal_places, to_fine
from engine.training.fusion_fit import CoTraining, FusionFit, Stage, steps_per_epoch
from engine.training.fusion_full_scale import FullScale, full_ground
from engine.training.fusion_gate import GateChoice, choose_gate
from engine.training.fusion_metrics import FusionMeter, FusionScores
from engine.training.fusion_models import fit_start, make_fusers, set_start
from engine.training.fusion_settings import FusionSettings
from engine.training.pair_physics import PairPhysics
from engine.training.run_checkpoint import RunCheckpoint, RunState

SECOND_SHARE = 0.3  # of the steps, after the gate is chosen
SECOND_RATE = 0.5  # of the learning rates there: the networks know most already
_GATES = "gates."  # names in the checkpoint


@dataclass(frozen=True, eq=False)
class TrainedFusion:
    """What a training has made, and what is to be said about it.

    Args:
        student: on the CPU, in evaluation mode.
        teacher: likewise.
        scores: on held-out ground, of "student", "teacher", "start" where there is one, and with
            physics of the classical methods by name; empty when nothing was held out.
        history: rows of mean terms, each with "epoch" and "learning_rate"; terms are named
            ``student`` and ``teacher`` (the sums) and, behind one of these and an underscore, as
            in `engine.training.fusion_loss`.
        gates: of "student" and "teacher"; empty without a start or without places to choose by.
        held_out: what was held out, in words.
        steps: of the training.
        seconds: that the training took, without the scores.
        parameters: of "student" and "teacher": values that were trained.
    """

    student: Fuser
    teacher: Fuser
    scores: dict[str, FusionScores]
    history: list[dict[str, float]]
    gates: dict[str, GateChoice]
    held_out: str
    steps: int
    seconds: float
    parameters: dict[str, int]


def train_fuser(
    triplets: Sequence[Triplet],
    settings: FusionSettings,
    *,
    full_pairs: Sequence[ImagePair] = (),
    physics: PairPhysics | None = None,
    fabric: Fabric,
    feedback: Feedback,
    checkpoint: RunCheckpoint | None = None,
    resume: RunState | None = None,
) -> TrainedFusion:
    """Train teacher and student, and score them.

    Args:
        triplets: on the CPU; of one ratio and the same bands.
        settings: see there.
        full_pairs: the pairs at full resolution that ``triplets`` are degraded from: noise that
            degrading has taken away is added to the triplets, and with a weight of consistency
            crops of them have to give both images back.
        physics: of the pairs; without, the point spread is taken to be as wide as a coarse pixel,
            and classical methods are not scored.
        fabric: one device, and a precision.
        feedback: told what is done; asked for a cancel at every step.
        checkpoint: where to keep the state; kept after a cancel and at the end.
        resume: a state to go on from, of the same triplets and settings.

    Raises:
        TrainingError: nothing is left to train on, the training diverged, or the state is of
            another model.
        CancelledError: the user cancelled; the state was kept.
    """
    start_s = time.monotonic()
    if full_pairs:
        triplets = with_lost_noise(triplets, full_pairs, physics, settings.seed)
    training = _Training(triplets, settings, full_pairs, physics, fabric)
    models = training.run(StepFeedback(feedback, 0.0, 0.9), checkpoint, resume)
    seconds = time.monotonic() - start_s
    scores = _scores(models, triplets, training.places, physics, StepFeedback(feedback, 0.9, 1.0))
    models.cpu().eval()
    named = {"student": models.student, "teacher": models.teacher}
    return TrainedFusion(
        models.student,
        models.teacher,
        scores,
        training.history,
        training.gates,
        training.places.describe(triplets[0].pair.ratio),
        training.steps,
        seconds,
        {
            name: sum(parameter.numel() for parameter in model.network.parameters())
            for name, model in named.items()
        },
    )


def with_lost_noise(
    triplets: Sequence[Triplet],
    full_pairs: Sequence[ImagePair],
    physics: PairPhysics | None,
    seed: int,
) -> list[Triplet]:
    """Add to the coarse images the noise that they have lost by being degraded.

    Args:
        triplets: degraded.
        full_pairs: that they are degraded from.
        physics: by which.
        seed: of the noise.
    """
    pairs = [item.pair for item in triplets]
    spread = PointSpread.gaussian(pairs[0].ratio) if physics is None else physics.spread
    noise = missing_noise(pairs, full_pairs, spread)
    noisy = []
    for number, item in enumerate(triplets):
        hsi = with_noise(item.pair.hsi, noise, seed * len(triplets) + number)
        hsi = torch.where(item.pair.hsi_valid[:, None], hsi, item.pair.hsi)
        noisy.append(replace(item, pair=replace(item.pair, hsi=hsi)))
    return noisy


class _Training:
    """One run of `train_fuser`, up to the scores."""

    def __init__(
        self,
        triplets: Sequence[Triplet],
        settings: FusionSettings,
        full_pairs: Sequence[ImagePair],
        physics: PairPhysics | None,
        fabric: Fabric,
    ) -> None:
        self._triplets, self._settings, self._sizes = triplets, settings, settings.sizes()
        self._full_pairs, self._physics, self._fabric = full_pairs, physics, fabric
        # Without a start there is nothing that the network's answer could be worse than.
        inner = settings.inner if settings.start != "none" else 0.0
        self.places: Places = deal_places(
            triplets, validation=settings.validation, inner=inner, seed=settings.seed
        )
        self._has_gate = any(bool(mask.any()) for mask in self.places.inner)
        self.gates: dict[str, GateChoice] = {}
        self.history: list[dict[str, float]] = []
        self.steps = 0

    def run(
        self, feedback: Feedback, checkpoint: RunCheckpoint | None, resume: RunState | None
    ) -> CoTraining:
        """Both stages, or the one that there is; the models stay on the device."""
        ground = self.places.fit if self._has_gate else self.places.learned
        start = self._start(ground)
        triplets = self._within(ground)
        models = CoTraining(*make_fusers(triplets, start, self._settings, self._sizes))
        self._fabric.to_device(models)
        crops = self._crops(models.student, ground)
        self.steps = self._sizes.epochs * steps_per_epoch(
            sum(int(mask.sum()) for mask in self.places.learned), crops.crop_px, self._sizes
        )
        second = round(SECOND_SHARE * self.steps) if self._has_gate else 0
        first = self.steps - second
        fit = FusionFit(
            models,
            self._settings,
            self._sizes,
            self.steps,
            fabric=self._fabric,
            feedback=feedback,
            checkpoint=checkpoint,
        )
        if resume is not None:
            fit.go_on_from(resume)
        full_scale = self._full_scale(models.student, crops, ground)
        stage = Stage(crops, first, 1.0, "Training", full_scale)
        fit.train(stage, 0)
        if self._has_gate:
            self._second_stage(models, fit, first, second)
        self.history = fit.history
        return models

    def _second_stage(self, models: CoTraining, fit: FusionFit, first: int, steps: int) -> None:
        """Choose the gates, then go on with the places that chose them."""
        named = {"student": models.student, "teacher": models.teacher}
        if not fit.extra:
            self._choose_gates(named, fit)
        start = self._start(self.places.learned)
        for model in named.values():
            set_start(model, start)
        crops = self._crops(models.student, self.places.learned)
        full_scale = self._full_scale(models.student, crops, self.places.learned)
        fit.train(Stage(crops, steps, SECOND_RATE, "Training on all places", full_scale), first)
        for name, model in named.items():
            model.gate.copy_(fit.extra[f"{_GATES}{name}"])
            gain_db, angle_ratio = fit.extra[f"{_GATES}{name}.gains"].tolist()
            self.gates[name] = GateChoice(float(model.gate.mean()), gain_db, angle_ratio)

    def _choose_gates(self, named: Mapping[str, Fuser], fit: FusionFit) -> None:
        """Choose each network's gate, and put it aside until the training is done.

        While it learns, a network answers in full; it would grow to undo a gate.
        """
        judges = [item.to(self._fabric.device) for item in self._within(self.places.inner)]
        for name, model in named.items():
            choice = choose_gate(model, judges)
            fit.extra[f"{_GATES}{name}"] = model.gate.clone()
            fit.extra[f"{_GATES}{name}.gains"] = torch.tensor(choice.gains)
            model.gate.fill_(1.0)

    def _within(self, ground: Sequence[Tensor]) -> list[Triplet]:
        """The triplets with targets on some ground; those without any are left out."""
        pairs = zip(self._triplets, ground, strict=True)
        return [item.within(use) for item, use in pairs if bool(use.any())]

    def _start(self, ground: Sequence[Tensor]) -> FusionMethod | None:
        return fit_start(self._within(ground), self._settings, self._physics)

    def _crops(self, fuser: Fuser, ground: Sequence[Tensor]) -> Crops:
        side = max(self._sizes.crop_px // fuser.ratio, 1)
        return Crops(fuser, self._triplets, ground, side, self._settings.seed)

    def _full_scale(self, fuser: Fuser, crops: Crops, ground: Sequence[Tensor]) -> FullScale | None:
        if self._physics is None or not self._settings.consistency_weight:
            return None
        pairs, masks = full_ground(self._full_pairs, self._triplets, ground)
        if not pairs:
            return None
        seed = self._settings.seed
        return FullScale(fuser, pairs, masks, self._physics, crops.crop_px, seed)


@torch.no_grad()
def _scores(
    models: CoTraining,
    triplets: Sequence[Triplet],
    places: Places,
    physics: PairPhysics | None,
    feedback: Feedback,
) -> dict[str, FusionScores]:
    """Score everything on held-out ground; nothing when there is none."""
    if not places.held_out_count:
        return {}
    methods: dict[str, FusionMethod] = {"student": models.student, "teacher": models.teacher}
    if models.student.start is not None:
        methods["start"] = models.student.start
    names = [*methods, *(CLASSICAL if physics is not None else ())]
    scores = {}
    for number, name in enumerate(names):
        feedback.raise_if_cancelled()
        feedback.progress(number / len(names), f"Scoring {name}")
        if name in methods:
            method = methods[name]
        elif physics is not None:
            method = CLASSICAL[name]([item.pair for item in triplets], physics)
        scores[name] = score_on(method.eval(), triplets, places.held_out)
    return scores


@torch.no_grad()
def score_on(
    method: FusionMethod, triplets: Sequence[Triplet], ground: Sequence[Tensor]
) -> FusionScores:
    """Score a method on some ground of triplets.

    Args:
        method: on any device.
        triplets: on the CPU.
        ground: (h, w) bool a triplet.

    Raises:
        ValueError: there is nothing to score on.
    """
    ratio = triplets[0].pair.ratio
    device = next((tensor.device for tensor in method.buffers()), torch.device("cpu"))
    meter = FusionMeter(triplets[0].target.shape[1], ratio)
    for item, use in zip(triplets, ground, strict=True):
        if bool(use.any()):
            image = method(item.pair.to(device)).cpu()
            meter.update(image[0], item.target[0], to_fine(use, ratio) & item.target_valid[0])
    return meter.scores()


def gate_summary(gates: Mapping[str, GateChoice]) -> str:
    """What the gates are, for the log."""
    return ", ".join(
        f"{name} {choice.gate:.2f} ({choice.gain_db:+.2f} dB on places for it)"
        for name, choice in gates.items()
    )

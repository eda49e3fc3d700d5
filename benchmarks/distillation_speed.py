"""How much of a distillation's time is the networks' own: forward and backward, nothing else."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from benchmarks.scenes import make_scene, remove_scene
from benchmarks.speed import DeviceName, paired
from engine.device import choose_device
from engine.feedback import SilentFeedback
from engine.models.mae import PRESETS, StudentPreset
from engine.packages.teachers import Teacher, load_teacher
from engine.raster.scene import open_scene
from engine.training.distillation import DistillationSettings, DistillationTask, open_tiles
from engine.training.masked_fit import FitSettings, fit
from engine.training.scene_tiles import SceneTiles, TileBatch

SHARE_AIM = 0.9
PAPER_BANDS = 218
TEACHER = "galileo-nano"


@dataclass(frozen=True)
class Load:
    """What is measured.

    Args:
        preset: of the student.
        bands: of the scene.
        side_px: of the scene.
        steps: of a run.
    """

    preset: StudentPreset
    bands: int
    side_px: int
    steps: int


LAPTOP = Load(PRESETS["laptop"], 200, 240, 40)
PAPER = Load(PRESETS["vit_b"], PAPER_BANDS, 2240, 50)


def measure_distillation(folder: Path, pairs: int, device: DeviceName) -> list[dict[str, Any]]:
    """Measure the training loop against its networks alone; the paper's size where a GPU is.

    The bare side has a batch that lies on the device, and tokens that are drawn already. It runs
    the teacher, the student, the squared error and the way back. The other side reads scenes,
    draws masks, computes the whole loss, takes AdamW's steps and keeps its history.
    """
    choice = choose_device(device)
    fabric = Fabric(
        accelerator=choice.device.type,
        devices=1,
        precision="bf16-mixed" if choice.device.type == "cuda" else "32-true",
    )
    loads = [LAPTOP, PAPER] if choice.device.type == "cuda" else [LAPTOP]
    return [
        _measure(load, folder, pairs, fabric) | {"device": f"{choice.device} ({choice.reason})"}
        for load in loads
    ]


def _measure(load: Load, folder: Path, pairs: int, fabric: Fabric) -> dict[str, Any]:
    wavelength_nm = np.linspace(420, 2440, load.bands)
    path = make_scene(
        folder, "tiled by pixel", load.side_px, wavelength_nm, np.full(load.bands, 10.0)
    )
    on_gpu = fabric.device.type == "cuda"
    try:
        tiles = open_tiles(
            [open_scene(path)],
            load.preset,
            drop_ranges_nm=(),
            validation=0.0,
            feedback=SilentFeedback(),
        )
        teacher = load_teacher(TEACHER)
        trained = _epochs(tiles, load) * tiles.steps_per_epoch(load.preset.batch_tiles)
        trained *= load.preset.batch_tiles
        ours, bare = _Ours(tiles, teacher, load, fabric), _Bare(tiles, teacher, load, fabric)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        bare_s, ours_s = paired(bare.run, ours.run, pairs)
    finally:
        remove_scene(path)
    shares = [one / other for one, other in zip(bare_s, ours_s, strict=True)]
    return {
        "preset": load.preset.name,
        "bands": load.bands,
        "tiles_s": trained / statistics.median(ours_s),
        "bare_tiles_s": trained / statistics.median(bare_s),
        "share": statistics.median(shares),
        "shares": shares,
        "aim": SHARE_AIM,
        "peak_gpu_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
    }


class _Ours:
    """The product's loop, from scene to trained weights."""

    def __init__(self, tiles: SceneTiles, teacher: Teacher, load: Load, fabric: Fabric) -> None:
        self._tiles, self._fabric = tiles, fabric
        self._task = DistillationTask(tiles, teacher, DistillationSettings(load.preset))
        self._task.attach(fabric)
        batch = load.preset.batch_tiles
        self._settings = FitSettings(_epochs(tiles, load), batch, 1e-4)

    def run(self) -> None:
        """Train for all steps."""
        fit(
            self._task,
            self._tiles,
            self._settings,
            fabric=self._fabric,
            feedback=SilentFeedback(),
        )
        _wait(self._fabric)


class _Bare:
    """Teacher and student, forward and backward, on one batch again and again."""

    def __init__(self, tiles: SceneTiles, teacher: Teacher, load: Load, fabric: Fabric) -> None:
        self._fabric = fabric
        self._task = DistillationTask(tiles, teacher, DistillationSettings(load.preset))
        self._task.attach(fabric)
        self._model = fabric.setup_module(self._task.model)
        self._model.train()
        batch_tiles = load.preset.batch_tiles
        self._steps = _epochs(tiles, load) * tiles.steps_per_epoch(batch_tiles)
        batch: TileBatch = next(iter(tiles.training_batches(batch_tiles, range(1))))
        self._batch = batch.to(fabric.device)
        settings = DistillationSettings(load.preset)
        self._mask = self._task.draw(self._batch, settings.masking, torch.Generator())
        self._x = self._batch.standardised(*self._task.statistics)

    def run(self) -> None:
        """Run as many steps as the other side."""
        for _step in range(self._steps):
            output = self._model(self._x, self._mask.ids_keep)
            theirs = self._task.teacher_features(self._batch, self._mask)
            self._model.zero_grad()
            self._fabric.backward(_plain_loss(output.prediction, output.features, theirs))
        _wait(self._fabric)


def _epochs(tiles: SceneTiles, load: Load) -> int:
    """As many as come nearest to the wanted steps."""
    return max(round(load.steps / tiles.steps_per_epoch(load.preset.batch_tiles)), 1)


def _plain_loss(
    prediction: Tensor, features: tuple[Tensor, ...], theirs: tuple[Tensor, ...]
) -> Tensor:
    """Something cheap that sends a gradient back through everything."""
    loss = prediction.float().square().mean()
    for ours, target in zip(features, theirs, strict=True):
        loss = loss + (ours.float() - target).square().mean()
    return loss


def _wait(fabric: Fabric) -> None:
    if fabric.device.type == "cuda":
        torch.cuda.synchronize()

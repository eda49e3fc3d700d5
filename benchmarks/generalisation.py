"""What SpectralX is worth on ground that training has not seen, beside other ways to adapt.

    python -m benchmarks.generalisation                     # all methods, five seeds
    python -m benchmarks.generalisation --seeds 1 --backbones galileo-nano

Every method learns from the labels of one scene, or of one part of Berlin, and is asked about
another; no choice (epochs, weight of a part) looks there. For every seed a fifth of the source's
ground is left out, so that the spread is that of places and of chance. SpectralX's first stage sees
the source alone. Two backbones: Galileo nano with its public weights, and a small masked
autoencoder that `pretrain_teacher` trains on five dates of Sentinel-2. All methods on backbones
train for equally many steps. Finished cells are kept, so that an interrupted run goes on where it
was.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.accuracy import ROOT
from benchmarks.cells import Work, measure_cells, spread, table_row
from benchmarks.generalisation_data import Task, load_tasks, pretraining_scenes
from engine.feedback import SilentFeedback
from engine.jobs.pretrain_teacher import Request as PretrainRequest
from engine.jobs.pretrain_teacher import pretrain_teacher
from engine.models.spectralx.presets import PRESETS
from engine.packages.foundations import Foundation, load_foundation
from engine.raster.scene import open_scene
from engine.training.adaptation import AdaptationSettings, adapt
from engine.training.baselines import fit_baselines
from engine.training.masking import MaskingSettings
from engine.training.metrics import ConfusionScores
from engine.training.places import hold_out
from engine.training.samples import Samples
from engine.training.scene_tiles import SceneTiles
from engine.training.segmentation_chips import chip_sizes
from engine.training.segmentation_fit import (
    SegmentationSettings,
    fit_segmenter,
    predict_samples,
)
from engine.training.tile_survey import TileShape

PRESET = PRESETS["laptop"]
BLOCK_PX = 10
LEFT_OUT = 0.2  # of the source's labels, with the blocks that they lie in
STEPS = 120  # of each training of stage 2
ADAPT_STEPS = 150  # of stage 1
FOLDS = 2
CLASSICAL = "classical"
OWN_BACKBONE = "small-mae"
BACKBONES = ("galileo-nano", OWN_BACKBONE)
SCORES = ("iou_macro", "balanced_accuracy")
logger = logging.getLogger("benchmarks.generalisation")


@dataclass(frozen=True)
class Method:
    """A way to use a backbone.

    Args:
        config: fields of `SegmenterConfig` that differ from the preset's.
        adapted: whether stage 1 comes first.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    adapted: bool = False

    @property
    def stage_1(self) -> str:
        """Name of its first stage, which methods share that differ in the second only."""
        return "published" if "train_tokenizer" in self.config else "ours"


ALONE = {"spectral_path": False}
PUBLISHED = {**ALONE, "train_tokenizer": False, "scaling": "chip"}
METHODS: dict[str, Method] = {
    "full fine-tuning": Method({**ALONE, "adaptation": "full"}),
    "frozen": Method({**ALONE, "adaptation": "frozen"}),
    "LoRA": Method({**ALONE, "adaptation": "lora"}),
    "SLR": Method({**ALONE, "adaptation": "slr"}),
    "SpectralX, published choices": Method(PUBLISHED, adapted=True),
    "SpectralX, no stage 1, no spectral path": Method(ALONE),
    "SpectralX, no spectral path": Method(ALONE, adapted=True),
    "full fine-tuning, spectral path": Method({"adaptation": "full"}),
    "SpectralX": Method({}, adapted=True),
    "SpectralX, small networks": Method({"spectral_heads": 4}, adapted=True),
}


def measure(task_name: str, backbone: str, name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train one method on the source and ask it about the target; one cell of the table."""
    torch.set_num_threads(1)
    start_s = time.monotonic()
    task = _tasks(folder)[task_name]
    method, foundation = METHODS[name], _foundation(backbone, folder)
    config = PRESET.segmenter(
        num_classes=len(task.classes),
        wavelength_nm=task.bands.wavelength_nm.tolist(),
        vit=foundation.vit.config,
        foundation=foundation.identity,
        **method.config,
    )
    training = _training(task, seed)
    chips = len(torch.unique(training.chip))
    epochs = max(math.ceil(STEPS / math.ceil(chips / SegmentationSettings.batch_chips)), 1)
    settings = SegmentationSettings(
        epochs=epochs, folds=FOLDS, seed=seed, check_epochs=max(epochs // 6, 1)
    )
    state = None
    if method.adapted:
        path = folder / "adapted" / f"{_key(task_name, backbone, method.stage_1, seed)}.safetensors"
        state = _adapted_state(task, foundation, method, seed, path)
    model, history = fit_segmenter(
        training,
        config,
        foundation,
        settings,
        adapted_state=state,
        fabric=Fabric(accelerator="cpu", devices=1),
        feedback=SilentFeedback(),
    )
    predicted = predict_samples(model, task.target.samples).argmax(dim=1)
    counts = model.trainable_counts()
    return {
        **_scores(task, predicted),
        "gate": history.choice.gate,
        "epochs": history.choice.epochs,
        "trainable": sum(counts.values()),
        "seconds": time.monotonic() - start_s,
    }


def measure_classical(task_name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Ask the classical classifiers, on the same pixels and bands."""
    torch.set_num_threads(1)
    task = _tasks(folder)[task_name]
    training = _training(task, seed)
    found = fit_baselines(
        training.spectra[training.pure].numpy(),
        training.class_index[training.pure].numpy(),
        task.target.samples.spectra.numpy(),
        seed,
        SilentFeedback(),
    )
    return {name: _scores(task, torch.from_numpy(predicted)) for name, predicted in found}


def _scores(task: Task, predicted: Tensor) -> dict[str, float]:
    target = task.target.samples
    confusion = ConfusionScores(len(task.classes))
    confusion.update(target.class_index[target.pure], predicted[target.pure])
    summary = confusion.scores().summary()
    return {name: summary[name] for name in SCORES}


def _training(task: Task, seed: int) -> Samples:
    """The source's samples without a fifth of its ground."""
    source = task.source.samples
    left_out = hold_out(source.class_index.numpy(), source.place.numpy(), LEFT_OUT, seed)
    return source.subset(~torch.from_numpy(left_out))


def _adapted_state(
    task: Task, foundation: Foundation, method: Method, seed: int, path: Path
) -> dict[str, Tensor]:
    """Stage 1 on the source's scene alone, without labels; kept for methods that share it."""
    if path.exists():
        return load_file(path)
    settings = AdaptationSettings(
        preset=PRESET,
        mask_input="train_tokenizer" not in method.config,
        train_tokenizer=method.config.get("train_tokenizer"),
        scaling=method.config.get("scaling"),
        seed=seed,
    )
    scene = open_scene(task.source.scene)
    kept = MaskingSettings(settings.mask_ratio).num_kept(PRESET.grid**2)
    tiles = SceneTiles.open(
        [scene],
        task.bands,
        TileShape(PRESET.chip_px, PRESET.patch_px, kept),
        validation=0.0,
        seed=seed,
        feedback=SilentFeedback(),
    )
    steps = tiles.steps_per_epoch(settings.fit.batch_tiles)
    adapted = adapt(
        tiles,
        foundation,
        replace(settings, epochs=math.ceil(ADAPT_STEPS / steps)),
        fabric=Fabric(accelerator="cpu", devices=1),
        feedback=SilentFeedback(),
    )
    state = adapted.model.own_state()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    save_file(state, partial)
    partial.replace(path)
    return state


@cache
def _tasks(folder: Path) -> dict[str, Task]:
    """The tasks; their files are written anew for each process."""
    foundation = load_foundation(BACKBONES[0])
    config = PRESET.adapted(
        wavelength_nm=(500.0, 600.0),
        vit=foundation.vit.config,
        foundation=foundation.identity,
    )
    place = Path(tempfile.mkdtemp(prefix="hyperkd-generalisation-"))
    return load_tasks(chip_sizes(config, BLOCK_PX), place)


@cache
def _foundation(name: str, folder: Path) -> Foundation:
    return load_foundation(str(folder / OWN_BACKBONE) if name == OWN_BACKBONE else name)


def make_own_backbone(folder: Path) -> None:
    """Pre-train the small masked autoencoder by the product's own command, once."""
    package = folder / OWN_BACKBONE
    if package.is_dir():
        return
    with tempfile.TemporaryDirectory(prefix="hyperkd-generalisation-") as place:
        request = PretrainRequest(
            input=[*pretraining_scenes(Path(place))],
            preset="laptop",
            epochs=200,
            output=str(package),
        )
        found = pretrain_teacher(request, SilentFeedback())
    logger.info("%s: %s", OWN_BACKBONE, found)


def run(
    methods: Sequence[str],
    backbones: Sequence[str],
    tasks: Sequence[str],
    seeds: int,
    jobs: int,
    folder: Path,
) -> dict[str, Any]:
    """Measure what is not measured yet; each cell is kept as soon as it is finished."""
    wanted: dict[str, Work] = {}
    for seed in range(seeds):
        for task in tasks:
            wanted[_key(task, "", CLASSICAL, seed)] = measure_classical, (task, seed, folder)
        for cell in product(tasks, backbones, methods, (seed,)):
            wanted[_key(*cell)] = measure, (*cell, folder)
    return measure_cells(folder / "generalisation.json", wanted, jobs, logger)


def _key(task: str, backbone: str, method: str, seed: int) -> str:
    return f"{task}|{backbone}|{method}|{seed}"


def tables(
    cells: dict[str, Any],
    methods: Sequence[str],
    backbones: Sequence[str],
    tasks: Sequence[str],
    seeds: int,
    score: str = "iou_macro",
) -> str:
    """Markdown: a table for each backbone, and one of the classical classifiers."""
    lines: list[str] = []
    classical = cells[_key(tasks[0], "", CLASSICAL, 0)]
    lines += _table(
        "classical",
        {
            name: [
                [cells[_key(task, "", CLASSICAL, seed)][name][score] for seed in range(seeds)]
                for task in tasks
            ]
            for name in classical
        },
        tasks,
    )
    for backbone in backbones:
        lines += _table(
            backbone,
            {
                name: [
                    [cells[_key(task, backbone, name, seed)][score] for seed in range(seeds)]
                    for task in tasks
                ]
                for name in methods
            },
            tasks,
        )
    return "\n".join(lines)


def _table(
    title: str, rows: Mapping[str, Sequence[Sequence[float]]], tasks: Sequence[str]
) -> list[str]:
    header = [title, *tasks, "mean"]
    lines = [table_row(header), table_row(["---"] * len(header))]
    for name, columns in rows.items():
        mean = np.mean([np.mean(values) for values in columns])
        lines.append(table_row([name, *(spread(values, 3) for values in columns), f"{mean:.3f}"]))
    return [*lines, ""]


def main() -> None:
    """Read the command line, run, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--tasks", nargs="+", default=None, help="names, or their beginnings")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options.folder.mkdir(parents=True, exist_ok=True)
    if OWN_BACKBONE in options.backbones:
        make_own_backbone(options.folder)
    tasks = [
        name
        for name in _tasks(options.folder)
        if options.tasks is None or name.startswith(tuple(options.tasks))
    ]
    chosen = options.methods, options.backbones, tasks, options.seeds
    cells = run(*chosen, options.jobs, options.folder)
    print(tables(cells, *chosen))


if __name__ == "__main__":
    main()

"""Whether the classifier is better when its encoder is a distilled one, on Berlin.

    python -m benchmarks.distilled_classifier

The folds are those of ``benchmarks.accuracy``, dealt alike for every seed. For each fold a student
is distilled from Berlin without the fold's ground, and from two AVIRIS scenes where they are at
hand; then the classifier is trained on the other folds' polygons with this encoder, frozen or not,
and asked about the fold. As everywhere, the encoder's gate opens as far as blocks that were held
out within the training confirm it. Finished cells are kept.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.accuracy import (
    BLOCK_PX,
    FOLDS,
    ROOT,
    SCENE,
    Data,
    deal_fixed,
    load_data,
    pooled_scores,
)
from benchmarks.cells import Work, measure_cells, spread, table_row
from benchmarks.distillation import PRESET, TEACHER
from benchmarks.distillation_data import data_folder, training_scenes
from engine.feedback import SilentFeedback
from engine.models.backbone import backbone_halo_px
from engine.models.mae import PRESETS
from engine.packages.teachers import load_teacher
from engine.raster.scene import open_scene
from engine.training.classifier import train_on_samples
from engine.training.context_fit import EncoderStart
from engine.training.distillation import DistillationSettings, distill, open_tiles
from engine.training.model_fit import TrainingSettings, predict_samples

STARTS = {"fine-tuned": False, "frozen": True}
logger = logging.getLogger("benchmarks.distilled_classifier")


@cache
def _data() -> Data:
    """Berlin's labels, in chips of the student's tile."""
    preset = PRESETS[PRESET]
    encoder = asdict(preset.encoder(1))
    del encoder["in_channels"]
    chips = {"chip_px": preset.tile_size_px, "halo_px": backbone_halo_px(preset.tile_size_px)}
    return load_data(encoder | chips)


@cache
def _fold() -> Tensor:
    return torch.from_numpy(deal_fixed(_data(), 0))


def distil_without(fold: int, epochs: int, path: Path) -> None:
    """Distil an encoder that has not seen the ground of a fold, and keep its weights."""
    torch.set_num_threads(1)
    data = _data()
    _scene, rows, cols = data.samples.position[_fold() == fold].numpy().T
    with rasterio.open(SCENE) as scene:
        hidden = np.zeros(scene.shape, bool)
    for row, col in {(r // BLOCK_PX, c // BLOCK_PX) for r, c in zip(rows, cols, strict=True)}:
        hidden[row * BLOCK_PX :, col * BLOCK_PX :][:BLOCK_PX, :BLOCK_PX] = True
    with tempfile.TemporaryDirectory() as folder:
        sources = training_scenes(hidden, data_folder(), Path(folder))
        tiles = open_tiles(
            [open_scene(source) for source in sources],
            PRESETS[PRESET],
            drop_ranges_nm=(),
            validation=0.0,
            seed=fold,
            feedback=SilentFeedback(),
        )
        backbone = distill(
            tiles,
            load_teacher(TEACHER),
            DistillationSettings(PRESETS[PRESET], epochs=epochs, seed=fold),
            fabric=Fabric(accelerator="cpu", devices=1),
            feedback=SilentFeedback(),
        )
    save_file(backbone.encoder.state_dict(), path)


def measure(name: str, fold: int, seed: int, weights: Path) -> dict[str, Any]:
    """Train one classifier without a fold, and ask it about the fold."""
    torch.set_num_threads(1)
    data = _data()
    test = (_fold() == fold) & data.tested
    state = load_file(weights)
    trained = train_on_samples(
        data.samples.subset(_fold() != fold),
        data.config,
        TrainingSettings(validation=0.0, seed=seed),
        start=EncoderStart(state, frozen=STARTS[name]),
        fabric=Fabric(accelerator="cpu", devices=1),
        feedback=SilentFeedback(),
    )
    found = predict_samples(trained.model, data.samples.subset(test)).argmax(dim=1)
    choice = trained.context.choice
    return {"label": data.label[test].tolist(), "map": found.tolist(), "gate": choice.gate}


def run(seeds: int, epochs: int, jobs: int, folder: Path) -> dict[str, Any]:
    """Do what is not done yet; each cell is kept as soon as it is finished."""
    weights = {fold: folder / f"distilled_{fold}_{epochs}.safetensors" for fold in range(FOLDS)}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        wanted = [fold for fold in range(FOLDS) if not weights[fold].exists()]
        started = [pool.submit(distil_without, fold, epochs, weights[fold]) for fold in wanted]
        for future in started:
            future.result()
    cells: dict[str, Work] = {
        f"{name}/{seed}/{fold}/{epochs}": (measure, (name, fold, seed, weights[fold]))
        for seed in range(seeds)
        for name in STARTS
        for fold in range(FOLDS)
    }
    return measure_cells(folder / "distilled_classifier.json", cells, jobs, logger)


def table(kept: dict[str, Any], seeds: int, epochs: int) -> str:
    """Markdown: balanced accuracy over all folds, mean and spread over seeds, and the gates."""
    lines = ["| encoder | balanced accuracy | gate opened |", "|---|---|---|"]
    for name in STARTS:
        rows = [
            [kept[f"{name}/{seed}/{fold}/{epochs}"] for fold in range(FOLDS)]
            for seed in range(seeds)
        ]
        scores = [pooled_scores(folds).balanced_accuracy for folds in rows]
        opened = sum(cell["gate"] > 0 for folds in rows for cell in folds)
        lines.append(table_row([name, spread(scores, 3), f"{opened} of {seeds * FOLDS}"]))
    return "\n".join(lines)


def main() -> None:
    """Read the command line, run, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=100, help="of the distillation")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options.folder.mkdir(parents=True, exist_ok=True)
    kept = run(options.seeds, options.epochs, options.jobs, options.folder)
    print(table(kept, options.seeds, options.epochs))


if __name__ == "__main__":
    main()

"""How good the regression is where it was not trained, beside classical ones, on Berlin.

    python -m benchmarks.regression                # all labels: five folds x five seeds
    python -m benchmarks.regression --pixels 50    # learns from 50 px of the other folds only

The quantity is the share of vegetation in each 30 m pixel, counted from the 3.6 m land cover
polygons; used are the pixels that these cover for at least 90 %. Blocks of 10 x 10 px are dealt
into five folds anew for every seed. Every regression is trained on four folds and asked about the
fifth; RMSE, MAE and R2 are those of all five together. What each chooses for itself (ours: epochs
and shares; ridge: penalty; partial least squares: components) it chooses on folds of blocks
within the four.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray

from benchmarks.accuracy import BLOCK_PX, FOLDS, POLYGONS, ROOT, SCENE
from engine.feedback import SilentFeedback
from engine.models.regressor import RegressorConfig
from engine.raster.labels import open_labels
from engine.raster.scene import Scene, open_scene
from engine.raster.spectra import match_bands
from engine.raster.tiles import Window
from engine.training.model_fit import TrainingSettings, predict_samples
from engine.training.places import place_folds
from engine.training.regression import train_on_values, value_groups
from engine.training.samples import Samples, SampleSizes, ScenePixels, collect_samples
from engine.training.targets import ValueTargets, value_steps
from engine.training.value_baselines import fit_value_baselines
from engine.training.value_metrics import score_values

COVERS = ("Roof", "Pavement", "Low vegetation", "Tree", "Soil", "Other")
VEGETATION = ("Low vegetation", "Tree")
MIN_KNOWN_SHARE = 0.9
OURS = "HyperKD"
logger = logging.getLogger("benchmarks.regression")


class VegetationShare:
    """The share of vegetation in what the polygons cover of each pixel."""

    def __init__(self, scene: Scene) -> None:
        self._labels = open_labels(POLYGONS, "class_name", scene.crs).on(scene)

    def means(self, window: Window) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """See `engine.raster.values.SceneValues`; pixels known too badly have no value."""
        shares = self._labels.shares(window, COVERS)[: len(COVERS)]
        known = shares.sum(axis=0)
        green = sum(shares[COVERS.index(name)] for name in VEGETATION)
        means = np.divide(green, known, out=np.zeros(known.shape), where=known > 0)
        return means, np.where(known >= MIN_KNOWN_SHARE, known, np.float32(0))


def load_samples(config: RegressorConfig | None = None) -> Samples:
    """Read the packaged sample."""
    scene = open_scene(str(SCENE))
    bands = scene.require_bands()
    config = config or RegressorConfig(len(bands))
    targets = ValueTargets(VegetationShare(scene), value_steps(np.linspace(0, 1, 101)))
    return collect_samples(
        [ScenePixels(scene, match_bands(bands, bands), targets)],
        sizes=SampleSizes(config.chip_px, config.chip_px - 2 * config.halo_px, BLOCK_PX),
        seed=0,
        feedback=SilentFeedback(),
    )


def answers(train: Samples, test: Samples, seed: int) -> dict[str, dict[str, Any]]:
    """Train every regression and apply it: estimates by name, ours with its choices."""
    trained = train_on_values(
        train,
        RegressorConfig(train.reflectance.shape[1]),
        TrainingSettings(validation=0.0, seed=seed),
        start=None,
        fabric=Fabric(accelerator="cpu", devices=1),
        feedback=SilentFeedback(),
    )
    ours = {
        "estimate": predict_samples(trained.model, test)[:, 0].tolist(),
        "heads_share": trained.heads.choice.gate,
        "encoder_gate": trained.context.choice.gate,
    }
    group = value_groups(train.value).numpy()
    fold = place_folds(group, train.place.numpy(), TrainingSettings.folds, seed)
    found = fit_value_baselines(
        train.spectra.numpy(), train.value.numpy(), fold, test.spectra.numpy(), seed,
        SilentFeedback(),
    )  # fmt: skip
    return {OURS: ours} | {name: {"estimate": answer.tolist()} for name, answer in found}


def run(samples: Samples, seeds: int, pixels: int, results: Path) -> dict[str, Any]:
    """Train what is not trained yet; each training is kept as soon as it is finished."""
    kept: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    for seed in range(seeds):
        fold = torch.from_numpy(
            place_folds(value_groups(samples.value).numpy(), samples.place.numpy(), FOLDS, seed)
        )
        for number in range(FOLDS):
            key = f"{pixels}/{seed}/{number}"
            if key in kept:
                continue
            start_s = time.monotonic()
            test = samples.subset(fold == number)
            train = samples.subset(_drawn(fold != number, pixels, seed))
            found = answers(train, test, seed)
            kept[key] = {"measured": test.value.tolist()} | found
            results.write_text(json.dumps(kept))
            rmse = {
                name: round(score_values(test.value, part["estimate"]).rmse, 4)
                for name, part in found.items()
            }
            logger.info("%s: %.0f s, RMSE %s", key, time.monotonic() - start_s, rmse)
    return kept


def _drawn(candidates: torch.Tensor, pixels: int, seed: int) -> torch.Tensor:
    """(M,) bool, so many of the candidates; all of them for 0."""
    if pixels == 0:
        return candidates
    generator = torch.Generator().manual_seed(seed)
    index = torch.nonzero(candidates).flatten()
    drawn = torch.zeros_like(candidates)
    drawn[index[torch.randperm(len(index), generator=generator)[:pixels]]] = True
    return drawn


def summarise(kept: dict[str, Any], pixels: int, seeds: int) -> dict[str, dict[str, Any]]:
    """Scores of each regression: mean and spread over seeds, all folds together."""
    cells = [[kept[f"{pixels}/{seed}/{fold}"] for fold in range(FOLDS)] for seed in range(seeds)]
    summary: dict[str, dict[str, Any]] = {}
    for name in cells[0][0]:
        if name == "measured":
            continue
        scores = [
            score_values(
                np.concatenate([cell["measured"] for cell in folds]),
                np.concatenate([cell[name]["estimate"] for cell in folds]),
            ).summary()
            for folds in cells
        ]
        summary[name] = {
            score: (
                float(np.mean([item[score] for item in scores])),
                float(np.std([item[score] for item in scores])),
            )
            for score in scores[0]
        }
    ours = [cell[OURS] for folds in cells for cell in folds]
    for fact in ("heads_share", "encoder_gate"):
        summary[OURS][fact] = [cell[fact] for cell in ours]
    return summary


def table(summary: dict[str, dict[str, Any]]) -> str:
    """The summary as text, the best first."""
    lines = [f"{'regression':24}" + "".join(f"{name:>20}" for name in ("RMSE", "MAE", "R2"))]
    for name in sorted(summary, key=lambda name: summary[name]["rmse"][0]):
        row = summary[name]
        columns = (
            f"{row[score][0]:.4f} +/- {row[score][1]:.4f}" for score in ("rmse", "mae", "r2")
        )
        lines.append(f"{name:24}" + "".join(f"{column:>20}" for column in columns))
    return "\n".join(lines)


def main() -> None:
    """Read the command line, run, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pixels", type=int, nargs="+", default=[0], help="0: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    samples = load_samples()
    summaries = {}
    for pixels in options.pixels:
        kept = run(samples, options.seeds, pixels, options.folder / "regression_cells.json")
        summaries[pixels] = summarise(kept, pixels, options.seeds)
        print(f"\nBerlin, share of vegetation, {len(samples.chip)} px, learned from "
              f"{pixels or 'all'} of the other folds', {options.seeds} seeds\n"
              f"{table(summaries[pixels])}")  # fmt: skip
    (options.folder / "regression.json").write_text(json.dumps(summaries, indent=2) + "\n")


if __name__ == "__main__":
    main()

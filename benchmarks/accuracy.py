"""How good the classifier is where it was not trained, beside classical ones, on Berlin.

    python -m benchmarks.accuracy                  # five folds x five seeds, twice; about 25 min
    python -m benchmarks.accuracy --seeds 1 --deals fixed

The scene is cut into blocks of 10 x 10 px, and whole blocks are dealt into five folds: "fixed"
deals them as scikit-learn's GroupKFold does, the same for every seed, "redealt" deals them anew
for each. Every classifier is trained on four folds and asked about the fifth; the balanced
accuracy is that of all five together. Tested are the 253 px that one of the four classes with
enough pixels covers for at least 60 %. The classical classifiers learn from those of these pixels
that lie in the other folds; HyperKD from the polygons there. No choice that it makes (epochs, the
encoder's gate) sees the fifth fold. Finished trainings are kept, so that an interrupted run goes
on where it was.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold

from engine.feedback import SilentFeedback
from engine.models.classifier import ClassifierConfig
from engine.models.spectral import SpectralPath
from engine.raster.labels import FieldValue, open_labels
from engine.raster.scene import Scene, open_scene
from engine.raster.spectra import BandTable, match_bands
from engine.training.baselines import fit_baselines
from engine.training.classifier import train_on_samples
from engine.training.metrics import Scores, scores_from_confusion
from engine.training.model_fit import TrainingSettings, predict_samples
from engine.training.places import place_folds
from engine.training.samples import Samples, SampleSizes, ScenePixels, collect_samples
from engine.training.targets import ClassTargets

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "resources" / "sample"
SCENE = SAMPLE / "EnMAP_BerlinUrbanGradient.bsq"
POLYGONS = f"{SAMPLE / 'LandCov_BerlinUrbanGradient.gpkg'}|layername=land_cover"
TEST_LABELS = SAMPLE / "LandCov_30m_majority60.tif"
CLASSES = ("Roof", "Pavement", "Low vegetation", "Tree")
BLOCK_PX = 10
FOLDS = 5
LINEAR_STEPS, LINEAR_LR, LINEAR_DECAY = 1000, 1e-3, 1e-4
logger = logging.getLogger("benchmarks.accuracy")


@dataclass(frozen=True, eq=False)
class Data:
    """Berlin, ready to be split.

    Args:
        samples: from the polygons, mixed pixels too.
        tested: (M,) bool, the 253 px.
        label: (M,) int64 class index of the tested ones.
        config: of the classifier.
    """

    samples: Samples
    tested: torch.Tensor
    label: torch.Tensor
    config: ClassifierConfig


def load_data(encoder: Mapping[str, Any] | None = None) -> Data:
    """Read the packaged sample, for a classifier with its own encoder or with other settings."""
    scene = open_scene(str(SCENE))
    bands = scene.require_bands()
    config = ClassifierConfig(in_channels=len(bands), num_classes=len(CLASSES), **(encoder or {}))
    sizes = SampleSizes(config.chip_px, config.chip_px - 2 * config.halo_px, BLOCK_PX)
    samples = collect_pixels(scene, bands, POLYGONS, "class_name", CLASSES, sizes)
    label = tested_labels(scene, bands, samples, sizes)
    return Data(samples, label >= 0, label, config)


def collect_pixels(
    scene: Scene,
    bands: BandTable,
    source: str,
    field: str | None,
    values: Sequence[FieldValue],
    sizes: SampleSizes,
) -> Samples:
    """Read the labelled pixels of a scene, in the model's bands."""
    labels = open_labels(source, field, scene.crs).on(scene)
    return collect_samples(
        [
            ScenePixels(
                scene, match_bands(bands, scene.require_bands()), ClassTargets(labels, values)
            )
        ],
        sizes=sizes,
        seed=0,
        feedback=SilentFeedback(),
    )


def tested_labels(
    scene: Scene, bands: BandTable, samples: Samples, sizes: SampleSizes
) -> torch.Tensor:
    """(M,) class index of the samples that one class covers by 60 %; -1 of the others."""
    pure = collect_pixels(scene, bands, str(TEST_LABELS), None, (1, 2, 3, 4), sizes)
    classes = np.full((scene.height, scene.width), -1)
    classes[pure.position[:, 1], pure.position[:, 2]] = pure.class_index
    return torch.from_numpy(classes[samples.position[:, 1], samples.position[:, 2]])


def deal_fixed(data: Data, seed: int) -> NDArray[np.int64]:
    """(M,) fold of each sample, the same for every seed; -1 where no block is tested."""
    place = data.samples.place[data.tested].numpy()
    fold = np.zeros(len(place), np.int64)
    for number, (_rest, members) in enumerate(GroupKFold(FOLDS).split(place, groups=place)):
        fold[members] = number
    return _for_all_samples(data, fold)


def deal_anew(data: Data, seed: int) -> NDArray[np.int64]:
    """(M,) fold of each sample, another deal for every seed; -1 where no block is tested."""
    place = data.samples.place[data.tested].numpy()
    return _for_all_samples(data, place_folds(data.label[data.tested].numpy(), place, FOLDS, seed))


DEALS: dict[str, Callable[[Data, int], NDArray[np.int64]]] = {
    "fixed": deal_fixed,
    "redealt": deal_anew,
}


def _for_all_samples(data: Data, fold: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bring folds of tested pixels to all pixels of their blocks."""
    place = data.samples.place.numpy()
    found = np.full(len(place), -1)
    for name, number in zip(place[data.tested], fold, strict=True):
        found[place == name] = number
    return found


def predictions(
    data: Data, train: torch.Tensor, test: torch.Tensor, seed: int
) -> Iterator[tuple[str, NDArray[np.int64], dict[str, Any]]]:
    """Train every classifier on (M,) ``train`` and apply it to ``test``."""
    samples = data.samples
    yield "HyperKD", *_predict_hyperkd(data, samples.subset(train), samples.subset(test), seed)
    pure = train & data.tested
    spectra, label = samples.spectra[pure], data.label[pure]
    test_spectra = samples.spectra[test]
    yield "Linear layer, 1,000 steps", _predict_linear(spectra, label, test_spectra, seed), {}
    found = fit_baselines(
        spectra.numpy(), label.numpy(), test_spectra.numpy(), seed, SilentFeedback()
    )
    for name, predicted in found:
        yield name, predicted, {}


def _predict_hyperkd(
    data: Data, train: Samples, test: Samples, seed: int
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """The product's own training, with nothing held out beside the test fold."""
    trained = train_on_samples(
        train,
        data.config,
        TrainingSettings(validation=0.0, seed=seed),
        start=None,
        fabric=Fabric(accelerator="cpu", devices=1),
        feedback=SilentFeedback(),
    )
    model = trained.model
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        rough = predict_samples(model, test).argmax(dim=1)
    exact = predict_samples(model, test).argmax(dim=1)
    facts = {
        "heads_share": trained.heads.choice.gate,
        "encoder_gate": trained.context.choice.gate,
        "epochs": trained.spectral.best_epoch + 1,
        "bfloat16_changed": int((rough != exact).sum()),
    }
    return exact.numpy(), facts


def _predict_linear(
    spectra: torch.Tensor, label: torch.Tensor, test_spectra: torch.Tensor, seed: int
) -> NDArray[np.int64]:
    """One layer on standardised reflectance and unit-length spectra: the bar to clear."""
    generator = torch.Generator().manual_seed(seed)
    views = SpectralPath(spectra.shape[1], len(CLASSES))
    views.fit_views(spectra, torch.ones(len(spectra)))
    train, test = views.views(spectra), views.views(test_spectra)
    bound = train.shape[1] ** -0.5
    weight = torch.empty(train.shape[1], len(CLASSES)).uniform_(-bound, bound, generator=generator)
    bias = torch.zeros(len(CLASSES), requires_grad=True)
    weight.requires_grad_(True)
    optimiser = torch.optim.AdamW([weight, bias], lr=LINEAR_LR, weight_decay=LINEAR_DECAY)
    balance = 1 / torch.bincount(label, minlength=len(CLASSES)).clamp_min(1)
    for _step in range(LINEAR_STEPS):
        loss = torch.nn.functional.cross_entropy(train @ weight + bias, label, weight=balance)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    predicted: NDArray[np.int64] = (test @ weight + bias).argmax(dim=1).numpy()
    return predicted


def run(data: Data, deals: list[str], seeds: int, results: Path) -> dict[str, Any]:
    """Train what is not trained yet; each training is kept as soon as it is finished."""
    kept: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    for deal in deals:
        for seed in range(seeds):
            fold = torch.from_numpy(DEALS[deal](data, seed))
            for number in range(FOLDS):
                key = f"{deal}/{seed}/{number}"
                if key in kept:
                    continue
                start_s = time.monotonic()
                test = (fold == number) & data.tested
                cell = {
                    name: {"label": data.label[test].tolist(), "map": found.tolist(), **facts}
                    for name, found, facts in predictions(data, fold != number, test, seed)
                }
                kept[key] = cell
                results.write_text(json.dumps(kept))
                logger.info("%s: %.0f s, %s", key, time.monotonic() - start_s, _facts(cell))
    return kept


def _facts(cell: dict[str, Any]) -> str:
    """How a finished training went, for the log."""
    ours = cell["HyperKD"]
    right = {
        name: float(np.mean(np.equal(found["label"], found["map"]))) for name, found in cell.items()
    }
    return (
        f"heads' share {ours['heads_share']}, encoder's gate {ours['encoder_gate']}; correct: "
        + ", ".join(f"{name} {share:.2f}" for name, share in right.items())
    )


def summarise(kept: dict[str, Any], deal: str, seeds: int) -> dict[str, dict[str, Any]]:
    """Scores of each classifier: mean and spread over seeds, all folds together."""
    summary: dict[str, dict[str, Any]] = {}
    cells = [[kept[f"{deal}/{seed}/{fold}"] for fold in range(FOLDS)] for seed in range(seeds)]
    for name in cells[0][0]:
        scores = [pooled_scores([cell[name] for cell in folds]) for folds in cells]
        balanced = [score.balanced_accuracy for score in scores]
        summary[name] = {
            "balanced_accuracy": float(np.mean(balanced)),
            "balanced_accuracy_sd": float(np.std(balanced)),
            "balanced_accuracy_by_seed": [round(value, 4) for value in balanced],
            "overall_accuracy": float(np.mean([score.overall_accuracy for score in scores])),
            "recall": np.mean([score.recall for score in scores], axis=0).round(4).tolist(),
        }
    ours = [cell["HyperKD"] for folds in cells for cell in folds]
    for fact in ("heads_share", "encoder_gate"):
        summary["HyperKD"][fact] = [cell[fact] for cell in ours]
    summary["HyperKD"]["bfloat16_changed_px"] = sum(cell["bfloat16_changed"] for cell in ours)
    return summary


def pooled_scores(cells: Sequence[Mapping[str, Any]]) -> Scores:
    """Scores of all folds together, each with its ``label`` and ``map``."""
    confusion = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    for cell in cells:
        np.add.at(confusion, (cell["label"], cell["map"]), 1)
    return scores_from_confusion(confusion)


def table(summary: dict[str, dict[str, Any]]) -> str:
    """The summary as text, the best first."""
    order = sorted(summary, key=lambda name: -summary[name]["balanced_accuracy"])
    lines = [f"{'classifier':28} {'balanced':>15} {'overall':>8}   recall of " + ", ".join(CLASSES)]
    for name in order:
        row = summary[name]
        recall = "  ".join(f"{value:.2f}" for value in row["recall"])
        lines.append(
            f"{name:28} {row['balanced_accuracy']:.3f} +/- {row['balanced_accuracy_sd']:.3f} "
            f"{row['overall_accuracy']:8.3f}   {recall}"
        )
    return "\n".join(lines)


def main() -> None:
    """Read the command line, run, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--deals", nargs="+", choices=sorted(DEALS), default=["fixed", "redealt"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    data = load_data()
    kept = run(data, options.deals, options.seeds, options.folder / "accuracy_cells.json")
    summaries = {deal: summarise(kept, deal, options.seeds) for deal in options.deals}
    (options.folder / "accuracy.json").write_text(json.dumps(summaries, indent=2) + "\n")
    for deal, summary in summaries.items():
        print(f"\nBerlin, {int(data.tested.sum())} px, five folds by block ({deal}), "
              f"{options.seeds} seeds\n{table(summary)}")  # fmt: skip


if __name__ == "__main__":
    main()

"""What each part of the distillation is worth, on real scenes, with a student for two cores.

    python -m benchmarks.distillation                          # all variants, five seeds
    python -m benchmarks.distillation --seeds 1 --variants none full

For every seed a part of Berlin's ground (blocks of 10 x 10 px with 40 % of the labelled pixels) is
taken out of the scene. Students learn from the rest of it, and from two AVIRIS scenes where the
folder that HYPERKD_DATA names holds them; the tiles that their own validation holds out give the
scores of reconstruction. Then a linear classifier is trained on the features of 5, 10 or 20
labelled pixels a class outside the tested ground (ten draws, the same for all), and asked about the
pixels inside. Beside the students stand the spectra themselves, the teacher and a student without
any training. Finished cells are kept, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray

from benchmarks.accuracy import ROOT
from benchmarks.cells import Work, measure_cells, spread, table_row
from benchmarks.distillation_data import (
    SHOTS,
    Places,
    chips_around,
    data_folder,
    deal_places,
    few_shot,
    training_scenes,
)
from engine.feedback import SilentFeedback
from engine.models.hyperkd import HyperKDEncoder
from engine.models.mae import PRESETS
from engine.packages.teachers import Teacher, load_teacher
from engine.raster.alignment import align_bands
from engine.raster.scene import open_scene
from engine.training.distillation import DistillationSettings, distill, open_tiles
from engine.training.distillation_loss import LossSettings
from engine.training.masking import MaskingSettings
from engine.training.scene_tiles import SceneTiles

TEACHER = "galileo-nano"
PRESET = "laptop"
PREDICT_CHIPS = 64
RECONSTRUCTION = ("psnr_db", "ssim", "spectral_angle_deg")
UNTRAINED = "untrained student"
WITH_SPECTRA = "with spectra"
logger = logging.getLogger("benchmarks.distillation")


def variants(epochs: int) -> dict[str, DistillationSettings]:
    """The rows of the table; "full" is the product's default."""
    full = DistillationSettings(preset=PRESETS[PRESET], epochs=epochs)
    random = MaskingSettings(guided_share=0.0)
    plain = LossSettings(ssim=0.0, features=0.0)
    loss = full.loss
    return {
        "none": replace(full, masking=random, loss=plain),
        "baseline": replace(
            full, masking=random, loss=replace(plain, features=1.0, feature_loss="mse")
        ),
        "full": full,
        "full, random mask": replace(full, masking=random),
        "full, half guided": replace(full, masking=MaskingSettings(guided_share=0.5)),
        "full without SSIM": replace(full, loss=replace(loss, ssim=0.0)),
        "full without KL": replace(full, loss=replace(loss, features=0.0)),
        "full, nearest band": replace(full, alignment="nearest"),
        "full, KL x 10": replace(full, loss=replace(loss, features=10 * loss.features)),
    }


def measure(name: str, seed: int, epochs: int) -> dict[str, Any]:
    """Train one student and ask it; one cell of the table."""
    torch.set_num_threads(1)
    start_s = time.monotonic()
    places = deal_places(seed)
    settings = replace(variants(epochs)[name], seed=seed)
    backbone = distill(
        _tiles(seed),
        _teacher(),
        settings,
        fabric=Fabric(accelerator="cpu", devices=1),
        feedback=SilentFeedback(),
    )
    assert backbone.scores is not None  # a fifth of the tiles is held out
    last = backbone.history.rows[-1]
    features = _features(backbone.encoder, places)
    beside = np.concatenate([_spectra(places), features], axis=1)
    return {
        **few_shot(features, places, seed),
        WITH_SPECTRA: few_shot(beside, places, seed),
        **asdict(backbone.scores),
        "terms": {term: last[term] for term in backbone.history.terms},
        "seconds": time.monotonic() - start_s,
    }


def measure_untrained(seed: int) -> dict[str, dict[str, float]]:
    """Ask the spectra, the teacher and a student as it begins."""
    torch.set_num_threads(1)
    places = deal_places(seed)
    tiles = _tiles(seed)
    settings = DistillationSettings(preset=PRESETS[PRESET])
    torch.manual_seed(seed)
    encoder = HyperKDEncoder(settings.preset.encoder(len(tiles.bands)))
    encoder.band_mean.copy_(tiles.mean)
    encoder.band_std.copy_(tiles.std)
    spectra = _spectra(places)
    found = {
        "spectra": spectra,
        "teacher": _teacher_features(tiles, places),
        UNTRAINED: _features(encoder, places),
    }
    found |= {
        f"{name}, {WITH_SPECTRA}": np.concatenate([spectra, found[name]], axis=1)
        for name in ("teacher", UNTRAINED)
    }
    return {name: few_shot(features, places, seed) for name, features in found.items()}


def _spectra(places: Places) -> NDArray[np.float32]:
    """(M, C) reflectance of the labelled pixels."""
    spectra: NDArray[np.float32] = chips_around(places, 1)[:, :, 0, 0].numpy()
    return spectra


@cache
def _teacher() -> Teacher:
    return load_teacher(TEACHER)


@cache
def _tiles(seed: int) -> SceneTiles:
    """The tiles of one seed; their files are written anew for each process."""
    folder = Path(tempfile.mkdtemp(prefix="hyperkd-ablation-"))
    sources = training_scenes(deal_places(seed).hidden, data_folder(), folder)
    # The sample has no bands that would have to be dropped, and features need all of them.
    return open_tiles(
        [open_scene(source) for source in sources],
        PRESETS[PRESET],
        drop_ranges_nm=(),
        seed=seed,
        feedback=SilentFeedback(),
    )


def _features(encoder: HyperKDEncoder, places: Places) -> NDArray[np.float32]:
    """(M, D) features of the labelled pixels, each in the middle of a tile that is wholly seen."""
    preset = PRESETS[PRESET]
    side = preset.tile_size_px // preset.patch_px
    middle = 1 + (side // 2) * (side + 1)  # after CLS
    chips = encoder.normalise(chips_around(places, preset.tile_size_px))
    with torch.inference_mode():
        parts = [encoder(part)[:, middle] for part in torch.split(chips, PREDICT_CHIPS)]
    features: NDArray[np.float32] = torch.cat(parts).numpy()
    return features


def _teacher_features(tiles: SceneTiles, places: Places) -> NDArray[np.float32]:
    """(M, D) features of the same pixels as the teacher sees them."""
    teacher, preset = _teacher(), PRESETS[PRESET]
    side = preset.tile_size_px // preset.patch_px
    weights = torch.from_numpy(align_bands(tiles.bands, teacher.bands).weights)
    chips = torch.einsum("tc,bchw->bthw", weights, chips_around(places, preset.tile_size_px))
    parts = [
        teacher.network.features(
            part,
            rows=side,
            cols=side,
            ids_keep=None,
            pixel_size_m=torch.full((len(part),), 30.0),
            taps=(teacher.network.depth,),
        )[0][:, (side // 2) * (side + 1)]
        for part in torch.split(chips, PREDICT_CHIPS)
    ]
    features: NDArray[np.float32] = torch.cat(parts).numpy()
    return features


def run(names: Sequence[str], seeds: int, epochs: int, jobs: int, path: Path) -> dict[str, Any]:
    """Measure what is not measured yet; each cell is kept as soon as it is finished."""
    wanted: dict[str, Work] = {}
    for seed in range(seeds):
        wanted[_key("untrained", seed, epochs)] = measure_untrained, (seed,)
        wanted |= {_key(name, seed, epochs): (measure, (name, seed, epochs)) for name in names}
    kept = measure_cells(path, wanted, jobs, logger)
    return {name: [kept[_key(name, seed, epochs)] for seed in range(seeds)]
            for name in ("untrained", *names)}  # fmt: skip


def _key(name: str, seed: int, epochs: int) -> str:
    return f"{name}/{seed}" if name == "untrained" else f"{name}/{seed}/{epochs}"


def tables(cells: dict[str, Any]) -> str:
    """Markdown: accuracy, its difference to no distillation seed by seed, and reconstruction."""
    untrained = cells["untrained"]
    accuracy = {name: [cell[name] for cell in untrained] for name in untrained[0]}
    accuracy |= {name: found for name, found in cells.items() if name != "untrained"}
    accuracy |= {
        f"{name}, {WITH_SPECTRA}": [cell[WITH_SPECTRA] for cell in found]
        for name, found in cells.items()
        if WITH_SPECTRA in found[0]
    }
    shots = [str(number) for number in SHOTS]
    lines = [table_row(["", *(f"{number} px a class" for number in shots)]), table_row(["---"] * 4)]
    lines += [
        table_row([name, *(spread([cell[number] for cell in found], 3) for number in shots)])
        for name, found in accuracy.items()
    ]
    if "none" in cells:
        lines += ["", table_row(["less no distillation", *(f"{n} px a class" for n in shots)]),
                  table_row(["---"] * 4)]  # fmt: skip
        lines += [
            table_row([name, *(_difference(found, cells["none"], number) for number in shots)])
            for name, found in accuracy.items()
            if name != "none"
        ]
    header = ["", "PSNR dB", "SSIM", "angle °", "PSNR dB, whole", "SSIM, whole", "angle °, whole"]
    scores = [*RECONSTRUCTION, *(f"{name}_whole" for name in RECONSTRUCTION)]
    lines += ["", table_row(header), table_row(["---"] * len(header))]
    lines += [
        table_row([name, *(spread([cell[score] for cell in found], _digits(score))
                      for score in scores)])
        for name, found in cells.items()
        if name != "untrained"
    ]  # fmt: skip
    return "\n".join(lines)


def _digits(score: str) -> int:
    return 3 if score.startswith("ssim") else 2


def _difference(found: list[dict[str, float]], none: list[dict[str, float]], number: str) -> str:
    """Mean and spread of the differences of equal seeds, and in how many it is above 0."""
    gains = [ours[number] - theirs[number] for ours, theirs in zip(found, none, strict=True)]
    above = sum(gain > 0 for gain in gains)
    return f"{spread(gains, 3, signed=True)} ({above} of {len(gains)})"


def main() -> None:
    """Read the command line, run, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=list(variants(1)), default=None)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=2, help="students at a time")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options.folder.mkdir(parents=True, exist_ok=True)
    names = options.variants or list(variants(1))
    cells = run(
        names, options.seeds, options.epochs, options.jobs, options.folder / "distillation.json"
    )
    print(tables(cells))


if __name__ == "__main__":
    main()

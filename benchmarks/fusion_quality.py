"""How near fused images come to a known truth: CSAKD beside classical methods, and what it needs.

    python -m benchmarks.fusion_quality                    # all pairs, five seeds
    python -m benchmarks.fusion_quality --ablations        # three pairs, three seeds
    python -m benchmarks.fusion_quality --ablations --start bicubic
    python -m benchmarks.fusion_quality --cases "Jasper Ridge, 4" --seeds 1
    python -m benchmarks.fusion_quality --preset paper --device cuda
    python -m benchmarks.fusion_quality --document         # and write docs/fusion_results.md

Every method gets the same pair, and its sensors' point spread and response as the product
estimates them from that pair. Each seed holds out another quarter of the ground in blocks:
teacher, student and their start learn from targets on the rest, and all methods are scored on the
held-out blocks. Classical methods need no targets. Finished cells are kept, so that an
interrupted run goes on where it was; `--again` measures anew.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from benchmarks.accuracy import ROOT
from benchmarks.cells import Work, measure_cells, spread, table_row
from benchmarks.distillation_data import data_folder
from benchmarks.fusion_data import CASES, Case, hold_out_quarter, load_case
from benchmarks.memory import peak_bytes
from engine.feedback import SilentFeedback
from engine.models.fusion.classical import CLASSICAL
from engine.models.fusion.fuser import STARTS, Fuser, Start
from engine.models.fusion.method import FusionMethod, ImagePair
from engine.models.fusion.presets import DEFAULT, PRESETS
from engine.training.fusion import train_fuser
from engine.training.fusion_data import Triplet
from engine.training.fusion_loss import FusionLossSettings
from engine.training.fusion_metrics import score_fusion
from engine.training.fusion_settings import LOSSES, FusionSettings
from engine.training.pair_physics import PairPhysics, estimate_physics

SCORES = {"psnr_db": ("PSNR, dB", 2), "sam_deg": ("Spectral angle, °", 3), "ergas": ("ERGAS", 3)}
COSTS = ("parameters", "numbers", "fit_s", "fuse_s_mpx", "peak_mb", "gate")
LEARNED = ("start", "teacher", "student")
METHODS = (*CLASSICAL, *LEARNED)
ABLATION_CASES = (
    "Jasper Ridge, 4 bands",
    "HYDICE urban, 4 bands",
    "Berlin, EnMAP and HyMap",
)
ABLATION_SEEDS = 3
SEEDS = 5
DOCUMENT = ROOT / "docs" / "fusion_results.md"
REPEATED = 3  # times in each direction, for time and memory
AS_IT_IS = "default"
# What differs from the default; those that are the default are measured once, as the default.
VARIANTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        AS_IT_IS: {},
        "attention as published": {"fusion": "released"},
        "attention repaired": {"fusion": "repaired"},
        "no attention": {"fusion": "none"},
        "no distillation": {"distillation": "none"},
        "response distillation": {"distillation": "response"},
        "feature distillation": {"distillation": "feature"},
        "both distillations": {"distillation": "both"},
        "no spectral angle": {"losses": replace(LOSSES, spectral_angle=0.0)},
        "no band energy": {"losses": replace(LOSSES, band_energy=0.0)},
        "neither": {"losses": replace(LOSSES, spectral_angle=0.0, band_energy=0.0)},
        "losses weighed as published": {"losses": FusionLossSettings()},
        "start: interpolation": {"start": "bicubic"},
        "start: none, as published": {"start": "none"},
    }
)
logger = logging.getLogger("benchmarks.fusion_quality")


@dataclass(frozen=True)
class Base:
    """What all trainings of a table share.

    Args:
        preset: name of the sizes.
        epochs: the preset's when None.
        start: what the networks add to; the preset's when None.
        device: as lightning-fabric names it.
    """

    preset: str = DEFAULT
    epochs: int | None = None
    start: Start | None = None
    device: str = "cpu"

    def settings(self, variant: str, seed: int) -> FusionSettings:
        """Of one training; what is held out, the benchmark holds out itself."""
        given = {} if self.start is None else {"start": self.start}
        settings = FusionSettings.of(
            self.preset,
            epochs=self.epochs,
            seed=seed,
            validation=0.0,
            **{**given, **VARIANTS[variant]},
        )
        return replace(settings, fusion=settings.fusion or PRESETS[self.preset].fusion)

    def key(self, name: str, variant: str, seed: int) -> str:
        """Of a cell; a variant that is what the default does anyway is the default's."""
        if self.settings(variant, seed) == self.settings(AS_IT_IS, seed):
            variant = AS_IT_IS
        start = f"on {self.start}" if self.start else ""
        epochs = f"{self.epochs} epochs" if self.epochs else ""
        run = " ".join(filter(None, (self.preset, start, epochs, variant)))
        return f"{name}|{run}|{seed}"


def measure_classical(name: str, seed: int) -> dict[str, Any]:
    """Fit and ask the classical methods; one cell."""
    torch.set_num_threads(1)
    case, physics = _load(name, seed)
    held = hold_out_quarter(case, seed)
    found = {}
    for method, fit in CLASSICAL.items():
        start_s = time.monotonic()
        with torch.no_grad():
            fitted = fit([case.pair], physics)
        found[method] = _measured(fitted, case, held, time.monotonic() - start_s)
    return found


def measure_trained(name: str, variant: str, seed: int, base: Base) -> dict[str, Any]:
    """Train teacher and student without the held-out ground, and ask about it; one cell."""
    torch.set_num_threads(1)
    case, physics = _load(name, seed)
    held = hold_out_quarter(case, seed)
    triplet = Triplet(case.pair, case.target, case.known & ~held)
    start_s = time.monotonic()
    trained = train_fuser(
        [triplet],
        base.settings(variant, seed),
        physics=physics,
        fabric=Fabric(accelerator=base.device, devices=1),
        feedback=SilentFeedback(),
    )
    seconds = time.monotonic() - start_s
    # All three come of one training; its time stands at the student.
    methods = {
        "start": (trained.student.start, 0.0),
        "teacher": (trained.teacher, 0.0),
        "student": (trained.student, seconds),
    }
    return {
        method: _measured(model, case, held, took_s)
        for method, (model, took_s) in methods.items()
        if model is not None
    }


def _load(name: str, seed: int) -> tuple[Case, PairPhysics]:
    """A case, and how its sensors see as far as the pair tells.

    Raises:
        FileNotFoundError: the folder that HYPERKD_DATA names is not there.
    """
    data = data_folder()
    if data is None:
        raise FileNotFoundError("The scenes are in the folder that HYPERKD_DATA names.")
    case = load_case(name, data, seed)
    physics = estimate_physics([case.pair], hsi_bands=case.hsi_bands, msi_bands=case.msi_bands)
    return case, physics


@torch.no_grad()
def _measured(method: FusionMethod, case: Case, held: Tensor, fit_s: float) -> dict[str, float]:
    """Scores on the held-out ground, and what the method needs."""
    method = method.eval().cpu()
    image = method(case.pair)
    scores = score_fusion(
        image[0], case.target[0], (held & case.known)[0], case.ratio, block_px=None
    )
    large = _repeated(case.pair)
    start_s = time.monotonic()
    grown_mb = _peak_growth_mb(lambda: method(large))
    megapixels = large.msi_valid.numel() / 1e6
    return {
        **{score: getattr(scores, score) for score in SCORES},
        "gate": float(method.gate.mean()) if isinstance(method, Fuser) else 1.0,
        "parameters": sum(parameter.numel() for parameter in method.parameters()),
        "numbers": sum(tensor.numel() for tensor in method.state_dict().values()),
        "fit_s": fit_s,
        "fuse_s_mpx": (time.monotonic() - start_s) / megapixels,
        "peak_mb": grown_mb,
    }


def _repeated(pair: ImagePair) -> ImagePair:
    """The pair many times side by side: large enough for its time and memory to be told."""
    return ImagePair(
        *(image.repeat(1, 1, REPEATED, REPEATED) for image in (pair.hsi, pair.msi)),
        *(valid.repeat(1, REPEATED, REPEATED) for valid in (pair.hsi_valid, pair.msi_valid)),
    )


def _peak_growth_mb(work: Callable[[], Any]) -> float:
    """Megabytes by which the process grows for it; NaN where the system does not tell."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed is given back, or it would be used first
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    except (OSError, AttributeError):
        work()
        return float("nan")
    before = peak_bytes()
    work()
    return (peak_bytes() - before) / 1e6


def _classical_key(name: str, seed: int) -> str:
    return f"{name}|classical|{seed}"


def run(
    cases: Sequence[str],
    variants: Sequence[str],
    seeds: int,
    base: Base,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Measure what is not measured yet, seed by seed."""
    wanted: dict[str, Work] = {}
    for seed in range(seeds):
        for name in cases:
            wanted[_classical_key(name, seed)] = measure_classical, (name, seed)
            for variant in variants:
                key = base.key(name, variant, seed)
                wanted[key] = measure_trained, (name, variant, seed, base)
    path = options.folder / "fusion_quality.json"
    if options.again and path.exists():
        kept = {k: v for k, v in json.loads(path.read_text()).items() if k not in wanted}
        path.write_text(json.dumps(kept, indent=1))
    return measure_cells(path, wanted, options.jobs, logger)


class Results:
    """Finished cells, asked by method.

    Args:
        cells: by key.
        seeds: number of them.
        base: of the trained methods.
    """

    def __init__(self, cells: Mapping[str, Any], seeds: int, base: Base) -> None:
        self._cells, self._seeds, self._base = cells, seeds, base

    def values(self, name: str, method: str, what: str, variant: str = AS_IT_IS) -> list[float]:
        """One number a seed; none where the variant has no such method."""
        keys = [
            _classical_key(name, seed)
            if method in CLASSICAL
            else self._base.key(name, variant, seed)
            for seed in range(self._seeds)
        ]
        return [self._cells[key][method][what] for key in keys if method in self._cells[key]]

    def best_classical(self, name: str, what: str) -> list[float]:
        """Of each seed the best of the classical methods."""
        best = max if what == "psnr_db" else min
        columns = [self.values(name, method, what) for method in CLASSICAL]
        return [best(row) for row in zip(*columns, strict=True)]


def score_tables(results: Results, cases: Sequence[str]) -> list[str]:
    """A table a score: pairs down, methods across; the best mean of a row is bold."""
    lines = []
    for score, (title, digits) in SCORES.items():
        lines += [f"**{title}**", "", *_head(["pair", *METHODS])]
        for name in cases:
            columns = [results.values(name, method, score) for method in METHODS]
            means = [np.mean(values) if values else np.nan for values in columns]
            best = np.nanargmax(means) if score == "psnr_db" else np.nanargmin(means)
            row = [spread(values, digits) if values else "" for values in columns]
            row[int(best)] = f"**{row[int(best)]}**"
            lines.append(table_row([name, *row]))
        lines.append("")
    return lines


def aim_table(results: Results, cases: Sequence[str]) -> list[str]:
    """What the student has over the best classical method of a seed, and lacks of its teacher."""
    columns = ["pair", "PSNR over the best classical, dB", "angle below the best classical, °"]
    columns.append("PSNR below the teacher, dB")
    lines = _head(columns)
    reached = np.zeros(3, int)
    for name in cases:
        psnr = np.array(results.values(name, "student", "psnr_db"))
        gained = psnr - results.best_classical(name, "psnr_db")
        angle = np.array(results.best_classical(name, "sam_deg"))
        angle = angle - results.values(name, "student", "sam_deg")
        behind = np.array(results.values(name, "teacher", "psnr_db")) - psnr
        reached += [gained.mean() > 0, angle.mean() > 0, behind.mean() <= 0.5]
        row = [spread(gained, 2, signed=True), spread(angle, 3, signed=True)]
        lines.append(table_row([name, *row, spread(behind, 2, signed=True)]))
    lines.append(table_row(["reached", *(f"{count} of {len(cases)}" for count in reached)]))
    return [*lines, ""]


def cost_table(results: Results, cases: Sequence[str]) -> list[str]:
    """What each method needs, as means over pairs and seeds, and how much of it was added."""
    columns = ["method", "trained values", "values kept", "fit, s", "fuse, s a Mpx", "memory, MB"]
    lines = _head([*columns, "gate"])
    for method in METHODS:
        values = {what: _over_all(results, cases, method, what) for what in COSTS}
        if not values["numbers"]:
            continue
        mean = {what: np.mean(found) for what, found in values.items()}
        sizes = [f"{mean[what]:,.0f}" for what in ("parameters", "numbers")]
        rest = [f"{mean['fit_s']:.2f}", f"{mean['fuse_s_mpx']:.2f}", f"{mean['peak_mb']:.0f}"]
        gate = f"{mean['gate']:.2f}" if method in ("teacher", "student") else ""
        lines.append(table_row([method, *sizes, *rest, gate]))
    return [*lines, ""]


def _over_all(results: Results, cases: Sequence[str], method: str, what: str) -> list[float]:
    return [value for name in cases for value in results.values(name, method, what)]


def ablation_table(results: Results, cases: Sequence[str], variants: Sequence[str]) -> list[str]:
    """Student and teacher of each variant: PSNR and angle."""
    lines = _head(["variant", "network", *cases])
    for variant in variants:
        for method in ("teacher", "student"):
            row = []
            for name in cases:
                psnr = results.values(name, method, "psnr_db", variant)
                angle = results.values(name, method, "sam_deg", variant)
                row.append(f"{spread(psnr, 2)} dB, {spread(angle, 3)}°")
            lines.append(table_row([variant, method, *row]))
    return [*lines, ""]


def _head(columns: Sequence[str]) -> list[str]:
    return [table_row(columns), table_row(["---"] * len(columns))]


def tables(results: Results, cases: Sequence[str], variants: Sequence[str]) -> str:
    """All tables in Markdown."""
    if len(variants) > 1:
        return "\n".join(ablation_table(results, cases, variants)).strip()
    parts = (score_tables, aim_table, cost_table)
    return "\n".join(line for part in parts for line in part(results, cases)).strip()


def put_into_document(document: Path, block: str, text: str) -> None:
    """Write tables between the comments that name their block.

    Raises:
        ValueError: the document has no such block.
    """
    begin, end = f"<!-- {block} -->", f"<!-- end of {block} -->"
    before, found_begin, rest = document.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"{document} has no place for {block}.")
    document.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def main() -> None:
    """Read the command line, run, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=None, help="names, or their beginnings")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=[AS_IT_IS])
    parser.add_argument("--ablations", action="store_true", help="all variants, on three pairs")
    parser.add_argument("--seeds", type=int, default=None, help="5; 3 of the ablations")
    parser.add_argument("--preset", choices=list(PRESETS), default=DEFAULT)
    parser.add_argument("--epochs", type=int, default=None, help="the preset's when not given")
    parser.add_argument("--start", choices=STARTS, default=None, help="what networks add to")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, …")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--again", action="store_true", help="measure what was measured before")
    parser.add_argument(
        "--document", action="store_true", help=f"put the tables into {DOCUMENT.name}"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options.folder.mkdir(parents=True, exist_ok=True)
    known = ABLATION_CASES if options.ablations else tuple(CASES)
    cases = [
        name for name in known if options.cases is None or name.startswith(tuple(options.cases))
    ]
    variants = list(VARIANTS) if options.ablations else options.variants
    seeds = options.seeds or (ABLATION_SEEDS if options.ablations else SEEDS)
    base = Base(options.preset, options.epochs, options.start, options.device)
    cells = run(cases, variants, seeds, base, options)
    text = tables(Results(cells, seeds, base), cases, variants)
    print(text)
    if options.document:
        subject = "ablations" if options.ablations else "scores"
        on_start = f" on {options.start}" if options.start else ""
        put_into_document(DOCUMENT, f"{subject} of {options.preset}{on_start}", text)


if __name__ == "__main__":
    main()

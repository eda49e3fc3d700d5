"""What a trained fusion says about itself: its package and its report."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from engine.jobs.request import DeviceRequest
from engine.jobs.shared.fusion_pairs import TrainingPairs
from engine.jobs.shared.pairs import PairSettings, ReadyPair
from engine.jobs.shared.training import as_list, package_name, shareable, training_area
from engine.models.fusion.dts import multiply_adds
from engine.models.fusion.presets import PRESETS
from engine.packages.metadata import ModelInfo, Normalisation
from engine.raster.pair_dates import acquisition_time
from engine.raster.tiles import Tiling
from engine.report import render_report
from engine.training.fusion import TrainedFusion
from engine.training.fusion_report import STUDENT, TEACHER, fusion_values, gate_text
from engine.version import engine_version

ARCHITECTURE = "csakd-fuser"
SMALLEST_SPREAD = 1e-6  # of a band that is the same everywhere
TILE_PX = 64  # coarse pixels; a tile's halo costs less the larger it is, its memory more
COUNTED_PX = 65_536  # fine pixels that multiply-adds are counted for: of a square of 256
# Of the request, what a table of settings need not repeat.
_SAID_ELSEWHERE = (
    "hyperspectral", "multispectral", "output", "report", "title", "description", "licence",
    "attribution", "resume", "require_gpu",
)  # fmt: skip


class FusionTrainingRequest(PairSettings, DeviceRequest):
    """The parameters, beside those of every pair and every job that runs a model.

    ``hyperspectral`` and ``multispectral`` list as many images each; the first of both are a pair,
    and so on. An image is a source that GDAL opens, or a list of single-band files. ``epochs``,
    ``start``, ``distillation`` and ``fusion`` are the preset's when left out. ``validation`` is the
    share of the ground that is held out for the scores. ``resume`` goes on from the checkpoint
    beside ``output``. ``title`` to ``attribution`` go into the package as they are.
    """

    hyperspectral: Annotated[list[str | list[str]], BeforeValidator(as_list)] = Field(min_length=1)
    multispectral: Annotated[list[str | list[str]], BeforeValidator(as_list)] = Field(min_length=1)
    preset: Literal["paper", "subspace", "laptop"] = "laptop"
    epochs: int | None = Field(default=None, ge=1, le=100_000)
    start: bool | None = None
    distillation: Literal["none", "response", "feature", "both"] | None = None
    fusion: Literal["repaired", "released", "none"] | None = None
    validation: float = Field(default=0.25, ge=0.05, le=0.5)
    seed: int = Field(default=0, ge=0, lt=2**31)
    resume: bool = False
    output: str
    report: str | None = None
    title: str | None = None
    description: str | None = None
    licence: str = "other"
    attribution: str = ""


def describe(
    request: FusionTrainingRequest, pairs: TrainingPairs, trained: TrainedFusion
) -> ModelInfo:
    """Everything that the package says about the model.

    Args:
        request: what was asked for.
        pairs: that it was trained on.
        trained: it, and how good it is.
    """
    student, first = trained.student, pairs.names[0]
    more = f" and {len(pairs.pairs) - 1} more" if len(pairs.pairs) > 1 else ""
    mean, spread = _spectrum(pairs)
    return ModelInfo(
        name=package_name(request.output),
        title=request.title or f"Fusion of {first[0]} and {first[1]}{more}",
        description=request.description
        or f"{len(pairs.hsi_bands)} hyperspectral bands at {pairs.ratio} times their resolution, "
        f"with the help of {len(pairs.msi_bands)} multispectral bands. Trained on {first[0]} with "
        f"{first[1]}{more}.",
        version="1.0.0",
        architecture=ARCHITECTURE,
        config=asdict(student.config),
        bands=pairs.hsi_bands,
        classes=(),
        normalisation=Normalisation.of(mean, spread),
        tiling=Tiling(TILE_PX + 2 * student.reach_px, student.reach_px),
        licence=request.licence,
        task="super-resolution",
        fine_bands=pairs.msi_bands,
        attribution=request.attribution,
        training=_training_facts(request, pairs, trained),
        scores=trained.scores[STUDENT].summary() if STUDENT in trained.scores else {},
        training_area=training_area([ready.pair.hsi for ready in pairs.pairs]),
        training_period=_period(pairs),
        engine_version=engine_version(),
    )


def _period(pairs: TrainingPairs) -> tuple[datetime, datetime] | None:
    """When the first and the last hyperspectral image were taken, where all of them say so."""
    found = [acquisition_time(ready.pair.hsi) for ready in pairs.pairs]
    known = [time for time in found if time is not None]
    return (min(known), max(known)) if len(known) == len(found) else None


def _spectrum(pairs: TrainingPairs) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(L,) mean and spread of the valid hyperspectral pixels; to be read, not to compute with."""
    pixels = np.concatenate(
        [part.hsi.movedim(1, -1)[part.hsi_valid].double().numpy() for part in pairs.sample]
    )
    return pixels.mean(axis=0), np.maximum(pixels.std(axis=0), SMALLEST_SPREAD)


def _training_facts(
    request: FusionTrainingRequest, pairs: TrainingPairs, trained: TrainedFusion
) -> dict[str, Any]:
    """How the model was trained, and the request that trains it again."""
    physics = pairs.physics
    return {
        "request": shareable(request),
        "pairs": [
            {"hyperspectral": hsi, "multispectral": msi, "shift_px": list(ready.pair.shift_px)}
            for (hsi, msi), ready in zip(pairs.names, pairs.pairs, strict=True)
        ],
        "point_spread_fine_px": round(physics.spread.fwhm_px, 3),
        "response_error": dict(
            zip(pairs.msi_bands.names, physics.response_error.round(4).tolist(), strict=True)
        ),
        "gates": {name: round(choice.gate, 4) for name, choice in trained.gates.items()},
        "held_out": trained.held_out,
        "steps": trained.steps,
        "seconds": round(trained.seconds, 1),
        "parameters": trained.parameters,
        "scores_of_others": {
            name: {key: round(value, 5) for key, value in scores.summary().items()}
            for name, scores in trained.scores.items()
            if name != STUDENT
        },
    }


def write_report(
    request: FusionTrainingRequest,
    pairs: TrainingPairs,
    trained: TrainedFusion,
    info: ModelInfo,
    output: str,
) -> str:
    """Write the report.

    Args:
        request: with the report's path.
        pairs: that the model was trained on.
        trained: it, its teacher, and their scores.
        info: of the package.
        output: path of the package.

    Returns:
        the report's path.

    Raises:
        OutputError: it cannot be written.
    """
    shown = fusion_values(
        trained,
        [f"{hsi} and {msi}" for hsi, msi in pairs.names],
        pairs.samples,
        pairs.physics,
        pairs.nominal,
        pairs.hsi_bands,
        pairs.msi_bands,
    )
    path = render_report(
        "train_fusion.html",
        str(request.report),
        info=info,
        package=output,
        fine_bands=pairs.msi_bands,
        warnings=[*pairs.warnings, *pairs.physics.notes],
        pairs=[_pair_row(ready) for ready in pairs.pairs],
        held_out_text=trained.held_out,
        gate_text=gate_text(trained),
        sizes=_size_rows(request, trained),
        settings=_setting_rows(info),
        **shown,
    )
    return str(path)


def _pair_row(ready: ReadyPair) -> dict[str, Any]:
    """One row of the table of pairs."""
    pair = ready.pair
    return {
        "hsi": pair.hsi.name,
        "msi": pair.msi.name,
        "size": f"{pair.window.width} x {pair.window.height}",
        "shift_x": pair.shift_px[0],
        "shift_y": pair.shift_px[1],
        "shift_text": ready.shift_text,
    }


def _size_rows(request: FusionTrainingRequest, trained: TrainedFusion) -> list[tuple[str, str]]:
    """How large both networks are, and how long they took."""
    rows = [("preset", f"{request.preset}: {PRESETS[request.preset].title}")]
    for name, model in ((STUDENT, trained.student), (TEACHER, trained.teacher)):
        cost = multiply_adds(model.config.network, COUNTED_PX) / COUNTED_PX
        rows.append(
            (name, f"{trained.parameters[name]:,} parameters, {cost:,.0f} multiply-adds a fine px")
        )
    return [*rows, ("training", f"{trained.steps:,} steps, {trained.seconds:.0f} s")]


def _setting_rows(info: ModelInfo) -> list[tuple[str, Any]]:
    """What the request asked for, as far as the report does not say it elsewhere."""
    used = info.training["request"]
    return [
        (name.replace("_", " "), value)
        for name, value in used.items()
        if name not in _SAID_ELSEWHERE
    ]

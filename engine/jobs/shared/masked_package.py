"""What a model that was trained on scenes alone says about itself: its package and its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import Tensor

from engine.jobs.shared.masked_training import MaskedTrainingRequest, TrainingRun
from engine.jobs.shared.training import package_name, shareable, training_area
from engine.packages.metadata import ModelInfo, Normalisation
from engine.raster.tiles import Tiling
from engine.report import render_report
from engine.training.held_out import HeldOutCheck
from engine.training.masked_fit import FitHistory
from engine.training.reconstruction_figures import report_figures, scene_rows
from engine.training.scene_tiles import SceneTiles
from engine.version import engine_version

# Of the request, what a table of settings need not repeat.
_SAID_ELSEWHERE = (
    "input", "targets", "output", "report", "title", "description", "licence", "attribution",
)  # fmt: skip


class Trained(Protocol):
    """What a training gives, of whatever kind."""

    @property
    def history(self) -> FitHistory:
        """What was logged."""

    @property
    def held_out(self) -> HeldOutCheck:
        """Scores and pictures."""


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model that is ready to be saved.

    Args:
        architecture: key of `engine.packages.build.ARCHITECTURES`.
        config: a dataclass of its settings.
        band_mean: (C,) of its normalisation.
        band_std: (C,) of its normalisation.
        title: for people, unless the request has one.
        description: likewise.
    """

    architecture: str
    config: Any
    band_mean: Tensor
    band_std: Tensor
    title: str
    description: str


def scene_names(tiles: SceneTiles) -> str:
    """The scenes in a title: the first, and how many more."""
    more = len(tiles.scenes) - 1
    return tiles.scenes[0].name + (f" and {more} more" if more else "")


def describe(
    request: MaskedTrainingRequest,
    tiles: SceneTiles,
    model: TrainedModel,
    trained: Trained,
    run: TrainingRun,
    facts: Mapping[str, Any] | None = None,
) -> ModelInfo:
    """Everything that the package says about the model.

    Args:
        request: what was asked for.
        tiles: that it was trained on.
        model: it.
        trained: its history and scores.
        run: how long it took.
        facts: more about its training, plain values.
    """
    last = trained.history.rows[-1]
    scores = trained.held_out.scores
    tile_px = tiles.shape.tile_px
    return ModelInfo(
        name=package_name(request.output),
        title=request.title or model.title,
        description=request.description or model.description,
        version="1.0.0",
        architecture=model.architecture,
        config=asdict(model.config),
        bands=tiles.bands,
        classes=(),
        normalisation=Normalisation.of(model.band_mean.cpu().numpy(), model.band_std.cpu().numpy()),
        tiling=Tiling(tile_px, tile_px // 4, blend=True),
        licence=request.licence,
        task="generative",
        attribution=request.attribution,
        training={
            "request": shareable(request),
            **(facts or {}),
            "training_tiles": len(tiles.plan.training),
            "held_out_tiles": len(tiles.plan.held_out),
            "epochs": request.epochs,
            "seconds": round(run.seconds, 1),
            "final_losses": {name: last[name] for name in trained.history.terms},
        },
        scores={} if scores is None else scores.summary(),
        training_area=training_area(tiles.scenes),
        engine_version=engine_version(),
    )


def write_report(
    template_name: str,
    request: MaskedTrainingRequest,
    info: ModelInfo,
    tiles: SceneTiles,
    trained: Trained,
    run: TrainingRun,
    **values: Any,
) -> dict[str, str]:
    """Write the report, if one is wanted.

    Args:
        template_name: of the report.
        request: what was asked for.
        info: of the package.
        tiles: that the model was trained on.
        trained: its history, scores and pictures.
        run: how long it took.
        values: what the template names beside these.

    Returns:
        ``report`` with its path; nothing without one.
    """
    if request.report is None:
        return {}
    used = info.training["request"]
    settings = [
        (name.replace("_", " "), value)
        for name, value in used.items()
        if name not in _SAID_ELSEWHERE
    ]
    speed = f"{run.seconds:.0f} s, {run.tiles_per_second:.1f} tiles a second"
    report = render_report(
        template_name,
        request.report,
        info=info,
        package=request.output,
        scores=trained.held_out.scores,
        scene_rows=scene_rows(tiles),
        training_tiles=len(tiles.plan.training),
        held_out_tiles=len(tiles.plan.held_out),
        settings=[*settings, ("training", speed)],
        **report_figures(trained.held_out.pictures, tiles.bands, trained.history),
        **values,
    )
    return {"report": str(report)}

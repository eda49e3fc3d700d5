"""What the report on a fusion shows: what was made, how far to trust it, how the images fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.device import DeviceChoice
from engine.feedback import Feedback
from engine.jobs.shared.fused_cube import FusedOutput
from engine.jobs.shared.fusion_methods import TITLES, ChosenMethod, RoutedMethod, fit_classical
from engine.jobs.shared.pairs import ReadyPair
from engine.models.fusion.back_projection import BackProjection
from engine.models.fusion.classical import CLASSICAL
from engine.models.fusion.method import ImagePair
from engine.raster.spectra import BandTable
from engine.raster.tiles import Window
from engine.raster.writer import Grid
from engine.report import figure_to_data_uri, render_report
from engine.training.fusion_figures import band_errors_figure, consistency_figure
from engine.training.fusion_looks import (
    Look,
    look_part,
    looks_figure,
    response_figure,
    sample_points,
    spectra_figure,
)
from engine.training.fusion_metrics import MEASURES, FusionScores
from engine.training.reduced_scale import score_reduced


@dataclass(frozen=True, eq=False)
class FuseRun:
    """What was done and came out.

    Args:
        ready: the pair.
        chosen: the method, back-projected when that was asked for.
        back_projected: whether it was.
        extent: coarse pixels that were fused.
        grid: of the result.
        output: sums over it.
        warnings: all that were given.
        seconds: that it took.
        choice: of the device.
        parameters: of the request.
    """

    ready: ReadyPair
    chosen: ChosenMethod
    back_projected: bool
    extent: Window
    grid: Grid
    output: FusedOutput
    warnings: tuple[str, ...]
    seconds: float
    choice: DeviceChoice
    parameters: Mapping[str, Any]

    @property
    def title(self) -> str:
        """The method, for people."""
        return f"{self.chosen.title}, back-projected" if self.back_projected else self.chosen.title


def write_fuse_report(run: FuseRun, path: str, feedback: Feedback) -> Path:
    """Compare the method with the others at the lower scale, and fill the template.

    Raises:
        OutputError: the report cannot be written.
    """
    scores = compare_methods(run, feedback)
    feedback.raise_if_cancelled()
    ready = run.ready
    bands = _known_bands(run)
    return render_report(
        "fuse.html",
        path,
        run=run,
        pair=ready.pair,
        grid=run.grid,
        info=None if run.chosen.package is None else run.chosen.package.info,
        measures=MEASURES,
        rows=sorted(scores.items(), key=lambda item: -item[1].psnr_db),
        bands_figure=(
            figure_to_data_uri(band_errors_figure(scores, bands, run.title)) if scores else None
        ),
        look=_look_values(run, bands),
        consistency_figure=figure_to_data_uri(consistency_figure(run.output.overview)),
        fit_rows=_fit_rows(ready),
        response_figure=_response_figure(ready),
        response_rows=_response_rows(ready),
        settings=[(name, _text(value)) for name, value in run.parameters.items()],
    )


def compare_methods(run: FuseRun, feedback: Feedback) -> dict[str, FusionScores]:
    """Score this method and the classical ones at the lower scale, on the bands that it knows."""
    ready = run.ready

    def classical(name: str) -> Callable[[Sequence[ImagePair]], Callable[[ImagePair], Tensor]]:
        return lambda low: fit_classical(name, low, ready)

    others = {TITLES[name]: classical(name) for name in CLASSICAL if TITLES[name] != run.title}
    known = np.flatnonzero(run.chosen.route.place >= 0).tolist()
    return score_reduced(
        ready.sample,
        ready.physics,
        {run.title: lambda low: _this_method(run, low), **others},
        feedback,
        band_index=known,
    )


def _this_method(run: FuseRun, low: Sequence[ImagePair]) -> Callable[[ImagePair], Tensor]:
    """A package as it is; a classical method fitted to the lower scale, as all others are."""
    if run.chosen.package is not None:
        return _on_device(run)
    method = fit_classical(run.chosen.name, low, run.ready)
    return BackProjection(method, run.ready.physics.spread) if run.back_projected else method


def _on_device(run: FuseRun) -> Callable[[ImagePair], Tensor]:
    """The method as it ran, for pairs on the CPU."""
    routed, device = RoutedMethod(run.chosen), run.choice.device

    def fuse(pair: ImagePair) -> Tensor:
        fused: Tensor = routed(pair.to(device))
        return fused.cpu()

    return fuse


def _known_bands(run: FuseRun) -> BandTable | None:
    """The usable bands that the method knows; None without wavelengths."""
    bands = run.ready.hsi_bands
    if bands is None:
        return None
    known = run.chosen.route.place >= 0
    return BandTable(
        tuple(name for name, use in zip(bands.names, known, strict=True) if use),
        bands.wavelength_nm[known],
        bands.fwhm_nm[known],
        bands.good[known],
        bands.origin,
    )


@torch.no_grad()
def _look_values(run: FuseRun, bands: BandTable | None) -> dict[str, str] | None:
    """Pictures and spectra of a part of the pair; None without wavelengths."""
    if bands is None:
        return None
    part = look_part(run.ready.sample)
    known = run.chosen.route.place >= 0
    fused = _on_device(run)(part)[0, known].numpy()
    look = Look.of(run.ready.pair.hsi.name, replace(part, hsi=part.hsi[:, known]), fused)
    points = sample_points(look)
    fine_bands = run.ready.msi_bands
    values = {"looks": figure_to_data_uri(looks_figure(look, bands, fine_bands, points))}
    if points:
        values["spectra"] = figure_to_data_uri(spectra_figure(look, bands, fine_bands, points))
    return values


def _fit_rows(ready: ReadyPair) -> list[tuple[str, str]]:
    """How the images were brought together, as facts."""
    pair, physics = ready.pair, ready.physics
    window = pair.window
    rows = [
        ("hyperspectral image", f"{pair.hsi.name}, {len(pair.usable_hsi_index)} usable bands of "
            f"{len(pair.hsi_index)}"),
        ("multispectral image", f"{pair.msi.name}: {', '.join(ready.msi_names)}"),
        ("ratio", str(pair.ratio)),
        ("multispectral image on the fine grid", pair.resampled or "as stored"),
        ("common ground", f"{window.width} x {window.height} coarse pixels"),
        ("the multispectral image lies", f"{ready.shift_words}; {ready.shift_text}"),
    ]  # fmt: skip
    if ready.found is not None:
        rows.append(
            ("explained by the other image", f"{ready.found.unshifted_agreement:.1%} of the detail "
                f"before, {ready.found.agreement:.1%} at the shift that was found")
        )  # fmt: skip
    source = "estimated" if physics.spread_estimated else "assumed"
    spread = physics.spread.fwhm_px
    rows.append(("point spread", f"{spread / pair.ratio:.2f} coarse pixels wide (FWHM, {source})"))
    return rows


def _response_figure(ready: ReadyPair) -> str | None:
    if ready.hsi_bands is None:
        return None
    weights = ready.physics.response.weights.numpy()
    return figure_to_data_uri(response_figure(weights, None, ready.hsi_bands, ready.msi_names))


def _response_rows(ready: ReadyPair) -> list[dict[str, Any]]:
    """One row a multispectral band: what the hyperspectral ones explain of it."""
    physics = ready.physics
    return [
        {"name": name, "gain": float(gain), "offset": float(offset), "error": float(error)}
        for name, gain, offset, error in zip(
            ready.msi_names,
            physics.response.weights.sum(dim=1),
            physics.response.offset,
            physics.response_error,
            strict=True,
        )
    ]


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

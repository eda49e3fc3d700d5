"""assess_fusion: a fused image beside a reference, or beside the images that it was made of."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from engine.errors import RequestError
from engine.feedback import Feedback, StepFeedback
from engine.jobs.shared.fused_cube import RATIO_TAG
from engine.jobs.shared.fusion_comparison import (
    Compared,
    GivenBack,
    compare_with_inputs,
    compare_with_reference,
)
from engine.jobs.shared.pairs import PairSettings, ReadyPair, Source, prepare_pair
from engine.raster.dataset import open_dataset
from engine.raster.outputs import check_outputs
from engine.raster.pair import Pair, open_pair
from engine.raster.pair_grid import pixel_ratio
from engine.raster.scene import Scene, open_scene
from engine.report import figure_to_data_uri, format_number, format_percent, render_report
from engine.training.fusion_figures import consistency_figure, difference_figure, quality_figure
from engine.training.fusion_metrics import MEASURES

SMALLEST_RATIO = 2


class Request(PairSettings):
    """The parameters, beside how two images are brought together.

    ``input`` is the fused image. ``reference`` is the true one at its resolution;
    ``hyperspectral`` and ``multispectral`` are what it was made of, both or none. One of these, or
    all three, have to be given. ``ratio`` is also what ERGAS is relative to.
    """

    input: str | list[str]
    reference: str | list[str] | None = None
    hyperspectral: str | list[str] | None = None
    multispectral: str | list[str] | None = None
    report: str | None = None


def assess_fusion(request: Request, feedback: Feedback) -> dict[str, Any]:
    """Score a fused image.

    Returns:
        beside a reference ``psnr_db``, ``sam_deg``, ``ergas`` (NaN without a ratio), ``rmse``,
        ``uiqi``, ``q2n`` and ``pixels`` compared; beside both inputs ``consistency_hsi`` and
        ``consistency_msi``, root mean square differences of the degraded result, relative to the
        image; ``report`` when asked for.

    Raises:
        RequestError: there is nothing to compare with.
        SceneError: an image cannot be read, or the images do not fit together.
        BandTableError, BandMatchError: they have other bands, or a table cannot be used.
        OutputError: the report cannot be written.
    """
    inputs = _inputs(request)
    given = [request.input, request.reference, *(inputs or ())]
    files = [file for source in given if source is not None for file in _files(source)]
    check_outputs([request.report], files, suffixes=(".html", ".htm"))
    result = open_scene(request.input)
    for note in result.notes:
        feedback.warning(note)
    given_back = ready = None
    if inputs is not None:
        ready, given_back = _beside_inputs(request, inputs, result, feedback)
    compared = _beside_reference(request, result, ready, feedback)
    _tell(compared, given_back, feedback)
    if request.report is not None:
        feedback.progress(0.95, "Writing the report")
        _write_report(request.report, result, compared, given_back, ready)
    feedback.progress(1.0, "Done")
    return _result(request, compared, given_back)


def _inputs(request: Request) -> tuple[Source, Source] | None:
    """Both images that the result was made of.

    Raises:
        RequestError: one is missing, or there is nothing to compare with.
    """
    hsi, msi = request.hyperspectral, request.multispectral
    if hsi is not None and msi is not None:
        return hsi, msi
    if hsi is not None or msi is not None:
        missing = "multispectral" if msi is None else "hyperspectral"
        raise RequestError(
            f"The {missing} image is missing: consistency needs both images that were fused.",
            f"Give it as {missing!r}, or leave both out and give a reference.",
        )
    if request.reference is None:
        raise RequestError(
            "There is nothing to compare with.",
            "Give a reference, or both images that were fused: hyperspectral and multispectral.",
        )
    return None


def _files(source: Source) -> list[str]:
    return [source] if isinstance(source, str) else list(source)


def _beside_inputs(
    request: Request, inputs: tuple[Source, Source], result: Scene, feedback: Feedback
) -> tuple[ReadyPair, GivenBack]:
    """Degrade the result, and compare it with what it was made of."""
    made = _with_result(request, inputs[0], result)
    settings = request.model_copy(update={"ratio": made.ratio})
    ready = prepare_pair(*inputs, settings, StepFeedback(feedback, 0.0, 0.2))
    return ready, compare_with_inputs(made, ready, StepFeedback(feedback, 0.2, 0.6))


def _with_result(request: Request, hyperspectral: Source, result: Scene) -> Pair:
    """The hyperspectral image and the fused one, as a pair of the ratio of their pixels.

    Raises:
        SceneError: the result is no finer, or lies elsewhere.
    """
    hsi = open_scene(hyperspectral, request.bands)
    ratio = max(SMALLEST_RATIO, round(pixel_ratio(hsi, result)))
    return open_pair(
        hyperspectral, request.input, ratio=request.ratio or ratio, hsi_table=request.bands
    )


def _beside_reference(
    request: Request, result: Scene, ready: ReadyPair | None, feedback: Feedback
) -> Compared | None:
    """Compare the result with a reference, if there is one."""
    if request.reference is None:
        return None
    reference = open_scene(request.reference)
    for note in reference.notes:
        feedback.warning(note)
    ratio = request.ratio or (ready.pair.ratio if ready else _stated_ratio(result))
    if math.isnan(ratio):
        feedback.warning("There is no ERGAS, because it is relative to a ratio: give one.")
    step = StepFeedback(feedback, 0.6 if ready else 0.0, 0.95)
    compared = compare_with_reference(result, reference, ratio, step)
    for note in compared.notes:
        feedback.warning(note)
    return compared


def _stated_ratio(result: Scene) -> float:
    """The ratio that a fused image states in its metadata; NaN where it does not."""
    with open_dataset(result.files[0]) as dataset:
        stated = dataset.tags().get(RATIO_TAG, "")
    return float(stated) if stated.isdigit() else math.nan


def _tell(compared: Compared | None, given_back: GivenBack | None, feedback: Feedback) -> None:
    if compared is not None:
        told = ", ".join(
            f"{measure.title} {format_number(value, measure.decimals)} {measure.unit}".strip()
            for measure, value in zip(MEASURES, compared.scores.summary().values(), strict=True)
        )
        feedback.info(f"{compared.scores.pixels:,} pixels beside the reference: {told}.")
    if given_back is not None:
        feedback.info(
            f"Degraded, the result differs by {format_percent(given_back.hsi.relative, 2)} from "
            f"the hyperspectral image and by {format_percent(given_back.msi.relative, 2)} from the "
            "multispectral one."
        )


def _result(
    request: Request, compared: Compared | None, given_back: GivenBack | None
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if compared is not None:
        result |= {**compared.scores.summary(), "pixels": compared.scores.pixels}
    if given_back is not None:
        result["consistency_hsi"] = given_back.hsi.relative
        result["consistency_msi"] = given_back.msi.relative
    if request.report is not None:
        result["report"] = request.report
    return result


def _write_report(
    path: str,
    result: Scene,
    compared: Compared | None,
    given_back: GivenBack | None,
    ready: ReadyPair | None,
) -> Path:
    """Fill the template."""
    figures = {}
    if compared is not None:
        figures["quality"] = quality_figure(compared.scores, compared.bands)
        figures["difference"] = difference_figure(compared.overview[0])
    if given_back is not None:
        figures["consistency"] = consistency_figure(given_back.overview)
        figures["given_back"] = quality_figure(given_back.hsi_scores, given_back.bands)
    return render_report(
        "assess_fusion.html",
        path,
        name=result.name,
        compared=compared,
        given_back=given_back,
        ready=ready,
        measures=MEASURES,
        figures={name: figure_to_data_uri(figure) for name, figure in figures.items()},
        band_rows=[] if compared is None else _band_rows(compared),
    )


def _band_rows(compared: Compared) -> list[dict[str, Any]]:
    """One row a band, for the template."""
    scores = compared.scores
    return [
        {
            "name": name,
            "wavelength_nm": None if compared.bands is None else compared.bands.wavelength_nm[i],
            "psnr_db": scores.psnr_band[i],
            "rmse": scores.rmse_band[i],
            "uiqi": scores.uiqi_band[i],
        }
        for i, name in enumerate(compared.names)
    ]

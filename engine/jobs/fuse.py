"""fuse: a hyperspectral and a multispectral image, as one with the bands of the first, fine."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import Field

from engine.device import DeviceChoice, choose_device
from engine.errors import RequestError
from engine.feedback import Feedback, StepFeedback
from engine.jobs.request import DeviceRequest
from engine.jobs.shared.fuse_report import FuseRun, write_fuse_report
from engine.jobs.shared.fused_cube import (
    INT16_NODATA,
    INT16_SCALE,
    RATIO_TAG,
    FusedOutput,
    WholeCube,
)
from engine.jobs.shared.fusion_methods import (
    AUTOMATIC,
    LEARNT,
    ChosenMethod,
    Method,
    choose_method,
    wanted_ratio,
)
from engine.jobs.shared.pairs import PairSettings, ReadyPair, prepare_pair
from engine.jobs.shared.training import as_list
from engine.models.fusion.back_projection import BackProjection
from engine.raster.cube import CubeInfo, colour_style
from engine.raster.extent import window_of_extent
from engine.raster.outputs import check_outputs
from engine.raster.pair import Pair, fine_window
from engine.raster.pair_dates import acquisition_time
from engine.raster.pair_grid import intersection
from engine.raster.pair_stream import stream_pair
from engine.raster.style import RampStyle
from engine.raster.tiles import Window
from engine.raster.writer import Grid, RasterWriter
from engine.report import format_percent
from engine.version import engine_version

BYTES_WHILE_WRITING = 2  # for each byte of an output: its rows, and the copy that is kept
CONSISTENCY_BANDS = (
    "difference from the hyperspectral image",
    "difference from the multispectral image",
)
CONSISTENCY_TOP = 0.1  # of the map's colours: a whole result of this is warned of
# A result that differs more from the image that it was made of is worth a warning.
MAX_INCONSISTENT = 0.1


class Request(PairSettings, DeviceRequest):
    """The parameters, beside those of every pair and every job that runs a model.

    ``hyperspectral`` and ``multispectral`` are sources that GDAL opens, or lists of single-band
    files. ``model`` is a package for the method "csakd", or "auto": an installed one that fits the
    pair, else a classical method. ``extent`` is ``(xmin, ymin, xmax, ymax)`` in the hyperspectral
    image's CRS. ``back_projection`` corrects the result until, degraded, it is the hyperspectral
    image. ``data_type`` is "int16", reflectance x 10,000, or "float32". ``tile_size`` counts coarse
    pixels. ``consistency`` is a map of how well the result gives back both images.
    """

    hyperspectral: str | list[str]
    multispectral: str | list[str]
    model: str = AUTOMATIC
    method: Method = LEARNT
    extent: tuple[float, float, float, float] | None = None
    back_projection: bool = False
    data_type: Literal["int16", "float32"] = "int16"
    tile_size: int | None = Field(default=None, ge=8, le=4096)
    output: str
    consistency: str | None = None
    report: str | None = None


def fuse(request: Request, feedback: Feedback) -> dict[str, Any]:
    """Fuse two images.

    Returns:
        ``output`` and, when asked for, ``consistency`` and ``report`` (paths); ``method`` that was
        used; ``shift_x`` and ``shift_y`` that were corrected, coarse pixels to the right and down;
        ``consistency_hsi`` and ``consistency_msi``, root mean square differences of the degraded
        result from both images, relative to them; ``valid_pixels``; ``seconds``; ``device``.

    Raises:
        DeviceError: a GPU is required and there is none.
        PackageError: the model cannot be loaded, or is for other bands or another ratio.
        SceneError: an image cannot be read, or the two do not fit together.
        BandTableError, BandMatchError: a table of bands or responses cannot be used.
        RequestError: the extent lies outside what both images cover, or a model is given for a
            method that needs none.
        OutputError: an output cannot be written.
    """
    start_s = time.monotonic()
    choice = choose_device(request.device, request.require_gpu, request.precision)
    feedback.info(f"Device: {choice.device} ({choice.reason})")
    # Before the images are looked at for long, and again when their files and size are known.
    _check_outputs(request, [*as_list(request.hyperspectral), *as_list(request.multispectral)])
    ratio = wanted_ratio(request.method, request.model, request.ratio)
    settings = request.model_copy(update={"ratio": ratio})
    ready = prepare_pair(
        request.hyperspectral, request.multispectral, settings, StepFeedback(feedback, 0.0, 0.1)
    )
    extent = _extent(request, ready.pair)
    grid = ready.pair.grid.crop(fine_window(extent, ready.pair.ratio))
    files = [*ready.pair.hsi.files, *ready.pair.msi.files]
    _check_outputs(request, files, _needed_bytes(request, ready.pair, grid))
    feedback.progress(0.1, "Preparing the method")
    chosen = choose_method(request.method, request.model, ready, choice.device, feedback)
    if request.back_projection:
        spread = ready.physics.to(choice.device).spread
        chosen = replace(chosen, method=BackProjection(chosen.method, spread).eval())
    output = _run(request, ready, chosen, choice, extent, grid, feedback)
    seconds = time.monotonic() - start_s
    told = _tell(output, ready, grid, seconds, feedback)
    fallback = [chosen.why] if chosen.package is None and chosen.why else []
    run = FuseRun(
        ready=ready,
        chosen=chosen,
        back_projected=request.back_projection,
        extent=extent,
        grid=grid,
        output=output,
        warnings=(*ready.warnings, *fallback, *told),
        seconds=seconds,
        choice=choice,
        parameters=request.model_dump(exclude_none=True),
    )
    feedback.progress(0.9, "Writing the report")
    if request.report is not None:
        write_fuse_report(run, request.report, StepFeedback(feedback, 0.9, 1.0))
    feedback.progress(1.0, "Done")
    return _result(request, run)


def _result(request: Request, run: FuseRun) -> dict[str, Any]:
    paths = {name: getattr(request, name) for name in ("output", "consistency", "report")}
    shift_x, shift_y = run.ready.pair.shift_px
    return {
        **{name: path for name, path in paths.items() if path is not None},
        "method": run.chosen.name,
        "shift_x": shift_x,
        "shift_y": shift_y,
        "consistency_hsi": run.output.hsi.relative,
        "consistency_msi": run.output.msi.relative,
        "valid_pixels": run.output.valid_pixels,
        "seconds": run.seconds,
        "device": str(run.choice.device),
    }


def _extent(request: Request, pair: Pair) -> Window:
    """Coarse pixels that are wanted and covered by both images.

    Raises:
        RequestError: there are none.
    """
    if request.extent is None:
        return pair.window
    hsi = pair.hsi
    wanted = window_of_extent(request.extent, hsi.transform, hsi.height, hsi.width)
    shared = intersection(wanted, pair.window)
    if shared is None:
        raise RequestError(
            f"The extent lies outside what {hsi.name} and {pair.msi.name} share.",
            "Choose an extent that both images cover.",
        )
    return shared


def _check_outputs(request: Request, inputs: Sequence[str], needed_bytes: int = 0) -> None:
    """Refuse outputs that cannot be written, before work begins.

    Raises:
        OutputError: one of them cannot.
    """
    check_outputs([request.output, request.consistency], inputs, needed_bytes=needed_bytes)
    check_outputs([request.report], inputs, suffixes=(".html", ".htm"))


def _needed_bytes(request: Request, pair: Pair, grid: Grid) -> int:
    """Of the disk, while the outputs are written."""
    value_bytes = np.dtype(request.data_type).itemsize
    pixel_bytes = len(pair.hsi_index) * value_bytes + (8 if request.consistency else 0)
    return grid.height * grid.width * pixel_bytes * BYTES_WHILE_WRITING


def _run(
    request: Request,
    ready: ReadyPair,
    chosen: ChosenMethod,
    choice: DeviceChoice,
    extent: Window,
    grid: Grid,
    feedback: Feedback,
) -> FusedOutput:
    """Run the method over the pair; the files are there when this ends."""
    model = WholeCube(chosen, ready, choice.device).eval()
    if plain := model.plain_count:
        note = f"{plain} of {model.bands} bands are bad or unknown to the method: interpolated."
        feedback.info(note)
    tags = _provenance(request, ready, chosen, choice)
    with FusedOutput(
        _cube_writer(request, ready.pair, grid, tags, feedback),
        _consistency_writer(request, grid, tags, feedback),
        grid,
        bands=model.bands,
        integers=request.data_type == "int16",
    ) as output:
        stream_pair(
            ready.pair,
            model,
            output.write,
            device=choice.device,
            precision=_precision(request, chosen, choice, feedback),
            extent=extent,
            tile_px=request.tile_size,
            feedback=StepFeedback(feedback, 0.15, 0.85),
            step=f"Fusing ({chosen.title})",
        )
        feedback.progress(0.85, "Finishing the files")
    return output


def _precision(
    request: Request, chosen: ChosenMethod, choice: DeviceChoice, feedback: Feedback
) -> Literal["float32", "bfloat16"]:
    """bfloat16 only for a network, and only when asked for: reflectance has four digits."""
    half = request.precision == "bfloat16" and chosen.package is not None
    precision = choice.precision if half else "float32"
    feedback.info(f"Precision: {precision}")
    return precision


def _cube_writer(
    request: Request, pair: Pair, grid: Grid, tags: dict[str, str], feedback: Feedback
) -> RasterWriter:
    """Make the writer of the fused bands, with all that the scene says about them."""
    table = pair.hsi_table
    names = [f"band {i + 1}" for i in pair.hsi_index] if table is None else table.names
    integers = request.data_type == "int16"
    return RasterWriter(
        request.output,
        grid,
        names,
        request.data_type,
        INT16_NODATA if integers else float("nan"),
        tags=tags,
        style=colour_style(table, len(names)),
        cube=CubeInfo(table, INT16_SCALE if integers else 1.0, acquired=acquisition_time(pair.hsi)),
        feedback=feedback,
    )


def _consistency_writer(
    request: Request, grid: Grid, tags: dict[str, str], feedback: Feedback
) -> RasterWriter | None:
    if request.consistency is None:
        return None
    return RasterWriter(
        request.consistency,
        grid,
        CONSISTENCY_BANDS,
        "float32",
        float("nan"),
        tags=tags,
        style=RampStyle(0.0, CONSISTENCY_TOP, dark_at_minimum=True),
        feedback=feedback,
    )


def _provenance(
    request: Request, ready: ReadyPair, chosen: ChosenMethod, choice: DeviceChoice
) -> dict[str, str]:
    """Tags that tell where a result comes from, enough to make it again."""
    pair, physics = ready.pair, ready.physics
    tags = {
        "TIFFTAG_SOFTWARE": f"HyperKD for QGIS {engine_version()}",
        "ENGINE_VERSION": engine_version(),
        "FUSION_METHOD": chosen.name,
        RATIO_TAG: str(pair.ratio),
        "FUSION_SHIFT": f"{pair.shift_px[0]:.4f},{pair.shift_px[1]:.4f}",
        "FUSION_SPREAD_FWHM_PX": f"{physics.spread.fwhm_px:.4f}",
        "PARAMETERS": json.dumps(request.model_dump(exclude_none=True), ensure_ascii=False),
        "DEVICE": f"{choice.device} ({choice.reason})",
    }
    if chosen.package is not None:
        info = chosen.package.info
        tags |= {
            "MODEL": info.name,
            "MODEL_VERSION": info.version,
            "MODEL_SHA256": chosen.package.sha256,
            "MODEL_LICENCE": info.licence,
            "MODEL_ATTRIBUTION": info.attribution,
        }
    return {name: text for name, text in tags.items() if text}  # GDAL keeps no empty tags


def _tell(
    output: FusedOutput, ready: ReadyPair, grid: Grid, seconds: float, feedback: Feedback
) -> list[str]:
    """Say how fast it was and how good it may be; the warnings are also returned."""
    rate = grid.height * grid.width / 1e6 / seconds
    feedback.info(
        f"{grid.width} x {grid.height} px in {seconds:.1f} s ({rate:.2f} Mpx/s); "
        f"{output.valid_pixels:,} pixels have a value. Degraded, the result differs by "
        f"{format_percent(output.hsi.relative, 2)} from the hyperspectral image and by "
        f"{format_percent(output.msi.relative, 2)} from the multispectral one."
    )
    warnings = list(_doubts(output, ready))
    for warning in warnings:
        feedback.warning(warning)
    return warnings


def _doubts(output: FusedOutput, ready: ReadyPair) -> Iterator[str]:
    """What a user of the result must know."""
    if not output.valid_pixels:
        yield "No pixel has a value: check the nodata values of both images, and the extent."
    if output.clipped_values:
        yield (
            f"{output.clipped_values:,} values lie beyond what int16 holds (±3.2767) and were cut "
            "off: choose float32, or check the scale of the hyperspectral image."
        )
    for name, given in ((ready.pair.hsi.name, output.hsi), (ready.pair.msi.name, output.msi)):
        if given.relative > MAX_INCONSISTENT:
            yield (
                f"Degraded as its sensor would, the result differs from {name} by "
                f"{given.relative:.0%}."
            )

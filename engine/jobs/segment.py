"""segment: a scene through a segmentation model, as a map of classes and as polygons."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from pydantic import Field

from engine.errors import RequestError
from engine.feedback import Feedback
from engine.jobs.shared.class_outputs import (
    ClassMapRequest,
    require_own_tiles,
    require_support,
    write_class_map,
)
from engine.jobs.shared.prediction import Prediction, prepare
from engine.raster.polygons import GPKG_SUFFIX, PolygonWriter
from engine.raster.tiles import Tiling


class Request(ClassMapRequest):
    """The parameters of `ClassMapRequest`, how tiles meet, and the polygons.

    ``overlap`` is how many pixels neighbouring tiles share, the model's own when left out; an odd
    number becomes the next even one. ``tile_size`` may only be the model's own, because attention
    knows chips of one size. ``polygons`` is a GeoPackage of the connected patches of each class;
    those smaller than ``min_area``, in square metres, are left out of it.
    """

    overlap: int | None = Field(default=None, ge=0, le=4096)
    polygons: str | None = None
    min_area: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)


def segment(request: Request, feedback: Feedback) -> dict[str, Any]:
    """Make a class map of a scene, and polygons of it.

    Returns:
        ``output`` and, when asked for, ``confidence``, ``probabilities``, ``support`` and
        ``polygons`` (paths); ``valid_pixels`` (with a class), ``seconds``, ``device``.

    Raises:
        DeviceError: a GPU is required and there is none.
        PackageError: the model or its backbone cannot be loaded, it has no classes, or is asked
            for support that its package does not hold.
        SceneError, BandTableError, BandMatchError: the scene cannot be read or does not fit.
        RequestError, LabelError: extent or mask lie outside the scene, or the model is made for
            other tiles.
        OutputError: an output cannot be written.
    """
    start_s = time.monotonic()
    ready = prepare(request, "semantic-segmentation", feedback)
    require_support(request, ready)
    tiling = _tiling(request, ready.info.tiling)
    _tell_cost(tiling, feedback)
    polygons = _polygons(request, ready, feedback)
    result = write_class_map(
        request,
        ready,
        feedback,
        step="Segmenting",
        start_s=start_s,
        tiling=tiling,
        polygons=polygons,
    )
    if polygons is not None:
        least = f" of {request.min_area:,.0f} m² or more" if request.min_area else ""
        feedback.info(f"Polygons: {polygons.count:,}{least}.")
    return result


def _tiling(request: Request, tiling: Tiling) -> Tiling:
    """The model's tiling, with the overlap that was asked for.

    Raises:
        RequestError: tiles of this size or overlap are not for this model.
    """
    side = tiling.tile_size_px
    if not tiling.blend:
        if request.overlap is not None:
            raise RequestError(
                "The tiles of this model do not overlap: it sees no further than its margin of "
                f"{tiling.margin_px} px, which is cut off.",
                "Leave the overlap out.",
            )
        return tiling
    require_own_tiles(request, tiling)
    if request.overlap is None:
        return tiling
    halo_px = -(-request.overlap // 2)
    if 2 * halo_px >= side:
        raise RequestError(
            f"An overlap of {request.overlap} px leaves nothing of a tile of {side} px.",
            f"Choose at most {(side - 1) // 2 * 2} px, or none for the model's own "
            f"{2 * tiling.halo_px} px.",
        )
    return replace(tiling, halo_px=halo_px)


def _tell_cost(tiling: Tiling, feedback: Feedback) -> None:
    """Say how often each pixel is computed."""
    if tiling.blend:
        side, overlap_px = tiling.tile_size_px, 2 * tiling.halo_px
        times = (side / (side - overlap_px)) ** 2
        feedback.info(
            f"Tiles of {side} px overlap by {overlap_px} px: each pixel is computed {times:.2f} "
            "times, and its probabilities are blended."
        )


def _polygons(request: Request, ready: Prediction, feedback: Feedback) -> PolygonWriter | None:
    """Make the writer of the polygons, if they are wanted and can be written.

    Raises:
        OutputError: they cannot.
    """
    if request.polygons is None:
        return None
    ready.check_outputs([request.polygons], pixel_bytes=0, suffixes=(GPKG_SUFFIX,))
    if ready.grid.crs is None:
        feedback.warning("The scene has no CRS: the polygons' areas take coordinates for metres.")
    return PolygonWriter(
        request.polygons,
        ready.grid,
        ready.info.classes,
        min_area_m2=request.min_area,
        feedback=feedback,
    )

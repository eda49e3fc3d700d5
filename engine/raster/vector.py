"""Vector layers: read, brought to the scene's CRS, and burned into its pixels."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError
from rasterio import features, warp
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.transform import Affine
from shapely.geometry.base import BaseGeometry

from engine.errors import LabelError
from engine.raster.tiles import Window

logger = logging.getLogger(__name__)

_AREA_TYPES = {shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON}
_POINT_TYPES = {shapely.GeometryType.POINT, shapely.GeometryType.MULTIPOINT}
# Samples of finer pixels held at once: 32 MiB of uint16.
_MAX_SAMPLES = 16 * 1024**2
_REMEDY = "Choose a layer of polygons or points, for example a GeoPackage, Shapefile or GeoJSON."


class LayerSource(NamedTuple):
    """A layer as QGIS writes it: ``path|layername=x|subset=class > 0`` taken apart."""

    path: str
    layer: str | int | None
    where: str | None


@dataclass(frozen=True, eq=False)
class Shape:
    """A polygon or point, or several, with the value of the field that was asked for."""

    geometry: BaseGeometry
    value: Any


def parse_layer(source: str) -> LayerSource:
    """Take apart a source string of QGIS."""
    path, *options = source.split("|")
    layer: str | int | None = None
    where = None
    for place, option in enumerate(options):
        key, _, value = option.partition("=")
        if key.lower() == "layername":
            layer = value
        elif key.lower() == "layerid" and layer is None and value.isdigit():
            layer = int(value)
        elif key.lower() == "subset":
            # The filter is always last, and may itself contain the separator.
            where = "|".join([value, *options[place + 1 :]])
            break
    return LayerSource(path, layer, where)


def is_vector(source: str) -> bool:
    """True when the source holds a vector layer, False for a raster, a broken or a missing file."""
    try:
        return len(pyogrio.list_layers(parse_layer(source).path)) > 0
    except (DataSourceError, OSError, ValueError) as error:
        logger.debug("%s holds no layer: %s", source, error)
        return False


def layer_crs(source: str) -> CRS | None:
    """The CRS of a layer; None when it has none, so that the scene's is taken.

    Raises:
        LabelError: the layer cannot be opened.
    """
    parsed = parse_layer(source)
    info = _opened(source, pyogrio.read_info, parsed.path, layer=parsed.layer)
    return _crs_of(info, source)


def crs_note(source: str, crs: CRS | None) -> str:
    """What to tell the user about a layer without a CRS; empty when there is nothing to tell."""
    if crs is None or layer_crs(source) is not None:
        return ""
    return f"{parse_layer(source).path} has no CRS; the scene's was taken."


def read_shapes(source: str, field: str | None, crs: CRS | None) -> list[Shape]:
    """Read the polygons or points of a layer, with one of their fields.

    Args:
        source: a file that GDAL opens, or ``path|layername=x`` as QGIS writes it.
        field: its values become those of the shapes, and features without one are left out;
            None for no field, when every value is True.
        crs: to bring the shapes to, when both it and the layer's are known.

    Returns:
        In the order of the layer; at least one. Values are int, float or str.

    Raises:
        LabelError: the layer cannot be read, has no such field, no values in it, no features, or
            other features than polygons and points.
    """
    parsed = parse_layer(source)
    info = _opened(source, pyogrio.read_info, parsed.path, layer=parsed.layer)
    columns = [] if field is None else [_checked_field(field, list(info["fields"]), source)]
    meta, _, wkb, values = _opened(
        source,
        pyogrio.raw.read,
        parsed.path,
        layer=parsed.layer,
        columns=columns,
        where=parsed.where,
        force_2d=True,
    )
    if wkb is None or len(wkb) == 0:
        raise LabelError(f"{source} has no features with a geometry.", _REMEDY)
    geometries = _usable_geometries(shapely.from_wkb(wkb), source)
    geometries = _reprojected(geometries, _crs_of(meta, source), crs, source)
    column = [True] * len(geometries) if field is None else [_plain(v) for v in values[0].tolist()]
    there = ~(shapely.is_missing(geometries) | shapely.is_empty(geometries))
    shapes = [
        Shape(geometry, value)
        for geometry, value, usable in zip(geometries, column, there, strict=True)
        if usable and value is not None
    ]
    if shapes:
        return shapes
    if field is not None and all(value is None for value in column):
        raise LabelError(f"The field {field!r} of {source} is empty.", "Choose another field.")
    raise LabelError(f"{source} has no features with a geometry and a value.", _REMEDY)


def require_overlap(
    shapes: Sequence[Shape], source: str, height: int, width: int, transform: Affine
) -> None:
    """Check that shapes and a scene's grid have an area in common.

    Raises:
        LabelError: they have none; both extents are named.
    """
    outline = shapely.Polygon(
        [transform @ corner for corner in ((0, 0), (width, 0), (width, height), (0, height))]
    )
    shapely.prepare(outline)
    geometries = np.asarray([shape.geometry for shape in shapes], dtype=object)
    if shapely.intersects(outline, geometries).any():
        return
    covered = _extent(shapely.total_bounds(geometries))
    raise LabelError(
        f"{source} does not overlap the scene: it covers {covered}, the scene "
        f"{_extent(outline.bounds)}, both in the scene's CRS.",
        "Choose a layer of the same place, or correct its CRS.",
    )


def burn_mask(shapes: Sequence[Shape], window: Window, transform: Affine) -> NDArray[np.bool_]:
    """Find the pixels of a window whose centre lies in a polygon, or that hold a point.

    Returns:
        (h, w) bool.
    """
    mask = np.zeros((window.height, window.width), np.uint8)
    own_transform = transform @ Affine.translation(window.col_off, window.row_off)
    near = _near(shapes, own_transform, window.height, window.width)
    if near:
        features.rasterize(
            [(shape.geometry, 1) for shape in near], out=mask, transform=own_transform
        )
    return mask.astype(bool)


def class_fractions(
    shapes: Sequence[Shape],
    class_values: Sequence[Any],
    window: Window,
    transform: Affine,
    supersample: int = 8,
) -> NDArray[np.float32]:
    """Find which share of each pixel each class covers.

    Each pixel is looked at in ``supersample`` x ``supersample`` places. Where polygons overlap,
    the later one counts, so that shares never add up to more than 1.

    Args:
        shapes: polygons; points have no area.
        class_values: K values of the shapes; shapes with others cover nothing but hide what is
            below them.
        window: of the scene.
        transform: of the scene.
        supersample: places along each side of a pixel.

    Returns:
        (K, h, w) float32, 0 to 1.
    """
    fractions = np.zeros((len(class_values), window.height, window.width), np.float32)
    burn_value = {value: i + 1 for i, value in enumerate(class_values)}
    hidden = len(class_values) + 1
    for part in _row_parts(window, supersample):
        corner = Affine.translation(window.col_off, window.row_off + part.row_off)
        fine = transform @ corner @ Affine.scale(1 / supersample)
        fine_shape = (part.height * supersample, part.width * supersample)
        near = [
            (shape.geometry, burn_value.get(shape.value, hidden))
            for shape in _near(shapes, fine, *fine_shape)
            if shapely.get_dimensions(shape.geometry) == 2
        ]
        if not near:
            continue
        burned = np.zeros(fine_shape, np.uint16)
        features.rasterize(near, out=burned, transform=fine)
        blocks = burned.reshape(part.height, supersample, part.width, supersample)
        for index in range(len(class_values)):
            share = (blocks == index + 1).mean(axis=(1, 3), dtype=np.float32)
            fractions[index, part.row_off : part.row_stop] = share
    return fractions


def mean_values(
    shapes: Sequence[Shape], window: Window, transform: Affine, supersample: int = 8
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Find the mean of the shapes' numbers over what they cover of each pixel.

    As in `class_fractions`, the later polygon counts where two overlap.

    Args:
        shapes: polygons whose values are numbers; points have no area.
        window: of the scene.
        transform: of the scene.
        supersample: places along each side of a pixel.

    Returns:
        (h, w) float64 mean, 0 where nothing is covered; and (h, w) float32 share, 0 to 1.
    """
    means = np.zeros((window.height, window.width))
    covered = np.zeros((window.height, window.width), np.float32)
    for part in _row_parts(window, supersample):
        corner = Affine.translation(window.col_off, window.row_off + part.row_off)
        fine = transform @ corner @ Affine.scale(1 / supersample)
        fine_shape = (part.height * supersample, part.width * supersample)
        near = [
            (shape.geometry, float(shape.value))
            for shape in _near(shapes, fine, *fine_shape)
            if shapely.get_dimensions(shape.geometry) == 2
        ]
        if not near:
            continue
        burned = np.full(fine_shape, np.nan)
        features.rasterize(near, out=burned, transform=fine)
        rows = np.s_[part.row_off : part.row_stop]
        means[rows], covered[rows] = mean_of_blocks(burned, supersample)
    return means, covered


def mean_of_blocks(
    fine: NDArray[np.float64], supersample: int
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Average (h * s, w * s) numbers, NaN where there is none, over blocks of s x s.

    Returns:
        (h, w) float64 mean of the numbers, 0 where there is none; (h, w) float32 share of numbers.
    """
    height, width = (side // supersample for side in fine.shape)
    blocks = fine.reshape(height, supersample, width, supersample)
    known = np.isfinite(blocks)
    count = known.sum(axis=(1, 3))
    total = np.where(known, blocks, 0.0).sum(axis=(1, 3))
    return total / np.maximum(count, 1), (count / supersample**2).astype(np.float32)


def _row_parts(window: Window, supersample: int) -> Iterator[Window]:
    """Strips of a window, counted from its own corner, that fit into memory when supersampled."""
    rows = max(1, _MAX_SAMPLES // (window.width * supersample**2))
    for row_off in range(0, window.height, rows):
        yield Window(row_off, 0, min(rows, window.height - row_off), window.width)


def _near(shapes: Sequence[Shape], transform: Affine, height: int, width: int) -> list[Shape]:
    """Parts of shapes whose bounds touch a grid's.

    Parts, because of a layer with one large multipolygon a class only a few lie in a strip, and
    because GDAL fills a multipolygon as one, which makes holes where its parts overlap.
    """
    if not shapes:
        return []
    parts, owners = shapely.get_parts(
        np.asarray([shape.geometry for shape in shapes], dtype=object), return_index=True
    )
    corners = [transform @ corner for corner in ((0, 0), (width, 0), (width, height), (0, height))]
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    bounds = shapely.bounds(parts)
    touching = np.all((bounds[:, :2] <= high) & (bounds[:, 2:] >= low), axis=1)
    return [Shape(parts[i], shapes[owners[i]].value) for i in np.flatnonzero(touching)]


def _opened(source: str, read: Any, path: str, **options: Any) -> Any:
    """Call a function of pyogrio, its errors as sentences."""
    if not path.startswith("/vsi") and not Path(path).exists():
        raise LabelError(f"There is no layer {path}.", "Check the path; was the file moved?")
    try:
        return read(path, **options)
    except (DataSourceError, DataLayerError, ValueError, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise LabelError(
            f"{source} cannot be read as a vector layer: {reason}.", _REMEDY
        ) from error


def _checked_field(field: str, fields: list[str], source: str) -> str:
    if field in fields:
        return field
    known = ", ".join(fields) if fields else "none"
    raise LabelError(f"{source} has no field {field!r}.", f"Its fields are: {known}.")


def _usable_geometries(geometries: NDArray[np.object_], source: str) -> NDArray[np.object_]:
    """Check that there are only polygons and points, and mend polygons that cross themselves."""
    kinds = {int(kind) for kind in np.unique(shapely.get_type_id(geometries))} - {-1}
    others = kinds - {int(kind) for kind in _AREA_TYPES | _POINT_TYPES}
    if others:
        names = ", ".join(shapely.GeometryType(kind).name.lower() for kind in sorted(others))
        raise LabelError(f"{source} holds features of type {names}.", _REMEDY)
    broken = ~shapely.is_valid(geometries) & ~shapely.is_missing(geometries)
    for i in np.flatnonzero(broken):
        geometries[i] = _mended(geometries[i])
    return geometries


def _mended(geometry: BaseGeometry) -> BaseGeometry:
    """The same area as parts that are valid each.

    Parts that touch or overlap stay as they are: they do no harm, since parts are burned one by
    one, and uniting thousands of them takes seconds.
    """
    parts = shapely.get_parts(geometry)
    valid = shapely.is_valid(parts)
    mended = shapely.get_parts(shapely.make_valid(parts[~valid]))
    while not np.isin(shapely.get_type_id(mended), [0, 1, 2, 3]).all():
        mended = shapely.get_parts(mended)
    areas = [*parts[valid], *mended[shapely.get_dimensions(mended) == 2]]
    return shapely.MultiPolygon(areas)


def _crs_of(meta: dict[str, Any], source: str) -> CRS | None:
    if not meta.get("crs"):
        return None
    try:
        return CRS.from_user_input(meta["crs"])
    except CRSError as error:
        raise LabelError(
            f"The CRS of {source} is not understood: {error}.", "Save the layer in another CRS."
        ) from error


def _reprojected(
    geometries: NDArray[np.object_], source_crs: CRS | None, crs: CRS | None, source: str
) -> NDArray[np.object_]:
    """Bring geometries to another CRS; those that have no place in it become missing."""
    if source_crs is None or crs is None or source_crs == crs:
        return geometries

    def project(points: NDArray[np.float64]) -> NDArray[np.float64]:
        xs, ys = warp.transform(source_crs, crs, points[:, 0], points[:, 1])
        return np.column_stack([xs, ys])

    try:
        moved: NDArray[np.object_] = shapely.transform(geometries, project)
    except CRSError as error:
        raise LabelError(
            f"{source} cannot be brought from {source_crs} to {crs}: {error}.",
            "Save the layer in the scene's CRS.",
        ) from error
    for i, bounds in enumerate(shapely.bounds(moved)):
        if not np.isfinite(bounds).all():
            moved[i] = None
    return moved


def _plain(value: Any) -> Any:
    """A value of a field as int, float or str; None for what means "no value"."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, float) and value.is_integer():
        # A column of whole numbers with gaps arrives as floats.
        return int(value)
    return value


def _extent(bounds: Sequence[float]) -> str:
    west, south, east, north = (f"{value:,.6g}" for value in bounds)
    return f"x {west} to {east} and y {south} to {north}"

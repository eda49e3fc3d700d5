"""Vector layers: read, and brought to the scene's CRS."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError
from rasterio import warp
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.transform import Affine
from shapely.geometry.base import BaseGeometry

from engine.errors import LabelError

logger = logging.getLogger(__name__)

_AREA_TYPES = {shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON}
_POINT_TYPES = {shapely.GeometryType.POINT, shapely.GeometryType.MULTIPOINT}
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
    parsed = _chosen_layer(source)
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
    parsed = _chosen_layer(source)
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


def _chosen_layer(source: str) -> LayerSource:
    """The layer that is named; else the first with a geometry: QGIS keeps styles in one without."""
    parsed = parse_layer(source)
    if parsed.layer is not None:
        return parsed
    layers = _opened(source, pyogrio.list_layers, parsed.path)
    with_geometry = [str(name) for name, kind in layers if kind is not None]
    return parsed._replace(layer=with_geometry[0] if with_geometry else None)


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

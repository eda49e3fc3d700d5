"""Shapes burned into the pixels of a scene: masks, shares of classes, means of values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio import features
from rasterio.transform import Affine

from engine.raster.tiles import Window
from engine.raster.vector import Shape

# Samples of finer pixels held at once: 32 MiB of uint16.
MAX_SAMPLES = 16 * 1024**2
MAX_VALUES = 2 * 1024**2  # and of float64, of which several copies are made


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
    for part in row_parts(window, supersample, MAX_SAMPLES):
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
    for part in row_parts(window, supersample, MAX_VALUES):
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


def row_parts(window: Window, supersample: int, max_samples: int) -> Iterator[Window]:
    """Strips of a window, counted from its own corner, that fit into memory when supersampled."""
    rows = max(1, max_samples // (window.width * supersample**2))
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

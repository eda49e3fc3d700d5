"""How a scene is cut for a model on a device: strips, tiles, batches, and how many at a time.

A device is named as torch names its type: "cpu", "cuda".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isqrt, prod

from engine.errors import RequestError
from engine.raster.scene import Scene
from engine.raster.spectra import BandMatch
from engine.raster.tiles import Strip, Tile, Tiling, Window, choose_piece_shape, plan_strips

# Stored bytes of a piece, of which `engine.raster.stream` holds three.
PIECE_BYTES = 96 * 2**20
# Reflectance bytes of a batch. What a CPU's model makes of it is several times larger; it should
# fit into the core's cache and into memory that the allocator keeps. The packaged classifier took
# 4.8 s of processor time per Mpx in batches of 2 MiB and 7.9 s in batches of 8 MiB, a third of
# them for fresh pages; batches of 1 MiB took a tenth more again.
_BATCH_BYTES = {"cpu": 2 * 2**20, "cuda": 256 * 2**20}
# Reflectance bytes of all batches that a CPU computes at a time. What a model makes of them takes
# a multiple of that.
_LANES_BYTES = 256 * 2**20


def plan_scene(
    scene: Scene,
    match: BandMatch,
    tiling: Tiling,
    extent: Window | None = None,
    piece_bytes: int = PIECE_BYTES,
) -> list[Strip]:
    """Plan how `engine.raster.stream.stream_scene` reads and computes a scene."""
    piece_px = piece_bytes // (len(match.scene_band_index) * scene.dtype.itemsize)
    shape = choose_piece_shape(tiling, scene.block_shape, scene.width, max(1, piece_px))
    extent = extent or Window(0, 0, scene.height, scene.width)
    return plan_strips(extent, tiling, scene.height, scene.width, shape)


def choose_tiling(
    tiling: Tiling, match: BandMatch, device_type: str, tile_size_px: int | None = None
) -> Tiling:
    """Choose the size of tiles: the user's, else the model's, or less where that is free.

    On a CPU a tile should be no larger than a batch, which its cache can hold.

    Raises:
        RequestError: the user's tile size leaves no pixel after the model's halo.
    """
    align = tiling.align_px
    if tile_size_px is not None:
        side = -(-tile_size_px // align) * align
        if side < tiling.smallest_tile_px:
            raise RequestError(
                f"A tile size of {tile_size_px} px leaves nothing of a tile: the model needs a "
                f"margin of {tiling.margin_px} px on each side.",
                f"Choose at least {tiling.smallest_tile_px} px, or none for the model's own "
                f"{tiling.tile_size_px} px.",
            )
        return replace(tiling, tile_size_px=side)
    if tiling.blend or device_type != "cpu":
        return tiling
    fitting = isqrt(_batch_bytes(device_type) // (4 * _channels(match)))
    # Below 24 halos, computing the halo again would cost more than a fifth.
    side = max(fitting, 24 * tiling.margin_px, tiling.smallest_tile_px)
    return replace(tiling, tile_size_px=min(-(-side // align) * align, tiling.tile_size_px))


def batch_size(tile: Tile, channels: int, device_type: str) -> int:
    """How many tiles of a shape go through a model with so many bands together."""
    return max(1, _batch_bytes(device_type) // _tile_bytes(tile, channels))


def count_lanes(strips: Sequence[Strip], match: BandMatch, device_type: str, cores: int) -> int:
    """How many batches are computed at a time: on a CPU one a core, as far as memory goes."""
    if device_type != "cpu":
        return 1
    channels = _channels(match)
    fullest = max((piece.tiles for strip in strips for piece in strip.pieces), key=len)
    tile = max(fullest, key=lambda tile: prod(input_shape(tile)))
    size = batch_size(tile, channels, device_type)
    fitting = _LANES_BYTES // (size * _tile_bytes(tile, channels))
    return max(1, min(cores, fitting, -(-len(fullest) // size)))


def input_shape(tile: Tile) -> tuple[int, int]:
    """Rows and columns that the model is given."""
    return tile.read.height, tile.read.width


def _batch_bytes(device_type: str) -> int:
    """Reflectance that the model is given at a time."""
    return _BATCH_BYTES.get(device_type, _BATCH_BYTES["cpu"])


def _tile_bytes(tile: Tile, channels: int) -> int:
    """Reflectance of a tile for a model with so many bands."""
    return 4 * channels * prod(input_shape(tile))


def _channels(match: BandMatch) -> int:
    """The model's bands."""
    return len(match.scene_band_index if match.weights is None else match.weights)

"""A pair as tensors: as much of it as can be held, to fit on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engine.errors import SceneError
from engine.feedback import Feedback, SilentFeedback
from engine.models.fusion.method import ImagePair
from engine.raster.pair import Pair
from engine.raster.pair_reader import PairArrays, PairReader
from engine.raster.tiles import Window

# Of a chip's pixels, in both images; below, another place is looked for.
_ENOUGH_VALID = 0.5
# Where in its cell a chip may lie, as shares of the room that is left there.
_CELL_PLACES = ((0.5, 0.5), (0.0, 1.0), (1.0, 0.0))


def sample_pair(
    pair: Pair,
    *,
    max_px: int = 65_536,
    max_fine_px: int = 64 * 65_536,
    chip_px: int = 96,
    hsi_index: Sequence[int] | None = None,
    msi_index: Sequence[int] | None = None,
    feedback: Feedback | None = None,
) -> list[ImagePair]:
    """Read as much of a pair as can be held: all of it, or chips spread over it.

    Args:
        pair: to read, where its window is.
        max_px: coarse pixels that are read at most.
        max_fine_px: fine ones, which count where the ratio is large.
        chip_px: coarse pixels along the side of a chip, when not all is read.
        hsi_index: 0-based bands as for `PairReader`.
        msi_index: likewise.
        feedback: asked about a cancel between chips.

    Returns:
        Pairs of one image each, (1, L, h, w) and (1, M, h*r, w*r), on the CPU; those of a large
        pair with at least one pixel that is valid in both.

    Raises:
        SceneError: no pixel is valid in both images, or a file cannot be read.
    """
    watch = (feedback or SilentFeedback()).raise_if_cancelled
    max_px = max(1, min(max_px, max_fine_px // pair.ratio**2))
    chip_px = min(chip_px, math.isqrt(max_px))
    with PairReader(pair, hsi_index, msi_index) as reader:
        chips = []
        for places in _cells(pair.window, max_px, chip_px):
            watch()
            best = _fullest(reader, places, pair.ratio)
            if best is not None:
                chips.append(as_tensors(best))
    if chips:
        return chips
    raise SceneError(
        f"No pixel of {pair.hsi.name} and {pair.msi.name} has measurements in both images where "
        "they overlap.",
        "Check what the images mark as nodata; choose others, or another extent.",
    )


def as_tensors(arrays: PairArrays) -> ImagePair:
    """Take over what was read, as a batch of one."""
    return ImagePair(*(torch.from_numpy(array)[None] for array in arrays))


def _cells(window: Window, max_px: int, chip_px: int) -> Iterator[list[Window]]:
    """For each chip that is wanted, the places it may have, the preferred one first."""
    if window.height * window.width <= max_px:
        yield [window]
        return
    height, width = min(chip_px, window.height), min(chip_px, window.width)
    count = max(1, max_px // (height * width))
    rows, cols = _shape_of_cells(window, count, height, width)
    for row in range(rows):
        for col in range(cols):
            row_start = window.row_off + row * window.height // rows
            row_room = window.row_off + (row + 1) * window.height // rows - row_start - height
            col_start = window.col_off + col * window.width // cols
            col_room = window.col_off + (col + 1) * window.width // cols - col_start - width
            yield [
                Window(
                    row_start + round(share * row_room),
                    col_start + round(other * col_room),
                    height,
                    width,
                )
                for share, other in _CELL_PLACES
            ]


def _shape_of_cells(window: Window, count: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of at most ``count`` nearly square cells that each hold a chip."""
    most_rows, most_cols = window.height // height, window.width // width
    rows = round(math.sqrt(count * window.height / window.width))
    rows = min(max(rows, 1), most_rows, count)
    cols = min(max(count // rows, 1), most_cols)
    return min(max(count // cols, rows), most_rows), cols


def _fullest(reader: PairReader, places: Sequence[Window], ratio: int) -> PairArrays | None:
    """The first chip with enough valid pixels, else the one with most; None: none has any."""
    best, best_share = None, 0.0
    for place in places:
        chip = reader.read(place)
        share = float(valid_in_both(chip, ratio).mean())
        if share > best_share:
            best, best_share = chip, share
        if share >= _ENOUGH_VALID:
            break
    return best


def valid_in_both(arrays: PairArrays, ratio: int) -> NDArray[np.bool_]:
    """(h*r, w*r) bool, True where both images have a measurement."""
    coarse = arrays.hsi_valid.repeat(ratio, 0).repeat(ratio, 1)
    return coarse & arrays.msi_valid

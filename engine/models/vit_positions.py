"""Where a token stands, for vision transformers that others trained: tables and rotations.

Additive tables (plain sin-cos, Galileo's, learned ones) and the rotary positions of DINOv3 (arXiv
2508.10104), each for any grid of tokens. Sin-cos on scaled coordinates is a code of SpectralX too
and stands in `engine.models.spectralx.encodings`.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from engine.models.galileo_embedding import REFERENCE_PIXEL_M, place_codes
from engine.models.transformer import sincos_positions


def galileo_positions(rows: int, cols: int, width: int, step: float) -> Tensor:
    """The last quarter of Galileo's encodings, zeros before it.

    Args:
        rows: of the token grid.
        cols: of the token grid.
        width: D, divisible by 16.
        step: ground size of a patch in units of 10 m.

    Returns:
        (rows * cols, width) float32, row by row.
    """
    quarter = width // 4
    patch_size_m = torch.tensor([step * REFERENCE_PIXEL_M])
    return F.pad(place_codes(rows, cols, quarter, patch_size_m)[0], (width - quarter, 0))


def resized_positions(table: Tensor, grid: int, rows: int, cols: int, *, corners: bool) -> Tensor:
    """Resize a table of patch positions to another grid, bicubic.

    Args:
        table: (grid * grid, D), row by row.
        grid: its tokens a side.
        rows: of the grid wanted.
        cols: of the grid wanted.
        corners: the outermost tokens keep their positions (Prithvi); else the outer edges of the
            grids coincide (MAE and most others).

    Returns:
        (rows * cols, D) in the table's type.
    """
    image = rearrange(table, "(r c) d -> 1 d r c", r=grid, c=grid)
    resized = F.interpolate(image, size=(rows, cols), mode="bicubic", align_corners=corners)
    return rearrange(resized, "1 d r c -> (r c) d")


def plain_positions(rows: int, cols: int, width: int) -> Tensor:
    """(rows * cols, width) float32: MAE's fixed table, frequencies in float64."""
    return sincos_positions(rows, cols, width)


def rope_periods(head_dim: int, base: float) -> Tensor:
    """(head_dim / 4,) float32: the periods of DINOv3's rotations, from 1 to almost the base."""
    quarter = head_dim // 4
    exponent = torch.arange(quarter, dtype=torch.float32) / quarter
    return torch.as_tensor(base, dtype=torch.float32, device=exponent.device) ** exponent


def rope_angles(rows: int, cols: int, periods: Tensor) -> Tensor:
    """The angles by which DINOv3 turns queries and keys.

    Coordinates are the tokens' centres, -1 to 1 along each side of its own.

    Args:
        rows: of the token grid.
        cols: of the token grid.
        periods: (head_dim / 4,).

    Returns:
        (rows * cols, head_dim), row by row, in the periods' type; the second half of the last
        axis repeats the first.
    """

    def centres(count: int) -> Tensor:
        steps = torch.arange(count, dtype=periods.dtype, device=periods.device)
        return 2 * (steps + 0.5) / count - 1

    row, col = torch.meshgrid(centres(rows), centres(cols), indexing="ij")
    places = torch.stack([row.flatten(), col.flatten()], dim=1)
    half = (2 * math.pi * places[:, :, None] / periods).flatten(1)
    return torch.cat([half, half], dim=1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn pairs of values, one of each half of a head.

    Args:
        x: (B, heads, N, head_dim).
        angles: broadcasts to it.
    """
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x * angles.cos().to(x.dtype) + turned * angles.sin().to(x.dtype)

"""Images as tokens and back: one square of pixels with all its channels is one vector."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor


def patchify(x: Tensor, patch_px: int) -> Tensor:
    """Cut images into the pixel vectors of their tokens.

    Args:
        x: (B, C, H, W), sides divisible by ``patch_px``.
        patch_px: p, side of a token.

    Returns:
        (B, N, p * p * C), tokens in row order; in a vector the channel changes fastest, then the
        column, as in MAE and Prithvi.
    """
    return rearrange(x, "b c (r p) (s q) -> b (r s) (p q c)", p=patch_px, q=patch_px)


def unpatchify(tokens: Tensor, patch_px: int, rows: int, cols: int) -> Tensor:
    """Put images together from the pixel vectors of their tokens; undoes `patchify`.

    Args:
        tokens: (B, N, p * p * C).
        patch_px: p, side of a token.
        rows: of the token grid.
        cols: of the token grid, N = rows * cols.

    Returns:
        (B, C, rows * p, cols * p).
    """
    return rearrange(
        tokens, "b (r s) (p q c) -> b c (r p) (s q)", r=rows, s=cols, p=patch_px, q=patch_px
    )


def take_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Take some tokens of each sample.

    Args:
        tokens: (B, N, …).
        ids: (B, K) int64, 0-based.

    Returns:
        (B, K, …), in the order of ``ids``. A copy of the rows that are asked for; a `gather`
        would need an index for each of their values.
    """
    sample = torch.arange(len(tokens), device=tokens.device)[:, None]
    return tokens[sample, ids]


def put_tokens(tokens: Tensor, ids: Tensor, values: Tensor) -> Tensor:
    """Replace some tokens of each sample.

    Args:
        tokens: (B, N, …), left as they are.
        ids: (B, K) int64, 0-based, each sample's without repetition.
        values: (B, K, …), of the same dtype.

    Returns:
        (B, N, …).
    """
    sample = torch.arange(len(tokens), device=tokens.device)[:, None]
    return tokens.index_put((sample, ids), values)

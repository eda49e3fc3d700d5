"""How Galileo makes tokens: patches of any size by one kernel, and the encodings that are added."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.transformer import POSITION_BASE

REFERENCE_PIXEL_M = 10.0  # positions count pixels of Sentinel-2
MONTHS = 12

Groups = Mapping[str, tuple[int, ...]]


class PatchProjection(nn.Module):
    """A square of pixels of a group's channels becomes one token, for any size of the square.

    The kernel is stored for the largest patch and resized as FlexiViT does (arXiv 2212.08013, eq.
    4): so that a patch resized together with its kernel gives the same token.
    """

    def __init__(self, in_channels: int, embed_dim: int, max_patch_px: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dim, max_patch_px, stride=max_patch_px)

    def forward(self, x: Tensor, patch_px: int) -> Tensor:
        """(B, C, H, W), sides divisible by the patch, to (B, H / patch, W / patch, D)."""
        tokens = F.conv2d(x, self.kernel(patch_px), self.proj.bias, stride=patch_px)
        return tokens.permute(0, 2, 3, 1)

    def kernel(self, patch_px: int) -> Tensor:
        """(D, C, patch, patch) for a patch of another size than the stored one."""
        stored = self.proj.weight
        side_px = stored.shape[-1]
        if patch_px == side_px:
            return stored
        matrix = kernel_resizing(side_px, patch_px).to(stored.device)
        with torch.autocast(stored.device.type, enabled=False):
            resized = stored.flatten(2).float() @ matrix.T
        return resized.reshape(*stored.shape[:2], patch_px, patch_px).to(stored)


@lru_cache(maxsize=16)
def kernel_resizing(from_px: int, to_px: int) -> Tensor:
    """The matrix that resizes kernels: pseudo-inverse of the one that resizes images.

    Returns:
        (to_px ** 2, from_px ** 2) float32, on the CPU, where its rounding is always the same.
    """
    units = torch.eye(from_px**2).reshape(-1, 1, from_px, from_px)
    resized = F.interpolate(units, size=(to_px, to_px), mode="bicubic", antialias=True)
    matrix: Tensor = torch.linalg.pinv(resized.reshape(from_px**2, to_px**2))
    return matrix


def patch_projections(groups: Groups, embed_dim: int, max_patch_px: int) -> nn.ModuleDict:
    """One projection a group, by the group's name."""
    return nn.ModuleDict(
        {
            name: PatchProjection(len(channels), embed_dim, max_patch_px)
            for name, channels in groups.items()
        }
    )


def linear_projections(groups: Groups, embed_dim: int) -> nn.ModuleDict:
    """One linear layer a group, by the group's name."""
    return nn.ModuleDict(
        {name: nn.Linear(len(channels), embed_dim) for name, channels in groups.items()}
    )


def project_patches(layers: nn.ModuleDict, groups: Groups, x: Tensor, patch_px: int) -> Tensor:
    """(B, C, H, W) to (B, h, w, groups, D); ``groups`` name their channels in ``x``."""
    tokens = [layers[name](x[:, list(channels)], patch_px) for name, channels in groups.items()]
    return torch.stack(tokens, dim=3)


def project_values(layers: nn.ModuleDict, groups: Groups, x: Tensor) -> Tensor:
    """(…, C) to (…, groups, D)."""
    tokens = [layers[name](x[..., list(channels)]) for name, channels in groups.items()]
    return torch.stack(tokens, dim=-2)


def axis_code(positions: Tensor, width: int) -> Tensor:
    """Sines, then cosines of positions (…) on one axis: (…, width).

    The exponent is i / (2 width), a quarter of the usual one; the public weights were trained so.
    """
    half = torch.arange(width // 2, device=positions.device, dtype=torch.float32)
    angle = positions.float()[..., None] * POSITION_BASE ** -(half / (2 * width))
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def place_codes(rows: int, cols: int, width: int, patch_size_m: Tensor) -> Tensor:
    """Positions in space: half the width for the column, half for the row.

    They count ground, in units of 10 m, so that a coarse image is further apart. This is the only
    place where the resolution enters.

    Args:
        rows: of the grid of patches.
        cols: of the grid of patches.
        width: divisible by 4.
        patch_size_m: (B,) ground size of a patch.

    Returns:
        (B, rows * cols, width) float32, row by row.
    """
    b = len(patch_size_m)
    step = patch_size_m.float()[:, None] / REFERENCE_PIXEL_M
    col = axis_code(torch.arange(cols, device=step.device) * step, width // 2)
    row = axis_code(torch.arange(rows, device=step.device) * step, width // 2)
    shape = (b, rows, cols, width // 2)
    joined = torch.cat([col[:, None].expand(shape), row[:, :, None].expand(shape)], dim=-1)
    return joined.flatten(1, 2)


def month_table(width: int) -> Tensor:
    """(12, width) float32: the year as a circle, sine and cosine repeated over half the width."""
    angle = (2 * math.pi / MONTHS) * torch.arange(MONTHS, dtype=torch.float64)[:, None]
    half = width // 2
    return torch.cat([angle.sin().expand(-1, half), angle.cos().expand(-1, half)], dim=1).float()


def quarters(parts: tuple[Tensor | None, ...], shape: torch.Size) -> Tensor:
    """Join encodings side by side.

    Args:
        parts: four, each (…, D / 4) that fits ``shape`` by broadcasting; None for zeros.
        shape: of the tokens without D.

    Returns:
        (*shape, D).
    """
    first = next(part for part in parts if part is not None)
    zeros = first.new_zeros(first.shape[-1])
    wide = [(zeros if part is None else part).expand(*shape, -1) for part in parts]
    return torch.cat(wide, dim=-1)

"""LoRA and its scaled form SLR: the adapters that SpectralX is compared with.

LoRA (arXiv 2106.09685) with biases and SLR (Scheibenreif et al., CVPR workshops 2024), both as in
the published comparison: rank 16, beside a frozen linear layer or a frozen patch convolution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

RANK = 16  # published


class LowRankLinear(nn.Module):
    """A frozen linear layer with a low-rank path: s_out * (W (s_in * x) + up(down(s_in * x))).

    Args:
        base: the layer, which is frozen here.
        rank: width between ``down`` and ``up``.
        scaled: train the scales s_in and s_out, which start at 1 (SLR); else there are none.
    """

    def __init__(self, base: nn.Linear, rank: int = RANK, scaled: bool = False) -> None:
        super().__init__()
        _check_rank(rank)
        like: dict[str, Any] = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, **like)
        self.up = nn.Linear(rank, base.out_features, **like)
        nn.init.normal_(self.down.weight)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.in_scaler = nn.Parameter(torch.ones(base.in_features, **like)) if scaled else None
        self.out_scaler = nn.Parameter(torch.ones(base.out_features, **like)) if scaled else None

    @property
    def in_features(self) -> int:
        """Width of a token that comes in."""
        return self.base.in_features

    @property
    def out_features(self) -> int:
        """Width of a token that goes out."""
        return self.base.out_features

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) to (..., d_out)."""
        if self.in_scaler is not None:
            x = x * self.in_scaler
        y: Tensor = self.base(x) + self.up(self.down(x))
        return y if self.out_scaler is None else y * self.out_scaler


class LowRankConv(nn.Module):
    """A frozen patch convolution with a low-rank path: s * (W x + up(down(x))).

    The path cuts the patch in two steps, each a convolution as wide as its stride, see
    `split_patch`. It starts at 0 (ours; the published start is not known).

    Args:
        base: a square convolution with its kernel as its stride, which is frozen here.
        rank: channels between ``down`` and ``up``.
        scaled: train a scale of each output channel, which starts at 1 (SLR).

    Raises:
        ValueError: the convolution is none of patches.
    """

    def __init__(self, base: nn.Conv2d, rank: int = RANK, scaled: bool = False) -> None:
        super().__init__()
        _check_rank(rank)
        patch_px = base.kernel_size[0]
        if base.kernel_size != base.stride or base.kernel_size != (patch_px, patch_px):
            raise ValueError(
                "A low-rank path is for square patches that touch, not for a kernel of "
                f"{base.kernel_size} with a stride of {base.stride}."
            )
        like: dict[str, Any] = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.base = base.requires_grad_(False)
        self.down, self.up = low_rank_convs(
            base.in_channels, base.out_channels, patch_px, rank, **like
        )
        nn.init.zeros_(self.up.weight)
        if self.up.bias is not None:
            nn.init.zeros_(self.up.bias)
        self.scaler = nn.Parameter(torch.ones(base.out_channels, **like)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, D, H / patch, W / patch)."""
        y: Tensor = self.base(x) + self.up(self.down(x))
        return y if self.scaler is None else y * self.scaler[:, None, None]


def low_rank_convs(
    in_channels: int, out_channels: int, patch_px: int, rank: int, **like: Any
) -> tuple[nn.Conv2d, nn.Conv2d]:
    """The two convolutions of a low-rank path over patches, each as wide as its stride."""
    down_px, up_px = split_patch(patch_px)
    down = nn.Conv2d(in_channels, rank, down_px, stride=down_px, **like)
    up = nn.Conv2d(rank, out_channels, up_px, stride=up_px, **like)
    return down, up


def split_patch(patch_px: int) -> tuple[int, int]:
    """Strides of both steps: 16 = 4 x 4 as published; 8 = 4 x 2, 4 = 2 x 2, 2 = 2 x 1 (ours).

    Raises:
        ValueError: the patch is no power of two.
    """
    if patch_px < 1 or patch_px & (patch_px - 1):
        raise ValueError(f"A patch of {patch_px} px is not a power of two (1, 2, 4, 8, 16, …).")
    up_px = 1 << (patch_px.bit_length() - 1) // 2
    return patch_px // up_px, up_px


def _check_rank(rank: int) -> None:
    if rank < 1:
        raise ValueError(f"A low-rank path has a rank of at least 1, not {rank}.")

"""The parts that every vision transformer here is made of: positions, attention, blocks.

Members are named as in the public ViT and Prithvi checkpoints (``norm1``, ``attn.qkv``,
``attn.proj``, ``norm2``, ``mlp.fc1``, ``mlp.fc2``), so that blocks of equal width can be copied.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

POSITION_BASE = 10_000.0  # the base of sine positions since "Attention Is All You Need"


def sincos_positions(rows: int, cols: int, embed_dim: int) -> Tensor:
    """Fixed positions of a grid of tokens: one half of the width for columns, one for rows.

    Args:
        rows: of the token grid.
        cols: of the token grid.
        embed_dim: divisible by 4; each axis gets as many sines as cosines.

    Returns:
        (rows * cols, embed_dim) float32, tokens in row order.
    """
    half = embed_dim // 2
    row_code = sincos_axis(rows, half)[:, None, :].expand(rows, cols, half)
    col_code = sincos_axis(cols, half)[None, :, :].expand(rows, cols, half)
    return rearrange(torch.cat([col_code, row_code], dim=-1), "r c d -> (r c) d")


def sincos_axis(length: int, width: int) -> Tensor:
    """Code the places 0, 1, … of one axis: (length, width) float32, all sines, then all cosines."""
    frequency = POSITION_BASE ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


class Attention(nn.Module):
    """Multi-head self-attention that never looks at masked tokens.

    Args:
        embed_dim: D, divisible by ``num_heads``.
        num_heads: of attention.
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, token_valid: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: (B, N, D).
            token_valid: (B, N) bool, True = may be looked at; None when all may.

        Returns:
            (B, N, D).
        """
        q, k, v = rearrange(self.qkv(x), "b n (t h d) -> t b h n d", t=3, h=self.num_heads)
        mask = None if token_valid is None else token_valid[:, None, None, :]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.proj(rearrange(y, "b h n d -> b n (h d)"))
        return out


class Mlp(nn.Module):
    """Two linear layers with a GELU between, on each token."""

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class Block(nn.Module):
    """A pre-norm transformer block.

    Args:
        embed_dim: D.
        num_heads: of attention.
        mlp_ratio: hidden width of the MLP over D.
        dropout: share of the values of each branch that training sets to 0.
        norm_eps: what both norms add to a variance.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.attn = Attention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.mlp = Mlp(embed_dim, int(embed_dim * mlp_ratio))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, token_valid: Tensor | None = None) -> Tensor:
        """(B, N, D) to (B, N, D); see `Attention` for ``token_valid``."""
        x = x + self.dropout(self.attn(self.norm1(x), token_valid))
        y: Tensor = x + self.dropout(self.mlp(self.norm2(x)))
        return y


def init_transformer(module: nn.Module) -> None:
    """Initialise linear layers as ViT does: Xavier weights, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

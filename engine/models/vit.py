"""A vision transformer that somebody else trained, without its patch embedding: the foundation.

One class for the encoders of MAE (arXiv 2111.06377), ScaleMAE (2212.14532), SatMAE++ (2403.05419),
DINOv3 (2508.10104), Prithvi and Galileo: they differ in their positions, in the tokens before
the patches and in the scale of their branches. Members are named as in the public ViT files. A
tokenizer makes the tokens, and may replace ``mlp.fc1``, ``mlp.fc2``, ``attn.qkv`` and
``attn.proj``, which are plain linear layers, by adapted ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.spectralx.encodings import spatial_encoding
from engine.models.teacher import keep_tokens
from engine.models.transformer import Mlp, init_transformer
from engine.models.vit_positions import (
    galileo_positions,
    plain_positions,
    resized_positions,
    rope_angles,
    rope_periods,
    rotate,
)

Positions = Literal["stored", "sincos", "gsd", "rope", "galileo", "none"]
"""How tokens learn where they stand.

``stored``: a table, resized for other grids; ``sincos``: the same, computed for other grids;
``gsd``: sin-cos on coordinates times ``position_step``, CLS zero (ScaleMAE in pre-training);
``rope``: queries and keys are turned (DINOv3); ``galileo``: a constant code of channel, date and
month, and one of place on the ground; ``none``.
"""

Hook = Callable[[int, Tensor], Tensor]
TABLES = ("stored", "sincos")  # kinds that a table of the file belongs to


@dataclass(frozen=True)
class FoundationIdentity:
    """Which frozen network a model was built on; it stands in the settings of the model.

    Args:
        name: of the package, or of the file without its ending.
        sha256: of the file of weights, 64 hexadecimal digits.
        kind: of `engine.packages.vit_layouts.KINDS`.
        licence: SPDX identifier of the weights.
        source: where to get them.
    """

    name: str
    sha256: str
    kind: str
    licence: str
    source: str


@dataclass(frozen=True)
class ViTConfig:
    """The settings of an encoder; the defaults are those of a ViT-L/16 of MAE.

    Args:
        embed_dim: D, width of a token, divisible by 4 (16 for Galileo) and by ``num_heads``.
        depth: transformer blocks.
        num_heads: of attention.
        mlp_ratio: hidden width of a block's MLP over D.
        norm_eps: of all layer norms.
        patch_px: side of a patch in its own pre-training.
        grid: tokens a side that the stored positions are for.
        prefix_tokens: P, tokens before the patches: CLS and registers.
        positions: see `Positions`.
        layer_scale: each branch is multiplied by a vector before it is added.
        drop_path: share of the images whose branch training leaves out in the last block;
            earlier blocks less, by depth, the first none.
        rope_base: longest period of ``rope``, where a file stores none.
        final_norm_on_taps: taps pass the final norm, as DINOv3 gives out its features.
        position_step: what one token counts in ``gsd`` (10 in SpectralX) and ``galileo`` (ground
            size of a patch in units of 10 m).
        align_corners: how ``stored`` positions are resized; see `resized_positions`.

    Raises:
        ValueError: a setting is out of range.
    """

    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    patch_px: int = 16
    grid: int = 14
    prefix_tokens: int = 1
    positions: Positions = "stored"
    layer_scale: bool = False
    drop_path: float = 0.0
    rope_base: float = 100.0
    final_norm_on_taps: bool = False
    position_step: float = 10.0
    align_corners: bool = False

    def __post_init__(self) -> None:
        sizes = (self.embed_dim, self.depth, self.num_heads, self.patch_px, self.grid)
        if min(sizes) < 1 or self.prefix_tokens < 0:
            raise ValueError(f"An encoder needs sizes of at least 1, not {sizes}.")
        divisor = 16 if self.positions == "galileo" else 4
        if self.embed_dim % divisor or self.embed_dim % self.num_heads:
            raise ValueError(
                f"The token width {self.embed_dim} must be divisible by {divisor} (positions) and "
                f"by the {self.num_heads} heads."
            )
        if self.positions == "rope" and (self.embed_dim // self.num_heads) % 4:
            raise ValueError(
                f"Rotary positions need heads whose width is divisible by 4, not "
                f"{self.embed_dim // self.num_heads}."
            )
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path is a share from 0 to below 1, not {self.drop_path}.")

    @property
    def head_dim(self) -> int:
        """Width of one head of attention."""
        return self.embed_dim // self.num_heads


@dataclass(frozen=True, eq=False)
class ViTOutput:
    """What the encoder returns.

    Args:
        tokens: (B, P + N or K, D) after the last block, without the final norm.
        taps: (B, N or K, D) patch tokens after each block that was asked for.
    """

    tokens: Tensor
    taps: tuple[Tensor, ...]


class ViT(nn.Module):
    """The blocks of an encoder, the tokens before the patches, positions, and the final norm."""

    prefix: nn.Parameter | None
    pos_embed: Tensor | None
    rope_periods: Tensor | None

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        width, count = config.embed_dim, config.prefix_tokens
        self.prefix = nn.Parameter(torch.zeros(1, count, width)) if count else None
        self.register_buffer("pos_embed", _initial_table(config))
        is_rope = config.positions == "rope"
        periods = rope_periods(config.head_dim, config.rope_base) if is_rope else None
        self.register_buffer("rope_periods", periods)
        self.blocks = nn.ModuleList(
            ViTBlock(config, config.drop_path * index / max(config.depth - 1, 1))
            for index in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.apply(init_transformer)
        if self.prefix is not None:
            nn.init.normal_(self.prefix, std=0.02)

    def forward(
        self,
        tokens: Tensor,
        *,
        rows: int,
        cols: int,
        ids_keep: Tensor | None = None,
        taps: tuple[int, ...] = (),
        hook: Hook | None = None,
        positions: Positions | None = None,
        step: float | None = None,
    ) -> ViTOutput:
        """Encode.

        Args:
            tokens: (B, rows * cols, D), row by row, without positions.
            rows: of the token grid.
            cols: of the token grid.
            ids_keep: (B, K) int64, 0-based, the tokens that stay, in this order; they are taken
                out after positions were added. None keeps all.
            taps: ascending 0-based numbers of blocks.
            hook: called after each block in ``taps`` with its number and its patch tokens; what it
                returns, of the same shape, goes on to the next block and is the tap. Prefix tokens
                pass by it.
            positions: another kind than the settings' for this call: ``gsd`` for ScaleMAE as in
                its pre-training, ``none``, or the settings' own.
            step: another ``position_step`` than the settings'.

        Raises:
            ValueError: tokens or taps do not fit, or the file has not what the positions need.
        """
        self._check(tokens, rows * cols, taps)
        kind = positions or self.config.positions
        step = self.config.position_step if step is None else step
        prefix_table, patch_table = self.position_codes(kind, rows, cols, step)
        # Under autocast this sum is float32, and so is the residual stream after it.
        x = tokens if patch_table is None else tokens + patch_table.to(tokens.device)
        x = self._with_prefix(keep_tokens(x, ids_keep), prefix_table)
        angles = self._angles(rows, cols, ids_keep) if kind == "rope" else None
        return self._run(x, angles, taps, hook)

    def position_codes(
        self, kind: Positions, rows: int, cols: int, step: float
    ) -> tuple[Tensor | None, Tensor | None]:
        """What is added to prefix and patch tokens: (P, D) and (N, D), None for nothing."""
        width, grid = self.config.embed_dim, self.config.grid
        if kind in ("none", "rope"):
            return None, None
        if kind == "gsd":
            return None, spatial_encoding(rows, cols, width, step)
        if self.pos_embed is None:
            raise ValueError(f"This encoder has no table for {kind} positions.")
        table = self.pos_embed[0]
        if kind == "galileo":
            place = galileo_positions(rows, cols, width, step).to(table)
            return None, table[:1] + place
        prefix, patches = table[: self.config.prefix_tokens], table[self.config.prefix_tokens :]
        if (rows, cols) == (grid, grid):
            return prefix, patches
        if kind == "sincos":
            return prefix, plain_positions(rows, cols, width).to(table)
        corners = self.config.align_corners
        return prefix, resized_positions(patches, grid, rows, cols, corners=corners)

    def _check(self, tokens: Tensor, count: int, taps: tuple[int, ...]) -> None:
        """Refuse tokens of another grid or width, and blocks that are not there."""
        if tokens.dim() != 3 or tuple(tokens.shape[1:]) != (count, self.config.embed_dim):
            raise ValueError(
                f"The encoder takes (B, {count}, {self.config.embed_dim}) tokens of this grid, not "
                f"{tuple(tokens.shape)}."
            )
        if list(taps) != sorted(set(taps)) or not set(taps) <= set(range(self.config.depth)):
            raise ValueError(
                f"Taps are ascending numbers of blocks, 0 to {self.config.depth - 1}, not {taps}."
            )

    def _with_prefix(self, patches: Tensor, table: Tensor | None) -> Tensor:
        """Put CLS and registers, with their positions, before the patch tokens."""
        if self.prefix is None:
            return patches
        prefix = self.prefix if table is None else self.prefix + table
        return torch.cat([prefix.expand(len(patches), -1, -1), patches], dim=1)

    def _angles(self, rows: int, cols: int, ids_keep: Tensor | None) -> Tensor:
        """Angles of the patch tokens: (1 or B, 1, N or K, head_dim)."""
        if self.rope_periods is None:
            raise ValueError("This encoder has no periods for rotary positions.")
        angles = rope_angles(rows, cols, self.rope_periods)[None]
        if ids_keep is not None:
            angles = keep_tokens(angles.expand(len(ids_keep), -1, -1), ids_keep)
        return angles[:, None]

    def _run(
        self, x: Tensor, angles: Tensor | None, taps: tuple[int, ...], hook: Hook | None
    ) -> ViTOutput:
        """Pass the blocks, and take out the patch tokens where asked for."""
        count = self.config.prefix_tokens
        tapped = []
        for index, block in enumerate(self.blocks):
            x = block(x, angles)
            if index not in taps:
                continue
            if hook is not None:
                x = torch.cat([x[:, :count], hook(index, x[:, count:])], dim=1)
            tap = x[:, count:]
            tapped.append(self.norm(tap) if self.config.final_norm_on_taps else tap)
        return ViTOutput(x, tuple(tapped))


class ViTBlock(nn.Module):
    """A pre-norm transformer block.

    Args:
        config: of the encoder.
        drop_path: share of the images whose branches training leaves out here.
    """

    def __init__(self, config: ViTConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        width = config.embed_dim
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn = ViTAttention(width, config.num_heads)
        self.ls1 = LayerScale(width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = Mlp(width, round(width * config.mlp_ratio))
        self.ls2 = LayerScale(width) if config.layer_scale else nn.Identity()
        self.drop_path = drop_path

    def forward(self, x: Tensor, angles: Tensor | None = None) -> Tensor:
        """(B, P + N, D) to the same; see `ViTAttention` for ``angles``."""
        x = x + self._drop(self.ls1(self.attn(self.norm1(x), angles)))
        y: Tensor = x + self._drop(self.ls2(self.mlp(self.norm2(x))))
        return y

    def _drop(self, branch: Tensor) -> Tensor:
        """Leave the branch out for some images, and raise the others' so that the mean stays."""
        if not self.training or self.drop_path == 0:
            return branch
        keep = 1 - self.drop_path
        kept = torch.empty(len(branch), 1, 1, device=branch.device).bernoulli_(keep)
        return branch * (kept / keep).to(branch.dtype)


class ViTAttention(nn.Module):
    """Multi-head self-attention, with or without rotary positions.

    Args:
        embed_dim: D, divisible by ``num_heads``.
        num_heads: of attention.
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, angles: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: (B, P + N, D).
            angles: (1 or B, 1, N, head_dim) by which queries and keys of the last N tokens are
                turned; None turns none.

        Returns:
            (B, P + N, D).
        """
        q, k, v = rearrange(self.qkv(x), "b n (t h d) -> t b h n d", t=3, h=self.num_heads)
        if angles is not None:
            q, k = _turn_last(q, angles), _turn_last(k, angles)
        y = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(rearrange(y, "b h n d -> b n (h d)"))
        return out


class LayerScale(nn.Module):
    """A learned factor for each value of a branch; it begins small, as in DINOv3."""

    def __init__(self, width: int, initial: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) to the same."""
        return x * self.gamma


def _turn_last(x: Tensor, angles: Tensor) -> Tensor:
    """Turn (B, heads, P + N, head_dim) where the last N tokens have angles."""
    count = x.shape[2] - angles.shape[2]
    return torch.cat([x[:, :, :count], rotate(x[:, :, count:], angles)], dim=2)


def _initial_table(config: ViTConfig) -> Tensor | None:
    """The table of an encoder that is not loaded yet: sin-cos, zeros for the prefix."""
    if config.positions == "galileo":
        return torch.zeros(1, 1, config.embed_dim)
    if config.positions not in TABLES:
        return None
    table = plain_positions(config.grid, config.grid, config.embed_dim)
    return F.pad(table, (0, 0, config.prefix_tokens, 0))[None]

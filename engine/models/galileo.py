"""Galileo's encoder: a transformer over tokens of place, date and kind of measurement.

Galileo: Learning Global and Local Features in Pretrained Remote Sensing Models (arXiv 2502.09356);
layers and names as in nasaharvest/galileo, so that its public weights fit. Of its many inputs a
scene fills only the ten bands of Sentinel-2; the whole encoder is here so that it can be compared
with the public code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.galileo_embedding import (
    MONTHS,
    axis_code,
    linear_projections,
    month_table,
    patch_projections,
    place_codes,
    project_patches,
    project_values,
    quarters,
)
from engine.models.galileo_inputs import (
    DN_PER_REFLECTANCE,
    FIRST_SENTINEL2_CHANNEL,
    SENTINEL2_GROUP_INDEX,
    SENTINEL2_GROUPS,
    SENTINEL2_MEAN_DN,
    SENTINEL2_STD_DN,
    SPACE_GROUPS,
    SPACE_TIME_GROUPS,
    STATIC_GROUPS,
    TIME_GROUPS,
    GalileoInputs,
    GalileoOutput,
    PerKind,
)
from engine.models.teacher import TeacherNetwork, check_request, keep_tokens, resize
from engine.models.transformer import Mlp

JULY = 6  # 0 = January; what the public evaluation takes where no month is known


@dataclass(frozen=True)
class GalileoConfig:
    """The settings of the encoder; the defaults are Galileo nano's.

    Args:
        embed_dim: D, width of a token, divisible by 16 (four encodings, two of them of sines and
            cosines on two axes) and by ``num_heads``.
        depth: transformer blocks.
        num_heads: of attention.
        mlp_ratio: hidden width of a block's MLP over ``embed_dim``.
        max_patch_px: side of the stored kernels, and of the largest patch.
        max_dates: rows of the stored table of positions in time.

    Raises:
        ValueError: a setting is out of range.
    """

    embed_dim: int = 128
    depth: int = 4
    num_heads: int = 8
    mlp_ratio: float = 4.0
    max_patch_px: int = 8
    max_dates: int = 24

    def __post_init__(self) -> None:
        sizes = (self.depth, self.num_heads, self.max_patch_px, self.max_dates, self.embed_dim)
        if min(sizes) < 1:
            raise ValueError(f"An encoder needs sizes of at least 1, not {sizes}.")
        if self.embed_dim % 16 or self.embed_dim % self.num_heads:
            raise ValueError(
                f"The token width {self.embed_dim} must be divisible by 16 (encodings) and by the "
                f"{self.num_heads} heads."
            )


class GalileoEncoder(TeacherNetwork):
    """The whole encoder; `features` is its short way for ten bands of one date."""

    pos_embed: Tensor
    band_shift: Tensor
    band_scale: Tensor

    def __init__(self, config: GalileoConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GalileoConfig()
        quarter = config.embed_dim // 4
        sizes = (config.embed_dim, config.max_patch_px)
        # Tables and embeddings by their public names; the tables are stored in the public files.
        self.register_buffer("pos_embed", axis_code(torch.arange(config.max_dates), quarter))
        self.s_t_channel_embed = nn.Parameter(torch.zeros(len(SPACE_TIME_GROUPS), quarter))
        self.sp_channel_embed = nn.Parameter(torch.zeros(len(SPACE_GROUPS), quarter))
        self.t_channel_embed = nn.Parameter(torch.zeros(len(TIME_GROUPS), quarter))
        self.st_channel_embed = nn.Parameter(torch.zeros(len(STATIC_GROUPS), quarter))
        self.month_embed = nn.Embedding(MONTHS, quarter)
        self.month_embed.weight.data.copy_(month_table(quarter))
        self.space_time_embed = patch_projections(SPACE_TIME_GROUPS, *sizes)
        self.space_embed = patch_projections(SPACE_GROUPS, *sizes)
        self.time_embed = linear_projections(TIME_GROUPS, config.embed_dim)
        self.static_embed = linear_projections(STATIC_GROUPS, config.embed_dim)
        self.blocks = nn.ModuleList(GalileoBlock(config) for _index in range(config.depth))
        self.norm = nn.LayerNorm(config.embed_dim)
        # Not among the weights: public files do not hold them.
        mean, std = torch.tensor(SENTINEL2_MEAN_DN), torch.tensor(SENTINEL2_STD_DN)
        self.register_buffer("band_shift", mean - 2 * std, persistent=False)
        self.register_buffer("band_scale", 4 * std, persistent=False)

    @property
    def width(self) -> int:
        """Values of a feature."""
        return self.config.embed_dim

    @property
    def depth(self) -> int:
        """Transformer blocks."""
        return self.config.depth

    def normalise(self, reflectance: Tensor) -> Tensor:
        """Scale (B, 10, H, W) as in pre-training: the mean to 0.5, two spreads to 0 and 1."""
        shift, scale = self.band_shift[:, None, None], self.band_scale[:, None, None]
        return (reflectance * DN_PER_REFLECTANCE - shift) / scale

    def forward(self, inputs: GalileoInputs, blocks: tuple[int, ...] = ()) -> GalileoOutput:
        """Encode what is visible.

        Args:
            inputs: see there.
            blocks: 1-based numbers of blocks whose tokens are returned too.
        """
        p = inputs.patch_px
        masks = PerKind(
            inputs.masks.space_time[:, ::p, ::p],
            inputs.masks.space[:, ::p, ::p],
            inputs.masks.time,
            inputs.masks.static,
        )
        visible = PerKind(*(part < 1 for part in masks.parts()))
        tokens = self.project(inputs.values, p)
        encodings = self.encodings(visible, inputs.months, inputs.pixel_size_m * p)
        sequence = tokens.flatten(trailing=1) + encodings.flatten(trailing=1)
        packed, place, is_token = _pack(sequence, visible.flatten(trailing=0))
        outputs = [_unpack(packed, place, is_token, sequence)]
        for block in self.blocks:
            packed = block(packed, is_token)
            outputs.append(_unpack(packed, place, is_token, sequence))
        return GalileoOutput(
            tokens=visible.unflatten(self.norm(outputs[-1])),
            visible=visible,
            blocks=tuple(visible.unflatten(outputs[number]) for number in blocks),
        )

    def project(self, values: PerKind, patch_px: int) -> PerKind:
        """Make a token of each group, without encodings; shapes as `GalileoOutput.tokens`."""
        b, _h, _w, t, _c = values.space_time.shape
        dates = rearrange(values.space_time, "b h w t c -> (b t) c h w")
        space_time = project_patches(self.space_time_embed, SPACE_TIME_GROUPS, dates, patch_px)
        space = project_patches(
            self.space_embed, SPACE_GROUPS, rearrange(values.space, "b h w c -> b c h w"), patch_px
        )
        return PerKind(
            rearrange(space_time, "(b t) h w g d -> b h w t g d", b=b, t=t),
            space,
            project_values(self.time_embed, TIME_GROUPS, values.time),
            project_values(self.static_embed, STATIC_GROUPS, values.static),
        )

    def encodings(self, visible: PerKind, months: Tensor, patch_size_m: Tensor) -> PerKind:
        """What is added to the tokens: four quarters for channel, date, month and place.

        Args:
            visible: for the shapes.
            months: (B, T) int64, 0 = January.
            patch_size_m: (B,) ground size of a patch.
        """
        b, h, w, t, _g = visible.space_time.shape
        quarter = self.config.embed_dim // 4
        date = self.pos_embed[:t].expand(b, t, quarter)
        month = self.month_embed(months)
        place = place_codes(h, w, quarter, patch_size_m)
        axes = (  # each kind's channel, date, month and place
            (
                self.s_t_channel_embed,
                date[:, None, None, :, None],
                month[:, None, None, :, None],
                place.reshape(b, h, w, 1, 1, quarter),
            ),
            (self.sp_channel_embed, None, None, place.reshape(b, h, w, 1, quarter)),
            (self.t_channel_embed, date[:, :, None], month[:, :, None], None),
            (self.st_channel_embed, None, None, None),
        )
        kinds = zip(axes, visible.parts(), strict=True)
        return PerKind(*(quarters(parts, mask.shape) for parts, mask in kinds))

    @torch.no_grad()
    def features(
        self,
        reflectance: Tensor,
        *,
        rows: int,
        cols: int,
        ids_keep: Tensor | None,
        pixel_size_m: Tensor,
        taps: tuple[int, ...],
        months: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Describe each token; see `TeacherNetwork.features`, which has all but ``months``.

        The patch is the student's where that is 1 to 8 pixels, else the image is resized for
        patches of 8. A feature is the mean over the five groups of Sentinel-2; NDVI stays hidden,
        as in the public evaluation. ``months`` (B,) int64 count from 0 = January; without them it
        is July. Tokens are squares on the ground: their height stands for both sides.
        """
        check_request(reflectance, len(SENTINEL2_MEAN_DN), taps, self.depth)
        patch_size_m = pixel_size_m * (reflectance.shape[-2] / rows)
        patch_px = native_patch_px(reflectance, rows, cols, self.config.max_patch_px)
        image = resize(reflectance, rows * patch_px, cols * patch_px)
        tokens = self._sentinel2_tokens(self.normalise(image), patch_px)
        tokens = tokens + self._sentinel2_encodings(rows, cols, patch_size_m, months)
        tokens = keep_tokens(tokens, ids_keep)  # (B, N, groups, D)
        groups = tokens.shape[2]
        sequence = tokens.flatten(1, 2)
        outputs = []
        for block in self.blocks:
            sequence = block(sequence)
            outputs.append(sequence)
        outputs[-1] = self.norm(sequence)
        return tuple(
            rearrange(outputs[tap - 1], "b (n g) d -> b n g d", g=groups).mean(dim=2)
            for tap in taps
        )

    def _sentinel2_tokens(self, x: Tensor, patch_px: int) -> Tensor:
        """(B, 10, H, W) normalised to (B, N, 5, D)."""
        groups = {
            name: tuple(channel - FIRST_SENTINEL2_CHANNEL for channel in SPACE_TIME_GROUPS[name])
            for name in SENTINEL2_GROUPS
        }
        return project_patches(self.space_time_embed, groups, x, patch_px).flatten(1, 2)

    def _sentinel2_encodings(
        self, rows: int, cols: int, patch_size_m: Tensor, months: Tensor | None
    ) -> Tensor:
        """(B, N, 5, D) for one date."""
        b, n = len(patch_size_m), rows * cols
        if months is None:
            months = torch.full((b,), JULY, device=patch_size_m.device)
        place = place_codes(rows, cols, self.config.embed_dim // 4, patch_size_m)
        parts = (
            self.s_t_channel_embed[list(SENTINEL2_GROUP_INDEX)],
            self.pos_embed[0],
            self.month_embed(months)[:, None, None],
            place[:, :, None],
        )
        return quarters(parts, torch.Size((b, n, len(SENTINEL2_GROUPS))))


class GalileoAttention(nn.Module):
    """Multi-head self-attention with a layer each for queries, keys and values."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(embed_dim, embed_dim)
        self.k = nn.Linear(embed_dim, embed_dim)
        self.v = nn.Linear(embed_dim, embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, is_token: Tensor | None) -> Tensor:
        """(B, N, D) to (B, N, D); places where ``is_token`` (B, N) is False are not looked at."""
        q, k, v = (
            rearrange(layer(x), "b n (h d) -> b h n d", h=self.num_heads)
            for layer in (self.q, self.k, self.v)
        )
        mask = None if is_token is None else is_token[:, None, None, :]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.proj(rearrange(y, "b h n d -> b n (h d)"))
        return out


class GalileoBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: GalileoConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.norm1 = nn.LayerNorm(width)
        self.attn = GalileoAttention(width, config.num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))

    def forward(self, x: Tensor, is_token: Tensor | None = None) -> Tensor:
        """(B, N, D) to (B, N, D); see `GalileoAttention` for ``is_token``."""
        x = x + self.attn(self.norm1(x), is_token)
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


def native_patch_px(image: Tensor, rows: int, cols: int, max_patch_px: int) -> int:
    """The patch that gives the grid without resizing, if there is one, else the largest.

    Args:
        image: (B, C, H, W).
        rows: of the grid wanted.
        cols: of the grid wanted.
        max_patch_px: the largest patch that the network knows.
    """
    h, w = image.shape[-2:]
    patch_px = h // rows
    is_native = (h, w) == (rows * patch_px, cols * patch_px) and 1 <= patch_px <= max_patch_px
    return patch_px if is_native else max_patch_px


def _pack(sequence: Tensor, visible: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take the hidden tokens out.

    Args:
        sequence: (B, N, D).
        visible: (B, N) bool.

    Returns:
        (B, M, D), M the most that one image has, others padded at the end; (B, M) int64, where
        each stood; (B, M) bool, False for padding.
    """
    most = int(visible.sum(dim=1).max())
    place = visible.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    return keep_tokens(sequence, place), place, visible.gather(1, place)


def _unpack(packed: Tensor, place: Tensor, is_token: Tensor, like: Tensor) -> Tensor:
    """Put tokens back to their places; what was hidden becomes 0."""
    values = packed.masked_fill(~is_token[..., None], 0.0)
    index = place[..., None].expand_as(values)
    return torch.zeros_like(like).to(values).scatter(1, index, values)

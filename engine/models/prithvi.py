"""Prithvi: the multispectral masked autoencoder that HyperKD takes as its teacher.

The public architecture of Prithvi-EO 1.0 and 2.0 (NASA and IBM, Apache-2.0): a ViT over patches of
several dates with fixed positions in column, row and time, CLS first, and a small decoder. Members
are named as in the newer of the two public layouts. With one date and other bands it is also the
teacher that the product trains by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.teacher import TeacherNetwork, check_request, keep_tokens, resize
from engine.models.transformer import Block, init_transformer, sincos_axis

# Sixteenths of a token's width for the position in column, row and time, in this order.
AXIS_SIXTEENTHS = (6, 6, 4)
NORM_PIX_EPS = 1e-6  # keeps a patch of one colour from dividing by 0


@dataclass(frozen=True)
class PrithviConfig:
    """The settings of encoder and decoder; the defaults are Prithvi-EO-1.0-100M for one date.

    Args:
        in_channels: C, bands.
        img_size: side in pixels of the images that the position table is for.
        patch_px: side of the square of pixels that becomes one token.
        num_frames: T, dates that the position table is for.
        embed_dim: D, width of a token, divisible by 16 (positions) and by ``num_heads``.
        depth: transformer blocks.
        num_heads: of attention.
        decoder_embed_dim: as ``embed_dim``, of the decoder; so are the next two.
        decoder_depth: blocks.
        decoder_num_heads: of attention.
        mlp_ratio: hidden width of a block's MLP over the width of a token.

    Raises:
        ValueError: a setting is out of range.
    """

    in_channels: int = 6
    img_size: int = 224
    patch_px: int = 16
    num_frames: int = 1
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    decoder_embed_dim: int = 512
    decoder_depth: int = 8
    decoder_num_heads: int = 16
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        sizes = (self.in_channels, self.patch_px, self.num_frames, self.depth, self.decoder_depth)
        if min(sizes) < 1:
            raise ValueError(f"A masked autoencoder needs sizes of at least 1, not {sizes}.")
        if self.img_size < self.patch_px or self.img_size % self.patch_px:
            raise ValueError(
                f"An image of {self.img_size} px is no whole number of {self.patch_px} px patches."
            )
        for part, width, heads in (
            ("encoder", self.embed_dim, self.num_heads),
            ("decoder", self.decoder_embed_dim, self.decoder_num_heads),
        ):
            if heads < 1 or width < 16 or width % 16 or width % heads:
                raise ValueError(
                    f"The {part}'s token width {width} must be divisible by 16 (positions) and by "
                    f"its {heads} heads."
                )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Dates, rows and columns that the position tables are for."""
        side = self.img_size // self.patch_px
        return self.num_frames, side, side


@dataclass(frozen=True, eq=False)
class RandomMask:
    """Which tokens a random draw keeps.

    Args:
        ids_keep: (B, N_kept) int64, 0-based, in the order in which they were drawn.
        ids_restore: (B, N) int64, where each token stands in the shuffled order.
        mask: (B, N) float32, 0 = kept, 1 = removed.
    """

    ids_keep: Tensor
    ids_restore: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class PrithviOutput:
    """What a masked pass gives.

    Args:
        latent: (B, 1 + N_kept, D) after the final norm, CLS first, then in the mask's order.
        prediction: (B, N, patch * patch * C) normalised pixels of every token.
        mask: the draw.
    """

    latent: Tensor
    prediction: Tensor
    mask: RandomMask


class PrithviMAE(TeacherNetwork):
    """Encoder and decoder, and the normalisation of the pixels that they were trained on.

    ``band_mean`` and ``band_std`` (C,) are in reflectance 0 to 1; public tables give them times
    10,000.
    """

    band_mean: Tensor
    band_std: Tensor

    def __init__(self, config: PrithviConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("band_mean", torch.zeros(config.in_channels))
        self.register_buffer("band_std", torch.ones(config.in_channels))
        self.encoder = PrithviEncoder(config)
        self.decoder = PrithviDecoder(config)

    @property
    def width(self) -> int:
        """Values of a feature."""
        return self.config.embed_dim

    @property
    def depth(self) -> int:
        """Transformer blocks of the encoder."""
        return self.config.depth

    def normalise(self, reflectance: Tensor) -> Tensor:
        """Standardise (B, C, H, W) or (B, C, T, H, W) reflectance."""
        shape = (-1, *(1,) * (reflectance.dim() - 2))
        return (reflectance - self.band_mean.reshape(shape)) / self.band_std.reshape(shape)

    def forward(
        self, x: Tensor, noise: Tensor | None = None, mask_ratio: float = 0.75
    ) -> PrithviOutput:
        """Hide tokens at random, encode the others and predict all.

        Args:
            x: (B, C, T, H, W) normalised, sides divisible by the patch.
            noise: (B, N) any float; the tokens with the smallest are kept. None draws it.
            mask_ratio: share of the tokens that is hidden, 0 to below 1.
        """
        frames, rows, cols = self.token_grid(x)
        if noise is None:
            noise = torch.rand(len(x), frames * rows * cols, device=x.device)
        mask = draw_random_mask(noise, mask_ratio)
        latent, prediction = self.reconstruct(x, mask.ids_keep)
        return PrithviOutput(latent, prediction, mask)

    def reconstruct(self, x: Tensor, ids_keep: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the tokens that are kept and predict all.

        Args:
            x: (B, C, T, H, W) normalised.
            ids_keep: (B, N_kept) int64 in any order, 0-based; dates, then rows, then columns.

        Returns:
            (B, 1 + N_kept, D) the encoder's tokens, and (B, N, patch * patch * C) predicted
            pixels, channel fastest.
        """
        latent, _ = self.encoder(x, ids_keep)
        prediction = self.decoder(latent, ids_keep, self.token_grid(x))
        return latent, prediction

    def loss(self, x: Tensor, output: PrithviOutput, norm_pix: bool = False) -> Tensor:
        """Mean squared error over the removed tokens, in float32.

        Args:
            x: (B, C, T, H, W) normalised, as given to `forward`.
            output: of `forward`.
            norm_pix: standardise each token's pixels first, as MAE (arXiv 2111.06377) may do.
        """
        target = self.patchify(x).float()
        if norm_pix:
            spread = (target.var(dim=-1, keepdim=True) + NORM_PIX_EPS).sqrt()
            target = (target - target.mean(dim=-1, keepdim=True)) / spread
        per_token = (output.prediction.float() - target).square().mean(dim=-1)
        mask = output.mask.mask
        return (per_token * mask).sum() / mask.sum()

    def token_grid(self, x: Tensor) -> tuple[int, int, int]:
        """Dates, rows and columns of the tokens of (B, C, T, H, W)."""
        _b, _c, t, h, w = x.shape
        return t, h // self.config.patch_px, w // self.config.patch_px

    def patchify(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, N, patch * patch * C), channel fastest."""
        p = self.config.patch_px
        return rearrange(x, "b c t (h p) (w q) -> b (t h w) (p q c)", p=p, q=p)

    def unpatchify(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """The inverse of `patchify` for a grid of dates, rows and columns."""
        p, (t, h, w) = self.config.patch_px, grid
        return rearrange(tokens, "b (t h w) (p q c) -> b c t (h p) (w q)", t=t, h=h, w=w, p=p, q=p)

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
    ) -> tuple[Tensor, ...]:
        """Describe each token; see `TeacherNetwork.features`.

        Other grids than the table's get its positions interpolated, as the public code does, so
        that the corners keep the positions which the weights know. ``pixel_size_m`` has no use:
        this network knows one resolution, 30 m.
        """
        del pixel_size_m
        check_request(reflectance, self.config.in_channels, taps, self.depth)
        patch_px = self.config.patch_px
        image = resize(reflectance, rows * patch_px, cols * patch_px)
        _, tapped = self.encoder(self.normalise(image)[:, :, None], ids_keep, taps)
        return tuple(tokens[:, 1:] for tokens in tapped)


class PrithviEncoder(nn.Module):
    """The ViT: patch embedding, fixed positions, CLS, blocks, a final norm."""

    pos_embed: Tensor

    def __init__(self, config: PrithviConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.patch_embed = FramePatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.register_buffer("pos_embed", position_table(config.grid, config.embed_dim))
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, config.num_heads, config.mlp_ratio)
            for _index in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim)
        self.apply(init_transformer)
        nn.init.normal_(self.cls_token, std=0.02)

    def embed(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) normalised to (B, N, D) with positions, without CLS."""
        tokens, grid = self.patch_embed(x)
        positions = positions_for(self.pos_embed, self.grid, grid)
        # Under autocast this sum is float32, and so is the residual stream after it.
        embedded: Tensor = tokens + positions[:, 1:]
        return embedded

    def forward(
        self, x: Tensor, ids_keep: Tensor | None = None, taps: tuple[int, ...] = ()
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encode; positions are added before tokens are left out.

        Args:
            x: (B, C, T, H, W) normalised.
            ids_keep: (B, N_kept) int64, or None for all tokens.
            taps: 1-based numbers of blocks; the last stands for the output after the final norm.

        Returns:
            (B, 1 + N_kept, D) after the final norm, CLS first; and the like at each tap.
        """
        tokens = keep_tokens(self.embed(x), ids_keep)
        cls_token = self.cls_token + self.pos_embed[:, :1]
        tokens = torch.cat([cls_token.expand(len(x), -1, -1), tokens], dim=1)
        outputs = []
        for block in self.blocks:
            tokens = block(tokens)
            outputs.append(tokens)
        outputs[-1] = self.norm(tokens)
        return outputs[-1], tuple(outputs[tap - 1] for tap in taps)


class PrithviDecoder(nn.Module):
    """Predicts the pixels of all tokens from those that were kept."""

    decoder_pos_embed: Tensor

    def __init__(self, config: PrithviConfig) -> None:
        super().__init__()
        width = config.decoder_embed_dim
        self.grid = config.grid
        self.decoder_embed = nn.Linear(config.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("decoder_pos_embed", position_table(config.grid, width))
        self.decoder_blocks = nn.ModuleList(
            Block(width, config.decoder_num_heads, config.mlp_ratio)
            for _index in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, config.patch_px**2 * config.in_channels)
        self.apply(init_transformer)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, latent: Tensor, ids_keep: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Predict.

        Args:
            latent: (B, 1 + N_kept, D), CLS first.
            ids_keep: (B, N_kept) int64, where the kept tokens stand.
            grid: dates, rows and columns of all tokens.

        Returns:
            (B, N, patch * patch * C), without CLS.
        """
        embedded = self.decoder_embed(latent)
        b, _kept, d = embedded.shape
        frames, rows, cols = grid
        tokens = self.mask_token.to(embedded).expand(b, frames * rows * cols, d)
        tokens = tokens.scatter(1, ids_keep[..., None].expand(-1, -1, d), embedded[:, 1:])
        tokens = torch.cat([embedded[:, :1], tokens], dim=1)
        tokens = tokens + positions_for(self.decoder_pos_embed, self.grid, grid)
        for block in self.decoder_blocks:
            tokens = block(tokens)
        prediction: Tensor = self.decoder_pred(self.decoder_norm(tokens))[:, 1:]
        return prediction


class FramePatchEmbed(nn.Module):
    """A square of pixels of one date, with all its bands, becomes one token."""

    def __init__(self, config: PrithviConfig) -> None:
        super().__init__()
        size = (1, config.patch_px, config.patch_px)
        self.proj = nn.Conv3d(config.in_channels, config.embed_dim, kernel_size=size, stride=size)
        # As a linear layer over the flattened patch, which is what the convolution is.
        nn.init.xavier_uniform_(self.proj.weight.data.flatten(1))

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """(B, C, T, H, W) to (B, N, D), dates, then rows, then columns; and the grid of tokens."""
        _b, _c, t, _h, _w = x.shape
        # The kernel is one date deep, and convolutions of two axes are the faster ones.
        tokens = F.conv2d(
            rearrange(x, "b c t h w -> (b t) c h w"),
            self.proj.weight[:, :, 0],
            self.proj.bias,
            stride=self.proj.weight.shape[-1],
        )
        rows, cols = tokens.shape[-2:]
        return rearrange(tokens, "(b t) d h w -> b (t h w) d", t=t), (t, rows, cols)


def position_table(grid: tuple[int, int, int], embed_dim: int) -> Tensor:
    """Fixed positions of a grid of tokens, CLS first with zeros.

    Args:
        grid: T dates, rows and columns.
        embed_dim: D, divisible by 16.

    Returns:
        (1, 1 + T * rows * cols, D) float32; a value's place in D is column, row, time.
    """
    frames, rows, cols = grid
    col_width, row_width, time_width = (embed_dim // 16 * part for part in AXIS_SIXTEENTHS)
    codes = (
        sincos_axis(cols, col_width).expand(frames, rows, cols, col_width),
        sincos_axis(rows, row_width)[:, None].expand(frames, rows, cols, row_width),
        sincos_axis(frames, time_width)[:, None, None].expand(frames, rows, cols, time_width),
    )
    table = rearrange(torch.cat(codes, dim=-1), "t h w d -> 1 (t h w) d")
    return F.pad(table, (0, 0, 1, 0))


def positions_for(
    table: Tensor, stored: tuple[int, int, int], wanted: tuple[int, int, int]
) -> Tensor:
    """Positions for another grid than the table's, as the public code makes them.

    Fewer dates are the first of the table; more are computed. Other rows and columns are
    interpolated (bicubic, corners on corners).

    Args:
        table: (1, 1 + N, D) as `position_table`.
        stored: dates, rows and columns of the table.
        wanted: those of the tokens.

    Returns:
        (1, 1 + N wanted, D).
    """
    if wanted == stored:
        return table
    frames, rows, cols = stored
    if wanted[0] > frames:
        table = position_table((wanted[0], rows, cols), table.shape[-1]).to(table)
    places = table[:, 1 : 1 + wanted[0] * rows * cols]
    if wanted[1:] != (rows, cols):
        image = rearrange(places, "1 (t h w) d -> t d h w", t=wanted[0], h=rows, w=cols)
        image = F.interpolate(image.float(), size=wanted[1:], mode="bicubic", align_corners=True)
        places = rearrange(image, "t d h w -> 1 (t h w) d")
    return torch.cat([table[:, :1], places], dim=1)


def draw_random_mask(noise: Tensor, mask_ratio: float) -> RandomMask:
    """Keep the tokens with the smallest noise: ``int(N * (1 - mask_ratio))`` of N.

    Raises:
        ValueError: no token would be kept.
    """
    count = noise.shape[1]
    kept = int(count * (1 - mask_ratio))
    if not 1 <= kept <= count:
        raise ValueError(f"A mask ratio of {mask_ratio} keeps {kept} of {count} tokens.")
    shuffle = noise.argsort(dim=1)
    ids_restore = shuffle.argsort(dim=1)
    return RandomMask(shuffle[:, :kept], ids_restore, (ids_restore >= kept).float())

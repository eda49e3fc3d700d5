"""What the decoders of masked reconstruction share: their transformer, and how values count.

Stage 1 of SpectralX (arXiv 2508.01731) trains by masked reconstruction with the decoder that came
with the foundation model. Members are named as in the public checkpoints of masked autoencoders
(``decoder_embed``, ``mask_token``, ``decoder_pos_embed``, ``decoder_blocks``, ``decoder_norm``), so
that their tensors load by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from einops import rearrange
from torch import Tensor, nn

from engine.models.mae import DecoderConfig, other_ids
from engine.models.patches import put_tokens
from engine.models.transformer import Block, init_transformer


@dataclass(frozen=True)
class ChipTokens:
    """How a chip stands as tokens: what a decoder has to know of its encoder.

    Args:
        in_channels: C, bands.
        patch_px: p, side of a token.
        grid: G, tokens a side, so that N = G * G and a chip has G * p pixels a side.
        embed_dim: D, width of the encoder's tokens.
        prefix_tokens: P, tokens of the encoder that stand for no place (CLS, registers).

    Raises:
        ValueError: a size is out of range.
    """

    in_channels: int
    patch_px: int
    grid: int
    embed_dim: int
    prefix_tokens: int = 1

    def __post_init__(self) -> None:
        sizes = (self.in_channels, self.patch_px, self.grid, self.embed_dim)
        if min(sizes) < 1 or self.prefix_tokens < 0:
            raise ValueError(
                f"A decoder needs bands, patch, grid and width of at least 1, not {sizes}, and no "
                f"negative number of prefix tokens, not {self.prefix_tokens}."
            )

    @property
    def num_tokens(self) -> int:
        """N, tokens of a chip."""
        return self.grid**2

    @property
    def num_values(self) -> int:
        """The numbers that one token stands for, p * p * C."""
        return self.patch_px**2 * self.in_channels


class Decoded(NamedTuple):
    """What a decoder says about a batch; a tuple, which every wrapper of a module can look into.

    Args:
        prediction: (B, M, p * p * C) normalised pixel vectors (`patchify`, channel fastest) of the
            hidden tokens. The visible ones are not given: no score asks for them.
        ids_masked: (B, M) int64, which tokens these are, ascending.
        images: what the decoder's own loss compares beside them, each (B, C, side, side).
    """

    prediction: Tensor
    ids_masked: Tensor
    images: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class MaskedTarget:
    """What a decoder should have said, and where that counts.

    Args:
        x: (B, C, chip, chip) normalised, float32 at least.
        valid: (B, chip, chip) bool, True = use.
        band_present: (B, C) bool, False where a sample's scene has not the band.
        masked: (B, N) bool, True = the token was hidden.
    """

    x: Tensor
    valid: Tensor
    band_present: Tensor
    masked: Tensor

    @classmethod
    def of(
        cls, x: Tensor, ids_keep: Tensor, valid: Tensor, band_present: Tensor, num_tokens: int
    ) -> Self:
        """The target for chips of which the tokens ``ids_keep`` (B, K) were shown."""
        masked = torch.ones(len(x), num_tokens, dtype=torch.bool, device=x.device)
        return cls(precise(x), valid, band_present, masked.scatter_(1, ids_keep, False))


class PixelDecoder(nn.Module, ABC):
    """The transformer of a masked autoencoder's decoder; what it predicts is its subclasses' work.

    Args:
        tokens: of the encoder.
        config: width, blocks and heads.
        positions: (P + N, width) float32, added to the tokens after the mask tokens are put in.
        norm_eps: of all norms.

    Raises:
        ValueError: the positions are of another shape.
    """

    decoder_pos_embed: Tensor

    def __init__(
        self, tokens: ChipTokens, config: DecoderConfig, positions: Tensor, norm_eps: float
    ) -> None:
        super().__init__()
        width = config.embed_dim
        wanted = (tokens.prefix_tokens + tokens.num_tokens, width)
        if positions.shape != wanted:
            raise ValueError(f"Positions are {wanted}, not {tuple(positions.shape)}.")
        self.tokens = tokens
        self.config = config
        self.decoder_embed: nn.Module = nn.Linear(tokens.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("decoder_pos_embed", positions[None].clone())
        self.decoder_blocks = nn.ModuleList(
            Block(width, config.num_heads, config.mlp_ratio, norm_eps=norm_eps)
            for _index in range(config.depth)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=norm_eps)
        nn.init.normal_(self.mask_token, std=0.02)
        self.apply(init_transformer)

    @abstractmethod
    def forward(self, tokens: Tensor, ids_keep: Tensor) -> Decoded:
        """Predict.

        Args:
            tokens: (B, P + K, D) from the encoder after its last norm, prefix first.
            ids_keep: (B, K) int64 in any order, which places the others stand for.
        """

    @abstractmethod
    def losses(self, decoded: Decoded, target: MaskedTarget) -> dict[str, Tensor]:
        """Compare.

        Args:
            decoded: of `forward`.
            target: for the same chips.

        Returns:
            "loss" with its gradient, and its terms by name without weight and gradient.
        """

    def spread(self, tokens: Tensor, ids_keep: Tensor) -> Tensor:
        """Embed what was seen, and put mask tokens where it was not.

        Returns:
            (B, P + N, width) with positions, places in row order.
        """
        prefix = self.tokens.prefix_tokens
        embedded = self.decoder_embed(tokens).to(self.mask_token)
        places = self.mask_token.expand(len(tokens), self.tokens.num_tokens, -1)
        places = put_tokens(places, ids_keep, embedded[:, prefix:])
        return torch.cat([embedded[:, :prefix], places], dim=1) + self.positions(embedded)

    def positions(self, like: Tensor) -> Tensor:
        """(1, P + N, width) positions in the dtype of another tensor."""
        return self.decoder_pos_embed.to(like)

    def decode(self, x: Tensor) -> Tensor:
        """All blocks and the last norm."""
        for block in self.decoder_blocks:
            x = block(x)
        y: Tensor = self.decoder_norm(x)
        return y

    def hidden_ids(self, ids_keep: Tensor) -> Tensor:
        """(B, M) the tokens that were not shown, ascending."""
        return other_ids(ids_keep, self.tokens.num_tokens)


def precise(x: Tensor) -> Tensor:
    """In float32 at least: losses are summed there, whatever the precision around."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def spread_pixels(token_values: Tensor, side_px: int) -> Tensor:
    """Spread the values of square grids of tokens over pixels: (B, N) to (B, side, side)."""
    grid = round(token_values.shape[1] ** 0.5)
    image = rearrange(token_values, "b (r c) -> b r c", r=grid)
    factor = side_px // grid
    return image.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


def weighted_mean(errors: Tensor, pixel_weight: Tensor, band_present: Tensor) -> Tensor:
    """The mean of errors over the values that count; 0 where none does.

    Args:
        errors: (B, C, …) of each value.
        pixel_weight: (B, …), 1 = counts, 0 = does not.
        band_present: (B, C) bool, True = counts.

    Returns:
        () scalar.
    """
    present = band_present.to(errors)
    pixels = pixel_weight.to(errors)
    by_band = (errors * pixels[:, None]).flatten(2).sum(dim=2)
    count = (pixels.flatten(1).sum(dim=1) * present.sum(dim=1)).sum()
    return (by_band * present).sum() / count.clamp_min(1.0)

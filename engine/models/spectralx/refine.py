"""The Are-adapter: high-level tokens ask the tokenizer's low-level features what they missed.

Section 4 of the method (arXiv 2508.01731, figure of the Are-adapter) by the published code: each
low-level place picks the token that looks at it most, what it picked is refined to one gain a
token and attribute, and the tokens are scaled up by their gains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.spectralx.matching import AttributeMatch
from engine.models.spectralx.tokenizer import LowLevel

Match = Literal["hard", "soft"]


@dataclass(frozen=True, eq=False)
class LowLevelKeys:
    """Keys of the low-level features, the same at every block that is refined.

    Args:
        spatial: (B, S * S, stem / 2).
        spectral: (B, stem, S * S / 2).
    """

    spatial: Tensor
    spectral: Tensor


class RefiningAdapter(nn.Module):
    """One adapter, asked after each of the adapted blocks with the same weights.

    Args:
        embed_dim: D, divisible by 4.
        stem_dim: channels of the tokenizer's stem.
        grid: G, tokens a side.
        stem_side: S, side of the stem's map, G or 2 G.
        match: "hard", as published: each place takes the one token that looks at it most, so that
            both matches stay as they were drawn, without a gradient. "soft" (ours): a mean of all
            tokens, weighted by the softmax of their scores, through which the matches learn.
        scale_init: of the scale of the refinement, one number.
        keep_unused: hold the two linear layers that the published code never uses, for its count
            of parameters (3,671,665; without them 3,417,257).

    Raises:
        ValueError: a size is out of range.
    """

    def __init__(
        self,
        embed_dim: int,
        stem_dim: int,
        grid: int,
        stem_side: int,
        *,
        match: Match = "hard",
        scale_init: float = 0.01,
        keep_unused: bool = False,
    ) -> None:
        super().__init__()
        if embed_dim % 4:
            raise ValueError(f"Refined tokens have a width divisible by 4, not {embed_dim}.")
        if stem_side not in (grid, 2 * grid):
            raise ValueError(
                f"The stem's map is 1 or 2 times as wide as the {grid} tokens a side, not "
                f"{stem_side} px."
            )
        half, quarter, tokens, places = embed_dim // 2, embed_dim // 4, grid**2, stem_side**2
        self.match = match
        self.stem_side = stem_side
        self.norm = nn.LayerNorm(half)  # one for both attributes
        self.spatial_match = AttributeMatch(stem_dim, half)
        self.spectral_match = AttributeMatch(places, half)
        self.refine_spatial = nn.Sequential(
            nn.Conv2d(half, quarter, 3, stride=stem_side // grid, padding=1, bias=False),
            nn.BatchNorm2d(quarter),
            nn.ReLU(),
            nn.Conv2d(quarter, quarter, 3, padding=1, bias=False),
            nn.BatchNorm2d(quarter),
            nn.ReLU(),
        )
        self.refine_spectral = nn.Sequential(
            nn.Conv1d(stem_dim, tokens, 1, bias=False), nn.BatchNorm1d(tokens), nn.ReLU()
        )
        self.scale = nn.Parameter(torch.tensor(scale_init))
        self.unused_spatial = nn.Linear(places, tokens) if keep_unused else None
        self.unused_spectral = nn.Linear(stem_dim, tokens) if keep_unused else None

    def forward(self, x: Tensor, low: LowLevel, keys: LowLevelKeys | None = None) -> Tensor:
        """Refine the tokens of one block.

        Args:
            x: (B, N, D) patch tokens, without CLS.
            low: of the tokenizer.
            keys: of `keys`, where several blocks are refined; computed when None.

        Returns:
            (B, N, D).
        """
        keys = self.keys(low) if keys is None else keys
        spatial, spectral = x.chunk(2, dim=-1)  # (B, N, D / 2)
        picked = self.pick(self.spatial_match, keys.spatial, spatial)  # (B, S * S, D / 2)
        image = rearrange(picked, "b (h w) d -> b d h w", h=self.stem_side)
        spatial_gain = self.refine_spatial(image).mean(dim=1).flatten(1)[..., None]  # (B, N, 1)
        picked = self.pick(self.spectral_match, keys.spectral, spectral)  # (B, stem, D / 2)
        spectral_gain = self.refine_spectral(picked).mean(dim=2, keepdim=True)  # (B, N, 1)
        refined = torch.cat([spatial_gain * spatial, spectral_gain * spectral], dim=-1)
        return x + self.scale * refined

    def keys(self, low: LowLevel) -> LowLevelKeys:
        """Prepare the low-level features, once for all blocks; without a graph where hard."""
        learns = torch.is_grad_enabled() and self.match == "soft"
        with torch.set_grad_enabled(learns), _exact(low.spatial):
            return LowLevelKeys(
                self.spatial_match.keys(self._as_weights(low.spatial)),
                self.spectral_match.keys(self._as_weights(low.spectral)),
            )

    def pick(self, match: AttributeMatch, keys: Tensor, tokens: Tensor) -> Tensor:
        """What each low-level place takes from the tokens.

        Args:
            match: of the attribute.
            keys: (B, L, d) of the places.
            tokens: (B, N, D / 2) of the attribute.

        Returns:
            (B, L, D / 2), normed.
        """
        if self.match == "soft":
            with _exact(tokens):
                tokens = self._as_weights(tokens)
                share = match.scores(keys, tokens).softmax(dim=1)  # over the tokens
                mean: Tensor = self.norm(share.transpose(1, 2) @ tokens)
            return mean
        index = self.choose(match, keys, tokens)
        # The norm looks at one token at a time, so it may come before the choice, which repeats.
        normed: Tensor = self.norm(tokens)
        return normed.gather(1, index[..., None].expand(-1, -1, normed.shape[-1]))

    @torch.no_grad()
    def choose(self, match: AttributeMatch, keys: Tensor, tokens: Tensor) -> Tensor:
        """(B, L) int64 index of the token that looks at each place most, for `pick`.

        A token's looks sum to 1 over the places, as published: of two tokens with equal scores
        the one that looks at fewer places wins.
        """
        with _exact(tokens):
            scores = match.scores(keys, self._as_weights(tokens))
            # The logarithm has the same order and no underflow. `max` gives the same index as
            # `argmax`, which takes four times as long over this axis on a CPU.
            return F.log_softmax(scores, dim=2).max(dim=1).indices

    def _as_weights(self, values: Tensor) -> Tensor:
        """Features or tokens in the type of the weights."""
        return values.to(self.scale.dtype)


def _exact(values: Tensor) -> torch.autocast:
    """No lower precision inside: bfloat16's three digits would choose other tokens."""
    return torch.autocast(values.device.type, enabled=False)

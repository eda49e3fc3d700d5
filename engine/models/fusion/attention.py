"""How CSAKD's four streams become one map: cross self-attention and what it is compared with.

The published module mixes the channels of the mixed coarse stream by an attention between the
hyperspectral and the multispectral stream, adds the mixed fine stream, and weighs the four by a
gate of each pixel. As published its attention has no effect: the product with the values sums
attention rows and values apart, so that each head gives the sum of its value channels, whatever
queries and keys are. Both that and a repaired form are here.

Two streams lie on the coarse grid and reach the fine one by nearest neighbours, which a 1 x 1
convolution does not notice: it is applied before, at 1 / ratio² of the cost, and gives the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, get_args

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn
from torch.nn import functional as F

Fusion = Literal["released", "repaired", "none", "sum", "weights", "attention"]
"""How streams are fused; in brackets the published code's number.

- ``released``: the published fusion (3): attention without effect, and the gate.
- ``repaired``: ours: an attention that works, of fixed statistics, and the gate.
- ``none``: the gate alone (4).
- ``sum``: the plain sum of the four streams (0).
- ``weights``: a learned weight of each stream and channel (1).
- ``attention``: the attention without effect, without a gate (2).
"""
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)

STREAMS = 4
# Keeps a channel without any signal from dividing by zero; far below energies of features.
_NO_ENERGY = 1e-12
# The repaired attention's start: what the published code divides by, for 16 channels a head.
# Cosines then spread over ±4, so that what is alike counts from the first step.
_TEMPERATURE = 4.0
# Share of a training step in the running statistics: the last twenty steps or so count.
_MOMENTUM = 0.05


class Streams(NamedTuple):
    """The four streams before they are fused, each (B, width, …).

    Attributes:
        hsi: of the hyperspectral image, coarse grid (h, w).
        msi: of the multispectral image, fine grid (h * ratio, w * ratio).
        mixed_coarse: of both, coarse grid.
        mixed_fine: of both, fine grid.
    """

    hsi: Tensor
    msi: Tensor
    mixed_coarse: Tensor
    mixed_fine: Tensor


def to_fine(coarse: Tensor, like: Tensor) -> Tensor:
    """Repeat each coarse pixel over its block: (B, C, h, w) to the rows and columns of ``like``."""
    if coarse.shape[-2:] == like.shape[-2:]:
        return coarse
    return F.interpolate(coarse, size=like.shape[-2:], mode="nearest")


class StreamFusion(nn.Module, ABC):
    """Four streams to one map."""

    @abstractmethod
    def forward(self, streams: Streams) -> Tensor:
        """Fuse to (B, width, H, W) on the fine grid."""

    def observe(self, streams: Streams) -> None:
        """Count what the fusion needs to know of a scene; most need nothing."""

    def forget(self) -> None:
        """Start counting anew."""


class SumFusion(StreamFusion):
    """The plain sum of the four streams (published 0)."""

    def forward(self, streams: Streams) -> Tensor:
        """Add them up."""
        coarse = streams.hsi + streams.mixed_coarse
        return to_fine(coarse, streams.msi) + streams.msi + streams.mixed_fine


class WeightedFusion(StreamFusion):
    """A learned weight of each stream and channel, between 0 and 1 (published 1).

    Args:
        width: of the streams.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(STREAMS, width, 1, 1))

    def forward(self, streams: Streams) -> Tensor:
        """Weigh and add."""
        share = self.weights.sigmoid()
        coarse = share[0] * streams.hsi + share[2] * streams.mixed_coarse
        fine = share[1] * streams.msi + share[3] * streams.mixed_fine
        return to_fine(coarse, fine) + fine


class GatedFusion(StreamFusion):
    """A gate of each pixel over the streams, with an attention before it or without.

    With an attention a, the last stream is ``mixed_fine + a``. The four weights of a pixel come
    from a 1 x 1 convolution of all four streams and a sigmoid each; they need not sum to 1.

    Args:
        width: of the streams.
        attention: what is added to the last stream; None for nothing (published 4).
        gated: weigh the streams; without, the last stream is the result (published 2).
    """

    def __init__(
        self, width: int, attention: ChannelAttention | None = None, gated: bool = True
    ) -> None:
        super().__init__()
        self.attention = attention
        self.gate = nn.Conv2d(STREAMS * width, STREAMS, 1) if gated else None

    def forward(self, streams: Streams) -> Tensor:
        """Attend, weigh and add."""
        attended = None if self.attention is None else self.attention(streams)
        if self.gate is None:
            return _plus(streams.mixed_fine, attended)
        share = self._logits(self.gate, streams, attended).sigmoid()
        hsi, msi, mixed, last = torch.split(share, 1, dim=1)
        fused = msi * streams.msi
        fused = torch.addcmul(fused, last, _plus(streams.mixed_fine, attended))
        fused = torch.addcmul(fused, hsi, to_fine(streams.hsi, fused))
        return torch.addcmul(fused, mixed, to_fine(streams.mixed_coarse, fused))

    def gate_logits(self, streams: Streams) -> Tensor:
        """The gate before its sigmoid: (B, 4, H, W), for hsi, msi, mixed_coarse and the last.

        Raises:
            ValueError: there is no gate.
        """
        if self.gate is None:
            raise ValueError("This fusion has no gate.")
        attended = None if self.attention is None else self.attention(streams)
        return self._logits(self.gate, streams, attended)

    def observe(self, streams: Streams) -> None:
        """Count what the attention needs to know of a scene."""
        if isinstance(self.attention, ScaledAttention):
            self.attention.observe(streams)

    def forget(self) -> None:
        """Start counting anew."""
        if isinstance(self.attention, ScaledAttention):
            self.attention.forget()

    @staticmethod
    def _logits(gate: nn.Conv2d, streams: Streams, attended: Tensor | None) -> Tensor:
        """One convolution of the four streams, as a sum of what each grid adds to it."""
        hsi, msi, mixed, last = gate.weight.chunk(STREAMS, dim=1)
        coarse = F.conv2d(streams.hsi, hsi, gate.bias) + F.conv2d(streams.mixed_coarse, mixed)
        if attended is not None:
            coarse = coarse + F.conv2d(attended, last)
        fine = F.conv2d(streams.msi, msi) + F.conv2d(streams.mixed_fine, last)
        return to_fine(coarse, fine) + fine


class ChannelAttention(nn.Module, ABC):
    """What an attention over channels has: projections in heads, and one back.

    Queries come from the hyperspectral stream, keys from the multispectral and values from the
    mixed coarse one. The result lies on the coarse grid, since the values do.

    Args:
        width: of the streams.
        inner_width: of queries, keys and values together; divisible by ``heads``.
        heads: of attention.

    Raises:
        ValueError: the heads do not divide the inner width.
    """

    def __init__(self, width: int, inner_width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or inner_width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {inner_width}.")
        self.heads = heads
        self.query = nn.Conv2d(width, inner_width, 1)
        self.key = nn.Conv2d(width, inner_width, 1)
        self.value = nn.Conv2d(width, inner_width, 1)
        self.output = nn.Conv2d(inner_width, width, 1)

    def forward(self, streams: Streams) -> Tensor:
        """What is added to the mixed fine stream: (B, width, h, w), coarse grid."""
        attended: Tensor = self.output(self.attend(streams))
        return attended

    @abstractmethod
    def attend(self, streams: Streams) -> Tensor:
        """Values mixed by attention, before the projection back: (B, inner_width, h, w)."""


class ReleasedAttention(ChannelAttention):
    """The published attention: the sum of each head's values, for each of its channels.

    ``query`` and ``key`` have no effect; they are kept for the published files and counts.
    """

    def attend(self, streams: Streams) -> Tensor:
        """Sum each head's values: (B, inner_width, h, w)."""
        value = self.value(streams.mixed_coarse)
        d = value.shape[1] // self.heads
        total = reduce(value, "b (n d) h w -> b n h w", "sum", d=d)
        summed: Tensor = repeat(total, "b n h w -> b (n d) h w", d=d)
        return summed


class ScaledAttention(ChannelAttention):
    """The repaired attention (ours): one matrix a head for the whole scene.

    A = softmax(t · cos(q_i, k_j)) over the keys j, with cosines over pixels and a learned
    temperature t a head. Cosines do not grow with the number of pixels, as the published products
    do. Their sums come from the batch while training, which is wider than one crop, with a running
    mean kept; afterwards they are fixed: those of `calibrate`'s scenes, or the running ones. So a
    pixel does not depend on the tile that it is computed in.

    Args:
        width: of the streams.
        inner_width: of queries, keys and values together.
        heads: of attention.
    """

    products: Tensor
    query_energy: Tensor
    key_energy: Tensor
    seen: Tensor

    def __init__(self, width: int, inner_width: int, heads: int) -> None:
        super().__init__(width, inner_width, heads)
        d = inner_width // heads
        self.temperature = nn.Parameter(torch.full((heads, 1, 1), _TEMPERATURE))
        # Means over fine pixels of q_i k_j, q_i² and k_j²; `seen` is the share of a whole mean.
        self.register_buffer("products", torch.zeros(heads, d, d))
        self.register_buffer("query_energy", torch.zeros(heads, d))
        self.register_buffer("key_energy", torch.zeros(heads, d))
        self.register_buffer("seen", torch.zeros(()))

    def attend(self, streams: Streams) -> Tensor:
        """Mix each head's values by its matrix: (B, inner_width, h, w)."""
        value = rearrange(
            self.value(streams.mixed_coarse), "b (n d) h w -> b n d h w", n=self.heads
        )
        mixed = torch.einsum("nqv,bnvhw->bnqhw", self._matrix(streams).to(value.dtype), value)
        return rearrange(mixed, "b n d h w -> b (n d) h w")

    def attention(self) -> Tensor:
        """The fixed matrices: (heads, d, d), rows sum to 1."""
        return self._softmax(self.products, self.query_energy, self.key_energy)

    @torch.no_grad()
    def observe(self, streams: Streams) -> None:
        """Add a batch to the fixed statistics, by its number of pixels."""
        pixels = streams.msi.shape[0] * streams.msi.shape[2] * streams.msi.shape[3]
        # `seen` counts pixels here, so that batches of any size add up to one mean.
        total = self.seen + pixels
        self._move(self._statistics(streams), pixels / total)
        self.seen.copy_(total)

    @torch.no_grad()
    def forget(self) -> None:
        """Start the statistics anew."""
        for buffer in (self.products, self.query_energy, self.key_energy, self.seen):
            buffer.zero_()

    def _matrix(self, streams: Streams) -> Tensor:
        if not self.training:
            return self.attention()
        found = self._statistics(streams)
        with torch.no_grad():
            # The first step is taken whole: a mean that starts at 0 would be of nothing.
            self._move(found, 1.0 if self.seen == 0 else _MOMENTUM)
            self.seen.fill_(1.0)
        return self._softmax(*found)

    def _statistics(self, streams: Streams) -> tuple[Tensor, Tensor, Tensor]:
        """Means over fine pixels of q_i k_j, q_i² and k_j², in float32 or wider.

        A query is the same all over a block, so that its product with the block's keys is one
        with their mean.
        """
        with torch.autocast(streams.hsi.device.type, enabled=False):
            query = self._heads(_wide(streams.hsi), self.query)
            key = self._heads(_wide(streams.msi), self.key)
            h, w = streams.hsi.shape[-2:]
            ratio = streams.msi.shape[-2] // h
            key_mean = reduce(
                key, "b n d (h i) (w j) -> b n d h w", "mean", h=h, w=w, i=ratio, j=ratio
            )
            pixels = query.shape[0] * query.shape[-2] * query.shape[-1]
            products = torch.einsum("bnqhw,bnkhw->nqk", query, key_mean) / pixels
            return products, query.square().mean((0, 3, 4)), key.square().mean((0, 3, 4))

    def _heads(self, x: Tensor, projection: nn.Conv2d) -> Tensor:
        projected = F.conv2d(x, projection.weight.to(x.dtype), projection.bias.to(x.dtype))  # type: ignore[union-attr]
        return rearrange(projected, "b (n d) h w -> b n d h w", n=self.heads)

    def _softmax(self, products: Tensor, query_energy: Tensor, key_energy: Tensor) -> Tensor:
        lengths = query_energy[:, :, None] * key_energy[:, None, :]
        cosine = products * (lengths + _NO_ENERGY).rsqrt()
        return (self.temperature * cosine).softmax(dim=-1)

    def _move(self, found: tuple[Tensor, Tensor, Tensor], share: float | Tensor) -> None:
        """Move the kept means by a share towards new ones."""
        for kept, new in zip(
            (self.products, self.query_energy, self.key_energy), found, strict=True
        ):
            kept.lerp_(new.to(kept.dtype), float(share))


def build_fusion(kind: Fusion, width: int, inner_width: int, heads: int) -> StreamFusion:
    """Make a fusion.

    Args:
        kind: see `Fusion`.
        width: of the streams.
        inner_width: of an attention's queries, keys and values.
        heads: of an attention.

    Raises:
        ValueError: there is no such kind, or its sizes do not fit.
    """
    if kind == "sum":
        return SumFusion()
    if kind == "weights":
        return WeightedFusion(width)
    if kind == "none":
        return GatedFusion(width)
    if kind == "repaired":
        return GatedFusion(width, ScaledAttention(width, inner_width, heads))
    if kind in ("released", "attention"):
        attention = ReleasedAttention(width, inner_width, heads)
        return GatedFusion(width, attention, gated=kind == "released")
    raise ValueError(f"There is no fusion {kind!r}; there are {', '.join(FUSIONS)}.")


def _wide(x: Tensor) -> Tensor:
    """Float32 at least: sums over many pixels lose small numbers in half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _plus(fine: Tensor, attended: Tensor | None) -> Tensor:
    return fine if attended is None else fine + to_fine(attended, fine)

"""AoMoA: a mixture of small adapters beside a frozen linear layer, one router per attribute.

Section 3.2 of the method (arXiv 2508.01731), by the published code: the two halves of a token's
channels, its spatial and its spectral attribute, share one reduction, four experts and one
expansion, and each half has its own router.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ATTRIBUTES = 2  # spatial, spectral: the halves of the channels
REDUCTION = 4  # width of half a token over that of its reduced form
EXPERT_REDUCTION = 32  # width of half a token over the hidden width of an expert
GATE_MIN = 1e-4  # an expert with less than this share is not asked
NOISE_MIN = 0.1  # of the router's noise in training, in logits
PUBLISHED_EPS = 2.220446049250313e-16  # stands for a mixture that is exactly 0, before its log
CV_EPS = 1e-10  # keeps the balance of an empty router finite


@dataclass(frozen=True, eq=False)
class Routing:
    """How the last training pass chose, for the balance between the experts.

    Args:
        log_shares: (top_k, 2 M), see `AdaptedLinear.route`.
        index: (top_k, 2 M) int64.
        clean: (M, 2, E) logits without noise.
        noisy: (M, 2, E) logits that decided.
        noise_std: (M, 2, E) standard deviation of the noise, above 0.
    """

    log_shares: Tensor
    index: Tensor
    clean: Tensor
    noisy: Tensor
    noise_std: Tensor

    @property
    def gates(self) -> Tensor:
        """(M, 2, E) shares, 0 for the experts that were not asked."""
        return dense_gates(self.log_shares, self.index, self.clean)


class AdaptedLinear(nn.Module):
    """A frozen linear layer, plus what the experts say: W x + b + s * [u_spatial; u_spectral].

    The experts are one tensor with the expert as its first axis, and all of them answer for every
    token in one matrix product, which costs less than sorting the tokens: an expert has a 32nd of
    the width. Their mixture is log(sum(g exp(E))) in float32, also under autocast.

    Args:
        base: the layer, which is frozen here; both widths even.
        experts: E, 2 or more.
        top_k: experts that answer for half a token, 1 to E.
        zero_init: start as the bare layer (ours); the published expansion starts at random.

    Raises:
        ValueError: a width is odd, or a number of experts is out of range.
    """

    def __init__(
        self, base: nn.Linear, *, experts: int = 4, top_k: int = 2, zero_init: bool = False
    ) -> None:
        super().__init__()
        if base.in_features % 2 or base.out_features % 2:
            raise ValueError(
                "A linear layer is adapted in two halves: its widths must be even, not "
                f"{base.in_features} and {base.out_features}."
            )
        if experts < 2 or not 1 <= top_k <= experts:
            raise ValueError(
                "A mixture has 2 experts or more, of which 1 or more answer; not "
                f"{top_k} of {experts}."
            )
        self.top_k = top_k
        self.base = base.requires_grad_(False)
        half = base.in_features // ATTRIBUTES
        reduced = max(half // REDUCTION, 1)
        hidden = max(half // EXPERT_REDUCTION, 1)
        like: dict[str, Any] = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.norm_half = nn.LayerNorm(half, **like)
        self.reduce = nn.Linear(half, reduced, bias=False, **like)
        self.norm_reduced = nn.LayerNorm(reduced, **like)
        self.gate = nn.Parameter(torch.zeros(ATTRIBUTES, reduced, experts, **like))
        self.gate_noise = nn.Parameter(torch.zeros(ATTRIBUTES, reduced, experts, **like))
        self.weight_in = nn.Parameter(torch.empty(experts, hidden, reduced, **like))
        self.bias_in = nn.Parameter(torch.empty(experts, hidden, **like))
        self.weight_out = nn.Parameter(torch.empty(experts, reduced, hidden, **like))
        self.bias_out = nn.Parameter(torch.empty(experts, reduced, **like))
        self.expand = nn.Linear(reduced, base.out_features // ATTRIBUTES, bias=False, **like)
        self.scaler = nn.Parameter(torch.ones(base.out_features, **like))
        self._routing: Routing | None = None
        self._init_weights(zero_init)

    def _init_weights(self, zero_init: bool) -> None:
        """Xavier for both projections, the usual bounds for the experts; as published."""
        nn.init.xavier_uniform_(self.reduce.weight)
        nn.init.xavier_uniform_(self.expand.weight)
        if zero_init:
            nn.init.zeros_(self.expand.weight)
        for weight, bias in ((self.weight_in, self.bias_in), (self.weight_out, self.bias_out)):
            bound = weight.shape[-1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    @property
    def in_features(self) -> int:
        """Width of a token that comes in."""
        return self.base.in_features

    @property
    def out_features(self) -> int:
        """Width of a token that goes out."""
        return self.base.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Adapt the layer's answer.

        Args:
            x: (..., d_in), any leading axes.

        Returns:
            (..., d_out), of the type that the bare layer gives.
        """
        out: Tensor = self.base(x)
        with torch.autocast(x.device.type, enabled=False):
            halves = x.to(self.scaler.dtype).reshape(-1, ATTRIBUTES, x.shape[-1] // ATTRIBUTES)
            z = self.norm_reduced(self.reduce(self.norm_half(halves)))  # (M, 2, r)
            delta = self.expand(self.mix(z, *self.route(z))).reshape(out.shape)
        return torch.addcmul(out, delta.to(out.dtype), self.scaler.to(out.dtype))

    def route(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the experts of each half token: those with the largest logits.

        Args:
            z: (M, 2, r) reduced halves.

        Returns:
            (top_k, 2 M) logarithms of their shares, which sum to 1 over the first axis, and
            (top_k, 2 M) int64 experts.
        """
        experts = self.gate.shape[-1]
        clean = torch.einsum("mtr,tre->mte", z, self.gate)
        logits, noise_std = clean, None
        if self.training:
            noise_std = F.softplus(torch.einsum("mtr,tre->mte", z, self.gate_noise)) + NOISE_MIN
            logits = clean + torch.randn_like(clean) * noise_std
        # One more than needed: so the published code asks, and it decides which of equals win.
        best, index = logits.reshape(-1, experts).topk(min(self.top_k + 1, experts), dim=-1)
        # The short axis first: sums over it then go along many tokens at a time.
        log_shares = best[:, : self.top_k].T.contiguous().log_softmax(dim=0)
        index = index[:, : self.top_k].T
        if noise_std is not None and torch.is_grad_enabled():
            self._routing = Routing(log_shares, index, clean, logits, noise_std)
        return log_shares, index

    def mix(self, z: Tensor, log_shares: Tensor, index: Tensor) -> Tensor:
        """Ask the experts and mix what they say: log(sum(g exp(E))).

        As published wherever that is finite: shares up to 1e-4 are dropped, and a sum so small
        that it is 0 counts as 2.2e-16. Experts so large that their exponential is infinite, which
        the published code turns into NaN, are mixed here too.

        Args:
            z: (M, 2, r) reduced halves.
            log_shares: (top_k, 2 M) of `route`.
            index: (top_k, 2 M) of `route`.

        Returns:
            (M, 2, r).
        """
        experts, hidden, reduced = self.weight_in.shape
        flat = z.reshape(-1, reduced)
        inner = F.linear(flat, self.weight_in.flatten(0, 1), self.bias_in.flatten()).relu()
        inner = inner.reshape(-1, experts, hidden).transpose(0, 1)  # (E, 2 M, h)
        said = torch.baddbmm(self.bias_out[:, None], inner, self.weight_out.transpose(1, 2))
        rows = index * len(flat) + torch.arange(len(flat), device=z.device)
        said = said.flatten(0, 1).index_select(0, rows.flatten()).reshape(*rows.shape, reduced)
        logs = log_shares.masked_fill(log_shares <= math.log(GATE_MIN), -math.inf)
        said = said + logs[..., None]
        # The sum of two, the published number, has a function of its own, five times as fast.
        mixed = torch.logaddexp(*said) if len(said) == 2 else torch.logsumexp(said, dim=0)
        limits = torch.finfo(mixed.dtype)
        vanished = mixed < math.log(limits.smallest_normal) + math.log(limits.eps)
        return mixed.masked_fill(vanished, math.log(PUBLISHED_EPS)).reshape(z.shape)

    @property
    def balance(self) -> Tensor:
        """How unevenly the last training pass used the experts; 0 when each was used alike.

        The squared coefficient of variation of the experts' shares, plus that of their load, the
        number of tokens expected for each, summed over both attributes (Shazeer et al., 1701.06538,
        section 4 and appendix A). The published code computes it and leaves it out of the loss.

        Returns:
            A scalar with a graph, or 0 without one when there was no training pass.
        """
        if self._routing is None:
            return self.scaler.new_zeros(())
        routing = self._routing
        importance = routing.gates.sum(dim=0)
        load = self._chance(routing).sum(dim=0) if self._is_sparse else importance
        return (_cv_squared(importance) + _cv_squared(load)).sum()

    @property
    def _is_sparse(self) -> bool:
        """Whether some experts are left out."""
        return self.top_k < len(self.weight_in)

    def _chance(self, routing: Routing) -> Tensor:
        """(M, 2, E) chance that an expert is chosen when its own noise is drawn again."""
        best = routing.noisy.topk(self.top_k + 1, dim=-1).values
        last_in, first_out = best[..., -2:-1], best[..., -1:]
        # An expert that is in stays in above the best of those outside; one outside has to beat
        # the weakest of those inside.
        rival = torch.where(routing.noisy > first_out, first_out, last_in)
        chance: Tensor = torch.special.ndtr((routing.clean - rival) / routing.noise_std)
        return chance

    def __getstate__(self) -> dict[str, Any]:
        """Copies leave the graph of the last pass behind, which cannot be copied."""
        return {**self.__dict__, "_routing": None}


def dense_gates(log_shares: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """Spread the shares of `AdaptedLinear.route` over all experts.

    Args:
        log_shares: (top_k, 2 M).
        index: (top_k, 2 M) int64.
        like: (M, 2, E) of the wanted type.

    Returns:
        (M, 2, E), 0 for the experts that were not asked; each row sums to 1.
    """
    gates = torch.zeros_like(like).reshape(-1, like.shape[-1])
    return gates.scatter(1, index.T, log_shares.exp().T).reshape(like.shape)


def load_balance(module: nn.Module) -> Tensor | None:
    """Sum the balance of all adapted layers in a module; None when it holds none."""
    layers = [part.balance for part in module.modules() if isinstance(part, AdaptedLinear)]
    return torch.stack(layers).sum() if layers else None


def _cv_squared(values: Tensor) -> Tensor:
    """Squared coefficient of variation over the last axis."""
    return values.var(dim=-1) / (values.mean(dim=-1).square() + CV_EPS)

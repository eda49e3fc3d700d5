"""Cross-attention of one head, from queries to the low-level features of the tokenizer.

Attribute match of SpectralX (arXiv 2508.01731, figures of HyperT and of the Are-adapter): norms on
both sides, no biases, heads of half the width of the features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AttributeMatch(nn.Module):
    """Queries look at features.

    Args:
        feature_dim: width of a feature; keys and values have half of it.
        query_dim: width of a query and of the answer.
    """

    def __init__(self, feature_dim: int, query_dim: int) -> None:
        super().__init__()
        self.head_dim = max(feature_dim // 2, 1)
        self.norm_features = nn.LayerNorm(feature_dim)
        self.norm_queries = nn.LayerNorm(query_dim)
        self.to_q = nn.Linear(query_dim, self.head_dim, bias=False)
        self.to_kv = nn.Linear(feature_dim, 2 * self.head_dim, bias=False)
        self.to_out = nn.Linear(self.head_dim, query_dim, bias=False)

    def forward(self, features: Tensor, queries: Tensor) -> Tensor:
        """Answer queries that are the same for all images.

        Args:
            features: (B, L, feature_dim).
            queries: (N, query_dim).

        Returns:
            (B, N, query_dim).
        """
        q = self.to_q(self.norm_queries(queries)).expand(len(features), -1, -1)
        k, v = self.to_kv(self.norm_features(features)).chunk(2, dim=-1)
        answer: Tensor = self.to_out(F.scaled_dot_product_attention(q, k, v))
        return answer

    def keys(self, features: Tensor) -> Tensor:
        """(B, L, feature_dim) to the keys (B, L, head_dim), scaled for `scores`."""
        weight = self.to_kv.weight[: self.head_dim]
        keys: Tensor = F.linear(self.norm_features(features), weight) * self.head_dim**-0.5
        return keys

    def scores(self, keys: Tensor, queries: Tensor) -> Tensor:
        """How well each query fits each feature, before any softmax.

        Args:
            keys: (B, L, head_dim) of `keys`.
            queries: (B, N, query_dim).

        Returns:
            (B, N, L).
        """
        return torch.matmul(self.to_q(self.norm_queries(queries)), keys.transpose(1, 2))

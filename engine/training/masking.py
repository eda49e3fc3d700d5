"""Spatial feature-guided masking: which tokens are hidden from the student and its teacher.

HyperKD (arXiv 2508.09453) guides its mask by spatial features. Which features, how they rank the
tokens, and whether the informative ones are hidden or shown is not known to us: the scores, both
directions and the random share here are our choice, and settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.errors import TrainingError

# The guide is clipped there, so that a glint or a cloud's edge does not take all the range.
CLIP_LOW, CLIP_HIGH = 0.02, 0.98
# Tokens with less data than this get the score of an average token.
SCORED_SHARE = 0.5
# The smallest neighbourhood in which a variance is taken; larger tokens take their own size.
VARIANCE_WINDOW_PX = 5
# Equal scores are dealt at random by this much, less than half a rank of any grid.
TIE_BREAK = 1e-5
# Sobel's two, and the three details of a Haar transform at every pixel; all sum to 0.
_KERNELS = (
    ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)),
    ((-1, -2, -1), (0, 0, 0), (1, 2, 1)),
    ((0, 0, 0), (0, 1, -1), (0, 1, -1)),
    ((0, 0, 0), (0, 1, 1), (0, -1, -1)),
    ((0, 0, 0), (0, 1, -1), (0, -1, 1)),
)


@dataclass(frozen=True)
class MaskingSettings:
    """How tokens are hidden.

    Args:
        mask_ratio: share of hidden tokens, above 0 and below 1.
        guided_share: share of the ranking in a token's key, 0 to 1; the rest is chance. At 0 the
            mask is that of MAE, whatever the image. From k / (k + 1/2) on, where k is the kept
            share (a third when a quarter is kept), the first in the ranking are never shown.
        hide: "informative" hides tokens with high scores first, "plain" those with low ones.
        edge: weight of the edges in the score.
        texture: weight of fine detail.
        variance: weight of the local variance.

    Raises:
        ValueError: a share or a weight is out of range.
    """

    mask_ratio: float = 0.75
    guided_share: float = 0.25
    hide: Literal["informative", "plain"] = "informative"
    edge: float = 1.0
    texture: float = 1.0
    variance: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.mask_ratio < 1.0:
            raise ValueError(f"The hidden share lies between 0 and 1, not at {self.mask_ratio}.")
        if not 0.0 <= self.guided_share <= 1.0:
            raise ValueError(f"The guided share is from 0 to 1, not {self.guided_share}.")
        if min(self.edge, self.texture, self.variance) < 0:
            raise ValueError("The weights of edge, texture and variance are not negative.")

    def num_kept(self, num_tokens: int) -> int:
        """N_kept of N tokens, rounded down as MAE and Prithvi do, and at least 1."""
        # 100 * (1 - 0.9) is 9.999… to a computer.
        return max(1, int(num_tokens * (1.0 - self.mask_ratio) + 1e-9))


@dataclass(frozen=True, eq=False)
class TokenMask:
    """Which tokens of a batch are visible; shared by the student and its teacher.

    Args:
        ids_keep: (B, N_kept) int64, the visible tokens, ascending.
        masked: (B, N) bool, True = hidden.
    """

    ids_keep: Tensor
    masked: Tensor


@torch.no_grad()
def token_scores(guide: Tensor, valid: Tensor, patch_px: int, settings: MaskingSettings) -> Tensor:
    """Rank the tokens of each image by how much there is to see in them.

    1. The guide is clipped to the 2nd and 98th percentile of its valid pixels.
    2. At every pixel: the magnitude of Sobel's gradient, the energy of a Haar transform's
       details, and the variance around it; pixels beside ones without data do not count.
    3. The mean of each over the token, standardised within the image; what is the same
       everywhere scores 0.
    4. The weighted sum becomes a rank; equal sums share one.

    Args:
        guide: (B, H, W), one channel to look at: the mean of the bands, or of the teacher's.
        valid: (B, H, W) bool, True = use.
        patch_px: side of a token, from 1 px.
        settings: weights of the three.

    Returns:
        (B, N) float32, from 0 for the plainest token of the image to 1.
    """
    valid_share = _token_means(valid[:, None].float(), patch_px)[:, 0]
    clipped = _clipped(guide.float(), valid)
    features, known = _pixel_features(clipped, valid, patch_px)
    share = _token_means(torch.cat([features * known, known], dim=1), patch_px)
    means = share[:, :3] / share[:, 3:].clamp_min(1e-6)
    scored = (valid_share >= SCORED_SHARE) & (share[:, 3] > 0)
    weights = means.new_tensor([settings.edge, settings.texture, settings.variance])
    score = (_standardised(means, scored[:, None]) * weights[:, None]).sum(dim=1)
    return _ranks(score)


@torch.no_grad()
def draw_mask(
    scores: Tensor, token_valid: Tensor, settings: MaskingSettings, generator: torch.Generator
) -> TokenMask:
    """Draw the tokens to hide; those without data are always hidden.

    Args:
        scores: (B, N) float32 from `token_scores`.
        token_valid: (B, N) bool, True = the token has data.
        settings: ratio, direction and random share.
        generator: on the CPU, so that a seed gives the same masks on every device.

    Raises:
        TrainingError: a sample has fewer tokens with data than are kept.
    """
    b, n = scores.shape
    num_kept = settings.num_kept(n)
    fewest = int(token_valid.sum(dim=1).min())
    if fewest < num_kept:
        raise TrainingError(
            f"A tile has data in {fewest} of its {n} tokens, and {num_kept} have to be shown.",
            "Leave out tiles that are mostly without data, or hide a larger share.",
        )
    chance = torch.rand(b, n, generator=generator).to(scores.device)
    rank = scores if settings.hide == "informative" else 1.0 - scores
    key = settings.guided_share * rank + (1.0 - settings.guided_share + TIE_BREAK) * chance
    key = key.masked_fill(~token_valid, torch.inf)
    ids_keep = key.topk(num_kept, dim=1, largest=False).indices.sort(dim=1).values
    masked = torch.ones_like(token_valid).scatter_(1, ids_keep, False)
    return TokenMask(ids_keep, masked)


def _clipped(guide: Tensor, valid: Tensor) -> Tensor:
    """(B, H, W) between its percentiles; pixels without data get the lower one."""
    ordered = guide.masked_fill(~valid, torch.inf).flatten(1).sort(dim=1).values
    last = (valid.flatten(1).sum(dim=1, keepdim=True) - 1).clamp_min(0)
    low, high = (
        ordered.gather(1, (last * share).round().long())[:, :, None]
        for share in (CLIP_LOW, CLIP_HIGH)
    )
    # An image without data has no percentiles.
    low, high = low.nan_to_num(posinf=0.0), high.nan_to_num(posinf=0.0)
    return torch.where(valid, guide, low).clamp(low, high)


def _pixel_features(guide: Tensor, valid: Tensor, patch_px: int) -> tuple[Tensor, Tensor]:
    """Edge, texture and variance (B, 3, H, W), and (B, 1, H, W) float, 1 where they are known."""
    image = guide[:, None]
    kernels = torch.tensor(_KERNELS, dtype=image.dtype, device=image.device)[:, None]
    details = F.conv2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), kernels).square()
    edge = details[:, :2].sum(dim=1, keepdim=True).sqrt()
    texture = details[:, 2:].sum(dim=1, keepdim=True).sqrt()
    gaps = F.max_pool2d((~valid)[:, None].float(), 3, stride=1, padding=1)
    variance = _local_variance(image, valid[:, None].float(), patch_px)
    return torch.cat([edge, texture, variance], dim=1), 1.0 - gaps


def _local_variance(image: Tensor, valid: Tensor, patch_px: int) -> Tensor:
    """(B, 1, H, W) variance of the valid pixels in the window around each pixel."""
    # Around the mean, because the difference of two large squares has no digits left.
    image = image - (image * valid).mean(dim=(2, 3), keepdim=True)
    window_px = max(VARIANCE_WINDOW_PX, patch_px + 1 - patch_px % 2)
    stack = torch.cat([image * valid, image.square() * valid, valid], dim=1)
    mean = F.avg_pool2d(stack, window_px, stride=1, padding=window_px // 2)
    count = mean[:, 2:].clamp_min(1e-6)
    return (mean[:, 1:2] / count - (mean[:, :1] / count).square()).clamp_min(0.0)


def _token_means(image: Tensor, patch_px: int) -> Tensor:
    """(B, F, H, W) to (B, F, N), means over the tokens."""
    return F.avg_pool2d(image, patch_px).flatten(2)


def _standardised(values: Tensor, known: Tensor) -> Tensor:
    """(B, F, N) with mean 0 and deviation 1 over the known; 0 elsewhere and if nothing differs."""
    count = known.sum(dim=2, keepdim=True).clamp_min(1)
    centred = (values - (values * known).sum(dim=2, keepdim=True) / count) * known
    std = (centred.square().sum(dim=2, keepdim=True) / count).sqrt()
    scale = values.abs().amax(dim=2, keepdim=True)
    # Rounding alone is no difference.
    return torch.where(std > 1e-5 * scale, centred / std.clamp_min(1e-30), 0.0)


def _ranks(score: Tensor) -> Tensor:
    """(B, N) ranks from 0 to 1; equal scores get the middle of theirs."""
    ordered = score.sort(dim=1).values
    first = torch.searchsorted(ordered, score)
    behind = torch.searchsorted(ordered, score, right=True)
    return (first + behind - 1).float() / (2 * max(1, score.shape[1] - 1))

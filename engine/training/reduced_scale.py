"""Methods at the scale where the truth is known: both images degraded, fused and compared.

Wald's protocol (Wald, Ranchin and Mangolini, Photogrammetric Engineering and Remote Sensing 63(6),
1997): what is to be found is the hyperspectral image itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isqrt

import torch
from torch import Tensor

from engine.feedback import Feedback
from engine.models.fusion.consistency import known_pixels
from engine.models.fusion.method import ImagePair
from engine.training.fusion_metrics import FusionMeter, FusionScores
from engine.training.pair_physics import PairPhysics, degrade_pair

Fit = Callable[[Sequence[ImagePair]], Callable[[ImagePair], Tensor]]
"""From degraded pairs to what fuses them."""

MAX_PX = 16_384
"""Coarse pixels that are compared; more would make the scores no more certain, only late."""

# A degraded image of fewer pixels along a side is mostly border.
_SMALLEST_SIDE_PX = 6


@torch.no_grad()
def score_reduced(
    sample: Sequence[ImagePair],
    physics: PairPhysics,
    methods: Mapping[str, Fit],
    feedback: Feedback,
    *,
    band_index: Sequence[int] | None = None,
    max_px: int = MAX_PX,
) -> dict[str, FusionScores]:
    """Score methods on one pair, degraded; what is fitted is fitted on the same ground.

    Args:
        sample: of the pair at full scale, on the CPU.
        physics: of the pair.
        methods: by name; each is fitted to the degraded pairs.
        feedback: told the progress; asked about a cancel between methods.
        band_index: bands that are compared; None: all.
        max_px: coarse pixels that are used.

    Returns:
        scores by name; none when the sample is too small to be degraded.
    """
    lower = [degrade_pair(part, physics) for part in _parts(sample, physics.ratio, max_px)]
    lower = [found for found in lower if bool((known_pixels(found[0]) & found[2]).any())]
    scores: dict[str, FusionScores] = {}
    if not lower:
        return scores
    pairs = [pair for pair, _target, _valid in lower]
    for number, (name, fit) in enumerate(methods.items()):
        feedback.raise_if_cancelled()
        feedback.progress(number / len(methods), "Comparing methods at the lower scale")
        fuse = fit(pairs)
        bands = range(lower[0][1].shape[1]) if band_index is None else band_index
        meter = FusionMeter(len(bands), physics.ratio)
        for pair, target, valid in lower:
            known = (known_pixels(pair) & valid)[0]
            meter.update(fuse(pair)[0, list(bands)], target[0, list(bands)], known)
        scores[name] = meter.scores()
    feedback.progress(1.0, "Comparing methods at the lower scale")
    return scores


def _parts(sample: Sequence[ImagePair], ratio: int, max_px: int) -> list[ImagePair]:
    """As much of a sample as is compared, each part large enough to be degraded."""
    parts, left_px = [], max_px
    for part in sample:
        height, width = part.hsi.shape[-2:]
        if min(height, width) < _SMALLEST_SIDE_PX * ratio or left_px <= 0:
            continue
        if height * width > left_px:
            side = max(isqrt(left_px), _SMALLEST_SIDE_PX * ratio)
            part = part.crop(slice(side), slice(side))
        parts.append(part)
        left_px -= part.hsi.shape[-2] * part.hsi.shape[-1]
    return parts

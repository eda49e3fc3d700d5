"""What Galileo reads and returns: bands, groups, constants, and one tensor a kind of token.

Galileo: Learning Global and Local Features in Pretrained Remote Sensing Models (arXiv 2502.09356);
constants of nasaharvest/galileo, MIT, "Copyright (c) 2024 Presto Authors".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# The channels of each group; a group is one token, embedded by a layer of its own. The order of
# the groups is that of the channel embeddings and masks.
SPACE_TIME_GROUPS = {
    "S1": (0, 1),
    "S2_RGB": (2, 3, 4),
    "S2_Red_Edge": (5, 6, 7),
    "S2_NIR_10m": (8,),
    "S2_NIR_20m": (9,),
    "S2_SWIR": (10, 11),
    "NDVI": (12,),
}
SPACE_GROUPS = {"SRTM": (0, 1), "DW": tuple(range(2, 11)), "WC": tuple(range(11, 16))}
TIME_GROUPS = {"ERA5": (0, 1), "TC": (2, 3, 4), "VIIRS": (5,)}
STATIC_GROUPS = {
    "LS": (0,),
    "location": (1, 2, 3),
    "DW_static": tuple(range(4, 13)),
    "WC_static": tuple(range(13, 18)),
}

# The groups that a Sentinel-2 image alone fills: their names, and their numbers.
SENTINEL2_GROUPS = tuple(name for name in SPACE_TIME_GROUPS if name.startswith("S2_"))
SENTINEL2_GROUP_INDEX = tuple(list(SPACE_TIME_GROUPS).index(name) for name in SENTINEL2_GROUPS)
FIRST_SENTINEL2_CHANNEL = SPACE_TIME_GROUPS["S2_RGB"][0]

# Mean and spread of each Sentinel-2 band (B2 to B8, B8A, B11, B12) in the training data of
# Galileo: top-of-atmosphere reflectance x 10,000.
SENTINEL2_MEAN_DN = (
    1395.3408730676722,
    1338.4026921784578,
    1343.09883810357,
    1543.8607982512297,
    2186.2022069512263,
    2525.0932853316694,
    2410.3377187373408,
    2750.2854646886753,
    2234.911100061487,
    1474.5311266077113,
)
SENTINEL2_STD_DN = (
    917.7041440370853,
    913.2988423581528,
    1092.678723527555,
    1047.2206083460424,
    1048.0101611156767,
    1143.6903026819996,
    1098.979177731649,
    1204.472755085893,
    1145.9774063078878,
    980.2429840007796,
)
DN_PER_REFLECTANCE = 10_000.0


@dataclass(frozen=True, eq=False)
class PerKind:
    """One tensor for each of the four kinds of tokens: values, masks or tokens.

    B images, H x W pixels or h x w patches, T dates.

    Args:
        space_time: what changes from pixel to pixel and from date to date: (B, H, W, T, …).
        space: what changes from pixel to pixel: (B, H, W, …).
        time: what changes from date to date: (B, T, …).
        static: one for the image: (B, …).
    """

    space_time: Tensor
    space: Tensor
    time: Tensor
    static: Tensor

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four in the order of the sequence."""
        return self.space_time, self.space, self.time, self.static

    def flatten(self, trailing: int) -> Tensor:
        """Join all into one sequence (B, N, …), groups fastest.

        Args:
            trailing: axes at the end that stay, 0 for masks and 1 for tokens.
        """
        flat = [
            part.reshape(len(part), -1, *part.shape[part.dim() - trailing :])
            for part in self.parts()
        ]
        return torch.cat(flat, dim=1)

    def unflatten(self, sequence: Tensor) -> PerKind:
        """The inverse of `flatten`: (B, N, D) to four tensors shaped as these masks, with D."""
        counts = [part[0].numel() for part in self.parts()]
        pieces: tuple[Tensor, ...] = torch.split(sequence, counts, dim=1)
        shaped = [
            piece.reshape(*part.shape, -1) for piece, part in zip(pieces, self.parts(), strict=True)
        ]
        return PerKind(*shaped)


@dataclass(frozen=True, eq=False)
class GalileoInputs:
    """All that the encoder can read.

    Args:
        values: normalised; (B, H, W, T, 13), (B, H, W, 16), (B, T, 6), (B, 18). H and W are
            divisible by ``patch_px``.
        masks: 0 = visible, 1 or more = hidden, one a group; (B, H, W, T, 7), (B, H, W, 3),
            (B, T, 3), (B, 4). Constant within a patch.
        months: (B, T) int64, 0 = January.
        patch_px: side of a patch, 1 to 8.
        pixel_size_m: (B,) ground size of a pixel.
    """

    values: PerKind
    masks: PerKind
    months: Tensor
    patch_px: int
    pixel_size_m: Tensor


@dataclass(frozen=True, eq=False)
class GalileoOutput:
    """What the encoder returns.

    Args:
        tokens: after the final norm; (B, h, w, T, 7, D), (B, h, w, 3, D), (B, T, 3, D),
            (B, 4, D). A hidden place holds the norm's bias.
        visible: bool, shaped as the tokens without D.
        blocks: tokens after the blocks that were asked for, without norm; hidden places are 0.
    """

    tokens: PerKind
    visible: PerKind
    blocks: tuple[PerKind, ...] = ()

    def patch_mean(self) -> Tensor:
        """Mean of the visible tokens that concern each patch: (B, h * w, D), row by row.

        Those of time and of the whole image concern every patch. NaN where nothing is visible.
        """
        weights = [part[..., None].float() for part in self.visible.parts()]
        sums = [
            (tokens * weight).flatten(first, -2).sum(dim=-2)
            for tokens, weight, first in zip(
                self.tokens.parts(), weights, (3, 3, 1, 1), strict=True
            )
        ]
        counts = [
            weight.flatten(first, -2).sum(dim=-2)
            for weight, first in zip(weights, (3, 3, 1, 1), strict=True)
        ]
        return (_over_patches(sums) / _over_patches(counts)).flatten(1, 2)

    def global_mean(self) -> Tensor:
        """Mean of all visible tokens: (B, D)."""
        weight = self.visible.flatten(trailing=0)[..., None].float()
        tokens = self.tokens.flatten(trailing=1)
        return (tokens * weight).sum(dim=1) / weight.sum(dim=1)


def _over_patches(parts: list[Tensor]) -> Tensor:
    """Add what is of patches (B, h, w, …) and what is of the whole image (B, …)."""
    space_time, space, time, static = parts
    return space_time + space + (time + static)[:, None, None]

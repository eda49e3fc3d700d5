"""A distilled encoder as a model of its own: what `distill_backbone` saves and others start from.

It holds the student's encoder alone. Decoder and projectors are of use in pre-training only.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.hyperkd import EncoderConfig, HyperKDEncoder


@dataclass(frozen=True)
class BackboneConfig(EncoderConfig):
    """The settings of an encoder and of the tiles that it was trained on.

    Args:
        tile_size_px: side of a training tile, a multiple of ``patch_px``; what the encoder is used
            on should be as large, because it has seen no other positions.

    Raises:
        ValueError: a setting is out of range.
    """

    tile_size_px: int = 24

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tile_size_px < self.patch_px or self.tile_size_px % self.patch_px:
            raise ValueError(
                f"Tiles of {self.tile_size_px} px cannot be cut into patches of {self.patch_px} px."
            )

    @property
    def encoder(self) -> EncoderConfig:
        """The part of the settings that describes the encoder."""
        names = [field.name for field in fields(EncoderConfig)]
        return EncoderConfig(**{name: getattr(self, name) for name in names})


class HyperKDBackbone(nn.Module):
    """The encoder as ``encoder``, with the normalisation that it was trained with.

    Args:
        config: see there.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = HyperKDEncoder(config.encoder)

    @property
    def tile_size_px(self) -> int:
        """Side of a tile as it is read."""
        return self.config.tile_size_px

    @property
    def halo_px(self) -> int:
        """Margin of a tile that its neighbours cover too."""
        return backbone_halo_px(self.config.tile_size_px)

    @property
    def blend(self) -> bool:
        """Attention sees the whole tile, so no halo makes tiles agree."""
        return True

    def forward(self, reflectance: Tensor, valid: Tensor) -> Tensor:
        """Embed chips of any size from one pixel up.

        Args:
            reflectance: (B, C, h, w) float32, 0 to 1.
            valid: (B, h, w) bool, True = use; what stands elsewhere in ``reflectance`` does not
                matter.

        Returns:
            (B, D, ceil(h / patch), ceil(w / patch)) float32 embeddings, one a token.
        """
        grid, _x = embed_chips(self.encoder, reflectance, valid)
        return grid.float()


def backbone_halo_px(tile_size_px: int) -> int:
    """The margin in which tiles of a backbone are blended.

    A sixth of the tile, so that each pixel is computed about twice.
    """
    return max(tile_size_px // 6, 1)


def embed_chips(
    encoder: HyperKDEncoder, reflectance: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """Normalise chips, fill them up to whole patches, and encode the tokens that hold a pixel.

    Args:
        encoder: that owns the normalisation.
        reflectance: (B, C, h, w) float32, 0 to 1; what stands where not valid does not matter.
        valid: (B, h, w) bool, True = use.

    Returns:
        (B, D, rows, cols) the tokens on their grid, and (B, C, rows * patch, cols * patch) the
        normalised chips, 0 where not valid.
    """
    h, w = valid.shape[-2:]
    patch_px = encoder.config.patch_px
    padding = (0, -w % patch_px, 0, -h % patch_px)
    valid = F.pad(valid, padding, value=False)
    x = F.pad(encoder.normalise(reflectance), padding)
    x = torch.where(valid[:, None], x, 0.0)
    token_valid = F.max_pool2d(valid[:, None].float(), patch_px)[:, 0] > 0
    tokens = encoder(x, token_valid=token_valid.flatten(1))
    rows, cols = token_valid.shape[-2:]
    return rearrange(tokens[:, 1:], "b (r c) d -> b d r c", r=rows, c=cols), x

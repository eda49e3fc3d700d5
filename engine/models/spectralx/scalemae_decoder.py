"""ScaleMAE's decoder and its loss, as SpectralX trains with them.

Three transformer blocks, a small feature pyramid, and two convolutional heads: one tells the image
itself, one what is left of it at doubled size when the mean of each token is taken away. Measures
and losses are those of the released code of SpectralX (arXiv 2508.01731; ScaleMAE is arXiv
2212.14532): its head for low frequencies has the chip as its target, so that this head's answer is
our prediction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.mae import DecoderConfig
from engine.models.patches import patchify, take_tokens
from engine.models.spectralx.decoder import (
    ChipTokens,
    Decoded,
    MaskedTarget,
    PixelDecoder,
    precise,
    spread_pixels,
    weighted_mean,
)

# Pixels that the heads predict for a token's side, whatever the chip's: they are part of the
# checkpoint, which was trained for tokens of 16 px and a target of doubled size.
LOW_PX, HIGH_PX = 16, 32
NORM_EPS = 1e-6


@dataclass(frozen=True)
class HeadConfig:
    """The settings of both convolutional heads.

    Args:
        width: channels, divisible by 4.
        layers: residual blocks.

    Raises:
        ValueError: a setting is out of range.
    """

    width: int = 512
    layers: int = 2

    def __post_init__(self) -> None:
        if self.width < 4 or self.width % 4 or self.layers < 1:
            raise ValueError(
                "A head has a width that is divisible by 4 and a layer or more, not "
                f"{self.width} and {self.layers}."
            )


class ScaleMAEDecoder(PixelDecoder):
    """Tells the chip, and what is finer than a token at doubled size.

    Its images are the low one (B, C, 16 * G, 16 * G) and the high one (B, C, 32 * G, 32 * G).
    The prefix tokens are left out before its blocks.

    Args:
        tokens: of the encoder; the side of a token divides 32 px.
        config: of the transformer.
        positions: (P + N, width) float32; those of the prefix have no use.
        head: of both heads.
        norm_eps: of the transformer's norms.

    Raises:
        ValueError: the tokens' side does not fit the heads.
    """

    def __init__(
        self,
        tokens: ChipTokens,
        config: DecoderConfig,
        positions: Tensor,
        head: HeadConfig | None = None,
        norm_eps: float = NORM_EPS,
    ) -> None:
        if HIGH_PX % tokens.patch_px:
            raise ValueError(
                f"ScaleMAE's decoder needs tokens whose side divides {HIGH_PX} px, not "
                f"{tokens.patch_px} px."
            )
        super().__init__(tokens, config, positions, norm_eps)
        head = head or HeadConfig()
        self.fpn = _Pyramid(config.embed_dim)
        self.fcn_high = _Head(config.embed_dim, head, tokens.in_channels)
        self.fcn_low = _Head(config.embed_dim, head, tokens.in_channels)

    def forward(self, tokens: Tensor, ids_keep: Tensor) -> Decoded:
        """See `PixelDecoder.forward`; images low and high."""
        places = self.spread(tokens, ids_keep)[:, self.tokens.prefix_tokens :]
        places = self.decode(places)
        image = rearrange(places, "b (r c) d -> b d r c", r=self.tokens.grid)
        fine, coarse = self.fpn(image)
        low, high = self.fcn_low(coarse), self.fcn_high(fine)
        ids_masked = self.hidden_ids(ids_keep)
        return Decoded(take_tokens(self._pixels_of(low), ids_masked), ids_masked, (low, high))

    def losses(self, decoded: Decoded, target: MaskedTarget) -> dict[str, Tensor]:
        """Squared errors of hidden pixels, summed over the bands: "low" and "high".

        As published the sum over all bands is divided by the number of pixels, not of values.
        Where bands are missing, the mean of those that are there stands for them.
        """
        low, high = decoded.images
        terms = {
            "low": self._error(low, resized(target.x, low.shape[-1]), target),
            "high": self._error(high, self._fine_part(target, high.shape[-1]), target),
        }
        return {"loss": terms["low"] + terms["high"]} | {
            name: term.detach() for name, term in terms.items()
        }

    def _pixels_of(self, low: Tensor) -> Tensor:
        """(B, N, p * p * C) pixel vectors at the chip's size."""
        patch_px = self.tokens.patch_px
        return patchify(resized(low, patch_px * self.tokens.grid), patch_px)

    def _fine_part(self, target: MaskedTarget, side_px: int) -> Tensor:
        """The chip at ``side_px`` without the smooth image of its tokens' means."""
        means = token_means(target.x, target.valid, self.tokens.patch_px)
        size = (side_px, side_px)
        smooth = F.interpolate(means, size=size, mode="bilinear", align_corners=False)
        return resized(target.x, side_px) - smooth

    def _error(self, image: Tensor, wanted: Tensor, target: MaskedTarget) -> Tensor:
        side_px = image.shape[-1]
        counts = spread_pixels(target.masked, side_px)
        counts = counts & (resized(target.valid[:, None].to(wanted), side_px)[:, 0] == 1)
        squares = (precise(image) - wanted).square()
        return self.tokens.in_channels * weighted_mean(squares, counts, target.band_present)


def resized(image: Tensor, side_px: int) -> Tensor:
    """Another size by whole factors: pixels are repeated, or their means taken.

    Args:
        image: (B, C, S, S).
        side_px: a multiple of S or a divisor.

    Returns:
        (B, C, side, side).
    """
    if image.shape[-1] == side_px:
        return image
    mode = "nearest" if side_px > image.shape[-1] else "area"
    return F.interpolate(image, size=(side_px, side_px), mode=mode)


def token_means(x: Tensor, valid: Tensor, patch_px: int) -> Tensor:
    """The mean of each token's valid pixels; of the chip's where it has none.

    Args:
        x: (B, C, chip, chip).
        valid: (B, chip, chip) bool.
        patch_px: p, side of a token.

    Returns:
        (B, C, chip / p, chip / p).
    """
    weight = valid[:, None].to(x)
    share = F.avg_pool2d(weight, patch_px)
    sums = F.avg_pool2d(x * weight, patch_px)
    chip = sums.sum(dim=(2, 3), keepdim=True) / share.sum(dim=(2, 3), keepdim=True).clamp_min(1e-6)
    return torch.where(share > 0, sums / share.clamp_min(1e-6), chip)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Pyramid(nn.Module):
    """(B, W, G, G) to the same width at four times and at twice the side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fpn1 = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, stride=2),
            ChannelNorm(width, eps=NORM_EPS),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, stride=2),
        )
        self.fpn2 = nn.Sequential(nn.ConvTranspose2d(width, width, 2, stride=2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The fine map and the coarse one."""
        return self.fpn1(x), self.fpn2(x)


class _Head(nn.Module):
    """A map to an image of eight times its side."""

    def __init__(self, in_width: int, config: HeadConfig, in_channels: int) -> None:
        super().__init__()
        width = config.width
        self.proj = nn.Conv2d(in_width, width, 1)
        self.conv_blocks = nn.ModuleList(_Residual(width) for _layer in range(config.layers))
        self.pred = nn.Sequential(
            ChannelNorm(width, eps=NORM_EPS),
            nn.ConvTranspose2d(width, width // 2, 4, stride=4),
            nn.GELU(),
            nn.Conv2d(width // 2, width // 4, 3, padding=1, groups=width // 4),
            nn.GELU(),
            nn.Conv2d(width // 4, width // 2, 1),
            nn.GELU(),
            nn.ConvTranspose2d(width // 2, in_channels, 2, stride=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_width, S, S) to (B, C, 8 * S, 8 * S)."""
        x = self.proj(x)
        for block in self.conv_blocks:
            x = block(x)
        y: Tensor = self.pred(x)
        return y


class _Residual(nn.Module):
    """A grouped convolution beside a plain mixing of channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.GELU(),
            nn.Conv2d(width, width // 2, 3, padding=1, groups=width // 2),
            nn.GELU(),
            nn.Conv2d(width // 2, width, 1),
        )
        self.residual = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, W, S, S) to the same."""
        y: Tensor = self.convs(x) + self.residual(x)
        return y

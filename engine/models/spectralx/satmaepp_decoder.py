"""SatMAE++'s decoder and its loss, as SpectralX trains with them.

The plain decoder of a masked autoencoder, and behind it a convolutional branch that makes an image
of doubled size from all predicted pixels. Measures and losses are those of the released code of
SpectralX (arXiv 2508.01731), whose constructor of this decoder raises an error as released;
SatMAE++ is arXiv 2403.05419.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.mae import DecoderConfig
from engine.models.patches import take_tokens, unpatchify
from engine.models.spectralx.decoder import (
    ChipTokens,
    Decoded,
    MaskedTarget,
    PixelDecoder,
    precise,
    weighted_mean,
)
from engine.models.spectralx.plain_decoder import hidden_squared_error
from engine.models.spectralx.scalemae_decoder import ChannelNorm
from engine.models.transformer import init_transformer

MSE_WEIGHT, L1_WEIGHT = 0.6, 0.4
WIDENING = 4  # channels of the branch over the bands
RESIDUAL_SHARE = 0.5
NORM_EPS = 1e-5  # of the transformer in the released stage 1; its pre-training had 1e-6
BRANCH_EPS = 1e-6


class SatMAEppDecoder(PixelDecoder):
    """Tells the pixels of the hidden tokens, and the whole chip at doubled size.

    Its one image is the doubled one, (B, C, 2 * chip, 2 * chip).

    Args:
        tokens: of the encoder.
        config: of the transformer.
        positions: (P + N, width) float32.
        norm_eps: of the transformer's norms.
    """

    def __init__(
        self,
        tokens: ChipTokens,
        config: DecoderConfig,
        positions: Tensor,
        norm_eps: float = NORM_EPS,
    ) -> None:
        super().__init__(tokens, config, positions, norm_eps)
        bands = tokens.in_channels
        wide = WIDENING * bands
        self.decoder_pred: nn.Module = nn.Linear(config.embed_dim, tokens.num_values)
        self.decoder_pred.apply(init_transformer)
        self.proj_up_conv = nn.Conv2d(bands, wide, 1)
        self.proj_up_norm = ChannelNorm(wide, eps=BRANCH_EPS)
        self.up_block = _Doubling(wide, bands)

    def forward(self, tokens: Tensor, ids_keep: Tensor) -> Decoded:
        """See `PixelDecoder.forward`; the doubled image."""
        grid = self.tokens.grid
        x = self.decode(self.spread(tokens, ids_keep))
        pixels = self.decoder_pred(x)[:, self.tokens.prefix_tokens :]
        image = unpatchify(pixels, self.tokens.patch_px, grid, grid)
        wide = self.proj_up_norm(F.gelu(self.proj_up_conv(image)))
        ids_masked = self.hidden_ids(ids_keep)
        return Decoded(take_tokens(pixels, ids_masked), ids_masked, (self.up_block(wide),))

    def losses(self, decoded: Decoded, target: MaskedTarget) -> dict[str, Tensor]:
        """0.6 of "mse" at hidden tokens and 0.4 of "doubled", L1 at all pixels of that image."""
        [doubled] = decoded.images
        wanted, counts = doubled_target(target.x, target.valid)
        errors = (precise(doubled) - wanted).abs()
        mse = hidden_squared_error(decoded, target, self.tokens.patch_px)
        l1 = weighted_mean(errors, counts, target.band_present)
        loss = MSE_WEIGHT * mse + L1_WEIGHT * l1
        return {"loss": loss, "mse": mse.detach(), "doubled": l1.detach()}


def doubled_target(x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The chip at doubled size, bilinear, and where only valid pixels went into it.

    Args:
        x: (B, C, S, S).
        valid: (B, S, S) bool, True = use.

    Returns:
        (B, C, 2 * S, 2 * S), and (B, 2 * S, 2 * S) bool.
    """
    image, invalid = (
        F.interpolate(part, scale_factor=2, mode="bilinear", align_corners=False)
        for part in (x, (~valid)[:, None].to(x))
    )
    return image, invalid[:, 0] == 0


class _Doubling(nn.Module):
    """(B, W, S, S) to (B, C, 2 * S, 2 * S)."""

    def __init__(self, width: int, bands: int) -> None:
        super().__init__()
        self.up_conv = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)
        self.up_norm = ChannelNorm(width, eps=BRANCH_EPS)
        self.res_block = _Residual(width)
        self.res_norm = ChannelNorm(width, eps=BRANCH_EPS)
        self.proj_out = nn.Conv2d(width, bands, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = F.leaky_relu(self.up_norm(self.up_conv(x)))
        y: Tensor = self.proj_out(self.res_norm(self.res_block(x)))
        return y


class _Residual(nn.Module):
    """Two convolutions whose answer is added at half strength."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, W, S, S) to the same."""
        y: Tensor = x + RESIDUAL_SHARE * self.conv2(torch.relu(self.conv1(x)))
        return y

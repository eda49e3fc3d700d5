"""The plain decoder of a masked autoencoder (arXiv 2111.06377): tokens in, pixel vectors out.

SpectralX (arXiv 2508.01731) knows the decoders of ScaleMAE and SatMAE++ only. Where a foundation
model has none (DINOv3, encoder-only files) or one that reads its own encoder's many channel groups
(Galileo), ours is a fresh small one of this class that is trained whole; checkpoints of MAE and
Prithvi bring one of this class that stays frozen.
"""

from __future__ import annotations

import torch
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
)
from engine.models.transformer import init_transformer


class PlainDecoder(PixelDecoder):
    """Predicts the pixels of the hidden tokens, and of these alone.

    Args:
        tokens: of the encoder.
        config: width, blocks and heads.
        positions: (P + N, width) float32.
        norm_eps: of all norms.
    """

    def __init__(
        self, tokens: ChipTokens, config: DecoderConfig, positions: Tensor, norm_eps: float = 1e-6
    ) -> None:
        super().__init__(tokens, config, positions, norm_eps)
        self.decoder_pred: nn.Module = nn.Linear(config.embed_dim, tokens.num_values)
        self.decoder_pred.apply(init_transformer)

    def forward(self, tokens: Tensor, ids_keep: Tensor) -> Decoded:
        """See `PixelDecoder.forward`; no images."""
        prefix, kept = self.tokens.prefix_tokens, ids_keep.shape[1]
        ids_masked = self.hidden_ids(ids_keep)
        embedded = self.decoder_embed(tokens).to(self.mask_token)
        positions = self.positions(embedded)[0]
        places = positions[prefix:]
        # Attention knows no order but that of the positions: hidden tokens stand last, so that
        # nothing has to be put in its place.
        x = torch.cat(
            [
                embedded[:, :prefix] + positions[:prefix],
                embedded[:, prefix:] + places[ids_keep],
                self.mask_token + places[ids_masked],
            ],
            dim=1,
        )
        for block in self.decoder_blocks:
            x = block(x)
        prediction = self.decoder_pred(self.decoder_norm(x[:, prefix + kept :]))
        return Decoded(prediction, ids_masked, ())

    def losses(self, decoded: Decoded, target: MaskedTarget) -> dict[str, Tensor]:
        """Only "mse", the squared error of what was hidden, un-normalised; see `PixelDecoder`."""
        mse = hidden_squared_error(decoded, target, self.tokens.patch_px)
        return {"loss": mse, "mse": mse.detach()}


def hidden_squared_error(decoded: Decoded, target: MaskedTarget, patch_px: int) -> Tensor:
    """Mean squared error of the values of hidden tokens that count.

    Where every value counts it is the published mean over tokens of each token's mean.

    Args:
        decoded: of a decoder.
        target: for the same chips.
        patch_px: p, side of a token.
    """
    ids = decoded.ids_masked
    wanted = take_tokens(patchify(target.x, patch_px), ids)
    valid = take_tokens(patchify(target.valid[:, None].to(wanted), patch_px), ids)
    present = target.band_present.to(wanted)
    weight = torch.einsum("bmp,bc->bmpc", valid, present).flatten(2)
    # Weights are 0 or 1, so that both sides may be multiplied; the fused loss takes less time
    # than weighted squares.
    predicted = precise(decoded.prediction) * weight
    squares = F.mse_loss(predicted, wanted * weight, reduction="sum")
    count = valid.flatten(1).sum(dim=1) @ present.sum(dim=1)
    return squares / count.clamp_min(1.0)

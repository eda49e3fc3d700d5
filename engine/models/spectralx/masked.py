"""Stage 1 of SpectralX: an adapted foundation model that fills in what it was not shown.

Method: arXiv 2508.01731 and its released code. The published code hides tokens after the
tokenizer, which has looked at the whole chip by then, so that the visible tokens can tell of the
hidden ones; the paper's figure hides pixels. Both are settings here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from engine.models.mae import StudentOutput
from engine.models.spectralx.adapted import AdaptedViT
from engine.models.spectralx.aomoa import load_balance
from engine.models.spectralx.decoder import Decoded, MaskedTarget, PixelDecoder, spread_pixels
from engine.models.spectralx.decoders import decoder_counts
from engine.models.vit import Positions


class MaskedOutput(NamedTuple):
    """What the model says about a batch; a tuple, which every wrapper of a module can look into.

    Args:
        prediction: (B, M, p * p * C) normalised pixel vectors (`patchify`, channel fastest) of the
            hidden tokens. The visible ones are not given: no score asks for them.
        ids_masked: (B, M) int64, which tokens these are, ascending.
        images: what the decoder's own loss compares beside them; see the decoder.
        balance: scalar, the load-balancing loss with its weight; 0 where it is not used.
    """

    prediction: Tensor
    ids_masked: Tensor
    images: tuple[Tensor, ...]
    balance: Tensor


class MaskedSpectralX(nn.Module):
    """An adapted foundation with a decoder, as stage 1 trains it.

    Args:
        adapted: the part that is kept; what of it trains is set for stage 1.
        decoder: from `make_decoder`, left behind afterwards.
        mask_input: hidden tokens' pixels are 0 already before the tokenizer (the paper's figure);
            False: they are only left out after it (the published code).
        positions: how tokens learn where they stand in this stage; None: as in stage 2 (ours).
            Published for ScaleMAE: ``gsd``, while stage 2 has its stored table.
    """

    def __init__(
        self,
        adapted: AdaptedViT,
        decoder: PixelDecoder,
        *,
        mask_input: bool = False,
        positions: Positions | None = None,
    ) -> None:
        super().__init__()
        self.adapted = adapted
        self.decoder = decoder
        self.mask_input = mask_input
        self._positions = positions
        adapted.set_trainable(1)

    @property
    def patch_px(self) -> int:
        """Side of a token."""
        return self.adapted.config.patch_px

    def forward(self, x: Tensor, ids_keep: Tensor) -> MaskedOutput:
        """Look at some tokens, tell the others.

        Args:
            x: (B, C, chip, chip) normalised, 0 where there is no data.
            ids_keep: (B, K) int64, the visible tokens, 0-based in row order; in any order.
        """
        decoded: Decoded = self.decoder(self.encode(x, ids_keep), ids_keep)
        prediction, ids_masked, images = decoded
        return MaskedOutput(prediction, ids_masked, images, self._balance())

    def encode(self, x: Tensor, ids_keep: Tensor) -> Tensor:
        """The visible tokens after the last norm.

        Args:
            x: (B, C, chip, chip) normalised.
            ids_keep: (B, K) int64.

        Returns:
            (B, P + K, D), prefix first, the others in the order of ``ids_keep``.
        """
        grid = self.adapted.config.grid
        if self.mask_input:
            x = x * ~self._hidden_pixels(ids_keep)[:, None]
        output = self.adapted.vit(
            self.adapted.tokenizer(x).tokens,
            rows=grid,
            cols=grid,
            ids_keep=ids_keep,
            positions=self._positions,
        )
        tokens: Tensor = self.adapted.vit.norm(output.tokens)
        return tokens

    def predict(self, x: Tensor, ids_keep: Tensor) -> StudentOutput:
        """As the other masked autoencoders answer; see `engine.training.held_out`."""
        output = self(x, ids_keep)
        return StudentOutput(output.prediction, output.ids_masked, ())

    def losses(
        self,
        x: Tensor,
        output: MaskedOutput,
        ids_keep: Tensor,
        valid: Tensor,
        band_present: Tensor,
    ) -> dict[str, Tensor]:
        """The published loss of the decoder's kind, over what is there.

        Pixels without data, and bands that a scene has not, count for nothing; where all count it
        is the published loss.

        Args:
            x: (B, C, chip, chip) normalised, as given to `forward`.
            output: of `forward`.
            ids_keep: (B, K) int64, as given to `forward`.
            valid: (B, chip, chip) bool, True = use.
            band_present: (B, C) bool, False where a sample's scene has not the band.

        Returns:
            "loss" with its gradient; its terms by name, without weight and gradient.
        """
        config = self.adapted.config
        with torch.autocast(x.device.type, enabled=False):
            target = MaskedTarget.of(x, ids_keep, valid, band_present, config.grid**2)
            decoded = Decoded(output.prediction, output.ids_masked, output.images)
            terms = self.decoder.losses(decoded, target)
            if config.load_balancing:
                terms["loss"] = terms["loss"] + output.balance
                terms["balance"] = output.balance.detach()
        return terms

    def trainable_counts(self) -> dict[str, int]:
        """Count the values that train now, by part; those of the decoder last."""
        return self.adapted.trainable_counts() | decoder_counts(self.decoder)

    def _balance(self) -> Tensor:
        """The weighted load-balancing loss of all mixtures, those of the decoder too."""
        weight = self.adapted.config.load_balancing
        # Otherwise the routers would tell of their last training pass.
        balance = load_balance(self) if weight and self.training else None
        return self.adapted.band_mean.new_zeros(()) if balance is None else weight * balance

    def _hidden_pixels(self, ids_keep: Tensor) -> Tensor:
        """(B, chip, chip) bool, True where a token is hidden."""
        config = self.adapted.config
        hidden = torch.ones(len(ids_keep), config.grid**2, dtype=torch.bool, device=ids_keep.device)
        return spread_pixels(hidden.scatter_(1, ids_keep, False), config.chip_px)

"""Small adapted foundations and decoders for the tests of stage 1."""

from __future__ import annotations

import torch

from engine.models.mae import DecoderConfig
from engine.models.spectralx.adapted import AdaptedConfig, AdaptedViT
from engine.models.spectralx.decoder import ChipTokens
from engine.models.spectralx.decoders import DecoderSource, make_decoder
from engine.models.spectralx.masked import MaskedSpectralX
from engine.models.spectralx.plain_decoder import PlainDecoder
from engine.models.spectralx.satmaepp_decoder import SatMAEppDecoder
from engine.models.spectralx.scalemae_decoder import HeadConfig, ScaleMAEDecoder
from engine.models.vit import FoundationIdentity, ViT, ViTConfig

BANDS, RGB = 5, 3
CHIP_PX, PATCH_PX, GRID = 16, 4, 4
WIDTH, DECODER_WIDTH = 64, 64
FRESH = DecoderConfig(embed_dim=32, depth=1, num_heads=2)
KINDS = ("scalemae", "satmaepp", "mae", "plain")
IDENTITY = FoundationIdentity("tiny", "0" * 64, "vit", "none", "nowhere")


def adapted_config(**changes) -> AdaptedConfig:
    settings = {
        "in_channels": BANDS,
        "wavelength_nm": tuple(450.0 + 100.0 * band for band in range(BANDS)),
        "vit": ViTConfig(embed_dim=WIDTH, depth=2, num_heads=4, patch_px=PATCH_PX, grid=GRID),
        "foundation": IDENTITY,
        "chip_px": CHIP_PX,
        "patch_px": PATCH_PX,
        "stem_dim": 16,
    }
    return AdaptedConfig(**settings | changes)


def source(kind: str, *, bands: int = RGB, patch_px: int = PATCH_PX, grid: int = GRID):
    """What a checkpoint of a kind brings, for other bands than ours."""
    torch.manual_seed(7)
    tokens = ChipTokens(bands, patch_px, grid, WIDTH)
    config = DecoderConfig(DECODER_WIDTH, depth=2, num_heads=2)
    positions = torch.randn(1 + grid**2, DECODER_WIDTH)
    if kind == "plain":
        return DecoderSource({})
    if kind == "scalemae":
        decoder = ScaleMAEDecoder(tokens, config, positions, HeadConfig(16, 2))
    else:
        made = {"satmaepp": SatMAEppDecoder, "mae": PlainDecoder}[kind]
        decoder = made(tokens, config, positions)
    return DecoderSource(decoder.state_dict(), num_heads=2)


def masked_model(kind: str = "plain", **changes) -> MaskedSpectralX:
    """A model with the decoder of a kind; ``mask_input`` and ``train_output`` are taken out."""
    mask_input = changes.pop("mask_input", False)
    train_output = changes.pop("train_output", True)
    config = adapted_config(**changes)
    torch.manual_seed(0)
    adapted = AdaptedViT(config, ViT(config.vit))
    decoder = make_decoder(config, source(kind), FRESH, train_output=train_output)
    return MaskedSpectralX(adapted, decoder, mask_input=mask_input)


def chips(batch: int = 2, bands: int = BANDS, seed: int = 1) -> torch.Tensor:
    return torch.randn(
        batch, bands, CHIP_PX, CHIP_PX, generator=torch.Generator().manual_seed(seed)
    )

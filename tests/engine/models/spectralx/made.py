"""Small foundations and segmenters made by code, whose forward pass takes milliseconds."""

from __future__ import annotations

from typing import Any

import torch

from engine.models.spectralx.adapted import AdaptedConfig, AdaptedViT
from engine.models.spectralx.segmenter import SegmenterConfig, SpectralXSegmenter
from engine.models.vit import FoundationIdentity, ViT, ViTConfig

BANDS, CLASSES, CHIP_PX, PATCH_PX = 5, 3, 16, 4
WAVELENGTH_NM = (450.0, 550.0, 650.0, 850.0, 1600.0)
IDENTITY = FoundationIdentity("made", "0" * 64, "mae", "MIT", "tests")
VIT = ViTConfig(embed_dim=64, depth=4, num_heads=4, patch_px=8, grid=4)
SMALL = {"neck_channels": 8, "head_channels": 8}


def made_vit(config: ViTConfig = VIT, seed: int = 0) -> ViT:
    """A foundation as it is loaded: in evaluation mode, without gradients."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ViT(config).requires_grad_(False).eval()


def fields(**changes: Any) -> dict[str, Any]:
    return {
        "in_channels": BANDS,
        "wavelength_nm": WAVELENGTH_NM,
        "vit": VIT,
        "foundation": IDENTITY,
        "chip_px": CHIP_PX,
        "patch_px": PATCH_PX,
    } | changes


def adapted_config(**changes: Any) -> AdaptedConfig:
    return AdaptedConfig(**fields(**changes))


def segmenter_config(**changes: Any) -> SegmenterConfig:
    return SegmenterConfig(**fields(num_classes=CLASSES, **SMALL) | changes)


def made_adapted(vit: ViT | None = None, seed: int = 1, **changes: Any) -> AdaptedViT:
    config = adapted_config(**changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AdaptedViT(config, vit or made_vit(config.vit)).eval()


def made_segmenter(vit: ViT | None = None, seed: int = 1, **changes: Any) -> SpectralXSegmenter:
    """A segmenter whose answers depend on its features: no layer starts at zero."""
    config = segmenter_config(**changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SpectralXSegmenter(config, vit or made_vit(config.vit))
        torch.nn.init.normal_(model.head.classes.weight)
        if model.spectral is not None:
            torch.nn.init.normal_(model.spectral.weight)
    return model.eval()


def chips(count: int = 2, height: int = CHIP_PX, width: int = CHIP_PX, seed: int = 2):
    """Reflectance (B, C, h, w) and valid (B, h, w), all of it."""
    generator = torch.Generator().manual_seed(seed)
    reflectance = torch.rand(count, BANDS, height, width, generator=generator)
    return reflectance, torch.ones(count, height, width, dtype=torch.bool)

"""The presets, and the published numbers of values that train: the paper's tables, section 6.4."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.models.spectralx.adapted import AdaptedViT
from engine.models.spectralx.presets import PRESETS
from engine.models.spectralx.segmenter import SpectralXSegmenter
from engine.models.vit import FoundationIdentity, ViT, ViTConfig

IDENTITY = FoundationIdentity("none", "0" * 64, "mae", "none", "nowhere")
VIT_L = ViTConfig()
NANO = ViTConfig(embed_dim=128, depth=4, num_heads=8, patch_px=8, prefix_tokens=0, positions="none")
NOT_COUNTED = "neck and head"  # the paper counts all but these


def nm(bands: int) -> list[float]:
    return [400.0 + 10 * index for index in range(bands)]


def segmenter(preset: str, bands: int, vit: ViTConfig = VIT_L, **changes) -> SpectralXSegmenter:
    """Without memory for its weights."""
    config = PRESETS[preset].segmenter(
        num_classes=25, wavelength_nm=nm(bands), vit=vit, foundation=IDENTITY, **changes
    )
    with torch.device("meta"):
        model = SpectralXSegmenter(config, ViT(vit))
    model.set_trainable()
    return model


def counted(model: SpectralXSegmenter) -> int:
    return sum(count for part, count in model.trainable_counts().items() if part != NOT_COUNTED)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"aomoa": False, "refine": False}, 372_752),
        ({"refine": False}, 8_139_024),
        ({}, 11_810_689),
        ({"keep_unused": False}, 11_810_689 - 3_671_665 + 3_417_257),
        ({"train_tokenizer": True}, 11_810_689 + 22_206_960),
    ],
)
def test_the_papers_preset_trains_the_papers_count_at_32_bands(changes, expected):
    assert counted(segmenter("paper", 32, **changes)) == expected


@pytest.mark.parametrize(
    ("adaptation", "expected"), [("lora", 6_881_040), ("slr", 7_275_280), ("frozen", 3_408_896)]
)
def test_the_comparisons_train_their_counts_at_13_bands(adaptation, expected):
    assert counted(segmenter("paper", 13, adaptation=adaptation)) == expected


def test_parts_of_the_papers_preset():
    assert segmenter("paper", 32).trainable_counts() == {
        "norms": 100_352,
        "tokenizer's low-rank path": 272_400,
        "AoMoA": 7_766_272,
        "Are-adapter": 3_671_665,
        NOT_COUNTED: 76_317_209,
    }


def test_full_fine_tuning_trains_the_whole_foundation():
    model = segmenter("paper", 13, adaptation="full")
    vit = sum(parameter.numel() for parameter in model.adapted.vit.parameters())
    assert counted(model) == vit + 13 * 256 * 1024 + 1024


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_take_any_number_of_bands_and_any_foundation(name):
    for bands, vit in ((1, NANO), (224, replace(NANO, embed_dim=192))):
        model = segmenter(name, bands, vit)
        assert model.config.in_channels == bands
        assert model.config.grid == PRESETS[name].grid


@pytest.mark.parametrize("name", list(PRESETS))
def test_both_stages_have_the_same_adapted_model(name):
    preset = PRESETS[name]
    config = preset.adapted(wavelength_nm=nm(9), vit=NANO, foundation=IDENTITY)
    with torch.device("meta"):
        first = AdaptedViT(config, ViT(NANO))
    second = segmenter(name, 9, NANO).adapted
    shapes = {key: tensor.shape for key, tensor in first.own_state().items()}
    assert shapes == {key: tensor.shape for key, tensor in second.own_state().items()}


def test_a_package_of_the_laptop_preset_is_a_few_megabytes():
    own = segmenter("laptop", 100, NANO).own_state()
    assert sum(tensor.nbytes for tensor in own.values()) < 8e6

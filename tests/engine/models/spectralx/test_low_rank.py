from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.models.spectralx.low_rank import LowRankConv, LowRankLinear, split_patch


def tokens(*shape) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def trainable(layer: nn.Module) -> int:
    return sum(weight.numel() for weight in layer.parameters() if weight.requires_grad)


def learned(layer: nn.Module) -> set[str]:
    return {name for name, w in layer.named_parameters() if w.grad is not None and w.grad.any()}


@pytest.mark.parametrize("scaled", [False, True])
def test_a_low_rank_layer_starts_as_its_base(scaled):
    layer, x = LowRankLinear(nn.Linear(12, 20), 3, scaled), tokens(2, 5, 12)
    assert torch.equal(layer(x), layer.base(x))


def test_the_scales_stand_around_base_and_path():
    layer, x = LowRankLinear(nn.Linear(12, 20), 3, scaled=True), tokens(5, 12)
    for weight in layer.parameters():
        nn.init.normal_(weight)
    scaled = x * layer.in_scaler
    expected = layer.out_scaler * (layer.base(scaled) + layer.up(layer.down(scaled)))
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ("widths", "scaled", "count"),
    [
        # Rank 16, both biases: 16 (in + 1) + 17 out, and in + out scales.
        ((1024, 3072), False, 68_624),
        ((1024, 1024), False, 33_808),
        ((1024, 4096), False, 86_032),
        ((4096, 1024), False, 82_960),
        ((1024, 3072), True, 72_720),
    ],
)
def test_published_counts_of_parameters(widths, scaled, count):
    with torch.device("meta"):
        assert trainable(LowRankLinear(nn.Linear(*widths), scaled=scaled)) == count


@pytest.mark.parametrize(("scaled", "count"), [(False, 266_512), (True, 267_536)])
def test_published_counts_of_the_patch_convolution(scaled, count):
    with torch.device("meta"):
        assert trainable(LowRankConv(nn.Conv2d(13, 1024, 16, stride=16), scaled=scaled)) == count


@pytest.mark.parametrize("scaled", [False, True])
def test_all_but_the_base_learns(scaled):
    layer = LowRankLinear(nn.Linear(12, 20), 3, scaled)
    nn.init.normal_(layer.up.weight)
    layer(tokens(5, 12)).square().sum().backward()
    scales = {"in_scaler", "out_scaler"} if scaled else set()
    path = {"down.weight", "down.bias", "up.weight", "up.bias"}
    assert learned(layer) == path | scales


def test_a_layer_without_bias_is_adapted():
    layer = LowRankLinear(nn.Linear(12, 20, bias=False), 3)
    assert layer(tokens(5, 12)).shape == (5, 20)


@pytest.mark.parametrize("patch_px", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_low_rank_convolution_starts_as_its_base(patch_px, scaled):
    base = nn.Conv2d(5, 12, patch_px, stride=patch_px)
    layer, x = LowRankConv(base, 3, scaled), tokens(2, 5, 3 * patch_px, 2 * patch_px)
    assert layer(x).shape == (2, 12, 3, 2)
    torch.testing.assert_close(layer(x), base(x))


def test_all_but_the_base_convolution_learns():
    layer = LowRankConv(nn.Conv2d(5, 12, 4, stride=4), 3, scaled=True)
    nn.init.normal_(layer.up.weight)
    layer(tokens(2, 5, 8, 8)).square().sum().backward()
    assert learned(layer) == {"scaler", "down.weight", "down.bias", "up.weight", "up.bias"}


@pytest.mark.parametrize(
    ("patch_px", "steps"),
    [(1, (1, 1)), (2, (2, 1)), (4, (2, 2)), (8, (4, 2)), (16, (4, 4)), (32, (8, 4))],
)
def test_a_patch_is_cut_in_two_steps(patch_px, steps):
    assert split_patch(patch_px) == steps


@pytest.mark.parametrize("patch_px", [0, -4, 3, 14])
def test_other_patches_than_powers_of_two_are_refused(patch_px):
    with pytest.raises(ValueError, match=f"{patch_px} px is not a power of two"):
        split_patch(patch_px)


@pytest.mark.parametrize("settings", [{"stride": 2}, {"stride": (4, 2)}])
def test_a_convolution_that_is_none_of_patches_is_refused(settings):
    with pytest.raises(ValueError, match="square patches that touch"):
        LowRankConv(nn.Conv2d(5, 12, 4, **settings))


def test_a_rank_of_nothing_is_refused():
    with pytest.raises(ValueError, match="rank of at least 1, not 0"):
        LowRankLinear(nn.Linear(2, 2), 0)
    with pytest.raises(ValueError, match="rank of at least 1, not -1"):
        LowRankConv(nn.Conv2d(2, 2, 2, stride=2), -1)

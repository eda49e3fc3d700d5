"""LoRA and SLR against the published code, in float32 and, stricter, in float64."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from engine.models.spectralx.low_rank import LowRankConv, LowRankLinear
from tests.engine.models.spectralx.official import Fixture, low_rank_state, under

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def fixture(fixtures_folder):
    return Fixture(fixtures_folder, "spectralx_baseline_adapters")


def numbers(constructor: str) -> list[int]:
    """The sizes of a recorded call, "Name(Linear(1024,3072), 16)"."""
    return [int(found) for found in re.findall(r"(?<![A-Za-z\d])\d+", constructor)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["lora", "slr"])
@torch.no_grad()
def test_linear(fixture, name, dtype):
    d_in, d_out, rank = numbers(fixture.constructor[name])
    layer = LowRankLinear(nn.Linear(d_in, d_out), rank, scaled=name == "slr")
    layer.load_state_dict(low_rank_state(under(fixture.weights, f"{name}.")))
    fixture.check(name, layer.to(dtype)(fixture.input("x").to(dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["lora_conv", "slr_conv"])
@torch.no_grad()
def test_patch_convolution(fixture, name, dtype):
    in_channels, out_channels, kernel_px, stride_px, rank = numbers(fixture.constructor[name])
    base = nn.Conv2d(in_channels, out_channels, kernel_px, stride=stride_px)
    layer = LowRankConv(base, rank, scaled=name.startswith("slr"))
    layer.load_state_dict(low_rank_state(under(fixture.weights, f"{name}.")))
    fixture.check(name, layer.to(dtype)(fixture.input("image").to(dtype)))

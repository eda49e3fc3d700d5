"""Adapted linear layers against the published code, in float32 and, stricter, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.models.spectralx.aomoa import AdaptedLinear, dense_gates
from tests.engine.models.spectralx.official import Fixture, adapted_state

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=["spectralx_aomoa_fc1", "spectralx_aomoa_fc2"])
def fixture(request, fixtures_folder):
    return Fixture(fixtures_folder, request.param)


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def case(request, fixture):
    """(fixture, layer, its input)."""
    state = adapted_state(fixture.weights)
    d_out, d_in = state["base.weight"].shape
    settings = {key: fixture.constructor[key] for key in ("experts", "top_k")}
    layer = AdaptedLinear(nn.Linear(d_in, d_out), **settings)
    layer.load_state_dict(state)
    return fixture, layer.eval().to(request.param), fixture.input("x").to(request.param)


def gates_of(layer: AdaptedLinear, x: torch.Tensor) -> torch.Tensor:
    z = layer.norm_reduced(layer.reduce(layer.norm_half(x.reshape(-1, 2, x.shape[-1] // 2))))
    return dense_gates(*layer.route(z), z.new_zeros(len(z), 2, layer.gate.shape[-1]))


@torch.no_grad()
def test_answer(case):
    fixture, layer, x = case
    fixture.check("y", layer(x))
    fixture.check("adapter_delta", layer(x) - layer.base(x))


@torch.no_grad()
def test_gates(case):
    fixture, layer, x = case
    gates = gates_of(layer, x)
    fixture.check("gates_spatial", gates[:, 0])
    fixture.check("gates_spectral", gates[:, 1])


@torch.no_grad()
def test_gates_that_tie(case):
    """The initial state; which of equal experts is asked is decided as there."""
    fixture, layer, x = case
    layer.gate.zero_()
    fixture.check("gates_zero_gate", gates_of(layer, x)[:, 0])
    count = fixture.sidecar["outputs"]["y_zero_gate"]["full_shape"][1]
    fixture.check("y_zero_gate", layer(x)[:, :count])


def test_trainable_parameters(case):
    fixture, layer, _x = case
    count = sum(weight.numel() for weight in layer.parameters() if weight.requires_grad)
    assert count == fixture.sidecar["trainable_parameters"]
    assert sum(weight.numel() for weight in layer.parameters()) == fixture.sidecar["parameters"]

"""The Are-adapter against the published code, in float32 and, stricter, in float64."""

from __future__ import annotations

import pytest
import torch

from engine.models.spectralx.refine import RefiningAdapter
from engine.models.spectralx.tokenizer import LowLevel
from tests.engine.models.spectralx.official import Fixture, refine_state

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def fixture(fixtures_folder):
    return Fixture(fixtures_folder, "spectralx_are_adapter")


@pytest.fixture(scope="module")
def adapter(fixture):
    _batch, tokens, width = fixture.sidecar["inputs"]["x"]["shape"]
    _batch, places, stem = fixture.sidecar["inputs"]["F_spa"]["shape"]
    sides = round(tokens**0.5), round(places**0.5)
    made = RefiningAdapter(width, stem, *sides, keep_unused=True)
    made.load_state_dict(refine_state(fixture.weights))
    return made.eval()


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def case(request, fixture, adapter):
    """(fixture, adapter, tokens, low-level features) of one precision."""
    x, spatial, spectral = (
        fixture.input(name).to(request.param) for name in ("x", "F_spa", "F_spe")
    )
    return fixture, adapter.to(request.param), x, LowLevel(spatial, spectral)


@torch.no_grad()
def test_chosen_tokens(case):
    fixture, adapter, x, low = case
    keys = adapter.keys(low)
    spatial, spectral = x.chunk(2, dim=-1)
    index = adapter.choose(adapter.spatial_match, keys.spatial, spatial)
    fixture.check("index_spa", index)
    index = adapter.choose(adapter.spectral_match, keys.spectral, spectral)
    fixture.check("index_spe", index)


@torch.no_grad()
def test_refined_tokens(case):
    fixture, adapter, x, low = case
    fixture.check("y", adapter(x, low))


@torch.no_grad()
def test_gains(case):
    fixture, adapter, x, low = case
    gains = {}
    hooks = [
        part.register_forward_hook(lambda _m, _i, y, name=name: gains.update({name: y}))
        for name, part in (("spa", adapter.refine_spatial), ("spe", adapter.refine_spectral))
    ]
    adapter(x, low)
    for hook in hooks:
        hook.remove()
    fixture.check("gain_spa", gains["spa"].mean(dim=1).flatten(1)[..., None])
    fixture.check("gain_spe", gains["spe"].mean(dim=2, keepdim=True))


def test_parameters(fixture, adapter):
    assert sum(weight.numel() for weight in adapter.parameters()) == fixture.sidecar["parameters"]

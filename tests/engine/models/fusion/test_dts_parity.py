"""CSAKD's blocks, fusions and networks against the published code, in float32 and in float64."""

from __future__ import annotations

import pytest
import torch

from engine.models.fusion.attention import (
    GatedFusion,
    ReleasedAttention,
    SumFusion,
    WeightedFusion,
    to_fine,
)
from engine.models.fusion.clra import CLRA
from tests.engine.models.fusion.official import Fixture, clra_state, fuser_streams, network
from tests.engine.models.spectralx.official import under

pytestmark = pytest.mark.parity

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
RENAMED = {"query_conv": "query", "key_conv": "key", "value_conv": "value", "output_conv": "output"}


def fusion_state(weights):
    """Of a published fusion alone, for `GatedFusion`."""
    state = {}
    for name, tensor in weights.items():
        module, kind = name.split(".")
        ours = f"attention.{RENAMED[module]}" if module in RENAMED else "gate"
        state[f"{ours}.{kind}"] = tensor
    return state


@DTYPES
@pytest.mark.parametrize("name", ["csakd_clra", "csakd_clra_grouped"])
@torch.no_grad()
def test_block(fixtures_folder, name, dtype):
    fixture = Fixture(fixtures_folder, name)
    sizes = fixture.constructor
    block = CLRA(sizes["nf"], sizes["gc"], sizes["groups"])
    block.load_state_dict(clra_state(fixture.weights))
    assert sum(p.numel() for p in block.parameters()) == fixture.sidecar["parameters"]
    fixture.check("y", block.to(dtype)(fixture.input("x").to(dtype)))


@DTYPES
@torch.no_grad()
def test_released_fusion(fixtures_folder, dtype):
    fixture = Fixture(fixtures_folder, "csakd_csa_released")
    sizes = fixture.constructor
    width = sizes["channels"]
    fusion = GatedFusion(width, ReleasedAttention(width, sizes["reduced_dim"], sizes["heads"]))
    fusion.load_state_dict(fusion_state(fixture.weights))
    fusion.to(dtype)
    streams = fuser_streams(fixture, dtype)
    fixture.check("value_path", fusion.attention.attend(streams))
    fixture.check("attended_before_skip", fusion.attention(streams))
    fixture.check("gate_logits", fusion.gate_logits(streams))
    fixture.check("F", fusion(streams))


@DTYPES
@torch.no_grad()
def test_other_fusions(fixtures_folder, dtype):
    fixture = Fixture(fixtures_folder, "csakd_fusers_other")
    streams = fuser_streams(fixture, dtype)
    width = streams.msi.shape[1]
    weights = under(fixture.weights, "mode2.")
    inner = weights["query_conv.weight"].shape[0]
    heads = int(fixture.constructor["mode2"].rstrip(")").rpartition(",")[2])
    modes = {
        "mode1": WeightedFusion(width),
        "mode2": GatedFusion(width, ReleasedAttention(width, inner, heads), gated=False),
        "mode4": GatedFusion(width),
    }
    for name, fusion in modes.items():
        state = under(fixture.weights, f"{name}.")
        fusion.load_state_dict(state if name == "mode1" else fusion_state(state))
        fixture.check(name, fusion.to(dtype)(streams))


def test_the_sum_is_that_of_the_four_streams(fixtures_folder):
    streams = fuser_streams(Fixture(fixtures_folder, "csakd_fusers_other"), torch.float64)
    torch.testing.assert_close(SumFusion()(streams), sum(streams))


NETWORKS = [
    (name, dtype)
    for name in (
        "csakd_student_tiny",
        "csakd_student_m4",
        "csakd_student_m6",
        "csakd_student_m4_ratio2",
        "csakd_student_m4_ratio3",
        "csakd_teacher_tiny",
        "csakd_teacher_m4",
        "csakd_teacher_m6",
    )
    for dtype in (torch.float32, torch.float64)
]
# slow: 27 million values to fill and to multiply in double precision.
SLOW = [("csakd_teacher_m4", torch.float64), ("csakd_teacher_m6", torch.float64)]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [pytest.param(*net, marks=pytest.mark.slow) if net in SLOW else net for net in NETWORKS],
    ids=str,
)
@torch.no_grad()
def test_network(fixtures_folder, name, dtype):
    fixture = Fixture(fixtures_folder, name)
    net = network(fixture).to(dtype)
    unused = fixture.sidecar.get("parameters_unused_in_forward", 0)
    assert sum(p.numel() for p in net.parameters()) == fixture.sidecar["parameters"] - unused
    hsi, msi = (fixture.input(image).to(dtype) for image in ("lrhsi", "hrmsi"))
    streams = net.streams(hsi, msi)
    fixture.check("z_h_up", to_fine(streams.hsi, msi))
    fixture.check("z_m", streams.msi)
    fixture.check("z_mh_up", to_fine(streams.mixed_coarse, msi))
    fixture.check("z_hm", streams.mixed_fine)
    output = net(hsi, msi)
    fixture.check("F", output.features)
    fixture.check("Y", output.image)

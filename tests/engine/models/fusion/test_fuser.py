"""A start and what a network adds to it: scales, basis, gate, gaps, tiles."""

from __future__ import annotations

import pytest
import torch

from engine.models.fusion.bicubic import Bicubic
from engine.models.fusion.dts import DTSConfig
from engine.models.fusion.fuser import Fuser, FuserConfig, network_channels
from tests.engine.models.fusion.made_pairs import RATIO, known, tiled, with_gaps

AT = known()
BANDS, FINE = AT.pair.hsi.shape[1], AT.pair.msi.shape[1]


def config(start="bicubic", basis_size=5, **changes):
    coarse, fine = network_channels(BANDS, FINE, basis_size, start)
    network = DTSConfig(
        hsi_channels=coarse, msi_channels=fine, ratio=RATIO, width=8, growth=4,
        blocks=(0, 1, 1, 1), h_groups=4, fusion_width=8, heads=2,
    )  # fmt: skip
    values = {"network": network, "basis_size": basis_size, "start": start, **changes}
    return FuserConfig(BANDS, FINE, RATIO, **values)


def fuser(start="bicubic", basis_size=5):
    torch.manual_seed(0)
    model = Fuser(config(start, basis_size)).eval()
    model.low.fill_(0.1)
    model.high.fill_(0.6)
    if basis_size is not None:
        model.basis.copy_(torch.linalg.qr(torch.randn(BANDS, basis_size)).Q)
    return model


@pytest.mark.parametrize("basis_size", [None, 5])
@pytest.mark.parametrize("start", ["none", "bicubic"])
@torch.no_grad()
def test_it_makes_all_bands_fine(start, basis_size):
    assert fuser(start, basis_size)(AT.pair).shape == AT.target.shape


@torch.no_grad()
def test_with_a_gate_of_zero_it_is_its_start():
    model = fuser()
    model.gate.zero_()
    start = Bicubic(torch.zeros(BANDS), RATIO)(AT.pair)
    torch.testing.assert_close(model(AT.pair), start, atol=1e-6, rtol=0)


@torch.no_grad()
def test_the_gate_weighs_each_coefficient_of_the_answer():
    model = fuser()
    inputs = model.prepare(AT.pair)
    model.gate.copy_(torch.tensor([0.0, 0.5, 1.0, 1.0, 1.0]))
    gated = model.answer(inputs)[0]
    model.gate.fill_(1.0)
    answer = model.answer(inputs)[0]
    assert not gated[:, 0].any()
    torch.testing.assert_close(gated[:, 1], answer[:, 1] / 2)
    torch.testing.assert_close(gated[:, 2:], answer[:, 2:])


@torch.no_grad()
def test_what_is_added_lies_in_the_basis():
    model = fuser()
    added = model.refine(model.prepare(AT.pair)).image - model.prepare(AT.pair).start
    outside = added - model.to_bands(torch.einsum("blhw,lk->bkhw", added, model.basis))
    assert added.abs().max() > 1e-3
    assert outside.abs().max() < 1e-5


def test_the_scale_is_the_stored_one_and_has_a_way_back():
    model = fuser()
    scaled = model.to_scale(torch.tensor([0.1, 0.35, 0.6]))
    torch.testing.assert_close(scaled, torch.tensor([-1.0, 0.0, 1.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(model.to_reflectance(scaled), torch.tensor([0.1, 0.35, 0.6]))


@torch.no_grad()
def test_what_stands_in_gaps_does_not_matter():
    model = fuser()
    gaps = with_gaps(AT.pair)
    other = with_gaps(AT.pair)
    other.hsi[~gaps.hsi_valid[:, None].expand_as(gaps.hsi)] = float("nan")
    assert torch.isfinite(model(gaps)).all()
    torch.testing.assert_close(model(other), model(gaps))


@torch.no_grad()
def test_tiles_with_its_reach_make_the_whole_image():
    model = fuser()
    at = known(40, 34)
    whole = model(at.pair)
    limit = 1e-4 * float(whole.max() - whole.min())
    assert (tiled(model, at.pair, 9) - whole).abs().max() < limit


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"start": "magic"}, "There is no start 'magic'"),
        ({"start": "injection"}, "Sizes of an injection"),
        ({"basis_size": BANDS + 1}, "does not fit 24 bands"),
        ({"basis_size": 4}, "does not fit; it needs"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        config(**{"network": config().network, **changes})


def test_a_pair_of_another_ratio_is_refused():
    pair = AT.pair
    with pytest.raises(ValueError, match="ratio of 3, not 1"):
        fuser()(type(pair)(pair.hsi, pair.msi[..., :18, :20], pair.hsi_valid, pair.hsi_valid))

"""CLRA: its rules of sizes, its start and how far it looks."""

from __future__ import annotations

import pytest
import torch

from engine.models.fusion.clra import CLRA, DenseUnit, Encoder


def test_without_its_last_convolutions_a_block_multiplies_by_one_point_two():
    block = CLRA(6, 3)
    for unit in block.units:
        torch.nn.init.zeros_(unit.convs[-1].weight)
        torch.nn.init.zeros_(unit.convs[-1].bias)
    x = torch.randn(2, 6, 5, 4)
    torch.testing.assert_close(block(x), 1.2 * x)


def test_a_block_changes_what_it_is_given_by_little_at_the_start():
    torch.manual_seed(0)
    x = torch.randn(1, 16, 12, 9)
    assert (CLRA(16, 8)(x) - 1.2 * x).std() < 0.02


def test_groups_cut_the_weights_by_as_much():
    def weights(groups):
        return sum(conv.weight.numel() for conv in DenseUnit(8, 4, groups).convs)

    assert weights(1) == 4 * weights(4)


def test_groups_that_do_not_divide_the_growth_are_refused():
    with pytest.raises(ValueError, match="4 groups do not divide a width of 8 and a growth of 3"):
        DenseUnit(8, 3, groups=4)


@pytest.mark.parametrize("blocks", [0, 1])
def test_an_encoder_looks_as_far_as_it_says(blocks):
    torch.manual_seed(0)
    encoder = Encoder(2, 4, 2, blocks).double()
    centre, side = 20, 41
    x = torch.randn(1, 2, side, side, dtype=torch.double, requires_grad=True)
    encoder(x)[0, :, centre, centre].sum().backward()
    rows = x.grad[0].abs().sum(dim=(0, 2)).nonzero()
    assert centre - rows.min() == rows.max() - centre == encoder.reach_px

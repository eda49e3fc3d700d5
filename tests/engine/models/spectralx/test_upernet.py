from __future__ import annotations

import pytest
import torch

from engine.models.spectralx.upernet import MultiLevelNeck, UPerHead, pyramid_sides


def test_the_published_grid_has_the_published_pyramid():
    assert pyramid_sides(grid=14, patch_px=16) == (56, 28, 14, 7)


@pytest.mark.parametrize("patch_px", [1, 2, 4])
@pytest.mark.parametrize("grid", [1, 2, 3, 8])
def test_no_map_is_finer_than_pixels_or_empty(grid, patch_px):
    sides = pyramid_sides(grid, patch_px)
    assert all(1 <= side <= grid * patch_px for side in sides)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("grid", "patch_px"), [(1, 1), (2, 4), (3, 2), (8, 4)])
def test_small_grids_become_logits_of_the_finest_map(grid, patch_px, norm):
    sides = pyramid_sides(grid, patch_px)
    neck, head = MultiLevelNeck(8, 6, sides), UPerHead(6, 4, 3, sides, norm=norm)
    logits = head(neck([torch.rand(2, 8, grid, grid) for _tap in range(4)]))
    assert logits.shape == (2, 3, sides[0], sides[0])


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_single_chip_can_be_trained_on(norm):
    sides = pyramid_sides(4, 4)
    head = UPerHead(6, 8, 3, sides, norm=norm).train()
    logits = head([torch.rand(1, 6, side, side) for side in sides])
    logits.square().mean().backward()
    assert torch.isfinite(head.fuse.conv.weight.grad).all()


@pytest.mark.parametrize(
    ("taps", "expected"),
    [(1, (0, 0, 0, 0)), (2, (0, 0, 1, 1)), (4, (0, 1, 2, 3)), (6, (1, 2, 4, 5))],
)
def test_levels_share_taps_where_there_are_not_four(taps, expected):
    assert MultiLevelNeck(8, 8, (4, 2, 1, 1), taps).tap_of_level == expected


def test_pooling_finer_than_the_coarsest_map_is_left_out():
    assert UPerHead(6, 4, 3, (8, 4, 2, 2), pool_sizes=(1, 2, 3, 6)).pool_sizes == (1, 2)


def test_every_level_reaches_the_answer():
    sides = pyramid_sides(4, 4)
    head = UPerHead(6, 4, 3, sides).eval()
    torch.nn.init.normal_(head.classes.weight)
    maps = [torch.rand(1, 6, side, side) for side in sides]
    answer = head(maps)
    for level in range(len(maps)):
        changed = [level_map + 1 if index == level else level_map
                   for index, level_map in enumerate(maps)]  # fmt: skip
        assert not torch.allclose(head(changed), answer)


@pytest.mark.parametrize(("edges", "is_flat"), [("replicate", True), ("zeros", False)])
def test_repeated_cells_let_a_flat_map_stay_flat_to_its_border(edges, is_flat):
    sides = pyramid_sides(4, 4)
    torch.manual_seed(0)
    neck = MultiLevelNeck(8, 6, sides, edges=edges)
    head = UPerHead(6, 4, 3, sides, edges=edges).eval()
    torch.nn.init.normal_(head.classes.weight)
    with torch.inference_mode():
        logits = head(neck([torch.ones(1, 8, 4, 4)] * 4))
    spread = logits.amax(dim=(2, 3)) - logits.amin(dim=(2, 3))
    assert bool((spread < 1e-4 * logits.abs().max()).all()) == is_flat

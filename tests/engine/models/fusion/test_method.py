"""Pairs of images, gaps that are filled, and interpolation that keeps pixels where they are."""

import pytest
import torch

from engine.models.fusion.bicubic import Bicubic
from engine.models.fusion.method import ImagePair, fill_invalid, upsample
from tests.engine.models.fusion.made_pairs import known


def pair_of(rows, columns, ratio=2):
    fine = (rows * ratio, columns * ratio)
    return ImagePair(
        torch.arange(rows * columns).float().view(1, 1, rows, columns),
        torch.arange(fine[0] * fine[1]).float().view(1, 1, *fine),
        torch.ones(1, rows, columns, dtype=torch.bool),
        torch.ones(1, *fine, dtype=torch.bool),
    )


def test_the_ratio_is_that_of_the_grids():
    assert pair_of(3, 5, ratio=4).ratio == 4


def test_images_that_do_not_nest_are_refused():
    pair = pair_of(3, 5)
    with pytest.raises(ValueError, match="does not nest"):
        ImagePair(pair.hsi, pair.msi[..., :-1, :], pair.hsi_valid, pair.msi_valid[:, :-1])


@pytest.mark.parametrize("mask", ["hsi_valid", "msi_valid"])
def test_a_mask_of_another_size_is_refused(mask):
    pair = pair_of(3, 5)
    masks = {"hsi_valid": pair.hsi_valid, "msi_valid": pair.msi_valid}
    masks[mask] = masks[mask][:, 1:]
    with pytest.raises(ValueError, match=f"{mask} is"):
        ImagePair(pair.hsi, pair.msi, **masks)


def test_a_crop_takes_the_fine_pixels_below_the_coarse_ones():
    part = pair_of(3, 5).crop(slice(1, None), slice(-3, -1))
    assert part.hsi.flatten().tolist() == [7, 8, 12, 13]
    assert part.msi[0, 0, 0].tolist() == [24, 25, 26, 27]
    assert part.msi.shape == (1, 1, 4, 4)
    assert part.hsi_valid.shape == (1, 2, 2)
    assert part.msi_valid.shape == (1, 4, 4)


def test_a_pair_of_another_ratio_is_refused():
    with pytest.raises(ValueError, match="bicubic is for a ratio of 3, not 2"):
        Bicubic(torch.zeros(1), 3)(pair_of(3, 5, ratio=2))


def test_a_gap_is_filled_with_the_mean_of_what_is_near():
    values = torch.tensor([[1.0, 2.0, torch.nan, 4.0, 9.0, 9.0]]).view(1, 1, 1, 6)
    valid = values[:, 0].isfinite()
    filled = fill_invalid(values, valid, torch.tensor([0.5]), radius_px=1)
    torch.testing.assert_close(filled.flatten(), torch.tensor([1.0, 2.0, 3.0, 4.0, 9.0, 9.0]))


def test_a_gap_with_nothing_near_is_filled_with_what_is_usual():
    values = torch.full((1, 2, 6, 6), torch.inf)
    valid = torch.zeros(1, 6, 6, dtype=torch.bool)
    filled = fill_invalid(values, valid, torch.tensor([0.5, 0.25]))
    assert filled[0, 0].eq(0.5).all()
    assert filled[0, 1].eq(0.25).all()


def test_an_image_without_gaps_is_left_as_it_is():
    values = torch.rand(1, 2, 3, 3)
    valid = torch.ones(1, 3, 3, dtype=torch.bool)
    assert fill_invalid(values, valid, torch.zeros(2)) is values


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_interpolation_keeps_a_slope_where_it_is(ratio):
    # A slope of 1 a coarse pixel, 0.5 in the middle of the first one.
    coarse = (torch.arange(12.0) + 0.5).expand(1, 1, 12, 12)
    fine = upsample(coarse, ratio)
    assert fine.shape == (1, 1, 12 * ratio, 12 * ratio)
    expected = (torch.arange(12.0 * ratio) + 0.5) / ratio
    inner = slice(2 * ratio, -2 * ratio)
    torch.testing.assert_close(fine[0, 0, 20, inner], expected[inner], atol=1e-5, rtol=0)


def test_made_pairs_nest():
    assert known().pair.ratio == 3

"""Point spread and response: what a coarse sensor sees of what a finer one sees."""

import math

import pytest
import torch

from engine.models.fusion.degradation import PointSpread, SpectralResponse

RATIOS = (2, 3, 4, 5)


def image(height, width, channels=2, seed=0):
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_constant_image_stays_the_constant(ratio):
    degraded = PointSpread.gaussian(ratio).degrade(torch.full((2, 3, 4 * ratio, 5 * ratio), 0.3))
    torch.testing.assert_close(degraded, torch.full((2, 3, 4, 5), 0.3))


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_slope_keeps_its_place(ratio):
    # A kernel beside the block's centre would move the slope by as much.
    slope = torch.arange(12.0 * ratio).expand(1, 1, 12 * ratio, -1)
    degraded = PointSpread.gaussian(ratio).degrade(slope)
    centres = torch.arange(12) * ratio + (ratio - 1) / 2
    torch.testing.assert_close(degraded[0, 0, 5, 3:-3], centres[3:-3])


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_block_is_the_plain_mean(ratio):
    x = image(3 * ratio, 2 * ratio)
    means = x.unfold(2, ratio, ratio).unfold(3, ratio, ratio).mean((-1, -2))
    torch.testing.assert_close(PointSpread.block(ratio).degrade(x), means)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("width", [1.0, 1.5])
def test_a_gaussian_has_the_width_that_was_asked_for(ratio, width):
    spread = PointSpread.gaussian(ratio, fwhm_px=width * ratio)
    assert spread.fwhm_px == pytest.approx(width * ratio, rel=0.015)


def test_half_of_the_maximum_lies_half_a_width_from_the_middle():
    kernel = PointSpread.gaussian(3, fwhm_px=6).kernel
    middle = len(kernel) // 2
    assert kernel[middle, middle + 3] / kernel[middle, middle] == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("mtf", [0.15, 0.3])
def test_a_wave_at_nyquist_is_left_as_the_mtf_says(mtf):
    ratio = 8
    spread = PointSpread.gaussian(ratio, mtf_nyquist=mtf)
    wave = torch.cos(math.pi / ratio * (torch.arange(20 * ratio) + 0.5)).expand(1, 1, 64, -1)
    left = spread.sweep(wave)[0, 0, 32, 40:-40].abs().max()
    assert float(left) == pytest.approx(mtf, abs=0.01)


def test_the_published_kernel_is_one_block_of_sigma_2():
    kernel = PointSpread.published(4).kernel
    assert kernel.shape == (4, 4)
    assert float(kernel[1, 0] / kernel[1, 1]) == pytest.approx(math.exp(-(1.5**2 - 0.5**2) / 8))


def test_a_next_to_nothing_width_takes_the_middle():
    x = image(9, 9)
    degraded = PointSpread.gaussian(3, fwhm_px=0.05).degrade(x)
    torch.testing.assert_close(degraded, x[..., 1::3, 1::3])


def test_a_measured_kernel_is_used_as_it_is():
    kernel = torch.zeros(3, 3)
    kernel[0, 1] = 5.0  # above the middle, and not summing to 1
    x = image(9, 6)
    degraded = PointSpread.of_kernel(kernel, 3).degrade(x)
    torch.testing.assert_close(degraded, x[..., 0::3, 1::3])


def test_a_kernel_of_the_other_parity_stays_around_the_centre():
    spread = PointSpread.of_kernel(torch.ones(1, 1), 4)
    assert spread.kernel.shape == (4, 4)
    torch.testing.assert_close(spread.kernel[1:3, 1:3], torch.full((2, 2), 0.25))


def test_what_is_not_valid_has_no_weight():
    x = image(12, 12)
    valid = torch.ones(1, 12, 12, dtype=torch.bool)
    valid[0, 5, 5] = False
    other = x.clone()
    other[..., 5, 5] = 100.0
    spread = PointSpread.gaussian(3)
    for method in (lambda x: spread.degrade(x, valid)[0], lambda x: spread.blur(x, valid)):
        torch.testing.assert_close(method(x), method(other))


def test_weights_of_what_is_valid_still_sum_to_one():
    valid = torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(1)) > 0.1
    values, known = PointSpread.gaussian(3).degrade(torch.full((1, 1, 12, 12), 0.7), valid)
    assert known.any()
    torch.testing.assert_close(values[:, 0][known], torch.full((int(known.sum()),), 0.7))


def test_a_coarse_pixel_is_valid_where_its_whole_block_is():
    valid = torch.ones(1, 6, 9, dtype=torch.bool)
    valid[0, 2, 3] = False
    values, known = PointSpread.gaussian(3).degrade(torch.ones(1, 1, 6, 9), valid)
    assert known.tolist() == [[[True, False, True], [True, True, True]]]
    assert float(values[0, 0, 0, 1]) == 0


def test_nothing_valid_is_zero_and_finite():
    none = torch.zeros(1, 6, 6, dtype=torch.bool)
    values, known = PointSpread.gaussian(3).degrade(torch.ones(1, 1, 6, 6), none)
    assert not known.any()
    assert (values == 0).all()


@pytest.mark.parametrize("ratio", RATIOS)
def test_one_coarse_pixel_is_enough(ratio):
    degraded = PointSpread.gaussian(ratio).degrade(image(ratio, ratio))
    assert degraded.shape == (1, 2, 1, 1)
    assert degraded.isfinite().all()


@pytest.mark.parametrize("ratio", RATIOS)
def test_no_pixel_beyond_the_reach_counts(ratio):
    spread = PointSpread.gaussian(ratio)
    x = torch.zeros(1, 1, 11 * ratio, 11 * ratio)
    x[..., 5 * ratio : 6 * ratio, 5 * ratio : 6 * ratio] = 1.0
    seen = spread.degrade(x)[0, 0] > 0
    rows = seen.any(1).nonzero().flatten()
    assert rows.min() == 5 - spread.reach_px
    assert rows.max() == 5 + spread.reach_px


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_sweep_holds_what_degrading_gives(ratio):
    spread = PointSpread.gaussian(ratio)
    x = image(6 * ratio, 7 * ratio)
    swept = spread.sweep(x)
    # Centres of blocks: a pixel where the ratio is odd, a corner, one further on, where it is even.
    centres = slice(ratio // 2, None, ratio)
    torch.testing.assert_close(swept[..., centres, centres][..., :6, :7], spread.degrade(x))


@pytest.mark.parametrize("ratio", RATIOS)
def test_blurring_keeps_size_and_place(ratio):
    slope = torch.arange(40.0).expand(1, 1, 40, -1)
    blurred = PointSpread.gaussian(ratio).blur(slope)
    torch.testing.assert_close(blurred[0, 0, 20, 10:-10], slope[0, 0, 20, 10:-10])


def test_a_size_that_does_not_nest_is_refused():
    with pytest.raises(ValueError, match="10 x 12 px is no multiple of 3"):
        PointSpread.block(3).degrade(image(10, 12))


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (torch.ones(2, 3), r"square, not \(2, 3\)"),
        (torch.zeros(3, 3), "not all zero"),
        (torch.tensor([[-1.0, 3.0], [0.0, 0.0]]), "not negative"),
    ],
)
def test_what_is_no_point_spread_is_refused(kernel, message):
    with pytest.raises(ValueError, match=message):
        PointSpread(kernel, 2)


def test_a_state_is_loaded_into_one_of_its_size():
    spread = PointSpread.gaussian(3, fwhm_px=4.2)
    other = PointSpread.of_size(spread.size, 3)
    other.load_state_dict(spread.state_dict())
    torch.testing.assert_close(other.degrade(image(9, 9)), spread.degrade(image(9, 9)))


def test_a_response_weighs_bands_and_adds_its_offset():
    hsi = image(3, 4, channels=3)
    response = SpectralResponse(torch.tensor([[0.5, 0.5, 0], [0, 0, 1.0]]), torch.tensor([0.1, 0]))
    msi = response(hsi)
    torch.testing.assert_close(msi[:, 0], (hsi[:, 0] + hsi[:, 1]) / 2 + 0.1)
    torch.testing.assert_close(msi[:, 1], hsi[:, 2])


def test_an_offset_of_other_bands_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        SpectralResponse(torch.ones(2, 3), torch.zeros(3))

from __future__ import annotations

import pytest
import torch

from engine.models.fusion.back_projection import BackProjection, step_sizes
from engine.models.fusion.consistency import measure_consistency
from engine.models.fusion.degradation import PointSpread, SpectralResponse
from engine.models.fusion.method import FusionMethod, ImagePair, upsample

BANDS, ROWS, COLS = 5, 14, 11


class Interpolated(FusionMethod):
    """The hyperspectral image, interpolated, and half of the fine one's first band."""

    name = "test"

    def __init__(self, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio

    @property
    def reach_px(self) -> int:
        return 2

    def forward(self, pair: ImagePair) -> torch.Tensor:
        return upsample(pair.hsi, self.ratio) + 0.5 * pair.msi[:, :1]


def make_pair(ratio: int, rows: int = ROWS, cols: int = COLS, *, holes: bool = False) -> ImagePair:
    """A pair of noise: what is hardest to give back."""
    random = torch.Generator().manual_seed(0)
    hsi = torch.rand(1, BANDS, rows, cols, generator=random) * 0.5
    msi = torch.rand(1, 2, rows * ratio, cols * ratio, generator=random) * 0.5
    hsi_valid = torch.ones(1, rows, cols, dtype=torch.bool)
    msi_valid = torch.ones(1, rows * ratio, cols * ratio, dtype=torch.bool)
    if holes:
        hsi_valid[:, 3:5, 4] = False
        msi_valid[:, 20:23, 7] = False
    return ImagePair(hsi * hsi_valid[:, None], msi * msi_valid[:, None], hsi_valid, msi_valid)


def error(method: FusionMethod, pair: ImagePair, spread: PointSpread) -> float:
    """Root mean square difference of the degraded result from the hyperspectral image."""
    response = SpectralResponse(torch.zeros(2, BANDS))
    found = measure_consistency(method(pair), pair, spread, response)
    return float(found.hsi_error[found.hsi_valid].mean().sqrt())


@pytest.mark.parametrize("ratio", [2, 3, 8])
def test_what_is_left_of_the_difference_is_a_twentieth(ratio):
    pair, spread = make_pair(ratio), PointSpread.gaussian(ratio)
    method = Interpolated(ratio)
    corrected = BackProjection(method, spread)
    assert error(corrected, pair, spread) < 0.05 * error(method, pair, spread)


def test_pixels_that_are_not_valid_spoil_no_others():
    pair, spread = make_pair(3, holes=True), PointSpread.gaussian(3)
    method = Interpolated(3)
    corrected = BackProjection(method, spread)
    assert error(corrected, pair, spread) < 0.05 * error(method, pair, spread)
    assert torch.isfinite(corrected(pair)).all()


def test_a_wider_spread_than_expected_does_not_diverge():
    pair, spread = make_pair(3), PointSpread.gaussian(3, fwhm_px=5.0)
    method = Interpolated(3)
    assert error(BackProjection(method, spread), pair, spread) < error(method, pair, spread)


def test_what_is_given_back_already_stays():
    spread = PointSpread.block(3)
    pair = make_pair(3)
    flat = ImagePair(
        torch.full_like(pair.hsi, 0.3), torch.zeros_like(pair.msi), pair.hsi_valid, pair.msi_valid
    )
    torch.testing.assert_close(
        BackProjection(Interpolated(3), spread)(flat), torch.full((1, BANDS, 42, 33), 0.3)
    )


def test_a_part_with_a_margin_of_the_reach_equals_the_whole():
    pair = make_pair(2, rows=60, cols=9)
    method = BackProjection(Interpolated(2), PointSpread.gaussian(2))
    reach = method.reach_px
    whole = method(pair)
    start, stop = 27, 33
    part = method(pair.crop(slice(start - reach, stop + reach), slice(None)))
    torch.testing.assert_close(
        part[..., 2 * reach : 2 * (reach + stop - start), :], whole[..., 2 * start : 2 * stop, :],
        atol=1e-6, rtol=0,
    )  # fmt: skip


def test_its_reach_is_what_it_says():
    pair = make_pair(2, rows=61, cols=3)
    pair = ImagePair(pair.hsi.double(), pair.msi.double(), pair.hsi_valid, pair.msi_valid)
    method = BackProjection(Interpolated(2), PointSpread.gaussian(2))
    before = method(pair)
    pair.hsi[:, :, 30] += 0.1
    changed = (method(pair) != before).any(3).any(1)[0].reshape(61, 2).any(1)
    reach = int((torch.nonzero(changed) - 30).abs().max())
    assert method.reach_px - 1 <= reach <= method.reach_px  # the outermost effect may be rounding


def test_steps_cancel_all_that_lies_between_the_shares():
    left = torch.ones(100, dtype=torch.float64)
    seen = torch.linspace(0.15, 1.05, 100, dtype=torch.float64)
    for size in step_sizes():
        left *= 1 - size * seen
    assert left.abs().max() < 0.05


def test_another_ratio_is_refused():
    with pytest.raises(ValueError, match="spread of ratio 2 for a method of 3"):
        BackProjection(Interpolated(3), PointSpread.gaussian(2))

from __future__ import annotations

import pytest
import torch

from engine.models.fusion.consistency import measure_consistency
from engine.models.fusion.degradation import PointSpread, SpectralResponse
from engine.models.fusion.method import ImagePair

RATIO, ROWS, COLS = 3, 6, 5
SPREAD = PointSpread.block(RATIO)
RESPONSE = SpectralResponse(
    torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]), torch.tensor([0.1, 0])
)


@pytest.fixture
def truth():
    """(1, 3, 18, 15) fine reflectance."""
    fine = torch.rand(1, 3, ROWS * RATIO, COLS * RATIO, generator=torch.Generator().manual_seed(1))
    return fine * 0.5 + 0.1


@pytest.fixture
def pair(truth):
    """What both sensors see of the truth."""
    return ImagePair(
        SPREAD.degrade(truth),
        RESPONSE(truth),
        torch.ones(1, ROWS, COLS, dtype=torch.bool),
        torch.ones(1, ROWS * RATIO, COLS * RATIO, dtype=torch.bool),
    )


def test_the_truth_gives_both_images_back(truth, pair):
    found = measure_consistency(truth, pair, SPREAD, RESPONSE)
    assert found.on_fine_grid().shape == (1, 2, ROWS * RATIO, COLS * RATIO)
    assert found.on_fine_grid().max() < 1e-6


def test_a_gain_of_a_tenth_is_a_difference_of_a_tenth(truth, pair):
    found = measure_consistency(1.1 * truth, pair, SPREAD, RESPONSE)
    torch.testing.assert_close(
        found.on_fine_grid()[:, 0], torch.full((1, ROWS * RATIO, COLS * RATIO), 0.1),
        atol=1e-5, rtol=0,
    )  # fmt: skip


def test_an_error_stands_where_it_is(truth, pair):
    spoilt = truth.clone()
    spoilt[:, 2, 4, 7] += 0.3  # of the coarse pixel in row 1, column 2
    relative = measure_consistency(spoilt, pair, SPREAD, RESPONSE).on_fine_grid()
    hsi, msi = relative[0]
    assert torch.equal(hsi > 1e-3, torch.zeros_like(hsi, dtype=torch.bool).index_put(
        tuple(torch.meshgrid(torch.arange(3, 6), torch.arange(6, 9), indexing="ij")),
        torch.tensor(True),
    ))  # fmt: skip
    assert torch.nonzero(msi > 1e-3).tolist() == [[4, 7]]


def test_what_is_not_valid_is_not_known(truth, pair):
    pair.hsi_valid[:, 2, 1] = False
    pair.msi_valid[:, 0, 0] = False
    hsi, msi = measure_consistency(truth, pair, SPREAD, RESPONSE).on_fine_grid()[0]
    assert torch.isnan(hsi[6:9, 3:6]).all()
    assert torch.isnan(hsi[0:3, 0:3]).all()  # a block that is not whole
    assert torch.isnan(msi[0, 0])
    assert torch.isnan(msi[6:9, 3:6]).all()
    assert int(torch.isnan(hsi).sum()) == 18
    assert int(torch.isnan(msi).sum()) == 10


def test_black_pixels_have_a_finite_difference(truth, pair):
    black = ImagePair(
        torch.zeros_like(pair.hsi), torch.zeros_like(pair.msi), pair.hsi_valid, pair.msi_valid
    )
    found = measure_consistency(truth, black, SPREAD, RESPONSE)
    assert torch.isfinite(found.on_fine_grid()).all()

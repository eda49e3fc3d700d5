import numpy as np
import pytest

from engine.training.areas import estimate_areas

# The worked example of Olofsson et al. (2014), section 5: the paper has the map in rows.
PAPER_MAP_ROWS = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
PAPER_MAPPED_PX = [200_000, 150_000, 3_200_000, 6_450_000]
HA_PER_PX = 0.09


@pytest.fixture
def paper():
    return estimate_areas(PAPER_MAP_ROWS.T, PAPER_MAPPED_PX)


def test_areas_are_those_of_the_paper(paper):
    hectares = paper.estimated * sum(PAPER_MAPPED_PX) * HA_PER_PX
    np.testing.assert_allclose(hectares, [21_158, 11_686, 285_770, 581_386], atol=1)


def test_intervals_are_those_of_the_paper(paper):
    hectares = paper.estimated_95 * sum(PAPER_MAPPED_PX) * HA_PER_PX
    np.testing.assert_allclose(hectares, [6_158, 3_756, 15_510, 16_282], atol=1)


def test_accuracy_is_that_of_the_paper(paper):
    assert paper.overall_accuracy == pytest.approx(0.947, abs=5e-4)
    assert paper.overall_accuracy_95 == pytest.approx(0.018, abs=5e-4)


def test_class_without_samples_is_left_out_of_the_ground():
    estimate = estimate_areas([[8, 0, 1], [2, 5, 0], [0, 0, 0]], [60, 20, 20])
    np.testing.assert_array_equal(estimate.assessed, [True, True, False])
    assert estimate.assessed_share == pytest.approx(0.8)
    np.testing.assert_allclose(estimate.estimated, [0.6, 0.4, 0])
    assert estimate.estimated.sum() == pytest.approx(1)


def test_class_that_is_not_in_the_map_has_no_weight():
    estimate = estimate_areas([[8, 0], [2, 5]], [100, 0])
    np.testing.assert_allclose(estimate.estimated, [0.8, 0.2])


def test_perfect_samples_leave_the_map_as_it_is():
    estimate = estimate_areas([[8, 0], [0, 5]], [75, 25])
    np.testing.assert_allclose(estimate.estimated, [0.75, 0.25])
    np.testing.assert_allclose(estimate.estimated_95, 0)


def test_too_few_samples_give_no_estimate():
    assert estimate_areas([[1, 0], [0, 1]], [75, 25]) is None

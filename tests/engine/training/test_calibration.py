"""Calibration: one temperature, which changes no class, and what it is judged by."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from engine.training.calibration import (
    Calibration,
    calibrate,
    fit_temperature,
    reliability,
    reliability_figure,
)


def honest(count=4000, classes=4, seed=0):
    """Logits that are calibrated, and classes drawn by their probabilities."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(count, classes, generator=generator)
    label = torch.multinomial(logits.softmax(1), 1, generator=generator).flatten()
    return logits, label


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_temperature_that_was_hidden_is_found(factor):
    logits, _label = honest()
    assert fit_temperature(factor * logits, logits.softmax(1)) == pytest.approx(factor, rel=1e-3)


def test_classes_do_as_well_as_shares():
    logits, label = honest()
    assert fit_temperature(3 * logits, label) == pytest.approx(3.0, rel=0.1)


def test_no_other_temperature_has_a_lower_cross_entropy():
    logits, label = honest(count=300)
    best = fit_temperature(logits, label)
    loss = [
        float(torch.nn.functional.cross_entropy(logits / t, label))
        for t in (best, 0.98 * best, 1.02 * best)
    ]
    assert loss[0] == min(loss)


def test_weights_count():
    logits, label = honest()
    weight = torch.zeros(len(label))
    weight[:2000] = 1
    assert fit_temperature(logits, label, weight) == pytest.approx(
        fit_temperature(logits[:2000], label[:2000])
    )


@pytest.mark.parametrize("count", [3, 30, 300])
def test_a_model_that_is_never_wrong_becomes_as_sure_as_so_many_pixels_allow(count):
    label = torch.arange(count) % 3
    logits = torch.nn.functional.one_hot(label, 3).float()
    sure = (logits / fit_temperature(logits, label)).softmax(1).max()
    assert float(sure) == pytest.approx(1 - 2 / 3 / (count + 2), abs=1e-4)


def test_a_model_that_is_always_wrong_gets_the_largest():
    logits = 5 * torch.eye(3)
    assert fit_temperature(logits, torch.tensor([1, 2, 0])) == pytest.approx(20.0, rel=1e-6)


@pytest.mark.parametrize("weight", [None, torch.zeros(0)])
def test_nothing_to_fit_leaves_confidence_as_it_is(weight):
    assert fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), weight) == 1.0


def test_the_error_is_that_of_torchmetrics():
    logits, label = honest(count=500)
    probabilities = (2 * logits).softmax(1)
    expected = multiclass_calibration_error(probabilities, label, num_classes=4, n_bins=10)
    assert reliability(probabilities, label).ece == pytest.approx(float(expected), rel=1e-4)


def test_a_curve_that_was_counted_by_hand():
    probabilities = torch.tensor([[0.95, 0.05], [0.92, 0.08], [0.35, 0.65], [0.5, 0.5]])
    curve = reliability(probabilities, torch.tensor([0, 1, 1, 0]))
    assert curve.count.tolist() == [0, 0, 0, 0, 1, 0, 1, 0, 0, 2]
    np.testing.assert_allclose(curve.confidence[[4, 6, 9]], [0.5, 0.65, 0.935])
    np.testing.assert_allclose(curve.accuracy[[4, 6, 9]], [1.0, 1.0, 0.5])
    assert np.isnan(curve.accuracy[[0, 5, 8]]).all()
    assert curve.ece == pytest.approx((0.5 + 0.35 + 2 * 0.435) / 4)


def test_a_curve_of_nothing_is_refused():
    with pytest.raises(ValueError, match="needs one answer"):
        reliability(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))


def test_calibration_shows_what_the_temperature_does():
    logits, label = honest()
    found = calibrate(3.0, 3 * logits, label)
    assert found.ece < 0.03 < 0.2 < found.before.ece


def test_without_held_out_pixels_there_is_no_error():
    found = calibrate(2.0, torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert (found.temperature, found.ece) == (2.0, None)


def test_the_figure_names_both_errors():
    found = calibrate(3.0, *honest(count=200))
    texts = [text.get_text() for text in reliability_figure(found).axes[0].get_legend().texts]
    assert f"as trained: error {found.before.ece:.3f}" in texts
    assert f"temperature 3.00: error {found.ece:.3f}" in texts


def test_the_dots_of_the_figure_grow_with_the_pixels_that_they_stand_for():
    found = calibrate(3.0, *honest(count=200))
    _before, after = reliability_figure(found).axes[0].collections
    count = found.after.count[found.after.count > 0]
    areas = after.get_sizes()
    assert areas[count.argmax()] == areas.max() > 4 * areas[count.argmin()]


def test_there_is_no_figure_without_a_curve():
    with pytest.raises(ValueError, match="no reliability curve"):
        reliability_figure(Calibration())

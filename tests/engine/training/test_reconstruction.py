"""Scores of reconstructions: known answers, and blind where there is no data."""

from __future__ import annotations

import math

import pytest
import torch

from engine.training.reconstruction import ReconstructionScores, pixels_of

B, C, H, W = 2, 6, 16, 24
MEAN, STD = torch.full((C,), 0.3), torch.full((C,), 0.1)


def batch(seed=0):
    """Normalised images, all valid, with the tokens of 4 px in the right half hidden."""
    x = torch.randn(B, C, H, W, generator=torch.Generator().manual_seed(seed))
    masked = torch.zeros(B, 4, 6, dtype=torch.bool)
    masked[:, :, 3:] = True
    valid, present = torch.ones(B, H, W, dtype=torch.bool), torch.ones(B, C, dtype=torch.bool)
    return x, valid, present, masked.flatten(1)


def scores_of(composite, x, valid, present, masked):
    scores = ReconstructionScores()
    scores.update(composite, x, valid, present, masked, MEAN, STD)
    return scores.result()


def test_an_error_of_a_hundredth_is_40_db_and_half_of_it_3_more():
    x, valid, present, masked = batch()
    off = x + 0.1 * pixels_of(masked, valid.shape[-2:])[:, None]  # 0.01 in reflectance
    result = scores_of(off, x, valid, present, masked)
    assert result.psnr_db == pytest.approx(40.0, abs=1e-2)
    assert result.psnr_db_whole == pytest.approx(40.0 + 10 * math.log10(2), abs=1e-2)
    assert result.ssim < result.ssim_whole < 1
    assert 0 < result.spectral_angle_deg_whole < result.spectral_angle_deg


def test_the_angle_between_two_directions_is_in_degrees():
    _x, valid, present, masked = batch()
    first, second = torch.zeros(B, C, H, W), torch.zeros(B, C, H, W)
    first[:, 0], second[:, :2] = 0.5, 0.5
    result = scores_of((second - 0.3) / 0.1, (first - 0.3) / 0.1, valid, present, masked)
    assert result.spectral_angle_deg == pytest.approx(45.0, abs=1e-2)


def test_what_has_no_data_counts_for_nothing():
    x, valid, present, masked = batch()
    off = x + 0.1
    expected = scores_of(off, x, valid, present, masked)
    valid[:, :, 20:] = False
    present[:, 2] = False
    wild = off.clone()
    wild[:, :, :, 20:] = 50.0
    wild[:, 2] = -50.0
    result = scores_of(wild, x, valid, present, masked)
    assert result.psnr_db == pytest.approx(expected.psnr_db, abs=0.01)
    assert result.ssim == pytest.approx(expected.ssim, abs=0.03)
    assert result.spectral_angle_deg == pytest.approx(expected.spectral_angle_deg, rel=0.3)


def test_batches_are_weighed_by_what_they_hold():
    x, valid, present, masked = batch()
    off = x + torch.tensor([0.1, 0.4])[:, None, None, None]
    together = scores_of(off, x, valid, present, masked)
    scores = ReconstructionScores()
    for i in (0, 1):
        one = slice(i, i + 1)
        scores.update(off[one], x[one], valid[one], present[one], masked[one], MEAN, STD)
    assert scores.result().summary() == pytest.approx(together.summary(), rel=1e-4)


def test_the_parts_of_a_large_batch_make_no_difference(monkeypatch):
    x, valid, present, masked = batch()
    whole = scores_of(x + 0.1, x, valid, present, masked)
    monkeypatch.setattr("engine.training.reconstruction.SSIM_MAX_VALUES", 1)
    assert scores_of(x + 0.1, x, valid, present, masked).ssim == pytest.approx(whole.ssim)


def test_a_batch_without_data_is_no_score():
    x, valid, present, masked = batch()
    with pytest.raises(ValueError, match="No reconstruction was counted"):
        scores_of(x, x, ~valid, present, masked)


def test_tokens_are_spread_over_their_pixels():
    tokens = torch.tensor([[0, 1, 2, 3, 4, 5]])
    assert pixels_of(tokens, torch.Size((4, 6)))[0].tolist() == [
        [0, 0, 1, 1, 2, 2],
        [0, 0, 1, 1, 2, 2],
        [3, 3, 4, 4, 5, 5],
        [3, 3, 4, 4, 5, 5],
    ]

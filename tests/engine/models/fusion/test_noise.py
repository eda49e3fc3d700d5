"""Noise of a coarse image: estimated, lost by degrading, put back."""

import pytest
import torch

from engine.models.fusion.degradation import PointSpread
from engine.models.fusion.noise import band_noise, lost_noise, missing_noise, with_noise
from tests.engine.models.fusion.made_pairs import RATIO, degraded, known

SPREAD = PointSpread.gaussian(RATIO)


def noisy(noise, seed=0):
    at = known(30, 33, seed=seed, noise=noise)
    return at, at.pair.hsi.movedim(1, -1).flatten(0, 2)


@pytest.mark.parametrize("noise", [0.002, 0.01])
def test_noise_is_found(noise):
    found = band_noise(noisy(noise)[1])
    # 20 noisy neighbours do not know five materials exactly: their own noise comes on top.
    assert noise < found.mean() < 1.25 * noise
    assert found.shape == (24,)


def test_noise_that_differs_between_bands_is_found_for_each():
    _, spectra = noisy(0.0)
    noise = torch.linspace(0.004, 0.012, 24)
    drawn = torch.randn(spectra.shape, generator=torch.Generator().manual_seed(1))
    found = band_noise(spectra + drawn * noise)
    assert torch.corrcoef(torch.stack([found, noise]))[0, 1] > 0.9
    torch.testing.assert_close(found[4:], noise[4:], rtol=0.35, atol=0)


def test_an_image_without_noise_has_none():
    assert band_noise(noisy(0.0)[1]).max() < 1e-4


def test_too_few_pixels_do_not_tell():
    assert band_noise(noisy(0.01)[1][:42]) is None


def test_what_degrading_averages_away_is_what_it_loses():
    at, _ = noisy(0.01)
    lost = lost_noise([at.pair], SPREAD)
    left = degraded(at).pair.hsi - degraded(known(30, 33)).pair.hsi
    assert 0.01 < (lost**2 + left.std() ** 2).sqrt().mean() < 0.0125


def test_where_noise_cannot_be_told_none_is_lost():
    at, _ = noisy(0.01)
    assert not lost_noise([at.pair.crop(slice(2), slice(3))], SPREAD).any()


def test_images_as_noisy_as_those_of_use_lack_nothing():
    used, fitted = noisy(0.01)[0].pair, noisy(0.0105, seed=2)[0].pair
    assert missing_noise([fitted], [used], SPREAD).mean() < 0.003


def test_cleaner_images_lack_the_difference_of_the_variances():
    used, fitted = noisy(0.01)[0].pair, noisy(0.006, seed=2)[0].pair
    assert 0.008 < missing_noise([fitted], [used], SPREAD).mean() < 0.010


def test_a_seed_draws_the_same_noise_again():
    hsi, noise = torch.zeros(1, 2, 40, 40), torch.tensor([0.1, 0.0])
    drawn = with_noise(hsi, noise, seed=3)
    assert drawn[0, 0].std() == pytest.approx(0.1, rel=0.1)
    assert not drawn[0, 1].any()
    torch.testing.assert_close(with_noise(hsi, noise, seed=3), drawn)
    assert not with_noise(hsi, noise, seed=4).equal(drawn)

"""Fitting support: other places of the same ground read as familiar, other ground does not."""

import numpy as np
import pytest
import torch

from engine.training.samples import Samples
from engine.training.support_fit import MAX_GAUSSIANS, fit_support, fit_support_to_places
from tests.engine.training.made_samples import made_samples

BANDS = 40


def ground(count, seed, classes=3):
    """(N, C) spectra of sloped classes under any light, and their classes."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, count)
    slope = np.linspace(-0.3, 0.3, classes)[label, None] * np.linspace(-1, 1, BANDS) + 0.4
    spectra = slope * rng.uniform(0.7, 1.3, (count, 1)) + rng.normal(0, 0.005, (count, BANDS))
    return torch.from_numpy(spectra.astype(np.float32)), torch.from_numpy(label)


def read(support, spectra):
    valid = torch.ones(1, len(spectra), 1, dtype=torch.bool)
    return support(spectra.T[None, :, :, None], valid)[0, 0, :, 0]


@pytest.fixture(scope="module")
def support():
    spectra, label = ground(600, seed=0)
    return fit_support(spectra, label, ground(200, seed=1)[0])


def test_95_of_100_held_out_pixels_read_half_or_more(support):
    share = (read(support, ground(200, seed=1)[0]) >= 0.5).float().mean()
    assert float(share) == pytest.approx(0.95, abs=0.01)


def test_other_places_of_the_same_ground_are_familiar(support):
    assert float((read(support, ground(2000, seed=2)[0]) >= 0.5).float().mean()) > 0.9


def test_a_material_that_training_had_not_is_not(support):
    wavelength = np.linspace(0, 1, BANDS)
    spectra = 0.4 + 0.2 * np.sin(9 * wavelength)[None].repeat(5, axis=0)
    assert float(read(support, torch.from_numpy(spectra.astype(np.float32))).max()) < 0.01


def test_a_narrow_absorption_is_noticed(support):
    spectra = ground(200, seed=3)[0]
    spectra[:, 20:22] -= 0.08
    assert float(read(support, spectra).median()) < 0.05


def test_stronger_light_is_less_familiar_than_usual_light(support):
    spectra = ground(200, seed=3)[0]
    assert float(read(support, 3 * spectra).median()) < float(read(support, spectra).median()) / 2


def test_its_state_is_small():
    rng = np.random.default_rng(0)
    spectra = torch.from_numpy(rng.random((4000, 250)).astype(np.float32))
    label = torch.from_numpy(rng.integers(0, MAX_GAUSSIANS, 4000))
    state = fit_support(spectra, label, spectra[:50]).state_dict()
    assert sum(tensor.nbytes for tensor in state.values()) < 200_000


def test_the_same_samples_give_the_same_bits():
    first, again = (
        fit_support(*ground(100, seed=0), ground(50, seed=1)[0]).state_dict() for _ in range(2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_a_handful_of_pixels_is_enough(count):
    spectra, label = ground(count, seed=0)
    found = read(fit_support(spectra, label, spectra), spectra)
    assert bool(torch.isfinite(found).all()) and float(found.max()) >= 0.5


def test_a_band_that_never_changes_does_not_matter():
    spectra, label = ground(200, seed=0)
    spectra[:, 5] = 0.25
    assert float((read(fit_support(spectra, label, spectra), spectra) >= 0.5).float().mean()) > 0.9


def test_without_held_out_spectra_there_is_no_scale():
    spectra, label = ground(20, seed=0)
    with pytest.raises(ValueError, match="needs 2 training spectra and 1 held-out one, not 20"):
        fit_support(spectra, label, spectra[:0])


def held_out_share(samples: Samples, support, keep) -> float:
    return float((read(support, samples.spectra[keep]) >= 0.5).float().mean())


def test_held_out_places_give_the_scale():
    samples = made_samples(chips=30)
    outside = samples.place >= 24
    support = fit_support_to_places(samples.subset(~outside), samples.subset(outside), seed=0)
    assert held_out_share(samples, support, outside) == pytest.approx(0.95, abs=0.02)


def test_folds_give_the_scale_where_no_place_was_held_out():
    samples = made_samples(chips=30)
    nothing = samples.subset(torch.zeros(len(samples.chip), dtype=torch.bool))
    crossed = fit_support_to_places(samples, nothing, seed=0)
    inside = fit_support(samples.spectra, samples.class_index, samples.spectra)
    # Places that a fit has not seen lie further away than its own.
    assert float(crossed.distance_95) > float(inside.distance_95)


def test_labels_in_one_place_say_nothing_about_others():
    samples = made_samples(chips=1)
    assert fit_support_to_places(samples, None, seed=0) is None

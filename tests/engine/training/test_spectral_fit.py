from dataclasses import replace

import pytest
import torch

from engine.errors import CancelledError
from engine.feedback import SilentFeedback
from engine.training.objective import ClassObjective
from engine.training.places import place_folds
from engine.training.spectral_fit import SpectralSettings, TrainingPixels, fit_spectral_path
from tests.engine.training.made_samples import made_samples

QUICK = SpectralSettings(epochs=40, lr=0.02)


def pixels_of(samples, folds=3):
    fold = place_folds(samples.class_index.numpy(), samples.place.numpy(), folds, 0)
    objective = ClassObjective(samples.shares, samples.weight, samples.pure)
    return TrainingPixels(samples.spectra, samples.weight, torch.from_numpy(fold), objective)


def shuffled_fold(samples, pixels, fold):
    """The same pixels with other labels in one fold; the class totals stay as they are."""
    member = pixels.fold == fold
    shares = samples.shares.clone()
    shares[member] = shares[member].flip(0)
    return replace(pixels, objective=ClassObjective(shares, samples.weight, samples.pure))


class Recorder(SilentFeedback):
    def __init__(self, cancel_after=None):
        self.messages, self.fractions, self.asked = [], [], 0
        self.cancel_after = cancel_after

    def progress(self, fraction, message=""):
        self.fractions.append(fraction)
        self.messages.append(message)

    def raise_if_cancelled(self):
        self.asked += 1
        if self.cancel_after is not None and self.asked > self.cancel_after:
            raise CancelledError


def test_it_learns_what_a_line_can_tell():
    fit = fit_spectral_path(pixels_of(made_samples()), QUICK, 0, SilentFeedback())
    assert fit.curve[fit.best_epoch].held_out_accuracy > 0.95
    assert fit.curve[fit.best_epoch].held_out_loss < fit.curve[0].held_out_loss


def test_the_same_seed_gives_the_same_path_and_another_does_not():
    pixels = pixels_of(made_samples())
    first, again, other = (
        fit_spectral_path(pixels, QUICK, seed, SilentFeedback()).path.weight for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_pixels_of_a_fold_do_not_reach_the_fit_without_it():
    samples = made_samples()
    pixels = pixels_of(samples)
    changed = shuffled_fold(samples, pixels, 0)
    once = SpectralSettings(epochs=1)
    fits = [fit_spectral_path(each, once, 0, SilentFeedback()) for each in (pixels, changed)]
    assert torch.allclose(fits[0].fold_weight[0], fits[1].fold_weight[0], atol=1e-6)
    assert not torch.allclose(fits[0].fold_weight[1], fits[1].fold_weight[1], atol=1e-4)


def test_the_kept_answers_are_those_of_the_fits_without_each_fold():
    pixels = pixels_of(made_samples())
    fit = fit_spectral_path(pixels, QUICK, 0, SilentFeedback())
    views = fit.path.views(pixels.spectra)
    for fold in range(pixels.num_folds):
        member = pixels.fold == fold
        expected = views[member] @ fit.fold_weight[fold].T + fit.fold_bias[fold]
        torch.testing.assert_close(fit.held_out[member], expected.detach())


def test_training_ends_when_held_out_places_are_not_better_any_more():
    samples = made_samples(noise=0.5)
    patient = SpectralSettings(epochs=500, lr=0.05, patience=5)
    fit = fit_spectral_path(pixels_of(samples), patient, 0, SilentFeedback())
    assert len(fit.curve) == fit.best_epoch + 1 + 5
    losses = [epoch.held_out_loss for epoch in fit.curve]
    assert losses[fit.best_epoch] == min(losses)


def test_progress_tells_loss_and_accuracy():
    recorder = Recorder()
    fit_spectral_path(pixels_of(made_samples()), QUICK, 0, recorder)
    assert recorder.fractions == sorted(recorder.fractions)
    assert "loss" in recorder.messages[0] and "accuracy" in recorder.messages[0]


def test_cancel_is_heard_after_every_epoch():
    recorder = Recorder(cancel_after=3)
    with pytest.raises(CancelledError):
        fit_spectral_path(pixels_of(made_samples()), QUICK, 0, recorder)
    assert len(recorder.messages) == 3

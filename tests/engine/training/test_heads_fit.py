import pytest
import torch

from engine.errors import CancelledError
from engine.feedback import SilentFeedback
from engine.models.spectral import SpectralHeads
from engine.training.heads_fit import HeadsSettings, fit_heads
from engine.training.spectral_fit import SpectralSettings, fit_spectral_path
from tests.engine.training.made_samples import BANDS, made_samples
from tests.engine.training.test_spectral_fit import Recorder, pixels_of, shuffled_fold

QUICK = HeadsSettings(epochs=20, check_epochs=10, dropout=0.1)


def ring_samples():
    """The class is whether the first band is far from its middle: no line can tell."""
    samples = made_samples(chips=24, classes=2)
    first = (
        samples.reflectance[:, 0]
        .clone()
        .uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
    )
    samples.reflectance[:, 0] = 0.5 + 0.3 * first
    far = (first.abs() > 0.5).long()[samples.chip, samples.row, samples.col]
    samples.shares.copy_(torch.eye(2)[far])
    samples.pure.fill_(True)
    return samples


def fit(samples=None, seed=0, settings=QUICK, feedback=None, folds=3):
    samples = samples or made_samples()
    pixels = pixels_of(samples, folds)
    spectral = fit_spectral_path(pixels, SpectralSettings(epochs=20), 0, SilentFeedback())
    heads = fit_heads(
        pixels, samples.place, spectral, settings,
        members=3, hidden=16, seed=seed, feedback=feedback or SilentFeedback(),
    )  # fmt: skip
    return heads, pixels, spectral


def logits_of(state, views, classes):
    heads = SpectralHeads(BANDS, classes, len(state["bias1"]), 16)
    heads.load_state_dict(state)
    with torch.no_grad():
        return heads.eval()(views).mean(dim=0)


def test_networks_get_a_share_where_a_line_is_not_enough():
    settings = HeadsSettings(epochs=60, check_epochs=20, dropout=0.0, lr=1e-2)
    heads, _pixels, _spectral = fit(ring_samples(), settings=settings)
    assert heads.choice.gate > 0
    best = min(heads.choice.tried, key=lambda item: item.loss)
    assert best.accuracy > heads.choice.without[1] + 0.2


def test_the_mixture_is_that_of_the_networks_without_each_fold():
    heads, pixels, spectral = fit(ring_samples())
    share = heads.choice.gate
    views = spectral.path.views(pixels.spectra)
    for fold, state in enumerate(heads.fold_states):
        member = pixels.fold == fold
        expected = torch.lerp(spectral.held_out[member], logits_of(state, views[member], 2), share)
        torch.testing.assert_close(heads.held_out[member], expected, rtol=1e-4, atol=1e-4)


def test_the_kept_networks_are_as_many_as_asked_for():
    heads, _pixels, _spectral = fit()
    assert len(heads.state["bias1"]) == 3
    assert [len(state["bias1"]) for state in heads.fold_states] == [2, 2, 2]


def test_labels_of_a_fold_do_not_reach_the_networks_without_it():
    samples = made_samples()
    _heads, pixels, spectral = fit(samples)
    changed = shuffled_fold(samples, pixels, 1)
    found = [
        fit_heads(
            each, samples.place, spectral, QUICK, members=1, hidden=16, seed=0,
            feedback=SilentFeedback(),
        )
        for each in (pixels, changed)
    ]  # fmt: skip
    if found[0].choice.epochs == found[1].choice.epochs:
        without = [heads.fold_states[1]["weight3"] for heads in found]
        torch.testing.assert_close(*without, rtol=1e-4, atol=1e-5)
    seen = [heads.state["weight3"] for heads in found]
    assert not torch.allclose(*seen, atol=1e-3)


def test_the_same_seed_gives_the_same_networks_and_another_does_not():
    first, again, other = (fit(seed=seed)[0].state["weight1"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_one_place_gives_networks_without_a_share():
    samples = made_samples()
    samples.place.fill_(4)
    heads, _pixels, _spectral = fit(samples)
    assert heads.choice.gate == 0.0


def test_cancel_is_heard_after_every_epoch():
    recorder = Recorder(cancel_after=3)
    with pytest.raises(CancelledError):
        fit(feedback=recorder)
    assert len(recorder.messages) == 3

"""The fit of a segmenter: what it may add to the pixel's answer, and what it must not change."""

from dataclasses import replace

import pytest
import torch
from lightning_fabric import Fabric

from engine.errors import CancelledError, LabelError, TrainingError
from engine.feedback import SilentFeedback
from engine.models.spectralx.segmenter import SpectralXSegmenter
from engine.models.vit import ViTConfig
from engine.packages.foundations import Foundation
from engine.training.heads_fit import HeadsSettings
from engine.training.segmentation import estimate_memory, train_segmenter
from engine.training.segmentation_chips import Light
from engine.training.segmentation_fit import (
    SegmentationSettings,
    fit_segmenter,
    predict_samples,
)
from engine.training.segmentation_steps import SegmenterTrainer
from engine.training.spectral_fit import SpectralSettings
from tests.engine.models.spectralx.made import IDENTITY, made_vit, segmenter_config
from tests.engine.training.made_samples import BANDS, CHIP_PX, made_samples
from tests.engine.training.test_spectral_fit import Recorder

VIT = ViTConfig(embed_dim=64, depth=2, num_heads=4, patch_px=8, grid=4)
CONFIG = segmenter_config(
    in_channels=BANDS, wavelength_nm=tuple(range(400, 1000, 100)), vit=VIT, chip_px=4, patch_px=2,
)  # fmt: skip
QUICK = SegmentationSettings(
    epochs=2, check_epochs=1, folds=2, spectral=SpectralSettings(epochs=10)
)
FABRIC = Fabric(accelerator="cpu", devices=1)


def foundation():
    return Foundation(IDENTITY, made_vit(VIT), {}, None)


def fit(samples=None, config=CONFIG, settings=QUICK, base=None, feedback=None, **options):
    return fit_segmenter(
        made_samples(chips=9) if samples is None else samples, config, base or foundation(),
        settings, fabric=FABRIC, feedback=feedback or SilentFeedback(), **options,
    )  # fmt: skip


def test_the_same_seed_gives_the_same_segmenter():
    first, again, other = (
        fit(settings=replace(QUICK, seed=seed))[0].own_state() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.classes.weight"], other["head.classes.weight"])


def test_training_leaves_the_global_random_state_alone():
    torch.manual_seed(7)
    fit()
    after = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(1))


@pytest.mark.parametrize("adaptation", ["spectralx", "frozen", "lora", "slr", "full"])
def test_a_foundation_stays_as_it_is_to_the_bit(adaptation):
    base = foundation()
    before = {name: tensor.clone() for name, tensor in base.vit.state_dict().items()}
    model, _history = fit(
        config=replace(CONFIG, adaptation=adaptation, spectral_path=False), base=base
    )
    now = base.vit.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in before.items())
    untouched = model.foundation_names
    assert len(untouched) > (1 if adaptation != "full" else 0)  # of "full", the table of places
    state = model.state_dict()
    own = SpectralXSegmenter(replace(CONFIG, adaptation=adaptation, spectral_path=False), base.vit)
    fresh = own.state_dict()
    assert all(torch.equal(state[name], fresh[name]) for name in untouched)
    assert not torch.equal(
        state["neck.lateral.0.weight"], fresh["neck.lateral.0.weight"]
    )  # something was trained


def test_a_network_that_does_harm_is_left_out():
    """At a rate at which nothing is learned, the model answers by the spectral path alone."""
    samples = made_samples(chips=9)
    model, history = fit(samples, settings=replace(QUICK, epochs=3, learning_rate=0.5))
    assert history.choice.gate == 0
    assert history.losses == ()
    assert not model.config.network
    path = history.spectral.path
    expected = path(samples.spectra.T[None, :, :, None])[0, :, :, 0].T
    torch.testing.assert_close(predict_samples(model, samples), expected)
    torch.testing.assert_close(history.held_out, history.spectral.held_out)


def seen_by_neighbours():
    """The class of a pixel is the brightness of what lies around it: no spectrum shows it."""
    generator = torch.Generator().manual_seed(0)
    samples = made_samples(chips=40, classes=2)
    signal = torch.randint(0, 2, (40, 1, 1), generator=generator).expand(40, CHIP_PX, CHIP_PX)
    own = torch.randint(0, 2, signal.shape, generator=generator)
    asked = (torch.arange(CHIP_PX)[:, None] + torch.arange(CHIP_PX)) % 3 == 0
    light = torch.where(asked, own, signal)
    noise = 0.01 * torch.randn(40, BANDS, CHIP_PX, CHIP_PX, generator=generator)
    samples.reflectance.copy_(0.3 + 0.2 * light[:, None] + noise)
    samples.shares.copy_(torch.eye(2)[signal[samples.chip, samples.row, samples.col]])
    samples.pure.fill_(True)
    return samples.subset(asked[samples.row, samples.col])


@pytest.mark.slow  # three trainings of some hundred steps
def test_folds_let_the_network_in_where_neighbours_tell_the_class():
    samples = seen_by_neighbours()
    settings = SegmentationSettings(
        epochs=12, check_epochs=4, folds=2, batch_chips=8, learning_rate=3e-3,
        light=Light(0.0, 0.0), spectral=SpectralSettings(epochs=10),
    )  # fmt: skip
    model, history = fit(samples, replace(CONFIG, num_classes=2, dropout=0.0), settings)
    assert history.choice.gate == 1.0
    assert history.choice.without[1] < 0.65
    best = min(history.choice.tried, key=lambda tried: tried.loss)
    assert best.accuracy > 0.85
    answers = predict_samples(model, samples).argmax(dim=1)
    assert float((answers == samples.class_index).float().mean()) > 0.9


def test_the_choice_is_made_of_every_check_and_weight():
    _model, history = fit()
    tried = {(score.epoch, score.gate) for score in history.choice.tried}
    assert tried == {(epoch, gate) for epoch in (1, 2) for gate in (0.25, 0.5, 1.0)}
    assert [score.epoch for score in history.curve()] == [1, 2]


def test_without_a_spectral_path_the_network_answers_alone():
    samples = made_samples(chips=9)
    model, history = fit(samples, replace(CONFIG, spectral_path=False))
    assert model.spectral is history.spectral is None
    assert history.choice.gate == 1.0
    best = min(history.choice.tried, key=lambda tried: tried.loss)
    assert history.choice.epochs == best.epoch == len(history.losses)
    assert history.held_out.shape == (len(samples.chip), 3)
    assert model.head.classes.weight.abs().max() > 0


def test_a_shorter_training_is_the_beginning_of_a_longer_one():
    """What the folds have chosen at an epoch is what the last training then reaches."""
    alone = replace(CONFIG, spectral_path=False)
    settings = replace(QUICK, epochs=4)
    trainer = SegmenterTrainer(made_samples(chips=9), alone, foundation(), settings, FABRIC, None)
    learned = torch.ones(9 * 16, dtype=torch.bool)
    losses = [
        trainer.train(trainer.model(0, None, None), learned, epochs, 0, SilentFeedback())
        for epochs in (2, 4)
    ]
    assert losses[0] == losses[1][:2]


def test_without_folds_all_epochs_are_trained_and_all_is_added():
    _model, history = fit(settings=replace(QUICK, folds=1))
    assert (history.choice.gate, len(history.losses)) == (1.0, QUICK.epochs)
    assert history.choice.tried == ()
    assert history.held_out is None


@pytest.mark.parametrize(("spectral_path", "gate"), [(True, 0.0), (False, 1.0)])
def test_with_all_labels_in_one_place_nobody_can_confirm_the_network(spectral_path, gate):
    samples = made_samples(chips=4)
    samples.place.fill_(3)
    _model, history = fit(samples, replace(CONFIG, spectral_path=spectral_path))
    assert history.choice.gate == gate
    assert history.held_out is None


def test_a_lone_chip_can_be_learned_from():
    """Batch norm needs two values a channel, which one chip's coarsest map has not."""
    samples = made_samples(chips=1)
    _model, history = fit(samples, replace(CONFIG, spectral_path=False))
    assert len(history.losses) == QUICK.epochs


def test_what_stage_1_has_learned_is_begun_with():
    alone = replace(CONFIG, spectral_path=False)
    first, _history = fit(config=alone)
    first.adapted.band_mean.fill_(0.123)
    state = first.adapted.own_state()
    still = replace(QUICK, learning_rate=1e-9, weight_decay=0.0)
    second, _history = fit(config=alone, settings=still, adapted_state=state)
    now = second.adapted.own_state()
    assert torch.equal(now["band_mean"], state["band_mean"])
    for name, tensor in state.items():
        if tensor.is_floating_point() and "running" not in name:
            torch.testing.assert_close(now[name], tensor, atol=1e-5, rtol=0, msg=name)


def test_small_networks_on_spectra_are_fitted_and_kept():
    samples = made_samples(chips=9)
    config = replace(CONFIG, spectral_heads=3, spectral_hidden=16)
    heads = HeadsSettings(epochs=10, check_epochs=5)
    model, history = fit(samples, config, replace(QUICK, learning_rate=0.5, heads=heads))
    share = history.heads.choice.gate
    assert share > 0
    assert (model.config.spectral_heads, model.config.spectral_share) == (3, share)
    assert torch.equal(model.spectral_heads.weight3, history.heads.state["weight3"])
    assert history.choice.gate == 0  # at this rate the network does harm
    assert history.choice.without == (
        min(history.heads.choice.tried, key=lambda score: score.loss).loss,
        pytest.approx(1.0, abs=0.2),
    )
    torch.testing.assert_close(history.held_out, history.heads.held_out)


@pytest.mark.parametrize("scaling", ["standard", "unit"])
def test_scaling_is_that_of_the_labelled_pixels(scaling):
    samples = made_samples(chips=9)
    model, _history = fit(samples, replace(CONFIG, scaling=scaling))
    chips = samples.reflectance[:, :, :4, :4], samples.valid[:, :4, :4]
    x = model.adapted.normalise(*chips)
    assert abs(float(x.mean())) < 0.3
    assert 0.7 < float(x.std()) < 1.4


def test_answers_do_not_depend_on_how_chips_are_dealt():
    samples = made_samples(chips=9)
    model, _history = fit(samples, replace(CONFIG, spectral_path=False))
    together = predict_samples(model, samples)
    for number in (0, 4):
        member = samples.chip == number
        torch.testing.assert_close(predict_samples(model, samples.subset(member)), together[member])
    with torch.no_grad():
        middle = model(samples.reflectance[:1, :, 1:5, 1:5], samples.valid[:1, 1:5, 1:5])
    first = samples.chip == 0
    expected = middle[0][:, samples.row[first] - 1, samples.col[first] - 1].T
    torch.testing.assert_close(together[first], expected)


def test_predicting_leaves_the_training_mode_as_it_was():
    samples = made_samples(chips=2)
    model, _history = fit(samples)
    model.train()
    predict_samples(model, samples)
    assert model.training


def test_cancel_is_heard_between_batches():
    with pytest.raises(CancelledError):
        fit(feedback=Recorder(cancel_after=13))


def test_a_training_that_diverges_says_so():
    settings = replace(QUICK, learning_rate=1e30)
    with pytest.raises(TrainingError, match="has diverged"):
        fit(config=replace(CONFIG, spectral_path=False), settings=settings)


@pytest.mark.parametrize("changes", [{"num_classes": 4}, {"in_channels": 5}])
def test_samples_of_another_size_are_refused(changes):
    with pytest.raises(ValueError, match="The samples have 6 bands and 3 classes"):
        fit(config=replace(CONFIG, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "one epoch"),
        ({"learning_rate": 0.0}, "learning rate"),
        ({"validation": 1.0}, "held-out places is below 1"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(QUICK, **changes)


def train(samples=None, settings=QUICK, config=CONFIG):
    return train_segmenter(
        made_samples(chips=12) if samples is None else samples, config, foundation(), settings,
        fabric=FABRIC, feedback=SilentFeedback(),
    )  # fmt: skip


def test_a_training_is_scored_on_places_that_it_has_not_seen():
    samples = made_samples(chips=12)
    trained = train(samples)
    held_out = torch.from_numpy(trained.held_out)
    assert not set(samples.place[held_out].tolist()) & set(samples.place[~held_out].tolist())
    tested = int((held_out & samples.pure).sum())
    assert trained.scores.confusion.sum() == tested
    assert len(trained.baselines) == 3
    assert len(trained.history.fold) == int((~held_out).sum())
    assert trained.calibration.after.count.sum() == tested
    assert 0.05 <= trained.calibration.temperature <= 20
    outside = samples.subset(held_out)
    familiar = trained.support(
        outside.spectra.T[None, :, :, None], torch.ones(1, len(outside.chip), 1).bool()
    )
    assert float((familiar >= 0.5).float().mean()) >= 0.95
    assert trained.counts["spectral path"] == 3 * 2 * BANDS + 3


def test_what_is_held_out_has_no_influence_on_the_model():
    samples = made_samples(chips=12)
    first = train(samples)
    held_out = torch.from_numpy(first.held_out)
    changed = made_samples(chips=12)
    # The classes stay, so that the same places are held out; what they look like does not.
    changed.reflectance[torch.unique(changed.chip[held_out])] *= 0.1
    second = train(changed)
    assert (first.held_out == second.held_out).all()
    states = first.model.own_state(), second.model.own_state()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_nothing_held_out_gives_no_scores():
    trained = train(settings=replace(QUICK, validation=0.0))
    assert trained.scores is None
    assert trained.calibration.ece is None
    assert not trained.held_out.any()


def test_one_place_cannot_be_tested():
    samples = made_samples(chips=4)
    samples.place.fill_(1)
    with pytest.raises(LabelError, match="one place"):
        train(samples)


def test_memory_grows_with_chips_and_with_what_is_trained():
    small = estimate_memory(CONFIG, foundation())
    large = estimate_memory(replace(CONFIG, chip_px=16), foundation())
    full = estimate_memory(replace(CONFIG, adaptation="full"), foundation())
    assert large.sample_bytes > 8 * small.sample_bytes
    assert full.fixed_bytes != small.fixed_bytes
    assert small.bytes_for(4) == small.fixed_bytes + 4 * small.sample_bytes

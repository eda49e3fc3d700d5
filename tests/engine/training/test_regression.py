import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from engine.errors import LabelError
from engine.feedback import SilentFeedback
from engine.models.regressor import RegressorConfig
from engine.training.context_fit import ContextSettings
from engine.training.heads_fit import HeadsSettings
from engine.training.model_fit import TrainingSettings, predict_samples
from engine.training.regression import (
    bfloat16_agreement,
    check_value_pixels,
    scaled_config,
    skewness,
    to_standard,
    train_on_values,
    value_groups,
)
from engine.training.spectral_fit import SpectralSettings
from engine.training.value_baselines import fit_value_baselines
from engine.training.value_metrics import score_values
from tests.engine.training.made_samples import BANDS, CHIP_PX, made_samples

CONFIG = RegressorConfig(
    BANDS, chip_px=CHIP_PX, halo_px=1, embed_dim=8, depth=1, num_heads=2, head_channels=4,
    heads=2, heads_hidden=8,
)  # fmt: skip
QUICK = TrainingSettings(
    folds=2,
    spectral=SpectralSettings(epochs=60, lr=0.02),
    heads=HeadsSettings(epochs=10),
    context=ContextSettings(epochs=2, check_epochs=1),
)


def value_samples(chips=12, unit=1.0):
    """The value is the share of the first of two classes, in some unit; spectra tell it."""
    samples = made_samples(chips=chips, classes=2)
    return samples.__class__(
        **{name: getattr(samples, name) for name in samples.__dataclass_fields__}
        | {"target": samples.target[:, :1] * unit, "pure": torch.ones_like(samples.pure)}
    )


def train(samples, settings=QUICK):
    return train_on_values(
        samples, CONFIG, settings, start=None, fabric=Fabric(accelerator="cpu", devices=1),
        feedback=SilentFeedback(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained():
    samples = value_samples(unit=40.0)
    return train(samples), samples


def test_it_learns_a_quantity_in_its_unit(trained):
    found, _samples = trained
    assert found.scores.r2 > 0.9
    assert found.scores.rmse < 5.0
    assert found.value_range == (0.0, 40.0)


def test_the_scores_are_those_of_the_places_held_out(trained):
    found, samples = trained
    test = samples.subset(torch.from_numpy(found.held_out))
    estimate = predict_samples(found.model, test)[:, 0]
    assert found.scores == score_values(test.value, estimate)
    outside = set(samples.place[torch.from_numpy(found.held_out)].tolist())
    inside = set(samples.place[torch.from_numpy(~found.held_out)].tolist())
    assert outside and not outside & inside


def test_the_classical_regressions_stand_beside_it_in_the_same_unit(trained):
    found, _samples = trained
    names = {"Ridge regression", "Partial least squares", "Random forest"}
    assert set(found.baselines) == names
    assert all(0 < found.baselines[name].rmse < 20 for name in names)


def test_rounding_to_bfloat16_is_compared_by_the_values_spread(trained):
    found, samples = trained
    assert 0.0 <= bfloat16_agreement(found.model, samples) <= 1.0


def test_the_same_seed_gives_the_same_weights():
    first, again = (train(value_samples(chips=6)).model.state_dict() for _run in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_nothing_held_out_gives_no_scores():
    found = train(value_samples(chips=6), TrainingSettings(**vars(QUICK) | {"validation": 0.0}))
    assert found.scores is None and found.baselines == {} and len(found.estimated) == 0


def test_all_values_in_one_place_cannot_be_tested():
    samples = value_samples(chips=2)
    samples.place.fill_(4)
    with pytest.raises(LabelError, match="All labels lie in one place"):
        train(samples)


def test_a_constant_is_refused():
    samples = value_samples(chips=4)
    samples.target.fill_(2.5)
    with pytest.raises(LabelError, match=r"64 pixels with a value have the same, 2\.5"):
        check_value_pixels(samples)


def test_too_few_pixels_are_refused_and_few_are_warned_about():
    samples = value_samples(chips=4)
    nine, twenty = (samples.subset(torch.arange(len(samples.chip)) < n) for n in (9, 20))
    with pytest.raises(LabelError, match="Only 9 pixels"):
        check_value_pixels(nine)
    assert check_value_pixels(twenty) == ("Only 20 pixels have a value: the scores say little.",)
    assert check_value_pixels(samples) == ()


def test_a_strong_skew_without_negative_values_is_learned_as_a_logarithm():
    drawn = np.random.default_rng(0)
    carbon = torch.from_numpy(drawn.lognormal(2.5, 0.8, 500).astype(np.float32))
    config = scaled_config(CONFIG, carbon)
    assert config.log1p
    assert config.value_mean == pytest.approx(float(carbon.double().log1p().mean()), abs=1e-6)
    for values in (carbon - carbon.min() - 1, torch.from_numpy(drawn.normal(50, 9, 500))):
        assert not scaled_config(CONFIG, values.float()).log1p


def test_a_skew_that_the_logarithm_does_not_cure_is_left_alone():
    shares = torch.cat([torch.zeros(400), torch.linspace(0, 1, 100)])
    assert skewness(shares.double()) > 1
    assert not scaled_config(CONFIG, shares).log1p


@pytest.mark.parametrize("log1p", [False, True])
def test_standard_units_and_back_are_where_they_began(log1p):
    config = RegressorConfig(BANDS, value_mean=1.5, value_std=0.7, log1p=log1p)
    values = torch.tensor([0.0, 0.3, 12.0, 400.0])
    torch.testing.assert_close(config.build().to_unit(to_standard(values, config)), values)


def test_groups_of_values_are_equally_large_steps_up():
    groups = value_groups(torch.arange(100.0))
    assert torch.bincount(groups).tolist() == [20] * 5
    assert (groups.diff() >= 0).all()


def test_scores_of_a_constant_have_no_r2():
    scores = score_values([2.0, 2.0], [1.0, 2.0])
    assert np.isnan(scores.r2)
    assert (scores.mae, scores.bias, scores.count) == (0.5, -0.5, 2)


def test_classical_regressions_of_one_fold_take_a_setting_in_the_middle():
    drawn = np.random.default_rng(0)
    spectra = drawn.normal(size=(30, 5)).astype(np.float32)
    found = dict(
        fit_value_baselines(
            spectra, spectra[:, 0], np.zeros(30, np.int64), spectra[:4], 0, SilentFeedback()
        )
    )
    assert all(len(answer) == 4 for answer in found.values())
    assert np.abs(found["Partial least squares"] - spectra[:4, 0]).max() < 0.2

"""The strong start: what its regressions learn, what they leave alone, and its state."""

import pytest
import torch

from engine.models.fusion.degradation import PointSpread
from engine.models.fusion.glphs import GLPHS
from engine.models.fusion.injection import Injection, InjectionConfig
from engine.models.fusion.injection_fit import fit_injection
from engine.models.fusion.method import ImagePair, upsample
from tests.engine.models.fusion.made_pairs import (
    RATIO,
    Known,
    degraded,
    error,
    known,
    physics,
)
from tests.engine.training.made_ground import ground, whole

SPREAD = PointSpread.gaussian(RATIO)
NOISE = 0.01


@pytest.fixture(scope="module")
def at():
    return known(24, 24, noise=1e-3)


@pytest.fixture(scope="module")
def injection(at):
    return fit_injection([at], spread=SPREAD)


def bent(at):
    """The same ground with bands that follow the fine ones on curves."""
    target = torch.cat([at.target, at.target**2 * 2, (at.target - 0.3).abs()], 1)
    hsi = SPREAD.degrade(target)
    return Known(
        ImagePair(hsi, at.pair.msi, at.pair.hsi_valid, at.pair.msi_valid), target, at.target_valid
    )


def test_places_that_it_has_not_seen_are_sharpened_better_than_by_glphs(at):
    half = 12 * RATIO
    left = Known(
        at.pair.crop(slice(None), slice(12)), at.target[..., :half], at.target_valid[..., :half]
    )
    own = fit_injection([left], spread=SPREAD)(at.pair)[..., half:]
    glphs = GLPHS.fit([at.pair], physics())(at.pair)[..., half:]
    assert error(own, at.target[..., half:]) < 0.9 * error(glphs, at.target[..., half:])


def test_bands_on_curves_are_followed(at):
    bands = bent(at)
    own = fit_injection([bands], spread=SPREAD)
    glphs = GLPHS.fit([bands.pair], physics())
    assert error(own(bands.pair), bands.target) < 0.8 * error(glphs(bands.pair), bands.target)


def test_a_blurred_and_shifted_fine_image_is_met_by_its_neighbours(at):
    shifted = at.pair.msi.roll(1, -1)
    pair = ImagePair(at.pair.hsi, shifted, at.pair.hsi_valid, at.pair.msi_valid)
    own = fit_injection([Known(pair, at.target, at.target_valid)], spread=SPREAD)
    glphs = GLPHS.fit([pair], physics())
    assert error(own(pair), at.target, rim=3) < 0.7 * error(glphs(pair), at.target, rim=3)


def test_noise_that_the_coarse_image_has_is_taken_away():
    noisy, clean = known(24, 24, noise=NOISE), known(24, 24)
    own = fit_injection([noisy], spread=SPREAD)
    without = fit_injection([clean], spread=SPREAD)
    assert error(own(noisy.pair), noisy.target) < 0.95 * error(without(noisy.pair), noisy.target)


def test_noise_that_degrading_takes_away_is_expected_at_full_scale():
    full = known(36, 36, noise=NOISE)
    lower = degraded(full)
    knows = fit_injection([lower], spread=SPREAD, inputs=[full.pair])
    does_not = fit_injection([lower], spread=SPREAD)
    assert error(knows(full.pair), full.target) < 0.9 * error(does_not(full.pair), full.target)


def test_pairs_as_noisy_as_those_of_use_are_fitted_as_they_are(at, injection):
    again = fit_injection([at], spread=SPREAD, inputs=[at.pair])
    torch.testing.assert_close(again.state_dict(), injection.state_dict())


def test_what_the_coarse_image_has_is_given_back(injection, at):
    missing = at.pair.hsi - SPREAD.degrade(injection(at.pair))
    assert (
        missing.abs().mean()
        < 0.3 * (at.pair.hsi - SPREAD.degrade(upsample(at.pair.hsi, RATIO))).abs().mean()
    )


def test_a_fine_image_that_says_nothing_gets_little_weight():
    at = known(24, 24)
    other = known(24, 24, seed=8)
    pair = ImagePair(at.pair.hsi, other.pair.msi, at.pair.hsi_valid, at.pair.msi_valid)
    own = fit_injection([Known(pair, at.target, at.target_valid)], spread=SPREAD)
    bicubic = upsample(pair.hsi, RATIO)
    assert error(own(pair), at.target) < 1.02 * error(bicubic, at.target)


def test_a_target_that_is_not_valid_is_not_learned(at):
    target_valid = at.target_valid.clone()
    target_valid[:, :30] = False
    wrong = at.target.clone()
    wrong[..., :30, :] = 5.0
    own = fit_injection([Known(at.pair, wrong, target_valid)], spread=SPREAD)
    assert error(own(at.pair), at.target) < 0.02


def test_several_triplets_are_fitted_together(at):
    halves = [
        Known(
            at.pair.crop(slice(None), columns),
            at.target[..., fine],
            at.target_valid[..., fine],
        )
        for columns, fine in [
            (slice(12), slice(12 * RATIO)),
            (slice(12, None), slice(12 * RATIO, None)),
        ]
    ]
    own = fit_injection(halves, spread=SPREAD)
    assert error(own(at.pair), at.target) < 0.015


@pytest.mark.parametrize("fine_bands", [1, 4, 9])
def test_the_state_makes_the_same_method_again(fine_bands):
    image = ground(36, 36)
    msi = torch.stack([image[:, 2 * k : 2 * k + 3].mean(1) for k in range(fine_bands)], 1)
    hsi = SPREAD.degrade(image)
    pair = ImagePair(hsi, msi, whole(hsi), whole(msi))
    own = fit_injection([Known(pair, image, whole(image))], spread=SPREAD)
    again = Injection(own.config)
    again.load_state_dict(own.state_dict())
    assert again(pair).equal(own(pair))


def test_a_config_counts_its_features():
    config = InjectionConfig(hsi_channels=200, msi_channels=9, ratio=4, spread_size_px=10)
    # Curves are fitted along six axes, whatever the bands; weights change along four.
    assert config.groups() == {
        "details": 9,
        "around": 72,
        "products": 21,
        "curves": 12,
        "spectrum": 36,
    }
    assert config.features == 150


def test_all_state_is_float32_and_on_no_graph(injection):
    for value in injection.state_dict().values():
        assert value.dtype == torch.float32
        assert not value.requires_grad


def test_values_beyond_the_fit_do_not_run_away(injection, at):
    bright = at.pair.msi.clone()
    bright[..., 30:33, 30:33] = 3.0
    pair = ImagePair(at.pair.hsi, bright, at.pair.hsi_valid, at.pair.msi_valid)
    # Details are linear, so tenfold values may give tenfold answers; a cube gave a thousand.
    assert injection(pair).abs().max() < 10


def test_without_a_spread_one_as_wide_as_a_pixel_is_taken(at, injection):
    torch.testing.assert_close(fit_injection([at]).spread.kernel, injection.spread.kernel)

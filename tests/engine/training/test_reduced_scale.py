from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.feedback import SilentFeedback
from engine.models.fusion.degradation import PointSpread
from engine.models.fusion.method import ImagePair, upsample
from engine.training.pair_physics import PairPhysics
from engine.training.reduced_scale import score_reduced
from tests.engine.training.made_ground import ground, response, whole

RATIO = 3


@pytest.fixture
def physics():
    made = response()
    return PairPhysics(
        ratio=RATIO,
        spread=PointSpread.gaussian(RATIO),
        response=made,
        response_error=np.zeros(len(made.weights)),
        inside=np.ones(len(made.weights), bool),
        spread_agreement=1.0,
        spread_estimated=True,
    )


@pytest.fixture
def pair(physics):
    fine = ground(24 * RATIO, 30 * RATIO)
    hsi, msi = physics.spread.degrade(fine), physics.response(fine)
    return ImagePair(hsi, msi, whole(hsi), whole(msi))


def test_what_is_compared_is_the_hyperspectral_image(pair, physics):
    seen = []

    def fit(low):
        seen.extend(low)
        return lambda _pair: pair.hsi

    scores = score_reduced([pair], physics, {"truth": fit}, SilentFeedback())
    assert scores["truth"].rmse == 0
    assert scores["truth"].pixels == 24 * 30
    torch.testing.assert_close(seen[0].hsi, physics.spread.degrade(pair.hsi))
    torch.testing.assert_close(seen[0].msi, physics.spread.degrade(pair.msi))


def test_methods_are_scored_on_the_same_pixels(pair, physics):
    pair.msi_valid[:, 9:18, 9:18] = False
    methods = {
        "one": lambda low: lambda found: upsample(found.hsi, RATIO),
        "other": lambda low: lambda found: 0.9 * upsample(found.hsi, RATIO),
    }
    scores = score_reduced([pair], physics, methods, SilentFeedback())
    assert scores["one"].pixels == scores["other"].pixels < 24 * 30
    assert scores["one"].rmse < scores["other"].rmse


def test_only_the_bands_that_were_asked_for_are_compared(pair, physics):
    methods = {"one": lambda low: lambda found: upsample(found.hsi, RATIO)}
    scores = score_reduced([pair], physics, methods, SilentFeedback(), band_index=[0, 2])
    assert len(scores["one"].psnr_band) == 2


def test_no_more_pixels_are_used_than_allowed(pair, physics):
    methods = {"one": lambda low: lambda found: upsample(found.hsi, RATIO)}
    scores = score_reduced([pair, pair], physics, methods, SilentFeedback(), max_px=400)
    assert scores["one"].pixels <= 400


def test_a_pair_that_is_too_small_has_no_scores(pair, physics):
    small = pair.crop(slice(0, 10), slice(0, 10))
    assert score_reduced([small], physics, {"one": lambda low: None}, SilentFeedback()) == {}

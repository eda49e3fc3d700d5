"""What the report on a fusion shows: who is best, what the gate means, what curves there are."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine.models.fusion.bicubic import Bicubic
from engine.models.fusion.degradation import PointSpread, SpectralResponse
from engine.models.fusion.method import ImagePair
from engine.raster.spectra import BandTable
from engine.training.fusion_gate import GateChoice
from engine.training.fusion_metrics import score_fusion
from engine.training.fusion_report import (
    bands_figure,
    best_classical,
    consistency_rows,
    curves_figure,
    gate_text,
    method_rows,
    response_rows,
)
from engine.training.pair_physics import PairPhysics

RATIO, BANDS = 2, 5


def scores(error):
    """Of an image that is wrong by so much everywhere."""
    truth = np.random.default_rng(0).uniform(0.1, 0.5, (BANDS, 16, 16))
    return score_fusion(truth + error, truth, None, RATIO)


SCORES = {
    "student": scores(0.01),
    "bicubic": scores(0.05),
    "gsa": scores(0.03),
    "teacher": scores(0.005),
}


def test_methods_are_ordered_by_their_signal_to_noise_ratio():
    rows = method_rows(SCORES)
    assert [row.title for row in rows] == [
        "CSAKD, its teacher",
        "CSAKD, the student (this model)",
        "GSA",
        "bicubic, without the multispectral image",
    ]
    assert [row.is_this for row in rows] == [False, True, False, False]


def test_neither_teacher_nor_start_is_a_classical_method():
    assert best_classical(SCORES | {"start": scores(0.001)}) == "gsa"


def test_without_classical_scores_there_is_no_best_one():
    assert best_classical({"student": SCORES["student"]}) is None


def test_the_best_classical_method_is_drawn_and_the_others_are_not():
    nm = np.linspace(450.0, 900.0, BANDS)
    bands = BandTable(tuple("abcde"), nm, np.full(BANDS, 10.0), np.ones(BANDS, bool))
    labels = [line.get_label() for line in bands_figure(SCORES, bands).axes[0].lines]
    assert sorted(labels) == ["CSAKD, its teacher", "CSAKD, the student (this model)", "GSA"]


def trained(**changes):
    parts = {"student": SimpleNamespace(start="a regression"), "gates": {}, "scores": SCORES}
    return SimpleNamespace(**parts | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"student": SimpleNamespace(start=None)}, "answer alone"),
        ({}, "too little ground to ask"),
        ({"gates": {"student": GateChoice(0.0, 0.0, 1.0)}}, "the model is the regression"),
        ({"gates": {"student": GateChoice(0.5, 0.25, 0.9)}}, "weight of 0.50.*0.25 dB.*90%"),
    ],
)
def test_the_gate_is_told_in_words(changes, words):
    assert re.search(words, gate_text(trained(**changes)))


def test_only_terms_that_were_learned_from_have_a_curve():
    history = [
        {"epoch": 1.0, "student": 0.5, "teacher": 0.4, "student_response": 0.1},
        {"epoch": 2.0, "student": 0.4, "teacher": 0.3, "student_response": 0.05},
    ]
    shown = [axes for axes in curves_figure(history).axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == [
        "loss, weighted sum",
        "distance to the teacher's image",
    ]
    assert [len(axes.lines) for axes in shown] == [2, 1]
    np.testing.assert_array_equal(shown[1].lines[0].get_ydata(), [0.1, 0.05])


def test_a_loss_below_zero_is_in_sight():
    """The published energies may make one."""
    axes = curves_figure([{"epoch": 1.0, "student": -0.5, "teacher": 0.1}]).axes[0]
    assert axes.get_ylim()[0] <= -0.5


@pytest.fixture
def physics():
    weights = torch.zeros(2, BANDS)
    weights[0, 1], weights[1, 3] = 1.0, 1.0
    return PairPhysics(
        ratio=RATIO,
        spread=PointSpread.block(RATIO),
        response=SpectralResponse(weights, torch.tensor([0.01, 0.0])),
        response_error=np.array([0.02, 0.5]),
        inside=np.ones(2, bool),
        spread_agreement=0.9,
        spread_estimated=True,
    )


def test_a_fine_band_is_told_with_offset_and_error(physics):
    table = BandTable(
        ("green", "red"), np.array([560.0, 660.0]), np.full(2, 30.0), np.ones(2, bool)
    )
    first, second = response_rows(physics, table)
    assert (first.name, first.wavelength_nm, first.error) == ("green", 560.0, 0.02)
    assert first.offset == pytest.approx(0.01)
    assert second.error == 0.5


class Exact(Bicubic):
    """Repeats coarse pixels, so that their means are given back exactly."""

    def forward(self, pair):
        return pair.hsi.repeat_interleave(RATIO, 2).repeat_interleave(RATIO, 3)


def test_consistency_is_0_for_what_gives_the_coarse_image_back(physics):
    generator = torch.Generator().manual_seed(0)
    hsi = torch.rand(1, BANDS, 8, 6, generator=generator) + 0.1
    part = ImagePair(
        hsi,
        torch.rand(1, 2, 16, 12, generator=generator) + 0.1,
        torch.ones(1, 8, 6, dtype=torch.bool),
        torch.ones(1, 16, 12, dtype=torch.bool),
    )
    method = Exact(torch.zeros(BANDS), RATIO)
    made = trained(student=method, teacher=method)
    this, _teacher, best, bicubic = consistency_rows(made, [[part]], [part], physics)
    assert this.is_this
    assert this.hsi == pytest.approx(0.0, abs=1e-6)
    assert this.msi > 0.1
    assert (best.title, bicubic.hsi > this.hsi) == ("GSA", True)

"""The whole training of a fusion, on a made pair."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from lightning_fabric import Fabric

from engine.errors import CancelledError, TrainingError
from engine.feedback import SilentFeedback
from engine.training.fusion import score_on, train_fuser, with_lost_noise
from engine.training.fusion_data import deal_places, make_triplets, to_fine
from engine.training.fusion_loss import FusionLossSettings
from engine.training.fusion_settings import LOSSES, FusionSettings
from engine.training.pair_physics import estimate_physics
from engine.training.run_checkpoint import RunCheckpoint
from tests.engine.models.fusion.made_pairs import known
from tests.engine.training.made_triplets import TINY, settings, triplet


class Stopping(SilentFeedback):
    """Cancels after so many questions."""

    def __init__(self, after):
        self.left = after

    def raise_if_cancelled(self):
        self.left -= 1
        if self.left < 0:
            raise CancelledError


def train(item=None, *, feedback=None, **options):
    given = {"physics", "full_pairs", "checkpoint", "resume"}
    passed = {name: options.pop(name) for name in given & set(options)}
    return train_fuser(
        [item or triplet()],
        settings(**options),
        fabric=Fabric(accelerator="cpu", devices=1),
        feedback=feedback or SilentFeedback(),
        **passed,
    )


@pytest.fixture(scope="module")
def trained():
    item = triplet()
    return train(item, physics=estimate_physics([item.pair]))


def test_everything_is_scored_on_the_same_held_out_ground(trained):
    assert set(trained.scores) == {
        "student", "teacher", "start", "bicubic", "gsa", "glphs", "cnmf",
    }  # fmt: skip
    assert len({scores.pixels for scores in trained.scores.values()}) == 1
    assert trained.held_out.startswith("5 of 20 places")


def test_the_start_beats_the_classical_methods_and_the_student_is_not_far_below(trained):
    scores = trained.scores
    classical = max(scores[name].psnr_db for name in ("bicubic", "gsa", "glphs", "cnmf"))
    assert scores["start"].psnr_db > classical
    assert scores["student"].psnr_db > scores["start"].psnr_db - 0.3


def test_networks_come_back_for_use(trained):
    for model in (trained.student, trained.teacher):
        assert not model.training and model.low.device.type == "cpu"
        assert model.start is not None
    assert trained.parameters["student"] == sum(
        parameter.numel() for parameter in trained.student.network.parameters()
    )
    assert 0.0 <= trained.gates["student"].gate <= 1.0
    assert trained.gates["student"].gate == pytest.approx(float(trained.student.gate.mean()))


def test_the_history_tells_each_term_of_both_by_epoch(trained):
    row = trained.history[-1]
    assert row["epoch"] == pytest.approx(2.0)
    for name in (
        "student",
        "teacher",
        "student_smooth_l1",
        "student_response",
        "teacher_smooth_l1",
    ):
        assert math.isfinite(row[name])


def test_training_lowers_the_loss():
    history = train(preset=replace(TINY, epochs=12), start="bicubic", inner=0.0).history
    assert history[-1]["student_smooth_l1"] < 0.9 * history[0]["student_smooth_l1"]
    assert history[-1]["teacher_smooth_l1"] < 0.9 * history[0]["teacher_smooth_l1"]


def test_without_a_start_there_is_no_gate_and_nothing_to_compare_with():
    trained = train(start="none")
    assert trained.gates == {}
    assert set(trained.scores) == {"student", "teacher"}
    assert torch.equal(trained.student.gate, torch.ones(4))


def test_nothing_held_out_is_nothing_scored():
    trained = train(validation=0.0, start="bicubic")
    assert trained.scores == {}
    assert trained.held_out == "Nothing was held out."


def test_what_is_held_out_teaches_nothing():
    item = triplet()
    one = train(item, start="bicubic")
    # Whatever stands in the target of held-out places, the same weights come out.
    held = deal_places([item], validation=0.25, inner=0.2, seed=0).held_out[0]
    changed = replace(item, target=torch.where(to_fine(held, 3), 0.9, item.target))
    other = train(changed, start="bicubic")
    same(one.student, other.student)
    assert other.scores["student"].psnr_db != one.scores["student"].psnr_db


def same(one, other):
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("after", [2, 11])
def test_a_run_goes_on_as_if_it_had_never_stopped(after, tmp_path):
    options = {"start": "bicubic", "preset": replace(TINY, epochs=4)}
    whole = train(**options)
    assert whole.steps == 12  # eight of the first stage's, four of the second's
    checkpoint = RunCheckpoint(tmp_path / "run", {})
    with pytest.raises(CancelledError):
        train(feedback=Stopping(after), checkpoint=checkpoint, **options)
    state = checkpoint.load()
    assert state is not None and state.step == after
    resumed = train(checkpoint=checkpoint, resume=state, **options)
    same(whole.student, resumed.student)
    same(whole.teacher, resumed.teacher)
    assert resumed.gates == whole.gates


def test_the_state_of_another_model_is_refused(tmp_path):
    checkpoint = RunCheckpoint(tmp_path / "run", {})
    with pytest.raises(CancelledError):
        train(feedback=Stopping(1), checkpoint=checkpoint, start="bicubic")
    with pytest.raises(TrainingError, match="of another model"):
        train(start="bicubic", preset=replace(TINY, width=12), resume=checkpoint.load())


def test_a_loss_that_is_no_number_ends_the_training():
    item = triplet()
    item.pair.msi.fill_(float("inf"))
    with pytest.raises(TrainingError, match="had a loss that is no number"):
        train(item, start="none")


def test_distillation_changes_the_student_alone():
    one, other = train(start="bicubic"), train(start="bicubic", distillation="none")
    same(one.teacher.network, other.teacher.network)
    with pytest.raises(AssertionError):
        same(one.student.network, other.student.network)
    assert "student_feature" not in other.history[-1]


def test_at_full_resolution_both_images_have_to_come_back():
    at = known(24, 26)
    physics = estimate_physics([at.pair])
    options = {"physics": physics, "full_pairs": [at.pair], "start": "bicubic", "validation": 0.0}
    (item,) = make_triplets([at.pair], physics)
    trained = train(item, consistency_weight=1.0, **options)
    assert trained.history[-1]["student_consistency"] > 0
    assert trained.history[-1]["student"] > trained.history[-1]["student_smooth_l1"]


def test_degraded_images_get_the_noise_of_the_whole_ones_back():
    at = known(60, 60, noise=0.02)
    physics = estimate_physics([at.pair])
    (item,) = make_triplets([at.pair], physics)
    (noisy,) = with_lost_noise([item], [at.pair], physics, 0)
    added = noisy.pair.hsi - item.pair.hsi
    assert float(added.std()) == pytest.approx(0.02, rel=0.35)
    assert torch.equal(noisy.target, item.target)


def test_the_published_preset_is_trained_as_published():
    asked = FusionSettings.of("paper", seed=3)
    assert (asked.start, asked.noise_snr_db, asked.losses) == ("none", 35.0, FusionLossSettings())
    assert FusionSettings.of("laptop").losses == LOSSES
    assert FusionSettings.of("paper", start="injection").start == "injection"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"preset": "huge"}, "no preset 'huge'"),
        ({"start": "magic"}, "start is one of none, bicubic, injection"),
        ({"validation": 1.0}, "validation is a share below 1"),
        ({"fusion": "best"}, "no fusion 'best'"),
        ({"weight_decay": -1.0}, "weight_decay is not below 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        settings(**changes)


def test_a_score_without_ground_is_refused(trained):
    item = triplet()
    with pytest.raises(ValueError, match="no pixel to score"):
        score_on(trained.student, [item], [torch.zeros(16, 18, dtype=torch.bool)])

"""The training loop: schedule, log, cancel, and a resume that changes nothing."""

import math
from dataclasses import replace

import pytest
import torch

from engine.errors import CancelledError, TrainingError
from engine.training.masked_fit import FitSettings, _Fit, _optimiser, fit, mae_learning_rate
from engine.training.run_checkpoint import RunCheckpoint
from tests.engine.training.made_tiles import LevelTask, StopAfter, cpu, made_tiles

SETTINGS = FitSettings(epochs=6, batch_tiles=4, learning_rate=0.05)


@pytest.fixture
def tiles(tmp_path):
    return made_tiles(tmp_path)


@pytest.fixture
def checkpoint(tmp_path):
    return RunCheckpoint(tmp_path / "run.safetensors", {"seed": 0})


def train(tiles, settings=SETTINGS, feedback=None, task=None, **options):
    task = task or LevelTask(tiles)
    history = fit(task, tiles, settings, fabric=cpu(), feedback=feedback or StopAfter(), **options)
    return task.model.state_dict(), history


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_loss_falls_and_every_term_is_logged(tiles):
    _state, history = train(tiles, replace(SETTINGS, epochs=30))
    epochs, mse = history.curve("mse")
    assert epochs == list(range(1, 31))
    assert mse[-1] < 0.3 * mse[0]
    assert history.terms == ["loss", "mse", "size"]
    assert history.curve("held_out_mse")[1][-1] < history.curve("held_out_mse")[1][0]


def test_the_rate_warms_up_and_ends_near_zero(tiles):
    settings = replace(SETTINGS, epochs=40, warm_up=0.1)
    loop = _Fit(LevelTask(tiles), tiles, settings, cpu(), StopAfter(), None)
    rates = [loop._rate(step) for step in range(loop._total)]
    top = max(rates)
    assert rates.index(top) == pytest.approx(0.1 * loop._total, abs=1)
    assert top <= settings.learning_rate
    assert rates[: rates.index(top)] == sorted(rates[: rates.index(top)])
    assert rates[rates.index(top) :] == sorted(rates[rates.index(top) :], reverse=True)
    assert rates[-1] < 0.01 * top


def test_the_rate_of_the_recipe_grows_with_the_batch():
    assert mae_learning_rate(256) == pytest.approx(1.5e-4)
    assert mae_learning_rate(64) == pytest.approx(1.5e-4 / 4)


def test_biases_norms_and_tokens_do_not_decay():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    model.cls_token = torch.nn.Parameter(torch.zeros(1, 1, 2))
    decayed, others = _optimiser(model, SETTINGS).param_groups
    assert [parameter.shape for parameter in decayed["params"]] == [(2, 3)]
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    assert decayed["betas"] == (0.9, 0.95)


def test_a_seed_repeats_a_training(tiles):
    first, again, other = (train(tiles, replace(SETTINGS, seed=seed))[0] for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)


def test_a_cancelled_run_goes_on_to_the_same_weights(tiles, checkpoint):
    whole, whole_history = train(tiles)
    per_epoch = tiles.steps_per_epoch(SETTINGS.batch_tiles)
    with pytest.raises(CancelledError):
        train(tiles, feedback=StopAfter(2 * per_epoch + 1), checkpoint=checkpoint)
    found = checkpoint.load()
    assert found.step == 2 * per_epoch + 1  # in the middle of an epoch
    resumed, history = train(tiles, task=LevelTask(tiles, seed=9), resume=found)
    assert same(whole, resumed)
    assert history.rows == whole_history.rows


def test_the_first_epoch_and_the_last_step_are_kept(tiles, checkpoint, monkeypatch):
    steps = []
    monkeypatch.setattr(checkpoint, "save", lambda state: steps.append(state.step))
    train(tiles, checkpoint=checkpoint)
    per_epoch = tiles.steps_per_epoch(SETTINGS.batch_tiles)
    assert steps == [per_epoch, 6 * per_epoch]


def test_the_state_is_kept_when_it_is_time_to(tiles, checkpoint, monkeypatch):
    monkeypatch.setattr("engine.training.masked_fit.CHECKPOINT_MIN_S", 0.0)
    monkeypatch.setattr("engine.training.masked_fit.CHECKPOINT_PATIENCE", 0)
    steps = []
    monkeypatch.setattr(checkpoint, "save", lambda state: steps.append(state.step))
    train(tiles, checkpoint=checkpoint)
    assert steps == list(range(1, 6 * tiles.steps_per_epoch(4) + 1))


def test_a_run_that_is_done_is_not_done_again(tiles, checkpoint):
    whole, history = train(tiles, checkpoint=checkpoint)
    again, history_again = train(tiles, task=LevelTask(tiles, seed=9), resume=checkpoint.load())
    assert same(whole, again)
    assert history.rows == history_again.rows


def test_a_training_that_diverges_says_so(tiles):
    class Diverging(LevelTask):
        def losses(self, model, batch, generator):
            terms = super().losses(model, batch, generator)
            return terms | {"loss": terms["loss"] * math.nan}

    with pytest.raises(TrainingError, match="The loss is nan in epoch 1: the training has div"):
        train(tiles, task=Diverging(tiles))


def test_progress_names_epoch_and_loss(tiles):
    feedback = StopAfter()
    train(tiles, feedback=feedback)
    assert feedback.messages[-1][0] == 1.0
    assert feedback.messages[-1][1].startswith("Epoch 6 of 6, loss 0.")


def test_no_reader_is_left_after_a_cancel(tiles):
    import threading

    with pytest.raises(CancelledError):
        train(tiles, feedback=StopAfter(2))
    assert not [t for t in threading.enumerate() if t.name == "tile reader"]

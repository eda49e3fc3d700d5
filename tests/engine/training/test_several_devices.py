"""Training in several processes: on two CPUs, since test machines have no two GPUs."""

import pytest
import torch

from engine.errors import CancelledError, TrainingError
from engine.training.masked_fit import FitSettings, fit
from engine.training.run_checkpoint import RunCheckpoint
from engine.training.several_devices import fit_on_devices
from tests.engine.training.made_tiles import LevelTask, StopAfter, cpu, made_tiles

pytestmark = pytest.mark.slow  # two processes import torch

SETTINGS = FitSettings(epochs=4, batch_tiles=4, learning_rate=0.05)


class AttachedTask(LevelTask):
    """Draws nothing, so that halves of a batch give the gradient of the whole."""

    def attach(self, fabric):
        pass

    def losses(self, model, batch, generator):
        pixels = (batch.reflectance - self._mean[:, None, None]).flatten(2).mean(dim=2)
        mse = (model(pixels) - pixels).square().mean()
        return {"loss": mse, "mse": mse}


class DivergingTask(AttachedTask):
    def losses(self, model, batch, generator):
        terms = super().losses(model, batch, generator)
        return terms | {"loss": terms["loss"] * float("nan")}


@pytest.fixture
def tiles(tmp_path):
    return made_tiles(tmp_path)


@pytest.fixture
def train(tiles, tmp_path):
    def run(task, feedback=None, settings=SETTINGS):
        checkpoint = RunCheckpoint(tmp_path / "run.safetensors", {})
        fit_on_devices(
            task, tiles, settings, accelerator="cpu", devices=2, precision="32-true",
            feedback=feedback or StopAfter(), checkpoint=checkpoint, resume=False,
        )  # fmt: skip
        return checkpoint.load()

    return run


def test_two_processes_train_like_one(tiles, train):
    feedback = StopAfter()
    state = train(AttachedTask(tiles), feedback)
    alone = AttachedTask(tiles)
    history = fit(alone, tiles, SETTINGS, fabric=cpu(), feedback=StopAfter())
    for name, weight in alone.model.state_dict().items():
        torch.testing.assert_close(state.tensors[f"model.{name}"], weight, rtol=1e-4, atol=1e-6)
    assert [row["mse"] for row in state.history] == pytest.approx(history.curve("mse")[1], rel=1e-4)
    assert feedback.messages[-1][0] == 1.0


def test_a_cancel_reaches_the_processes_and_keeps_the_state(tiles, train, tmp_path):
    with pytest.raises(CancelledError):
        train(AttachedTask(tiles), StopAfter(0), FitSettings(100_000, 4, 0.05))
    assert RunCheckpoint(tmp_path / "run.safetensors", {}).load() is not None


def test_an_error_of_a_process_arrives_as_it_was(tiles, train):
    with pytest.raises(TrainingError, match="The loss is nan in epoch 1"):
        train(DivergingTask(tiles))

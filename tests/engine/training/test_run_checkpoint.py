"""The checkpoint file: a round trip, the refusal of other runs, and no half files."""

import pytest
import torch
from safetensors.torch import save_file

from engine.errors import OutputError, TrainingError
from engine.training.run_checkpoint import (
    RunCheckpoint,
    RunState,
    model_tensors,
    optimiser_tensors,
    restore,
)

SETTINGS = {"epochs": 3, "taps": (1, 2), "teacher": None}


@pytest.fixture
def checkpoint(tmp_path):
    return RunCheckpoint.beside(str(tmp_path / "model.zip"), SETTINGS)


def trained(seed=0, steps=3):
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _step in range(steps):
        optimiser.zero_grad()
        model(torch.ones(1, 3)).square().sum().backward()
        optimiser.step()
    return model, optimiser


def state_of(model, optimiser):
    return RunState(7, {**model_tensors(model), **optimiser_tensors(optimiser)}, [{"loss": 0.5}])


def test_a_state_comes_back_as_it_was(checkpoint):
    checkpoint.save(state_of(*trained()))
    found = checkpoint.load()
    assert (found.step, found.history) == (7, [{"loss": 0.5}])
    model, optimiser = trained(seed=1, steps=0)
    restore(found, model, optimiser)
    again = state_of(model, optimiser).tensors
    assert again.keys() == found.tensors.keys()
    assert all(torch.equal(again[name], found.tensors[name]) for name in again)


def test_it_lies_beside_the_output_by_its_name(checkpoint, tmp_path):
    assert checkpoint.path == tmp_path / "model.zip.checkpoint.safetensors"


def test_without_a_file_there_is_no_state(checkpoint):
    assert checkpoint.load() is None


def test_other_settings_are_refused_by_name(checkpoint):
    checkpoint.save(state_of(*trained()))
    other = RunCheckpoint(checkpoint.path, SETTINGS | {"epochs": 4, "teacher": "nano"})
    expected = 'epochs was 3 and is 4; teacher was null and is "nano"'
    with pytest.raises(TrainingError, match=expected):
        other.load()


def test_a_state_of_another_model_is_refused(checkpoint):
    checkpoint.save(state_of(*trained()))
    other = torch.nn.Linear(4, 2)
    with pytest.raises(TrainingError, match="The checkpoint is of another model"):
        restore(checkpoint.load(), other, torch.optim.AdamW(other.parameters()))


def test_weights_that_are_not_trained_are_left_out_and_stay_as_they_are(checkpoint):
    model, optimiser = trained()
    model.bias.requires_grad_(False)
    checkpoint.save(state_of(model, optimiser))
    found = checkpoint.load()
    assert "model.weight" in found.tensors
    assert "model.bias" not in found.tensors
    other, other_optimiser = trained(seed=1, steps=0)
    other.bias.requires_grad_(False).fill_(7.0)
    restore(found, other, other_optimiser)
    assert torch.equal(other.weight, model.weight)
    assert other.bias.tolist() == [7.0, 7.0]


@pytest.mark.parametrize("kept_bytes", [0, 4, 100])
def test_a_damaged_file_is_refused(checkpoint, kept_bytes):
    checkpoint.save(state_of(*trained()))
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:kept_bytes])
    with pytest.raises(TrainingError, match=r"model\.zip\.checkpoint\.safetensors cannot be read"):
        checkpoint.load()


def test_a_file_of_another_program_is_refused(checkpoint):
    save_file({"x": torch.zeros(1)}, checkpoint.path)
    with pytest.raises(TrainingError, match="cannot be read"):
        checkpoint.load()


def test_a_save_that_fails_leaves_the_one_before(checkpoint, monkeypatch):
    checkpoint.save(state_of(*trained()))

    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.training.run_checkpoint.os.replace", fail)
    with pytest.raises(OutputError, match="No space left on device"):
        checkpoint.save(RunState(8, {"model.x": torch.ones(1)}))
    assert checkpoint.load().step == 7
    assert [file.name for file in checkpoint.path.parent.iterdir()] == [checkpoint.path.name]


def test_deleting_leaves_nothing(checkpoint, tmp_path):
    checkpoint.save(state_of(*trained()))
    checkpoint.delete()
    checkpoint.delete()
    assert list(tmp_path.iterdir()) == []

"""The checkpoint of a training: one safetensors file from which it goes on as if never stopped.

It holds the weights, the optimiser's moments and what was logged. Generators have no state to
keep: whatever is drawn in a step depends on the seed and the step's number alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from engine.errors import OutputError, TrainingError

FORMAT = "hyperkd-run-1"
SUFFIX = ".checkpoint.safetensors"
_KEY = "run"  # of the JSON text among the file's metadata


@dataclass(frozen=True, eq=False)
class RunState:
    """How far a training is.

    Args:
        step: steps that are done.
        tensors: weights, moments and sums by name, on the CPU when read.
        history: one row of numbers by name for each epoch that is done.
    """

    step: int
    tensors: dict[str, Tensor]
    history: list[dict[str, float]] = field(default_factory=list)


class RunCheckpoint:
    """Where a training keeps its state, and which training it is.

    Args:
        path: of the file.
        settings: all that decides the result, by the names that the user knows; plain values.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        # As JSON gives them back, so that a tuple equals the list that it becomes.
        self._settings: dict[str, Any] = json.loads(json.dumps(dict(settings)))

    @classmethod
    def beside(cls, output: str, settings: Mapping[str, Any]) -> RunCheckpoint:
        """The checkpoint of the run that writes ``output``: beside it, by its name."""
        return cls(Path(f"{output}{SUFFIX}"), settings)

    def save(self, state: RunState) -> None:
        """Write the state; the file of before is replaced when the new one is whole.

        Raises:
            OutputError: the file cannot be written.
        """
        about = {
            "format": FORMAT,
            "step": state.step,
            "settings": self._settings,
            "history": state.history,
        }
        tensors = {name: tensor.detach().contiguous() for name, tensor in state.tensors.items()}
        unfinished = self.path.with_name(f".{self.path.name}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, unfinished, metadata={_KEY: json.dumps(about)})
            # A computer that loses its power must not be left with a name and no content.
            with unfinished.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(unfinished, self.path)
        except (OSError, SafetensorError) as error:
            unfinished.unlink(missing_ok=True)
            raise OutputError(
                f"The checkpoint {self.path} cannot be written: {error}.",
                "Choose an output in a folder that is writable and has space.",
            ) from error

    def load(self) -> RunState | None:
        """Read the state; None when there is no file.

        Raises:
            TrainingError: the file is damaged, or of a run with other settings.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                about = json.loads((file.metadata() or {})[_KEY])
                if about["format"] != FORMAT:
                    raise KeyError(about["format"])
                self._check_settings(about["settings"])
                # Copies, because the file is replaced while they are used.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
                return RunState(int(about["step"]), tensors, list(about["history"]))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, TrainingError):
                raise
            raise TrainingError(
                f"The checkpoint {self.path} cannot be read: {error}.",
                "Delete it, or start without resuming.",
            ) from error

    def delete(self) -> None:
        """Remove the file; the run that it was for is done."""
        self.path.unlink(missing_ok=True)
        self.path.with_name(f".{self.path.name}.part").unlink(missing_ok=True)

    def _check_settings(self, found: Mapping[str, Any]) -> None:
        """Refuse the state of another run, naming what differs."""
        names = sorted({*found, *self._settings})
        differences = [
            f"{name} was {_shown(found.get(name))} and is {_shown(self._settings.get(name))}"
            for name in names
            if found.get(name) != self._settings.get(name)
        ]
        if differences:
            raise TrainingError(
                f"The checkpoint {self.path} is of a run with other settings: "
                f"{'; '.join(differences)}.",
                "Resume with the same settings, or start without resuming.",
            )


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments of an optimiser as flat names."""
    state = optimiser.state_dict()["state"]
    return {
        f"optimiser.{index}.{name}": value
        for index, values in state.items()
        for name, value in values.items()
    }


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers of a model under the checkpoint's names.

    Weights that are not trained are left out: they come from the seed, or from a file of their own
    that may be a hundred times as large as what is learnt beside them.
    """
    fixed = _fixed_names(model)
    return {
        f"model.{name}": value for name, value in model.state_dict().items() if name not in fixed
    }


def restore(state: RunState, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Bring a model and its optimiser to a state.

    Raises:
        TrainingError: the state is of another model.
    """
    restore_model(state, model)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _below("optimiser.", state.tensors).items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": moments, "param_groups": groups})


def restore_model(state: RunState, model: nn.Module) -> None:
    """Bring a model to a state; weights that are not trained stay as they are.

    Raises:
        TrainingError: the state is of another model.
    """
    own = model.state_dict()
    fixed = {name: own[name] for name in _fixed_names(model)}
    try:
        model.load_state_dict({**fixed, **_below("model.", state.tensors)})
    except RuntimeError as error:
        raise TrainingError(
            f"The checkpoint is of another model: {error}", "Start without resuming."
        ) from error


def _fixed_names(model: nn.Module) -> frozenset[str]:
    """The parameters that are not trained."""
    named = model.named_parameters(remove_duplicate=False)
    return frozenset(name for name, parameter in named if not parameter.requires_grad)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _shown(value: Any) -> str:
    """A setting in a message, not longer than a line."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"

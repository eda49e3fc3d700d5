"""A training on several devices: one fresh process each, from within the warm worker.

The processes are new ones (spawned), because a process that has used CUDA cannot be forked, and
the worker's own command line must not be run again. What is learned comes back by the checkpoint;
progress, and the wish to stop, go through a queue and an event.
"""

from __future__ import annotations

import copy
import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch.multiprocessing as mp
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch.multiprocessing.spawn import ProcessException

import engine.errors
from engine.errors import CancelledError, HyperKDError, TrainingError
from engine.feedback import Feedback, SilentFeedback
from engine.training.masked_fit import FitSettings, MaskedTask, fit
from engine.training.run_checkpoint import RunCheckpoint
from engine.training.scene_tiles import SceneTiles

LOG = logging.getLogger(__name__)

_LOOK_S = 0.1  # how often the queue and the user are asked; a cancel is answered within a second
_END = "end"
# Set by the launcher, and read by it before it looks for a free port.
_LAUNCH_VARIABLES = ("MASTER_PORT", "MASTER_ADDR", "LOCAL_RANK", "WORLD_SIZE", "RANK")


class AttachableTask(MaskedTask, Protocol):
    """A task that can be brought to a device."""

    def attach(self, fabric: Fabric) -> None:
        """Bring what is not trained to the device of a process."""


def fit_on_devices(
    task: AttachableTask,
    tiles: SceneTiles,
    settings: FitSettings,
    *,
    accelerator: str,
    devices: int,
    precision: Any,
    feedback: Feedback,
    checkpoint: RunCheckpoint,
    resume: bool,
) -> None:
    """Train on several devices of this computer; the result is in the checkpoint.

    Args:
        task: what to train; left as it is here.
        tiles: to train on.
        settings: see there; ``batch_tiles`` is shared by all devices.
        accelerator: "cuda", or "cpu" for tests.
        devices: how many, two or more.
        precision: as Fabric names it.
        feedback: told of progress; asked whether to go on.
        checkpoint: where the state is kept.
        resume: go on from the state that is there.

    Raises:
        CancelledError: the user cancelled; the state was kept.
        HyperKDError: whatever `fit` raises in a process.
        TrainingError: a process ended otherwise.
    """
    context = mp.get_context("spawn")
    events, cancelled = context.SimpleQueue(), context.Event()
    relay = _Relay(events, cancelled, feedback)
    strategy = DDPStrategy(start_method="spawn")
    with _clean_environment(), relay:
        fabric = Fabric(
            accelerator=accelerator, devices=devices, strategy=strategy, precision=precision
        )
        try:
            fabric.launch(_Process(task, tiles, settings, checkpoint, resume, events, cancelled))
        except ProcessException as error:
            LOG.error("A process of the training failed: %s", error)
            events.put((_END,))
            relay.join()
            raise relay.failure or TrainingError(
                f"One of the {devices} processes of the training ended: "
                f"{str(error).strip().splitlines()[-1]}.",
                "Train on one device, or report this with the log.",
            ) from error


class _Process:
    """The work of one process; an object, because the launcher looks into arguments."""

    def __init__(
        self,
        task: AttachableTask,
        tiles: SceneTiles,
        settings: FitSettings,
        checkpoint: RunCheckpoint,
        resume: bool,
        events: Any,
        cancelled: Any,
    ) -> None:
        self._task = task
        self._tiles = tiles
        self._settings = settings
        self._checkpoint = checkpoint
        self._resume = resume
        self._events = events
        self._cancelled = cancelled

    def __call__(self, fabric: Fabric) -> None:
        """Train; called in the process."""
        threading.Thread(target=_end_with_parent, name="parent watch", daemon=True).start()
        # On CPUs what was handed over lies in memory that all processes share.
        task = copy.deepcopy(self._task)
        is_first = fabric.is_global_zero
        feedback: Feedback = SilentFeedback()
        if is_first:
            feedback = _SentFeedback(self._events, self._cancelled)
        task.attach(fabric)
        try:
            fit(
                task,
                self._tiles,
                self._settings,
                fabric=fabric,
                feedback=feedback,
                checkpoint=self._checkpoint,
                resume=self._checkpoint.load() if self._resume else None,
            )
        except HyperKDError as error:
            self._events.put(("failure", type(error).__name__, error.sentence, error.remedy))
            raise


def _end_with_parent() -> None:
    """End this process when the worker is gone: nobody would ever end it otherwise."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _SentFeedback:
    """Feedback of a process to the one that started it."""

    def __init__(self, events: Any, cancelled: Any) -> None:
        self._events = events
        self._cancelled = cancelled

    def progress(self, fraction: float, message: str = "") -> None:
        """Send the progress."""
        self._events.put(("progress", fraction, message))

    def info(self, message: str) -> None:
        """Send a fact."""
        self._events.put(("info", message))

    def warning(self, message: str) -> None:
        """Send a warning."""
        self._events.put(("warning", message))

    def raise_if_cancelled(self) -> None:
        """Ask the event."""
        if self._cancelled.is_set():
            raise CancelledError


class _Relay:
    """A thread that hands on what the first process says, and asks the user for it."""

    def __init__(self, events: Any, cancelled: Any, feedback: Feedback) -> None:
        self.failure: HyperKDError | None = None
        self._events = events
        self._cancelled = cancelled
        self._feedback = feedback
        self._thread = threading.Thread(target=self._work, name="training relay", daemon=True)
        self._asking = threading.Event()

    def __enter__(self) -> None:
        self._thread.start()
        threading.Thread(target=self._ask, name="cancel relay", daemon=True).start()

    def __exit__(self, *_error: object) -> None:
        """End both threads."""
        self._asking.set()
        if self._thread.is_alive():
            self._events.put((_END,))
            self.join()

    def join(self) -> None:
        """Wait until all that was said before the end is handed on."""
        self._thread.join()

    def _ask(self) -> None:
        while not self._asking.wait(_LOOK_S):
            try:
                self._feedback.raise_if_cancelled()
            except CancelledError:
                self._cancelled.set()
                return

    def _work(self) -> None:
        while True:
            kind, *values = self._events.get()
            if kind == _END:
                return
            if kind == "failure":
                self.failure = _failure(*values)
            else:
                getattr(self._feedback, kind)(*values)


def _failure(name: str, sentence: str, remedy: str) -> HyperKDError:
    """The error of a process, as one of this process."""
    if name == CancelledError.__name__:
        return CancelledError()
    known = getattr(engine.errors, name, TrainingError)
    error: HyperKDError = known(sentence, remedy)
    return error


@contextmanager
def _clean_environment() -> Iterator[None]:
    """Forget the launcher's variables afterwards: the next run needs a port of its own."""
    before = {name: os.environ.get(name) for name in _LAUNCH_VARIABLES}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

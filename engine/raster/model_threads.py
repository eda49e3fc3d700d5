"""Threads that run a model: one core a lane, and a look for a cancel before each layer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from engine.feedback import Feedback
from engine.raster.threads import Lanes, Stopped

_QUICK_BATCH_S = 0.2  # a cancel may wait so long


class LayerWatch:
    """Looks for a cancel before each layer too: a batch may take seconds on a slow CPU.

    torch then takes a longer way through every layer of the process, up to a tenth of the time of
    a model of many small ones. So a batch that was quick ends the watch: those that follow are as
    quick, and between them the cancel is looked for anyway.

    Use as a context manager, in the thread that asks the user.
    """

    def __init__(self, feedback: Feedback, stop: threading.Event) -> None:
        self._feedback = feedback
        self._stop = stop
        self._thread = threading.get_ident()
        self._ending = threading.Lock()

    def _look(self, module: torch.nn.Module, args: Any) -> None:
        if threading.get_ident() == self._thread:
            self._feedback.raise_if_cancelled()
        elif self._stop.is_set():
            raise Stopped

    def see_batch(self, seconds: float) -> None:
        """Hear how long a batch of whole tiles takes; may be called by any thread."""
        if seconds < _QUICK_BATCH_S:
            self._end()

    def _end(self) -> None:
        """Take the hook away, once: torch looks whether it is there and only then deletes it."""
        with self._ending:
            self._hook.remove()

    def __enter__(self) -> Self:
        self._hook = register_module_forward_pre_hook(self._look)
        return self

    def __exit__(self, *error: object) -> None:
        self._end()


@contextmanager
def make_lanes(count: int, stop: threading.Event) -> Iterator[Lanes]:
    """Share the cores among lanes: whole batches side by side, not the steps of each.

    Threads that share a step wait for each other at its end, and so for whichever has the reader
    on its core.
    """
    threads = torch.get_num_threads()
    try:
        with Lanes(count, stop, partial(torch.set_num_threads, threads // count)) as lanes:
            yield lanes
    finally:
        # The number that a thread sets is its own, and also that of threads which begin later.
        torch.set_num_threads(threads)

"""The worker: takes messages from the client, does one job at a time, and speaks in events.

Two threads. The reader takes messages the moment they come, so that a cancel is heard while a job
works. The main thread does the jobs, because Ctrl-C and most CUDA tools expect it there.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import platform
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType
from typing import NamedTuple

from engine.errors import CancelledError, HyperKDError, RequestError
from engine.jobs import find_job
from engine.protocol import (
    PROTOCOL_VERSION,
    Cancel,
    EventWriter,
    Hello,
    ProtocolError,
    Run,
    Shutdown,
    parse_message,
    parse_request_file,
)
from engine.version import engine_version

LOG = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 0.1  # ten a second look smooth; a thousand would keep QGIS busy
GRACE_S = 2.0  # between "the client has gone" and the hard end; cancels take less than one second


class JobFeedback:
    """Feedback of one job to the client.

    Args:
        events: where to write.
        job: the client's name of the job.
    """

    def __init__(self, events: EventWriter, job: str) -> None:
        self.cancelled = threading.Event()
        self._events = events
        self._job = job
        self._last_time_s = -math.inf
        self._last_message: str | None = None

    def progress(self, fraction: float, message: str = "") -> None:
        """Send the progress, unless the last one is very recent and of the same step."""
        fraction = min(max(fraction, 0.0), 1.0) if math.isfinite(fraction) else 0.0
        now_s = time.monotonic()
        recent = now_s - self._last_time_s < PROGRESS_INTERVAL_S
        if recent and message == self._last_message and fraction < 1.0:
            return
        self._last_time_s, self._last_message = now_s, message
        self._events.send("progress", job=self._job, fraction=fraction, message=message)

    def info(self, message: str) -> None:
        """Send a fact about the run."""
        self._events.send("info", job=self._job, message=message)

    def warning(self, message: str) -> None:
        """Send a warning."""
        self._events.send("warning", job=self._job, message=message)

    def raise_if_cancelled(self) -> None:
        """Raise `CancelledError` when the client has cancelled the job, or has gone."""
        if self.cancelled.is_set():
            raise CancelledError


class Failure(NamedTuple):
    """The fields of an ``error`` event."""

    error: str
    message: str
    remedy: str


def describe_failure(error: BaseException) -> Failure:
    """Say in a sentence what went wrong and what the user can do about it."""
    while isinstance(error, BaseExceptionGroup):  # of threads: the first is the cause
        error = error.exceptions[0]
    name = type(error).__name__
    if isinstance(error, HyperKDError):
        return Failure(name, error.sentence, error.remedy)
    if isinstance(error, KeyboardInterrupt):
        return describe_failure(CancelledError())
    if isinstance(error, ImportError):
        return Failure(
            name,
            f"The engine's environment is incomplete ({error}).",
            "Set the engine up again, then run Check engine.",
        )
    return _describe_shortage(error, name) or Failure(
        name,
        f"The engine failed unexpectedly ({name}: {error}).",
        "This is a bug; please report it with the log.",
    )


def _describe_shortage(error: BaseException, name: str) -> Failure | None:
    """Recognise full memories and disks, by what numpy, torch and Python say of them."""
    # torch's own class, told by its name because torch may not even be imported
    if name == "OutOfMemoryError":
        return Failure(
            name,
            "The GPU has not enough free memory for this job.",
            "Choose a smaller tile size, close other programs that use the GPU, or choose the CPU.",
        )
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return Failure(
            "MemoryError",
            "This computer has not enough free memory for this job.",
            "Choose a smaller tile size or extent, or close other programs.",
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return Failure("OutputError", f"The disk is full ({error}).", "Free some space on it.")
    return None


def run_job(run: Run, feedback: JobFeedback, events: EventWriter) -> bool:
    """Do one job, from its request to exactly one ``result`` or ``error`` event.

    Returns:
        whether there is a result.
    """
    try:
        feedback.raise_if_cancelled()
        job = find_job(run.command)
        request = job.request_type.parse(run.parameters)
        feedback.info(f"The request that repeats this run: {repeat_request(run)}")
        result = job.run(request, feedback)
        events.send("result", job=run.job, result=result)
        return True
    except BaseException as error:  # also SystemExit of a library: every job gets its event
        failure = describe_failure(error)
        if failure.error != "CancelledError":
            LOG.exception("Job %s (%s) failed", run.job, run.command)
        events.send("error", job=run.job, **failure._asdict())
        return False


def repeat_request(run: Run) -> str:
    """Write the request file that does the same as a job, for the log."""
    return json.dumps({"command": run.command, "parameters": run.parameters})


class Worker:
    """Serves one client until it goes, says so, or falls asleep.

    Args:
        events: to the client.
        idle_s: seconds without a job or message after which the worker ends.
        hard_exit: ends the process at once when a job does not let itself be cancelled.
    """

    def __init__(
        self,
        events: EventWriter,
        idle_s: float,
        hard_exit: Callable[[int], object] = os._exit,
    ) -> None:
        self._events = events
        self._idle_s = idle_s
        self._hard_exit = hard_exit
        self._waiting: deque[tuple[Run, JobFeedback]] = deque()
        self._running: tuple[Run, JobFeedback] | None = None
        self._ending = False
        self._last_heard_s = time.monotonic()
        self._changed = threading.Condition()

    def serve(self, messages: Iterable[bytes]) -> None:
        """Do the jobs that come, in the thread of the caller, until the end."""
        threading.Thread(target=self._listen, args=(messages,), daemon=True).start()
        while (job := self._next_job()) is not None:
            run_job(*job, self._events)
            with self._changed:
                self._running = None
                self._last_heard_s = time.monotonic()

    def end(self) -> None:
        """Cancel everything, waiting jobs first, and end; hard when a job does not listen."""
        with self._changed:
            self._ending = True
            abandoned = list(self._waiting)
            self._waiting.clear()
            if self._running is not None:
                self._running[1].cancelled.set()
            watchdog = threading.Timer(GRACE_S, self._end_hard)
            watchdog.daemon = True
            watchdog.start()
            self._changed.notify_all()
        for run, _feedback in abandoned:
            self._send_cancelled(run.job)

    def _next_job(self) -> tuple[Run, JobFeedback] | None:
        with self._changed:
            while not self._waiting:
                quiet_s = time.monotonic() - self._last_heard_s
                if self._ending or quiet_s >= self._idle_s:
                    return None
                self._changed.wait(self._idle_s - quiet_s)
            self._running = self._waiting.popleft()
            return self._running

    def _listen(self, messages: Iterable[bytes]) -> None:
        for line in messages:
            if not line.strip():
                continue
            try:
                self._receive(line)
            except ProtocolError as error:
                remedy = "This is a bug of the client; please report it with the log."
                LOG.warning("%s", error)
                self._events.send(
                    "error", job=None, error="ProtocolError", message=str(error), remedy=remedy
                )
            except Exception:
                LOG.exception("A message could not be handled")
        LOG.info("The client has gone")
        self.end()

    def _receive(self, line: bytes) -> None:
        message = parse_message(line)
        with self._changed:
            self._last_heard_s = time.monotonic()
        match message:
            case Hello():
                self._answer_hello(message)
            case Run():
                self._enqueue(message)
            case Cancel():
                self._cancel(message.job)
            case Shutdown():
                self.end()

    def _answer_hello(self, hello: Hello) -> None:
        if hello.protocol != PROTOCOL_VERSION:  # it is the client that decides what to do
            LOG.warning("The client speaks protocol %d", hello.protocol)
        device, reason = _describe_device()
        self._events.send(
            "hello",
            protocol=PROTOCOL_VERSION,
            engine_version=engine_version(),
            python=platform.python_version(),
            device=device,
            device_reason=reason,
        )

    def _enqueue(self, run: Run) -> None:
        with self._changed:
            known = [waiting for waiting, _feedback in self._waiting]
            if self._running is not None:
                known.append(self._running[0])
            if any(other.job == run.job for other in known):
                raise ProtocolError(f"There is already a job {run.job!r}.")
            if not self._ending:
                self._waiting.append((run, JobFeedback(self._events, run.job)))
                self._changed.notify_all()
                return
        self._send_cancelled(run.job)

    def _cancel(self, job: str) -> None:
        with self._changed:
            if self._running is not None and self._running[0].job == job:
                self._running[1].cancelled.set()
                return
            kept = [entry for entry in self._waiting if entry[0].job != job]
            found = len(kept) < len(self._waiting)
            self._waiting = deque(kept)
        if found:
            self._send_cancelled(job)
        else:  # it may have ended a moment ago
            LOG.info("There is no job %r to cancel", job)

    def _send_cancelled(self, job: str) -> None:
        self._events.send("error", job=job, **describe_failure(CancelledError())._asdict())

    def _end_hard(self) -> None:
        LOG.error("The engine did not end within %s s; ending it hard", GRACE_S)
        _remove_unfinished_outputs()
        self._hard_exit(1)


def run_request(content: bytes, events: EventWriter) -> int:
    """Do the one job of a request file.

    The first Ctrl-C or termination signal cancels the job, which cleans up; the second ends it.

    Returns:
        exit code: 0 only after a result, 130 after a cancel.
    """
    try:
        run = parse_request_file(content)
    except ProtocolError as error:
        remedy = 'A request file has the form {"command": "classify", "parameters": {…}}.'
        failure = describe_failure(RequestError(str(error), remedy))
        events.send("error", job="1", **failure._asdict())
        return 1
    feedback = JobFeedback(events, run.job)

    def cancel(_number: int, _frame: FrameType | None) -> None:
        if feedback.cancelled.is_set():
            raise KeyboardInterrupt
        feedback.cancelled.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, cancel)
    if run_job(run, feedback, events):
        return 0
    return 130 if feedback.cancelled.is_set() else 1


def _describe_device() -> tuple[str, str]:
    """Find the device and the reason; a broken torch is a finding, not the end."""
    try:
        from engine.device import choose_device

        choice = choose_device()
    except Exception as error:
        LOG.exception("The device could not be determined")
        return "none", f"torch cannot be used ({type(error).__name__}: {error})."
    return str(choice.device), choice.reason


def _remove_unfinished_outputs() -> None:
    """Remove what the writers have begun, because nobody will come back to do it."""
    writer = sys.modules.get("engine.raster.writer")
    remove = getattr(writer, "remove_unfinished", None)
    if remove is not None:
        with suppress(OSError):
            remove()

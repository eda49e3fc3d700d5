"""Sends jobs to the warm engine and waits for them. Standard library only, any thread.

One engine serves a whole QGIS. It starts with the first job and stays, so that models and the
GPU's context survive from one run to the next; when it is gone, the next job starts a fresh one.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import queue
import subprocess  # nosec B404
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .engine_process import EngineCommand, EngineProcess, Mailbox, open_log
from .events import Event
from .request import (
    PROTOCOL_VERSION,
    cancel_message,
    hello_message,
    run_message,
)

POLL_S = 0.05
"""How often a waiting job looks whether the user wants to stop."""

CANCEL_LIMIT_S = 3.0
"""How long a cancelled engine may take to answer before it is ended and replaced."""

START_LIMIT_S = 180.0
"""How long the first start may take: a cold disk and a virus scanner read torch for minutes."""

FRESH_STARTS = 3
"""How often a job is sent again when its engine ended for a reason that was not this job's."""


class EngineFailure(Exception):
    """A job gave no result.

    Args:
        sentence: what went wrong.
        remedy: what to do about it.
    """

    def __init__(self, sentence: str, remedy: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.sentence} {self.remedy}".strip()


class EngineStartError(EngineFailure):
    """The engine could not be started, or is not the one that this plugin needs."""


class EngineCrashError(EngineFailure):
    """The engine ended in the middle of a job."""


class EngineJobError(EngineFailure):
    """The engine answered that the job cannot be done, and why.

    Args:
        kind: class name of the engine's error.
        sentence: what is wrong, and which value.
        remedy: what to do about it.
    """

    def __init__(self, kind: str, sentence: str, remedy: str = "") -> None:
        super().__init__(sentence, remedy)
        self.kind = kind


class JobCancelledError(EngineFailure):
    """The user stopped the job."""

    def __init__(self) -> None:
        super().__init__("The job was cancelled.")


class _EngineLostError(Exception):
    """The engine ended before or beside this job: send the job again."""


class JobListener:
    """Hears of a job; this one never cancels and says nothing."""

    def is_cancelled(self) -> bool:
        """Say whether the user wants to stop; asked about twenty times a second."""
        return False

    def started(self, hello: Event) -> None:
        """Hear which engine does the job."""

    def progress(self, fraction: float, message: str) -> None:
        """Hear the share of the work that is done, 0 to 1, and the step it is in."""

    def info(self, message: str) -> None:
        """Hear a fact about the run."""

    def warning(self, message: str) -> None:
        """Hear about something that may make the result worse."""


class EngineClient:
    """The one warm engine, shared by all threads.

    Args:
        find_command: says what to start; asked before each job, so that a changed setting
            counts at once. May raise any error that the caller of `run` understands.
        log_path: file for the engine's log.
    """

    def __init__(self, find_command: Callable[[], EngineCommand], log_path: Path) -> None:
        self.log_path = log_path
        self._find_command = find_command
        self._log: logging.Logger | None = None
        self._start_lock = threading.Lock()
        self._engine: tuple[EngineProcess, Event] | None = None
        self._closed = False
        self._job_numbers = itertools.count(1)
        atexit.register(self.close)

    @property
    def is_warm(self) -> bool:
        """Say whether an engine is there already."""
        engine = self._engine
        return engine is not None and engine[0].alive

    def run(
        self, command: str, parameters: Mapping[str, Any], listener: JobListener
    ) -> dict[str, Any]:
        """Do one job and wait for it.

        Args:
            command: the engine's name of the job.
            parameters: of the job, as the engine names them.
            listener: hears of the job, in this thread.

        Returns:
            the fields of the job's result.

        Raises:
            EngineStartError: no engine could be started.
            EngineCrashError: the engine ended in the middle of the job.
            EngineJobError: the engine says why the job cannot be done.
            JobCancelledError: the user stopped it.
        """
        for _ in range(FRESH_STARTS):
            process, hello = self._ready_process(listener)
            listener.started(hello)
            try:
                return self._do_job(process, command, parameters, listener)
            except _EngineLostError:
                continue
        raise EngineStartError(
            "HyperKD's engine ended before it took the job, several times.",
            f"Its log may say why: {self.log_path}",
        )

    def close(self) -> None:
        """End the engine and all jobs, for ever: QGIS ends, or the plugin is unloaded."""
        self._closed = True
        with self._start_lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine[0].stop()
        atexit.unregister(self.close)
        if self._log is not None:
            for handler in self._log.handlers:
                handler.close()

    def _do_job(
        self,
        process: EngineProcess,
        command: str,
        parameters: Mapping[str, Any],
        listener: JobListener,
    ) -> dict[str, Any]:
        job = str(next(self._job_numbers))
        with _mailbox(process, job) as mailbox:
            process.send(run_message(job, command, parameters))
            watch = _JobWatch(process, job, mailbox, listener, self.log_path)
            final = watch.wait()
        if final.name == "result":
            result = final.fields.get("result")
            return result if isinstance(result, dict) else {}
        if final.text("error") == "CancelledError":
            # an engine that is about to end, idle, cancels what comes in that moment
            raise JobCancelledError if watch.cancelled else _EngineLostError
        raise EngineJobError(final.text("error"), final.text("message"), final.text("remedy"))

    def _ready_process(self, listener: JobListener) -> tuple[EngineProcess, Event]:
        command = self._find_command()
        with _locked(self._start_lock, listener):
            if self._closed:
                raise JobCancelledError
            if self._engine is not None and not self._still_fits(self._engine[0], command):
                self._engine[0].stop()
                self._engine = None
            if self._engine is None:
                self._engine = self._start(command, listener)
            return self._engine

    @staticmethod
    def _still_fits(process: EngineProcess, command: EngineCommand) -> bool:
        # a changed setting waits until nobody needs the old engine
        return process.alive and (process.command == command or process.busy)

    def _start(self, command: EngineCommand, listener: JobListener) -> tuple[EngineProcess, Event]:
        listener.progress(0.0, "Starting the engine")
        if self._log is None:
            self._log = open_log(self.log_path)
        try:
            process = EngineProcess(command, self._log)
        except (OSError, subprocess.SubprocessError) as error:
            raise EngineStartError(
                f"HyperKD's engine could not be started with {command.arguments[0]}: {error}.",
                "Check the interpreter in the settings of the provider HyperKD.",
            ) from error
        try:
            hello = self._shake_hands(process, listener)
        except BaseException:
            process.kill()
            raise
        return process, hello

    def _shake_hands(self, process: EngineProcess, listener: JobListener) -> Event:
        with _mailbox(process, None) as mailbox:
            process.send(hello_message())
            limit_s = time.monotonic() + START_LIMIT_S
            while time.monotonic() < limit_s:
                if listener.is_cancelled():
                    raise JobCancelledError
                try:
                    event = mailbox.get(timeout=POLL_S)
                except queue.Empty:
                    continue
                if event is None:
                    raise self._no_start(process)
                if event.name == "hello":
                    return _checked(event, process.command)
                if event.name == "error":
                    raise EngineStartError(event.text("message"), event.text("remedy"))
        raise EngineStartError(
            f"HyperKD's engine did not answer within {START_LIMIT_S:.0f} s of its start.",
            f"Its log may say why: {self.log_path}",
        )

    def _no_start(self, process: EngineProcess) -> EngineStartError:
        code, tail = process.exit_report()
        return EngineStartError(
            f"HyperKD's engine ended at its start, with exit code {code}.{_quote(tail)}",
            "Run the algorithm 'Check the engine', or make the engine's environment again. "
            f"The whole log: {self.log_path}",
        )


class _JobWatch:
    """Waits for the end of one job and passes its events on.

    Args:
        process: the engine that has the job.
        job: its number.
        mailbox: gets its events.
        listener: hears of them.
        log_path: named when the engine crashes.
    """

    def __init__(
        self,
        process: EngineProcess,
        job: str,
        mailbox: Mailbox,
        listener: JobListener,
        log_path: Path,
    ) -> None:
        self._process = process
        self._job = job
        self._mailbox = mailbox
        self._listener = listener
        self._log_path = log_path
        self._has_begun = False
        self._cancel_limit_s: float | None = None

    @property
    def cancelled(self) -> bool:
        """Say whether the user wanted to stop."""
        return self._cancel_limit_s is not None

    def wait(self) -> Event:
        """Wait for the job's ``error`` or ``result``.

        Raises:
            EngineCrashError: the engine ended before.
            JobCancelledError: the user stopped it, and the engine ended or had to be ended.
            _EngineLostError: the engine ended, but not because of this job.
        """
        while True:
            self._look_for_cancel()
            try:
                event = self._mailbox.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if event is None:
                raise self._lost()
            if event.is_final:
                return event
            self._has_begun = True
            self._pass_on(event)

    def _look_for_cancel(self) -> None:
        now_s = time.monotonic()
        if self._cancel_limit_s is None:
            if self._listener.is_cancelled():
                self._cancel_limit_s = now_s + CANCEL_LIMIT_S
                self._process.send(cancel_message(self._job))
        elif now_s > self._cancel_limit_s:
            self._process.abandon()
            raise JobCancelledError

    def _pass_on(self, event: Event) -> None:
        if event.name == "progress":
            self._listener.progress(event.number("fraction"), event.text("message"))
        elif event.name == "info":
            self._listener.info(event.text("message"))
        elif event.name == "warning":
            self._listener.warning(event.text("message"))

    def _lost(self) -> Exception:
        if self.cancelled:
            return JobCancelledError()
        code, tail = self._process.exit_report()
        ended_idle = code == 0 and not self._has_begun
        only_waited = self._process.job_at_end != self._job
        if self._process.ended_by_us or ended_idle or only_waited:
            return _EngineLostError()
        return EngineCrashError(
            f"HyperKD's engine crashed in the middle of the job, {_exit_words(code)}."
            f"{_quote(tail)}",
            f"The next run starts a fresh engine. The whole log: {self._log_path}",
        )


def _checked(hello: Event, command: EngineCommand) -> Event:
    """Check that the engine is the one that belongs to this plugin."""
    protocol = hello.fields.get("protocol")
    if protocol != PROTOCOL_VERSION:
        raise EngineStartError(
            f"HyperKD's engine speaks protocol {protocol}, the plugin {PROTOCOL_VERSION}.",
            "Install the plugin again, so that both are of one version, and restart QGIS.",
        )
    version = hello.text("engine_version")
    if version != command.version:
        raise EngineStartError(
            f"HyperKD's engine is version {version or 'unknown'}, the plugin {command.version}.",
            "Restart QGIS after an update of the plugin.",
        )
    return hello


@contextmanager
def _mailbox(process: EngineProcess, job: str | None) -> Iterator[Mailbox]:
    mailbox = process.open_mailbox(job)
    try:
        yield mailbox
    finally:
        process.close_mailbox(job)


@contextmanager
def _locked(lock: threading.Lock, listener: JobListener) -> Iterator[None]:
    """Hold a lock; give up waiting for it when the user cancels."""
    while not lock.acquire(timeout=POLL_S):
        if listener.is_cancelled():
            raise JobCancelledError
    try:
        yield
    finally:
        lock.release()


def _exit_words(code: int | None) -> str:
    if code is None:
        return "its pipe broke"
    if code < 0:
        return f"ended by signal {-code}"
    return f"with exit code {code}"


def _quote(tail: str) -> str:
    return f" Its last words:\n{tail}\n" if tail else ""

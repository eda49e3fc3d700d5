"""One running engine: its pipes, its log, its end. Standard library only."""

from __future__ import annotations

import logging
import logging.handlers
import os
import queue
import signal
import subprocess  # nosec B404
import sys
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .events import NOISE, Event, EventStream
from .request import shutdown_message

READ_BYTES = 65536
TAIL_LINES = 20
LOG_BYTES = 1_000_000
LOG_BACKUPS = 2
SHUTDOWN_S = 2.0

Mailbox = queue.Queue
"""Of `Event`; None says that the engine has ended and nothing more will come."""


@dataclass(frozen=True)
class EngineCommand:
    """What starts an engine.

    Args:
        arguments: the interpreter and what follows it.
        environment: all variables of the new process.
        version: of the plugin, which must be the engine's.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    version: str


def open_log(path: Path) -> logging.Logger:
    """Open the engine's log, which starts anew after a megabyte and keeps two older files."""
    log = logging.Logger("hyperkd.engine", logging.DEBUG)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler: logging.Handler = logging.handlers.RotatingFileHandler(
            path, maxBytes=LOG_BYTES, backupCount=LOG_BACKUPS, encoding="utf-8", delay=True
        )
    except OSError:  # a read-only home must not stop the work
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    return log


class EngineProcess:
    """A started engine. Two threads read its pipes; `mailbox` hands a job's events over.

    ``job_at_end`` is the job that was at work when the engine ended.

    Args:
        command: what to start.
        log: gets the engine's standard error, and what is no event on its standard output.

    Raises:
        OSError: the interpreter cannot be started.
    """

    def __init__(self, command: EngineCommand, log: logging.Logger) -> None:
        self.command = command
        self.killed_by_us = False
        self.job_at_end: str | None = None
        self._log = log
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._lock = threading.Lock()
        # of its own: a full pipe must not stop the events that the engine wants to get rid of
        self._write_lock = threading.Lock()
        self._mailboxes: dict[str | None, Mailbox] = {}
        self._ended = False
        # A list and no shell; the interpreter is the one that the user has chosen.
        self._process = subprocess.Popen(  # nosec B603
            list(command.arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(command.environment),
            bufsize=0,
            **_detached(),
        )
        self._log.info("started %s as process %d", command.arguments[0], self._process.pid)
        self._stderr_reader = self._start_thread(self._read_errors, self._process.stderr)
        self._start_thread(self._read_events, self._process.stdout)

    @property
    def alive(self) -> bool:
        """Say whether the process runs and its events are read."""
        return not self._ended and self._process.poll() is None

    @property
    def busy(self) -> bool:
        """Say whether a job waits for events."""
        with self._lock:
            return bool(self._mailboxes)

    def open_mailbox(self, job: str | None) -> Mailbox:
        """Collect the events of a job from now on; None: the engine's own."""
        mailbox: Mailbox = queue.Queue()
        with self._lock:
            self._mailboxes[job] = mailbox
            if self._ended:
                mailbox.put(None)
        return mailbox

    def close_mailbox(self, job: str | None) -> None:
        """Collect no more events of a job."""
        with self._lock:
            self._mailboxes.pop(job, None)

    def send(self, message: bytes) -> bool:
        """Hand a message to the engine.

        Returns:
            False when the engine has gone; its mailboxes then hold None.
        """
        try:
            with self._write_lock:
                view = memoryview(message)
                while view:  # a raw pipe may take a part only
                    view = view[self._process.stdin.write(view) :]
        except (OSError, ValueError):  # closed by it, or by us
            return False
        return True

    def exit_report(self) -> tuple[int | None, str]:
        """Wait a moment for the end of the process and say how it ended.

        Returns:
            its exit code (None when it still runs), and the last lines of its standard error.
        """
        code = self._wait(SHUTDOWN_S)
        self._stderr_reader.join(1.0)
        return code, "\n".join(self._tail)

    def stop(self) -> None:
        """End the engine: ask, close its input, and kill it when it does not go."""
        self.killed_by_us = True
        self.send(shutdown_message())
        self._close_input()
        if self._wait(SHUTDOWN_S) is None:
            self.kill()

    def kill(self) -> None:
        """End the engine and all that it started, at once."""
        self.killed_by_us = True
        self._log.info("killed process %d", self._process.pid)
        _kill_tree(self._process)
        self._close_input()
        self._wait(SHUTDOWN_S)

    def _wait(self, limit_s: float) -> int | None:
        try:
            return self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None

    def _close_input(self) -> None:
        try:
            self._process.stdin.close()
        except OSError as error:
            self._log.info("its input was closed already: %s", error)

    def _start_thread(self, read: Any, stream: IO[bytes] | None) -> threading.Thread:
        # daemon: QGIS must be able to end while an engine still answers
        thread = threading.Thread(target=read, args=(stream,), daemon=True)
        thread.start()
        return thread

    def _read_errors(self, stream: IO[bytes]) -> None:
        with stream:
            for text in _lines(stream):
                self._tail.append(text)
                self._log.info(text)

    def _read_events(self, stream: IO[bytes]) -> None:
        events = EventStream()
        with stream:
            for chunk in iter(lambda: stream.read(READ_BYTES), b""):
                self._deliver(events.feed(chunk))
        self._deliver(events.close())
        with self._lock:
            self._ended = True
            # jobs are done in the order in which they came: the first one was at work
            self.job_at_end = next(iter(self._mailboxes), None)
            for mailbox in self._mailboxes.values():
                mailbox.put(None)

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            with self._lock:
                mailbox = self._mailboxes.get(event.job)
            if event.name == NOISE or mailbox is None:
                self._log.info("%s: %s", event.name, event.text("message"))
            else:
                mailbox.put(event)


def _lines(stream: IO[bytes]) -> Any:
    """Read lines of any length from an unbuffered pipe; a progress bar has no line breaks."""
    rest = b""
    for chunk in iter(lambda: stream.read(READ_BYTES), b""):
        *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        if len(rest) > READ_BYTES:
            lines, rest = [*lines, rest], b""
        for line in filter(None, lines):
            yield line.decode("utf-8", "replace")
    if rest:
        yield rest.decode("utf-8", "replace")


def _detached() -> dict[str, Any]:
    """Make the engine the head of a process group, so that all of it can be ended."""
    if sys.platform == "win32":
        # no console window; a group of its own
        return {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _kill_tree(process: subprocess.Popen) -> None:
    try:
        if sys.platform == "win32":
            tool = os.path.join(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "taskkill")
            arguments = [tool, "/F", "/T", "/PID", str(process.pid)]
            # A list and no shell; the program is the system's own, by its full path.
            subprocess.run(  # nosec B603
                arguments, check=False, capture_output=True, **_detached()
            )
        else:
            os.killpg(process.pid, signal.SIGKILL)
    except OSError:  # it has gone meanwhile
        process.kill()

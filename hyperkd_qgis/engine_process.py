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
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from .events import NOISE, Event, EventStream
from .request import shutdown_message

READ_BYTES = 65536
PIPE_S = 1.0
TAIL_LINES = 20
LOG_BYTES = 1_000_000
LOG_BACKUPS = 2
SHUTDOWN_S = 4.0
"""How long an engine may take to end: it gives a job two seconds to clean up after itself."""

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
    # not compared: QGIS and plugins set variables now and then, and a warm engine is worth more
    environment: Mapping[str, str] = field(compare=False)
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
        self.ended_by_us = False
        self.job_at_end: str | None = None
        self._log = log
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._lock = threading.Lock()
        # of its own: a full pipe must not stop the events that the engine wants to get rid of
        self._write_lock = threading.Lock()
        self._mailboxes: dict[str | None, Mailbox] = {}
        self._answered: set[str | None] = set()
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
        self._event_reader = self._start_thread(self._read_events, self._process.stdout)
        self._start_thread(self._watch_end)

    @property
    def alive(self) -> bool:
        """Say whether the process runs, is not about to end, and its events are read."""
        return not (self._ended or self.ended_by_us) and self._process.poll() is None

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
            self._answered.discard(job)

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
        self.ended_by_us = True
        self.send(shutdown_message())
        self._close_input()
        if self._wait(SHUTDOWN_S) is None:
            self.kill()
        else:
            _kill_group(self._process.pid)  # what the engine started, and left behind

    def abandon(self) -> None:
        """End the engine in the background, with time to remove its unfinished files."""
        self.ended_by_us = True
        threading.Thread(target=self.stop, daemon=True).start()

    def kill(self) -> None:
        """End the engine and all that it started, at once."""
        self.ended_by_us = True
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

    @staticmethod
    def _start_thread(work: Callable[..., None], *arguments: Any) -> threading.Thread:
        # daemon: QGIS must be able to end while an engine still answers
        thread = threading.Thread(target=work, args=arguments, daemon=True)
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
        self._mark_ended()

    def _watch_end(self) -> None:
        self._process.wait()
        # a program that the engine started may hold the pipe open after the engine's end
        self._event_reader.join(PIPE_S)
        self._mark_ended()

    def _mark_ended(self) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = True
            # jobs are done in the order in which they came: the first one was at work, unless its
            # answer is here and whoever waits for it has not looked yet
            waiting = (job for job in self._mailboxes if job not in self._answered)
            self.job_at_end = next(waiting, None)
            for mailbox in self._mailboxes.values():
                mailbox.put(None)

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            with self._lock:
                mailbox = self._mailboxes.get(event.job)
                if mailbox is not None and event.is_final:
                    self._answered.add(event.job)
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
        _kill_group(process.pid)
        process.kill()
    except OSError as error:
        logging.getLogger(__name__).info("The engine had gone already: %s", error)


def _kill_group(process_id: int) -> None:
    """End the programs that the engine started; Windows has no such groups."""
    if sys.platform != "win32":
        with suppress(OSError):  # there are none
            os.killpg(process_id, signal.SIGKILL)

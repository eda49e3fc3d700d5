"""The contract between plugin and engine: one JSON object a line, bytes in and bytes out.

In: ``hello``, ``run``, ``cancel``, ``shutdown``. Out: ``hello``, ``progress``, ``info``,
``warning``, ``error``, ``result``. ``DESIGN.md`` has the fields of each.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

LOG = logging.getLogger(__name__)

PROTOCOL_VERSION = 1
READ_SIZE_BYTES = 65536


class ProtocolError(ValueError):
    """A line from the client is not a message of the protocol."""


@dataclass(frozen=True)
class Hello:
    """The client asks who is there, and says which protocol it speaks."""

    protocol: int


@dataclass(frozen=True)
class Run:
    """The client wants a job done; the others that it asked for come first."""

    job: str
    command: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Cancel:
    """The client wants a job stopped, be it running or waiting."""

    job: str


@dataclass(frozen=True)
class Shutdown:
    """The client wants the engine to end."""


Message = Hello | Run | Cancel | Shutdown


def parse_message(line: bytes) -> Message:
    """Read one line from the client.

    Raises:
        ProtocolError: it is no JSON object, or a field is missing or of the wrong type.
    """
    fields = _parse_object(line)
    kind = _field(fields, "type", str)
    if kind == "hello":
        return Hello(_field(fields, "protocol", int))
    if kind == "run":
        return parse_run(fields, _field(fields, "job", str))
    if kind == "cancel":
        return Cancel(_field(fields, "job", str))
    if kind == "shutdown":
        return Shutdown()
    raise ProtocolError(f"There is no message of type {kind!r}.")


def parse_run(fields: dict[str, Any], job: str) -> Run:
    """Read the command and the parameters of a job, from a message or a request file.

    Raises:
        ProtocolError: one of them is missing or of the wrong type.
    """
    return Run(job, _field(fields, "command", str), _field(fields, "parameters", dict))


def parse_request_file(content: bytes) -> Run:
    """Read the request of ``python -m engine run``; its job is always called "1".

    Raises:
        ProtocolError: it is no JSON object with a ``command`` and ``parameters``.
    """
    return parse_run(_parse_object(content), job="1")


def encode_event(event: str, **fields: Any) -> bytes:
    r"""Make one line of an event.

    Numbers that JSON does not have (NaN, infinities) become null. The line is ASCII, so that a
    file name which is no valid text cannot break it, and ends with ``\n`` on every system.
    """
    plain = _plain({"event": event, **fields})
    return json.dumps(plain, allow_nan=False).encode("ascii") + b"\n"


class EventWriter:
    """Writes events for the client, from any thread, one whole line at a time.

    When the client has gone, events are dropped: the end of its messages tells the worker.

    Args:
        stream: binary and writable.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._client_gone = False

    def send(self, event: str, **fields: Any) -> None:
        """Write one event and hand it to the operating system at once."""
        line = encode_event(event, **fields)
        with self._lock:
            if self._client_gone:
                return
            try:
                self._stream.write(line)
                self._stream.flush()
            except OSError as error:  # a closed pipe is EPIPE on Unix and EINVAL on Windows
                self._client_gone = True
                LOG.warning("The client no longer listens: %s", error)


def read_lines(descriptor: int) -> Iterator[bytes]:
    """Yield whole lines until the pipe closes.

    Reads the descriptor itself: a thread that waits in Python's buffered reader holds its lock,
    and the interpreter cannot end while it does.
    """
    pending = b""
    while chunk := os.read(descriptor, READ_SIZE_BYTES):
        *lines, pending = (pending + chunk).split(b"\n")
        yield from lines
    if pending:
        yield pending


def claim_pipes() -> tuple[int, BinaryIO]:
    """Take the protocol's pipes away from everybody else in this process.

    Libraries (and the programs that they start) keep a standard input that is empty and a
    standard output that leads to standard error, so that no print can break the protocol.

    Returns:
        the descriptor of the client's messages, and the stream for events to it.
    """
    messages = os.dup(0)
    events = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    try:
        os.dup2(2, 1)
    except OSError:  # started without a standard error
        os.dup2(nothing, 1)
    os.close(nothing)
    if sys.stdout is None:  # pythonw on Windows
        sys.stdout = sys.stderr
    return messages, events


def _parse_object(text: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"This is not JSON: {_shorten(text)}.") from error
    if not isinstance(fields, dict):
        raise ProtocolError(f"This is not a JSON object: {_shorten(text)}.")
    return fields


def _field(fields: dict[str, Any], name: str, kind: type[Any]) -> Any:
    if name not in fields:
        raise ProtocolError(f"The field {name!r} is missing; found: {', '.join(fields) or 'none'}.")
    value = fields[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ProtocolError(
            f"The field {name!r} must be of type {kind.__name__}, not {type(value).__name__}."
        )
    return value


def _shorten(text: bytes) -> str:
    return repr(text[:80].decode("utf-8", "replace")) + (" …" if len(text) > 80 else "")


def _plain(value: Any) -> Any:
    """Make a value of JSON's own types; scalars of numpy and torch know how with ``item``."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item"):
        return _plain(value.item())
    raise TypeError(f"{type(value).__name__} cannot be sent to the client.")

"""Bytes from the engine to events, however the pipe cuts them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

NOISE = "noise"
"""Name of the event for a line that is none: a print of a library, a half line of a crash."""

MAX_LINE_BYTES = 16 * 2**20
"""A line longer than this is no event: bulk data goes by files, never through the pipe."""

FINAL_EVENTS = frozenset({"error", "result"})


@dataclass(frozen=True)
class Event:
    """One line of the engine.

    Args:
        name: "hello", "progress", "info", "warning", "error", "result", or `NOISE`.
        job: the job it belongs to; None for the engine's own.
        fields: the line's other fields; of noise, its text as ``message``.
    """

    name: str
    job: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def is_final(self) -> bool:
        """Say whether its job ends with this event."""
        return self.name in FINAL_EVENTS

    def text(self, name: str) -> str:
        """Read a field as text; empty when it is not there."""
        value = self.fields.get(name)
        return "" if value is None else str(value)

    def number(self, name: str) -> float:
        """Read a field as a number; 0 when it is none."""
        value = self.fields.get(name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(value) if is_number else 0.0


class EventStream:
    """Collects bytes to whole lines and reads them as events."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> list[Event]:
        """Take the next bytes, of any length, also none.

        Returns:
            the events that these bytes complete, in order.
        """
        self._rest += chunk
        if b"\n" not in chunk:
            return self._drop_endless_line()
        *lines, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        return [parse_event(line) for line in lines if line.strip()]

    def close(self) -> list[Event]:
        """Read what is left when the pipe has ended without a last line break."""
        rest, self._rest = bytes(self._rest), bytearray()
        return [parse_event(rest)] if rest.strip() else []

    def _drop_endless_line(self) -> list[Event]:
        if len(self._rest) <= MAX_LINE_BYTES:
            return []
        start, self._rest = bytes(self._rest[:200]), bytearray()
        return [_noise(start)]


def parse_event(line: bytes) -> Event:
    """Read one line; whatever is no event becomes noise."""
    try:
        fields = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return _noise(line)
    if not isinstance(fields, dict) or not isinstance(fields.get("event"), str):
        return _noise(line)
    name = fields.pop("event")
    job = fields.pop("job", None)
    return Event(name, None if job is None else str(job), fields)


def _noise(line: bytes) -> Event:
    return Event(NOISE, None, {"message": line.decode("utf-8", "replace").rstrip("\r\n")})

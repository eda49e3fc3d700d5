"""Values of the toolbox to a request, and the engine's result back to the toolbox's outputs.

One rule for names: upper case in the toolbox, lower case in the request, nothing else changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

PROTOCOL_VERSION = 1


def request_parameters(values: Mapping[str, Any]) -> dict[str, Any]:
    """Name the toolbox's values as the engine does, without those that were not given.

    Args:
        values: by parameter name; None and empty text mean "not given".
    """
    return {name.lower(): value for name, value in values.items() if value not in (None, "")}


def toolbox_results(result: Mapping[str, Any], declared: set[str]) -> dict[str, Any]:
    """Name the engine's result as the toolbox does, and keep what the algorithm declares.

    Args:
        result: of the engine's ``result`` event.
        declared: names of the algorithm's outputs.
    """
    results = {name.upper(): value for name, value in result.items() if value is not None}
    return {name: value for name, value in results.items() if name in declared}


def hello_message() -> bytes:
    """Ask who is there."""
    return _encode({"type": "hello", "protocol": PROTOCOL_VERSION})


def run_message(job: str, command: str, parameters: Mapping[str, Any]) -> bytes:
    """Ask for a job.

    Raises:
        ValueError: a parameter is a number that JSON does not have, such as NaN.
    """
    return _encode({"type": "run", "job": job, "command": command, "parameters": parameters})


def cancel_message(job: str) -> bytes:
    """Ask to stop a job, running or waiting."""
    return _encode({"type": "cancel", "job": job})


def shutdown_message() -> bytes:
    """Ask the engine to end."""
    return _encode({"type": "shutdown"})


def _encode(message: Mapping[str, Any]) -> bytes:
    # ASCII, so that a file name that is no valid text cannot break the line
    return json.dumps(message, allow_nan=False).encode("ascii") + b"\n"

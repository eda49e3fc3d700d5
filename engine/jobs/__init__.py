"""Jobs: one module a command, each with a ``Request`` and one function from request to result.

The command ``classify`` is the function ``classify`` in the module ``engine.jobs.classify``, and
its parameters are the fields of ``Request`` there. A new job is a new file, and nothing else. What
several jobs share is in ``request`` and the folder ``shared``, which are no commands.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from engine.errors import RequestError
from engine.feedback import Feedback
from engine.jobs.request import JobRequest


class Job(NamedTuple):
    """A command: its parameters and its function."""

    request_type: type[JobRequest]
    run: Callable[[Any, Feedback], dict[str, Any]]


def commands() -> tuple[str, ...]:
    """List the commands, without importing their modules."""
    names = (module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)
    return tuple(sorted(name for name in names if name != "request"))


def find_job(command: str) -> Job:
    """Import the job of a command; late, because torch and rasterio take a second to import.

    Raises:
        RequestError: there is no such command.
    """
    if command not in commands():
        raise RequestError(
            f"There is no command {command!r}.", f"The commands are {', '.join(commands())}."
        )
    module = import_module(f"engine.jobs.{command}")
    return Job(module.Request, getattr(module, command))

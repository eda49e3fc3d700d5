"""Every way in which a job can fail, each with a sentence and a way out.

A message says what is wrong, which value it was, and ``remedy`` what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class HyperKDError(Exception):
    """Root of all errors that a user may see.

    Args:
        sentence: what is wrong, with the value that is wrong.
        remedy: what the user can do; may be empty when the sentence already says it.
    """

    def __init__(self, sentence: str, remedy: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.sentence} {self.remedy}".strip()


class RequestError(HyperKDError, ValueError):
    """The request names an unknown command or parameter, or a value out of range."""


class SceneError(HyperKDError, OSError):
    """A raster cannot be opened or read, or its bands do not form one scene."""


class BandTableError(HyperKDError, ValueError):
    """A scene has no wavelengths, or a band table cannot be understood."""


class BandMatchError(HyperKDError, ValueError):
    """The scene's bands do not cover those that the model needs.

    ``rows`` are those of the match that was refused, one a model band, for reports.
    """

    def __init__(self, sentence: str, remedy: str = "", rows: Sequence[Any] = ()) -> None:
        super().__init__(sentence, remedy)
        self.rows = tuple(rows)


class LabelError(HyperKDError, ValueError):
    """Training or reference labels cannot be used."""


class PackageError(HyperKDError, ValueError):
    """A model package is damaged, unknown, of a newer format, or does not fit the job."""


class TrainingError(HyperKDError, RuntimeError):
    """A training cannot go on: it diverged, or its checkpoint is of another run."""


class CapacityError(HyperKDError, MemoryError):
    """There is too little memory for what was asked, found out before the work began."""


class OutputError(HyperKDError, OSError):
    """An output cannot be written."""


class DeviceError(HyperKDError, RuntimeError):
    """The device that was asked for cannot be used."""


class CancelledError(HyperKDError):
    """The user cancelled the job."""

    def __init__(self) -> None:
        super().__init__("The job was cancelled.")

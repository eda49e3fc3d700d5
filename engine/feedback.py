"""How a job speaks to its user while it works: progress, messages, and the wish to stop."""

from __future__ import annotations

from typing import Protocol


class Feedback(Protocol):
    """What a job is given to report on itself; the same idea as QGIS's feedback."""

    def progress(self, fraction: float, message: str = "") -> None:
        """Report the share of the work that is done, 0 to 1, and the step it is in."""

    def info(self, message: str) -> None:
        """Tell the user a fact about the run."""

    def warning(self, message: str) -> None:
        """Tell the user about something that may make the result worse."""

    def raise_if_cancelled(self) -> None:
        """Raise `CancelledError` when the user wants to stop; call it between batches."""


class SilentFeedback:
    """Feedback that nobody listens to: for benchmarks and library use."""

    def progress(self, fraction: float, message: str = "") -> None:
        """Ignore the progress."""

    def info(self, message: str) -> None:
        """Ignore the message."""

    def warning(self, message: str) -> None:
        """Ignore the warning."""

    def raise_if_cancelled(self) -> None:
        """Never cancelled."""


class StepFeedback:
    """Maps the progress of one step, 0 to 1, to its share of the whole job.

    Args:
        feedback: of the whole job.
        start: fraction of the job at which the step starts.
        end: fraction of the job at which the step ends.
    """

    def __init__(self, feedback: Feedback, start: float, end: float) -> None:
        self._feedback = feedback
        self._start = start
        self._end = end

    def progress(self, fraction: float, message: str = "") -> None:
        """Report the step's share as the job's."""
        self._feedback.progress(self._start + fraction * (self._end - self._start), message)

    def info(self, message: str) -> None:
        """Pass the message on."""
        self._feedback.info(message)

    def warning(self, message: str) -> None:
        """Pass the warning on."""
        self._feedback.warning(message)

    def raise_if_cancelled(self) -> None:
        """Pass the question on."""
        self._feedback.raise_if_cancelled()

"""The engine's news to QGIS's feedback, and the user's cancel back."""

from __future__ import annotations

from qgis.core import QgsApplication, QgsProcessingFeedback, QgsProcessingMultiStepFeedback
from qgis.PyQt.QtCore import QCoreApplication, QThread

from .engine_client import JobListener
from .events import Event


class FeedbackListener(JobListener):
    """Tells a Processing feedback what the engine says.

    Args:
        feedback: of the run.
    """

    def __init__(self, feedback: QgsProcessingFeedback) -> None:
        self._feedback = feedback
        self._step = ""
        application = QCoreApplication.instance()
        # until 3.36 a batch runs in the main thread, where nobody else would let its Cancel
        # button be clicked; a batch is known by its feedback of several steps
        self._must_keep_dialog_alive = (
            isinstance(feedback, QgsProcessingMultiStepFeedback)
            and application is not None
            and QThread.currentThread() == application.thread()
        )

    def is_cancelled(self) -> bool:
        """Ask whether the user wants to stop."""
        if self._must_keep_dialog_alive:
            QCoreApplication.processEvents()
        return bool(self._feedback.isCanceled())

    def started(self, hello: Event) -> None:
        """Say which device works, and why: the first line of each log."""
        self._feedback.pushInfo(
            f"HyperKD engine {hello.text('engine_version')}, Python {hello.text('python')}, "
            f"{hello.text('device')} ({hello.text('device_reason')})"
        )

    def progress(self, fraction: float, message: str) -> None:
        """Move the bar and name the step."""
        if message and message != self._step:
            self._step = message
            self._feedback.setProgressText(message)
        self._feedback.setProgress(100.0 * fraction)

    def info(self, message: str) -> None:
        """Add a line to the log; a table in letters of one width."""
        if "\n" in message and QgsApplication.platform() == "desktop":
            # the log is HTML, where several spaces count as one
            self._feedback.pushCommandInfo(message.replace("  ", "\u00a0\u00a0"))
        else:
            self._feedback.pushInfo(message)

    def warning(self, message: str) -> None:
        """Add a warning to the log."""
        self._feedback.pushWarning(message)

"""Check the engine: what is installed, which device works, and what to do when something is not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputDefinition,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterFileDestination,
)

from .base import EngineAlgorithm


class CheckEngine(EngineAlgorithm):
    """Reports on the engine; also runs, and says what to do, where there is none."""

    command = "check_engine"
    title = "Check the engine"
    keywords = ("engine", "GPU", "CUDA", "versions", "installation", "self-test", "help")
    section = ("tools", "Tools")
    scene_parameter = ""
    report_name = "engine.txt"

    def define(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the parameters."""
        yield QgsProcessingParameterFileDestination(
            "REPORT",
            self.tr("Report"),
            fileFilter="Text (*.txt)",
            optional=True,
            createByDefault=False,
        )

    def define_outputs(self) -> Iterable[QgsProcessingOutputDefinition]:
        """List the report's text."""
        yield self.text_output("TEXT", "What the report says")

    def canExecute(self) -> tuple[bool, str]:
        """Run always: a missing engine is what this algorithm explains best."""
        return True, ""

    def run_engine(
        self, request: dict[str, Any], feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """Ask the engine about itself; when it cannot answer, report that."""
        try:
            return super().run_engine(request, feedback)
        except QgsProcessingException as failure:
            if feedback.isCanceled():
                raise
            text = f"{failure}\n"
            feedback.reportError(text)
            Path(request["report"]).write_text(text, encoding="utf-8")
            return {"report": request["report"], "text": text}

"""Check the engine: what is installed, which device works, and what to do when something is not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputDefinition,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterFileDestination,
    QgsProcessingUtils,
)

from .base import EngineAlgorithm
from .values import ValueReader


class CheckEngine(EngineAlgorithm):
    """Reports on the engine; also runs, and says what to do, where there is none."""

    command = "check_engine"
    title = "Check the engine"
    keywords = ("engine", "GPU", "CUDA", "versions", "installation", "self-test", "help")
    section = ("tools", "Tools")
    scene_parameter = ""

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

    def build_request(self, values: ValueReader) -> dict[str, Any]:
        """Write the report in any case, if need be to a temporary file."""
        request = super().build_request(values)
        if not request["REPORT"]:
            request["REPORT"] = QgsProcessingUtils.generateTempFilename("hyperkd_engine.txt")
        return request

    def processAlgorithm(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        feedback: QgsProcessingFeedback,
    ) -> dict[str, Any]:
        """Ask the engine about itself; when it cannot answer, report that."""
        path = Path(self._request["report"])
        try:
            self._results = super().processAlgorithm(parameters, context, feedback)
        except QgsProcessingException as failure:
            if feedback.isCanceled():
                raise
            text = f"{failure}\n"
            path.write_text(text, encoding="utf-8")
            feedback.reportError(text)
            self._results = {"REPORT": str(path)}
        self._results["TEXT"] = path.read_text(encoding="utf-8")
        return self._results

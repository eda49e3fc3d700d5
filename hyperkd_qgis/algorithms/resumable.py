"""Trainings that leave a checkpoint when they are interrupted, and go on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qgis.core import QgsProcessingParameterDefinition

from . import parameters as make
from .base import EngineAlgorithm
from .values import ValueReader

CHECKPOINT_SUFFIX = ".checkpoint.safetensors"


class ResumableTraining(EngineAlgorithm):
    """Keeps what was learnt beside its output, until it is done."""

    def resume_parameter(self) -> QgsProcessingParameterDefinition:
        """Ask whether to go on with an interrupted run."""
        return make.switch("RESUME", self.tr("Go on with a run that was interrupted"))

    def resume_problem(self, values: ValueReader) -> str:
        """Check that there is a place from which an interrupted run can go on."""
        if values.flag("RESUME") and "OUTPUT" not in values.output_paths():
            return self.tr(
                "A run can only go on when its OUTPUT is the same file as before: name that file, "
                "or switch RESUME off."
            )
        return ""

    def cancelled_text(self, request: dict[str, Any]) -> str:
        """Say where the checkpoint is, when there is one."""
        checkpoint = Path(f"{request['output']}{CHECKPOINT_SUFFIX}")
        if not checkpoint.is_file():
            return super().cancelled_text(request)
        return self.tr(
            "Cancelled. What was learnt until now is in {checkpoint}: run again with the same "
            "settings and RESUME to go on from there."
        ).format(checkpoint=checkpoint)

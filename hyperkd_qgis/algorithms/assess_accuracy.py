"""Assess accuracy: a class map and a reference in, scores and a report out."""

from __future__ import annotations

from collections.abc import Iterable

from qgis.core import (
    QgsProcessingOutputDefinition,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterRasterLayer,
)

from . import parameters as make
from .base import SCORES, EngineAlgorithm
from .values import ValueReader


class AssessAccuracy(EngineAlgorithm):
    """Compares a class map with what is known about the ground."""

    command = "assess_accuracy"
    title = "Assess accuracy"
    keywords = ("accuracy", "validation", "confusion matrix", "kappa", "F1", "reference")

    def define(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the parameters."""
        yield QgsProcessingParameterRasterLayer("INPUT", self.tr("Class map"))
        yield make.labels("REFERENCE", self.tr("Reference"))
        yield make.class_field("CLASS_FIELD", self.tr("Field with the classes"), "REFERENCE")
        yield make.html_report("REPORT", self.tr("Accuracy report"))

    def define_outputs(self) -> Iterable[QgsProcessingOutputDefinition]:
        """List the scores."""
        return self.number_outputs(SCORES)

    def find_problem(self, values: ValueReader) -> str:
        """Check the reference's field."""
        return values.label_problem("REFERENCE", "CLASS_FIELD")

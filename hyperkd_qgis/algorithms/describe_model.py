"""Describe a model: a package in, a readable report out."""

from __future__ import annotations

from collections.abc import Iterable

from qgis.core import QgsProcessingParameterDefinition, QgsProcessingParameterRasterLayer

from . import parameters as make
from .base import EngineAlgorithm
from .values import ValueReader


class DescribeModel(EngineAlgorithm):
    """Shows what a model package holds, and how it fits a scene."""

    command = "describe_model"
    title = "Describe a model"
    keywords = ("model", "package", "bands", "wavelengths", "classes", "metadata")
    section = ("tools", "Tools")
    report_name = "model.html"

    def define(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the parameters."""
        yield make.model("MODEL", self.tr("Model"), self.session.default_model())
        yield QgsProcessingParameterRasterLayer(
            "INPUT", self.tr("Scene, to show how its bands match"), optional=True
        )
        yield make.html_report("REPORT", self.tr("Model report"))

    def find_problem(self, values: ValueReader) -> str:
        """Check the model's name."""
        return self.session.model_problem(values.text("MODEL"))

"""What the trainings on labelled places share: a backbone to begin with, and their settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from qgis.core import QgsProcessingOutputDefinition, QgsProcessingParameterDefinition

from . import parameters as make
from .base import SCORES, EngineAlgorithm
from .values import ValueReader

DEFAULT_EPOCHS = 100
DEFAULT_VALIDATION = 0.25


class PlacesTraining(EngineAlgorithm):
    """Trains a model of the user's own on labelled places in scenes."""

    field_parameter: ClassVar[str] = ""
    """Name of the field of the labels."""
    default_epochs: ClassVar[int] = DEFAULT_EPOCHS

    def define_labels(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the parameters of the labelled places."""
        return ()

    def define_start(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List what training begins with."""
        yield make.model(
            "BACKBONE", self.tr("Begin with this model"), None, use="backbone", optional=True
        )

    def define_method(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the advanced parameters of how that is trained."""
        yield make.switch("FREEZE_BACKBONE", self.tr("Leave the backbone as it is"))

    def define_more(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the advanced parameters that only this training has."""
        return ()

    def define_computing(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the advanced parameters of where and how to compute."""
        yield make.device("DEVICE", self.tr("Device"))

    def define(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the parameters."""
        yield make.scenes("INPUT", self.tr("Scenes"))
        yield from self.define_labels()
        yield from self.define_start()
        yield make.epochs("EPOCHS", self.tr("Epochs at most"), self.default_epochs)
        yield make.validation("VALIDATION", self.tr("Share of blocks held out"), DEFAULT_VALIDATION)
        yield from (make.advanced(definition) for definition in self._define_advanced())
        yield make.package("OUTPUT", self.tr("Model package"))
        yield make.html_report("REPORT", self.tr("Report"))

    def _define_advanced(self) -> Iterable[QgsProcessingParameterDefinition]:
        yield from self.define_method()
        yield from self.define_more()
        yield make.seed("SEED", self.tr("Seed"))
        yield from self.define_computing()

    def find_problem(self, values: ValueReader) -> str:
        """Check the labels' field and what training begins with."""
        problem = self.find_start_problem(values)
        return problem or values.label_problem("TRAINING", self.field_parameter)

    def find_start_problem(self, values: ValueReader) -> str:
        """Say what is wrong with the model to begin with; empty when nothing is."""
        backbone = values.text("BACKBONE")
        if backbone:
            return self.session.model_problem(backbone, "backbone")
        if values.flag("FREEZE_BACKBONE"):
            return self.tr(
                "There is no backbone that could be left as it is. Choose one to begin with "
                "(BACKBONE), or switch FREEZE_BACKBONE off."
            )
        return ""


class ClassTraining(PlacesTraining):
    """Trains a model of classes."""

    field_parameter = "CLASS_FIELD"

    def define_labels(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the parameters of the labelled places."""
        yield make.labels("TRAINING", self.tr("Labelled places"))
        yield make.class_field("CLASS_FIELD", self.tr("Field with the classes"), "TRAINING")

    def define_outputs(self) -> Iterable[QgsProcessingOutputDefinition]:
        """List the scores on the held-out blocks."""
        return self.number_outputs(SCORES)

    def build_request(self, values: ValueReader) -> dict[str, Any]:
        """Add the names and colours of the labels' legend."""
        request = super().build_request(values)
        request["CLASSES"] = values.classes("TRAINING", "CLASS_FIELD")
        return request

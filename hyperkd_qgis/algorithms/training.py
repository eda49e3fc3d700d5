"""What the trainings on labelled places share: a backbone to begin with, and their settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from qgis.core import QgsProcessingParameterDefinition

from . import parameters as make
from .base import EngineAlgorithm
from .values import ValueReader

DEFAULT_EPOCHS = 100
DEFAULT_VALIDATION = 0.25


class PlacesTraining(EngineAlgorithm):
    """Trains a model of the user's own on labelled places in scenes."""

    field_parameter: ClassVar[str] = ""
    """Name of the field of the labels."""

    def define_labels(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the parameters of the labelled places."""
        return ()

    def define_more(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the advanced parameters that only this training has."""
        return ()

    def define(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the parameters."""
        yield make.scenes("INPUT", self.tr("Scenes"))
        yield from self.define_labels()
        yield make.model(
            "BACKBONE", self.tr("Begin with this model"), None, use="backbone", optional=True
        )
        yield make.epochs("EPOCHS", self.tr("Epochs at most"), DEFAULT_EPOCHS)
        yield make.validation("VALIDATION", self.tr("Share of blocks held out"), DEFAULT_VALIDATION)
        yield from (make.advanced(definition) for definition in self._define_advanced())
        yield make.package("OUTPUT", self.tr("Model package"))
        yield make.html_report("REPORT", self.tr("Report"))

    def _define_advanced(self) -> Iterable[QgsProcessingParameterDefinition]:
        yield make.switch("FREEZE_BACKBONE", self.tr("Leave the backbone as it is"))
        yield from self.define_more()
        yield make.seed("SEED", self.tr("Seed"))
        yield make.device("DEVICE", self.tr("Device"))

    def find_problem(self, values: ValueReader) -> str:
        """Check the labels' field and the model to begin with."""
        backbone = values.text("BACKBONE")
        problem = self.session.model_problem(backbone, "backbone") if backbone else ""
        if not backbone and values.flag("FREEZE_BACKBONE"):
            problem = self.tr(
                "There is no backbone that could be left as it is. Choose one to begin with "
                "(BACKBONE), or switch FREEZE_BACKBONE off."
            )
        return problem or values.label_problem("TRAINING", self.field_parameter)

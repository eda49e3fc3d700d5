"""Train a classifier: labelled places in scenes in, a model package out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingOutputDefinition,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterNumber,
)

from . import parameters as make
from .base import EngineAlgorithm
from .values import ValueReader

DEFAULT_EPOCHS = 100
DEFAULT_VALIDATION = 0.25


class TrainClassifier(EngineAlgorithm):
    """Makes a classifier of the user's own."""

    command = "train_classifier"
    title = "Train a land cover classifier"
    keywords = ("train", "fit", "learn", "classification", "samples", "deep learning")

    def define(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the parameters."""
        yield QgsProcessingParameterMultipleLayers(
            "INPUT", self.tr("Scenes"), QgsProcessing.TypeRaster
        )
        yield make.labels("TRAINING", self.tr("Labelled places"))
        yield make.class_field("CLASS_FIELD", self.tr("Field with the classes"), "TRAINING")
        yield make.model("BACKBONE", self.tr("Begin with this model"), None, optional=True)
        yield QgsProcessingParameterNumber(
            "EPOCHS",
            self.tr("Epochs at most"),
            type=QgsProcessingParameterNumber.Integer,
            defaultValue=DEFAULT_EPOCHS,
            minValue=1,
            maxValue=10000,
        )
        yield QgsProcessingParameterNumber(
            "VALIDATION",
            self.tr("Share of blocks held out"),
            type=QgsProcessingParameterNumber.Double,
            defaultValue=DEFAULT_VALIDATION,
            minValue=0.05,
            maxValue=0.5,
        )
        yield make.advanced(
            QgsProcessingParameterNumber(
                "SEED",
                self.tr("Seed"),
                type=QgsProcessingParameterNumber.Integer,
                defaultValue=0,
                minValue=0,
            )
        )
        yield make.advanced(make.device("DEVICE", self.tr("Device")))
        yield QgsProcessingParameterFileDestination(
            "OUTPUT", self.tr("Model package"), fileFilter="HyperKD model package (*.zip)"
        )
        yield make.html_report("REPORT", self.tr("Report"))

    def define_outputs(self) -> Iterable[QgsProcessingOutputDefinition]:
        """List the scores on the held-out blocks."""
        return self.score_outputs()

    def find_problem(self, values: ValueReader) -> str:
        """Check the labels' field and the model to begin with."""
        backbone = values.text("BACKBONE")
        problem = self.session.model_problem(backbone) if backbone else ""
        return problem or values.label_problem("TRAINING", "CLASS_FIELD")

    def build_request(self, values: ValueReader) -> dict[str, Any]:
        """Add the names and colours of the labels' legend."""
        request = super().build_request(values)
        request["CLASSES"] = values.classes("TRAINING", "CLASS_FIELD")
        return request

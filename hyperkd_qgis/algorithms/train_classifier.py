"""Train a classifier: labelled places in scenes in, a model package out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qgis.core import QgsProcessingOutputDefinition, QgsProcessingParameterDefinition

from . import parameters as make
from .base import SCORES
from .training import PlacesTraining
from .values import ValueReader


class TrainClassifier(PlacesTraining):
    """Makes a classifier of the user's own."""

    command = "train_classifier"
    title = "Train a land cover classifier"
    keywords = ("train", "fit", "learn", "classification", "samples", "deep learning")
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

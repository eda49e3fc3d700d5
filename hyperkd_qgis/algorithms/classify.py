"""Classify land cover: a scene and a model in, a class map out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from qgis.core import QgsProcessingParameterDefinition, QgsProcessingParameterRasterDestination

from ..layers import CLASSES, SHARE, ResultLook
from .prediction import ScenePrediction


class Classify(ScenePrediction):
    """Maps land cover with a trained model."""

    command = "classify"
    title = "Classify land cover"
    keywords = (
        "land cover",
        "classification",
        "deep learning",
        "predict",
        "map",
        "EnMAP",
        "PRISMA",
    )
    use = "classifier"
    looks: ClassVar[dict[str, ResultLook]] = {
        "OUTPUT": ResultLook(CLASSES, "Land cover", 0),
        "CONFIDENCE": ResultLook(SHARE, "Confidence", 1),
        "PROBABILITIES": ResultLook(SHARE, "Probabilities", 2),
    }

    def define_maps(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the class map, and what the model thinks of it."""
        yield QgsProcessingParameterRasterDestination("OUTPUT", self.tr("Land cover"))
        for name, title in (("CONFIDENCE", "Confidence"), ("PROBABILITIES", "Probabilities")):
            yield QgsProcessingParameterRasterDestination(
                name, self.tr(title), optional=True, createByDefault=False
            )

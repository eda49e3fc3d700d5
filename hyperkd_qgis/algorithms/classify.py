"""Classify land cover: a scene and a model in, a class map out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from qgis.core import (
    QgsProcessing,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterExtent,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterFile,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
)

from ..layers import CLASSES, SHARE, ResultLook
from . import parameters as make
from .base import EngineAlgorithm
from .values import ValueReader

MIN_TILE_PX = 16
MAX_TILE_PX = 4096


class Classify(EngineAlgorithm):
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
    looks: ClassVar[dict[str, ResultLook]] = {
        "OUTPUT": ResultLook(CLASSES, "Land cover", 0),
        "CONFIDENCE": ResultLook(SHARE, "Confidence", 1),
        "PROBABILITIES": ResultLook(SHARE, "Probabilities", 2),
    }

    def define(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the parameters."""
        yield QgsProcessingParameterRasterLayer("INPUT", self.tr("Scene"))
        yield make.model("MODEL", self.tr("Model"), self.session.default_model())
        yield QgsProcessingParameterFeatureSource(
            "MASK",
            self.tr("Only inside polygons"),
            [QgsProcessing.TypeVectorPolygon],
            optional=True,
        )
        yield QgsProcessingParameterExtent("EXTENT", self.tr("Extent"), optional=True)
        yield from (make.advanced(definition) for definition in self._define_advanced())
        yield QgsProcessingParameterRasterDestination("OUTPUT", self.tr("Land cover"))
        for name, title in (("CONFIDENCE", "Confidence"), ("PROBABILITIES", "Probabilities")):
            yield QgsProcessingParameterRasterDestination(
                name, self.tr(title), optional=True, createByDefault=False
            )

    def _define_advanced(self) -> Iterable[QgsProcessingParameterDefinition]:
        yield QgsProcessingParameterFile(
            "BANDS", self.tr("Band table (CSV)"), extension="csv", optional=True
        )
        yield make.device("DEVICE", self.tr("Device"))
        yield make.require_gpu("REQUIRE_GPU", self.tr("Stop when there is no usable GPU"))
        yield QgsProcessingParameterNumber(
            "TILE_SIZE",
            self.tr("Tile size (pixels)"),
            type=QgsProcessingParameterNumber.Integer,
            optional=True,
            minValue=MIN_TILE_PX,
            maxValue=MAX_TILE_PX,
        )
        yield make.precision("PRECISION", self.tr("Precision"))

    def find_problem(self, values: ValueReader) -> str:
        """Check the model's name and where the extent lies."""
        return self.session.model_problem(values.text("MODEL")) or values.extent_problem("EXTENT")

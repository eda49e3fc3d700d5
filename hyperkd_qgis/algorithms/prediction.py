"""What all maps of a scene by a model share: which scene, which model, which part, how."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from qgis.core import (
    QgsProcessing,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterExtent,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
)

from . import parameters as make
from .base import EngineAlgorithm
from .values import ValueReader

MIN_TILE_PX = 16
MAX_TILE_PX = 4096

SHARES = {
    "CONFIDENCE": "Confidence",
    "PROBABILITIES": "Probabilities",
    "SUPPORT": "Support: how familiar the spectrum is",
}


class ScenePrediction(EngineAlgorithm):
    """Maps a scene with a trained model."""

    use: ClassVar[str] = "any"
    """Which models can be chosen, a word of `..model_catalogue.USES`."""

    def define_maps(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the rasters that are made."""
        return ()

    def define_more(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the advanced parameters that only this map has."""
        return ()

    def define(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the parameters."""
        yield QgsProcessingParameterRasterLayer("INPUT", self.tr("Scene"))
        yield make.model(
            "MODEL", self.tr("Model"), self.session.default_model(self.use), use=self.use
        )
        yield QgsProcessingParameterFeatureSource(
            "MASK",
            self.tr("Only inside polygons"),
            [QgsProcessing.TypeVectorPolygon],
            optional=True,
        )
        yield QgsProcessingParameterExtent("EXTENT", self.tr("Extent"), optional=True)
        yield from (make.advanced(definition) for definition in self._define_advanced())
        yield from self.define_maps()

    def _define_advanced(self) -> Iterable[QgsProcessingParameterDefinition]:
        yield make.table("BANDS", self.tr("Band table (CSV)"))
        yield make.device("DEVICE", self.tr("Device"))
        yield make.require_gpu("REQUIRE_GPU", self.tr("Stop when there is no usable GPU"))
        yield make.whole_number(
            "TILE_SIZE", self.tr("Tile size (pixels)"), None, MIN_TILE_PX, MAX_TILE_PX
        )
        yield make.precision("PRECISION", self.tr("Precision"))
        yield from self.define_more()

    def find_problem(self, values: ValueReader) -> str:
        """Check which model it is and where the extent lies."""
        problem = self.session.model_problem(values.text("MODEL"), self.use)
        return problem or values.extent_problem("EXTENT")


class ClassPrediction(ScenePrediction):
    """Maps classes, and on request how sure the model is of them and what it knows."""

    def define_maps(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the class map, what the model thinks of it, and how familiar the ground is."""
        yield QgsProcessingParameterRasterDestination("OUTPUT", self.tr("Land cover"))
        for name, title in SHARES.items():
            yield QgsProcessingParameterRasterDestination(
                name, self.tr(title), optional=True, createByDefault=False
            )

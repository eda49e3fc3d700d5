"""Estimate a quantity: a scene and a model of a quantity in, a raster of its values out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from qgis.core import QgsProcessingParameterDefinition, QgsProcessingParameterRasterDestination

from ..layer_styles import VALUES
from ..layers import ResultLook
from .prediction import ScenePrediction


class Estimate(ScenePrediction):
    """Maps a quantity, such as soil organic carbon, with a trained model."""

    command = "estimate"
    title = "Estimate a quantity"
    keywords = ("regression", "quantity", "predict", "map", "soil organic carbon", "biomass")
    section = ("quantities", "Quantities")
    use = "regression"
    looks: ClassVar[dict[str, ResultLook]] = {"OUTPUT": ResultLook(VALUES, "Estimate")}

    def define_maps(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the map."""
        yield QgsProcessingParameterRasterDestination("OUTPUT", self.tr("Estimate"))

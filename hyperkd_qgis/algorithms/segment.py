"""Segment a scene: a scene and a segmentation model in, a class map and polygons out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from qgis.core import QgsProcessingParameterDefinition

from ..layer_styles import CLASS_POLYGONS, CLASSES, SHARE
from ..layers import ResultLook
from . import parameters as make
from .prediction import MAX_TILE_PX, ClassPrediction

MAX_AREA_M2 = 1e12


class Segment(ClassPrediction):
    """Maps land cover with a foundation model that was adapted to spectra."""

    command = "segment"
    title = "Segment a scene"
    keywords = (
        "segmentation",
        "land cover",
        "SpectralX",
        "foundation model",
        "polygons",
        "vectorize",
        "domain generalization",
        "predict",
        "map",
        "EnMAP",
        "deep learning",
    )
    use = "segmenter"
    looks: ClassVar[dict[str, ResultLook]] = {
        "POLYGONS": ResultLook(CLASS_POLYGONS, "Polygons", 0, legend="OUTPUT"),
        "OUTPUT": ResultLook(CLASSES, "Land cover", 1),
        "CONFIDENCE": ResultLook(SHARE, "Confidence", 2),
        "SUPPORT": ResultLook(SHARE, "Support", 3),
        "PROBABILITIES": ResultLook(SHARE, "Probabilities", 4),
    }

    def define_more(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List how tiles meet and which polygons are left out."""
        yield make.whole_number(
            "OVERLAP", self.tr("Overlap of tiles (pixels)"), None, 0, MAX_TILE_PX
        )
        yield make.number(
            "MIN_AREA", self.tr("Smallest polygon (square metres)"), 0.0, 0.0, MAX_AREA_M2
        )

    def define_maps(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the rasters, and the polygons of the class map."""
        yield from super().define_maps()
        yield make.polygons("POLYGONS", self.tr("Polygons of the classes"))

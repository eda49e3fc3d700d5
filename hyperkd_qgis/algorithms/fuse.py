"""Fuse two images: spectra of the one at the resolution of the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from qgis.core import (
    QgsProcessingOutputDefinition,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterExtent,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
)

from ..layer_styles import CUBE, RESIDUAL
from ..layers import ResultLook
from ..model_catalogue import AUTOMATIC
from . import parameters as make
from .pairs import PairAlgorithm
from .values import ValueReader

LEARNT = "csakd"
METHODS = (LEARNT, "bicubic", "gsa", "glphs", "cnmf")
DATA_TYPES = ("int16", "float32")
MIN_TILE_PX, MAX_TILE_PX = 8, 4096

NUMBERS = {
    "SHIFT_X": "Shift to the right that was corrected (coarse pixels)",
    "SHIFT_Y": "Shift down that was corrected (coarse pixels)",
    "CONSISTENCY_HSI": "Difference from the hyperspectral image (0: none)",
    "CONSISTENCY_MSI": "Difference from the multispectral image (0: none)",
}


class Fuse(PairAlgorithm):
    """Gives a hyperspectral image the resolution of a multispectral one."""

    command = "fuse"
    title = "Fuse a hyperspectral and a multispectral image"
    keywords = (
        "fusion",
        "CSAKD",
        "pansharpening",
        "hypersharpening",
        "sharpen",
        "super-resolution",
        "multispectral",
        "panchromatic",
        "GSA",
        "MTF-GLP-HS",
        "CNMF",
        "EnMAP",
        "PRISMA",
        "Sentinel-2",
        "deep learning",
    )
    looks: ClassVar[dict[str, ResultLook]] = {
        "OUTPUT": ResultLook(CUBE, "Fused image", 0),
        "CONSISTENCY": ResultLook(RESIDUAL, "Consistency", 1),
    }

    def define(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the parameters."""
        yield QgsProcessingParameterRasterLayer("HYPERSPECTRAL", self.tr("Hyperspectral image"))
        yield QgsProcessingParameterRasterLayer(
            "MULTISPECTRAL", self.tr("Multispectral or panchromatic image, finer")
        )
        yield make.choice("METHOD", self.tr("Method"), METHODS)
        yield make.model("MODEL", self.tr("Model, for csakd"), AUTOMATIC, use="fusion")
        yield QgsProcessingParameterExtent("EXTENT", self.tr("Extent"), optional=True)
        yield make.switch(
            "BACK_PROJECTION", self.tr("Make it give back the hyperspectral image exactly")
        )
        yield from (make.advanced(definition) for definition in self._define_advanced())
        yield QgsProcessingParameterRasterDestination("OUTPUT", self.tr("Fused image"))
        yield QgsProcessingParameterRasterDestination(
            "CONSISTENCY", self.tr("Consistency"), optional=True, createByDefault=True
        )
        yield make.html_report("REPORT", self.tr("Report"))

    def _define_advanced(self) -> Iterable[QgsProcessingParameterDefinition]:
        yield from self.define_alignment()
        yield make.choice("DATA_TYPE", self.tr("Numbers in the fused image"), DATA_TYPES)
        yield make.whole_number(
            "TILE_SIZE", self.tr("Tile size (coarse pixels)"), None, MIN_TILE_PX, MAX_TILE_PX
        )
        yield from self.define_computing()

    def define_outputs(self) -> Iterable[QgsProcessingOutputDefinition]:
        """List the shift that was found, and how well both images are given back."""
        return self.number_outputs(NUMBERS)

    def find_problem(self, values: ValueReader) -> str:
        """Check the model, the extent and how the images fit together."""
        return (
            self._model_problem(values.text("MODEL"), values.text("METHOD"))
            or values.extent_problem("EXTENT")
            or self.twice_problem(values)
            or self.alignment_problem(values)
        )

    def _model_problem(self, model: str, method: str) -> str:
        if method != LEARNT and model not in ("", AUTOMATIC):
            return self.tr(
                "METHOD {method} needs no model, and MODEL is '{model}'. Choose {learnt} as the "
                "method, or {automatic} as the model."
            ).format(method=method, model=model, learnt=LEARNT, automatic=AUTOMATIC)
        return self.session.model_problem(model, "fusion")

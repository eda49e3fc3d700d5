"""Assess a fusion: a fused image and a reference, or its two inputs, in; scores out."""

from __future__ import annotations

from collections.abc import Iterable

from qgis.core import (
    QgsProcessingOutputDefinition,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterRasterLayer,
)

from . import parameters as make
from .pairs import PairAlgorithm
from .values import ValueReader

SCORES = {
    "PSNR_DB": "Peak signal-to-noise ratio (dB)",
    "SAM_DEG": "Spectral angle (degrees)",
    "ERGAS": "ERGAS",
    "RMSE": "Root mean square error",
    "UIQI": "Universal image quality index",
    "Q2N": "Q2n, quality of all bands together",
    "CONSISTENCY_HSI": "Difference from the hyperspectral image (0: none)",
    "CONSISTENCY_MSI": "Difference from the multispectral image (0: none)",
}


class AssessFusion(PairAlgorithm):
    """Compares a fused image with a reference, or with what it was made of."""

    command = "assess_fusion"
    title = "Assess a fusion"
    keywords = (
        "fusion",
        "pansharpening",
        "quality",
        "validation",
        "PSNR",
        "SAM",
        "spectral angle",
        "ERGAS",
        "RMSE",
        "UIQI",
        "Q2n",
        "consistency",
    )
    scene_parameter = "INPUT"
    report_name = "fusion.html"

    def define(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the parameters."""
        yield QgsProcessingParameterRasterLayer("INPUT", self.tr("Fused image"))
        for name, title in (
            ("REFERENCE", "Reference: the true image at the fine resolution"),
            ("HYPERSPECTRAL", "Hyperspectral image that it was made of"),
            ("MULTISPECTRAL", "Multispectral image that it was made of"),
        ):
            yield QgsProcessingParameterRasterLayer(name, self.tr(title), optional=True)
        yield from (make.advanced(definition) for definition in self.define_alignment())
        yield make.html_report("REPORT", self.tr("Report"))

    def define_outputs(self) -> Iterable[QgsProcessingOutputDefinition]:
        """List the scores; those that nothing was given for stay empty."""
        return self.number_outputs(SCORES)

    def find_problem(self, values: ValueReader) -> str:
        """Check that there is something to compare with."""
        return (
            self._comparison_problem(values)
            or self.twice_problem(values)
            or self.alignment_problem(values)
        )

    def _comparison_problem(self, values: ValueReader) -> str:
        inputs = {name: values.is_given(name) for name in ("HYPERSPECTRAL", "MULTISPECTRAL")}
        if not values.is_given("REFERENCE") and not any(inputs.values()):
            return self.tr(
                "There is nothing to compare with. Choose a REFERENCE, or both images that it was "
                "made of (HYPERSPECTRAL and MULTISPECTRAL)."
            )
        if any(inputs.values()) and not all(inputs.values()):
            missing = next(name for name, given in inputs.items() if not given)
            return self.tr(
                "{missing} is missing. Consistency needs both images that were fused; choose it, "
                "or neither and a REFERENCE."
            ).format(missing=missing)
        return ""

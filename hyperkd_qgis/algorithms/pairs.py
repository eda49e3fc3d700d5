"""What the algorithms of image fusion share: two images of one place, and how they fit together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from qgis.core import QgsProcessingParameterDefinition

from . import parameters as make
from .base import EngineAlgorithm
from .values import ValueReader

PAIR = ("HYPERSPECTRAL", "MULTISPECTRAL")
ESTIMATE = "estimate"
SHIFTS = {
    ESTIMATE: "Estimate it from the images",
    "0,0": "None: the images fit",
}
RESPONSES = {
    ESTIMATE: "Estimate them from the images",
    "nominal": "From centre and width of each band",
}
MIN_RATIO, MAX_RATIO = 2, 64
DEFAULT_LIMIT_PX, LEAST_LIMIT_PX, MOST_LIMIT_PX = 3.0, 0.1, 16.0


class PairAlgorithm(EngineAlgorithm):
    """Works on a hyperspectral image and a multispectral one of the same place."""

    section = ("fusion", "Image fusion")
    scene_parameter = "HYPERSPECTRAL"

    def define_alignment(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List how the two images fit together: in size, place and bands."""
        yield make.whole_number(
            "RATIO", self.tr("Ratio (fine pixels along a coarse one)"), None, MIN_RATIO, MAX_RATIO
        )
        yield make.words(
            "SHIFT", self.tr("Shift between the images (coarse pixels: right,down)"), SHIFTS
        )
        yield make.number(
            "MAX_SHIFT",
            self.tr("Largest shift that is corrected (coarse pixels)"),
            DEFAULT_LIMIT_PX,
            LEAST_LIMIT_PX,
            MOST_LIMIT_PX,
        )
        yield make.words(
            "RESPONSE", self.tr("Spectral responses of the fine bands"), RESPONSES, suffix="csv"
        )
        yield make.table("BANDS", self.tr("Band table of the hyperspectral image (CSV)"))
        yield make.table(
            "MULTISPECTRAL_BANDS", self.tr("Band table of the multispectral image (CSV)")
        )

    def define_computing(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List where and how exactly to compute."""
        yield make.device("DEVICE", self.tr("Device"))
        yield make.require_gpu("REQUIRE_GPU", self.tr("Stop when there is no usable GPU"))
        yield make.precision("PRECISION", self.tr("Precision"))

    def twice_problem(self, values: ValueReader) -> str:
        """Say which image was chosen in both places; empty when none was.

        Where one layer is loaded, dialogs propose it for both.
        """
        kinds = [values.layers(name) for name in PAIR if values.is_given(name)]
        sources = [{layer.source() for layer in layers} for layers in kinds]
        if len(sources) < len(PAIR):
            return ""
        for layer in kinds[0]:
            if layer.source() in sources[1]:
                return self.tr(
                    "{name} was chosen as the hyperspectral and as the multispectral image. Choose "
                    "two images of the same place."
                ).format(name=layer.name())
        return ""

    def alignment_problem(self, values: ValueReader) -> str:
        """Say what is wrong with shift or responses; empty when nothing is."""
        return self._shift_problem(values.text("SHIFT")) or self._response_problem(
            values.text("RESPONSE")
        )

    def _shift_problem(self, text: str) -> str:
        if text in ("", ESTIMATE) or is_shift(text):
            return ""
        return self.tr(
            "SHIFT is '{text}'. Write {word}, or two numbers with a comma between them, such as "
            "0.5,-1: how far the content of the multispectral image lies too far right, and too "
            "far down, in pixels of the hyperspectral one."
        ).format(text=text, word=ESTIMATE)

    def _response_problem(self, text: str) -> str:
        if text in ("", *RESPONSES) or Path(text).expanduser().is_file():
            return ""
        return self.tr(
            "RESPONSE is '{text}', which is neither {words} nor a file. Choose one of these, or a "
            "CSV of response functions."
        ).format(text=text, words=", ".join(RESPONSES))


def is_shift(text: str) -> bool:
    """Say whether a text is two numbers: how far to the right, how far down."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        return False
    return math.isfinite(x) and math.isfinite(y)

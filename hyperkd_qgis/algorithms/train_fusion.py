"""Train a fusion: pairs of images in, a model package that fuses such pairs out."""

from __future__ import annotations

from collections.abc import Iterable

from qgis.core import QgsProcessingOutputDefinition, QgsProcessingParameterDefinition

from . import parameters as make
from .pairs import PairAlgorithm
from .resumable import ResumableTraining
from .values import ValueReader

DEFAULT_VALIDATION = 0.25
PRESETS = ("laptop", "subspace", "paper")
DISTILLATIONS = ("both", "response", "feature", "none")
FUSIONS = ("repaired", "released", "none")

SCORES = {
    "PSNR_DB": "Peak signal-to-noise ratio on held-out ground (dB)",
    "SAM_DEG": "Spectral angle on held-out ground (degrees)",
    "ERGAS": "ERGAS on held-out ground",
    "TEACHER_PSNR_DB": "Peak signal-to-noise ratio of the teacher (dB)",
    "BEST_CLASSICAL_PSNR_DB": "Peak signal-to-noise ratio of the best classical method (dB)",
    "SHIFT_X": "Shift to the right that was corrected (coarse pixels)",
    "SHIFT_Y": "Shift down that was corrected (coarse pixels)",
    "PARAMETERS": "Numbers in the model",
}


class TrainFusion(ResumableTraining, PairAlgorithm):
    """Makes a model that fuses pairs of two sensors (CSAKD)."""

    command = "train_fusion"
    title = "Train a fusion"
    keywords = (
        "train",
        "fusion",
        "CSAKD",
        "pansharpening",
        "super-resolution",
        "distillation",
        "Wald",
        "EnMAP",
        "Sentinel-2",
        "deep learning",
    )

    def define(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the parameters."""
        yield make.scenes("HYPERSPECTRAL", self.tr("Hyperspectral images"))
        yield make.scenes(
            "MULTISPECTRAL", self.tr("Multispectral images of the same places, in the same order")
        )
        yield make.choice("PRESET", self.tr("Size of the model"), PRESETS)
        yield make.whole_number("EPOCHS", self.tr("Epochs"), None, 1, make.MAX_EPOCHS)
        yield make.validation(
            "VALIDATION", self.tr("Share of the ground held out"), DEFAULT_VALIDATION
        )
        yield from (make.advanced(definition) for definition in self._define_advanced())
        yield make.package("OUTPUT", self.tr("Model package"))
        yield make.html_report("REPORT", self.tr("Report"))

    def _define_advanced(self) -> Iterable[QgsProcessingParameterDefinition]:
        yield self.resume_parameter()
        yield from self.define_alignment()
        yield make.yes_or_no("START", self.tr("Learn what a regression leaves"))
        yield make.choice_of_preset(
            "DISTILLATION", self.tr("What the student learns from the teacher"), DISTILLATIONS
        )
        yield make.choice_of_preset("FUSION", self.tr("Attention between the streams"), FUSIONS)
        yield make.seed("SEED", self.tr("Seed"))
        yield from self.define_computing()
        yield from self.define_package_texts()

    def define_outputs(self) -> Iterable[QgsProcessingOutputDefinition]:
        """List the scores on held-out ground, and what was found out about the pair."""
        return self.number_outputs(SCORES)

    def find_problem(self, values: ValueReader) -> str:
        """Check that images make pairs, how they fit, and that a run can go on."""
        return (
            self._pairs_problem(values)
            or self.twice_problem(values)
            or self.alignment_problem(values)
            or self.resume_problem(values)
        )

    def _pairs_problem(self, values: ValueReader) -> str:
        coarse, fine = values.layers("HYPERSPECTRAL"), values.layers("MULTISPECTRAL")
        if len(coarse) != len(fine):
            return self.tr(
                "There are {coarse} hyperspectral and {fine} multispectral images. Choose as many "
                "of each, in the same order: the first two are a pair, and so on."
            ).format(coarse=len(coarse), fine=len(fine))
        return ""

"""What the trainings without labels share: a preset, a checkpoint to go on from, scores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from qgis.core import QgsProcessingOutputDefinition, QgsProcessingParameterDefinition

from . import parameters as make
from .resumable import ResumableTraining
from .values import ValueReader

DEFAULT_EPOCHS = 200
DEFAULT_VALIDATION = 0.2
DEFAULT_MASK_RATIO = 0.75
MAX_GPUS = 64

SCORES = {
    "PSNR_DB": "Peak signal-to-noise ratio of hidden places (dB)",
    "SSIM": "Structural similarity of hidden places",
    "SPECTRAL_ANGLE_DEG": "Spectral angle of hidden places (degrees)",
    "PSNR_DB_WHOLE": "Peak signal-to-noise ratio of whole tiles (dB)",
    "SSIM_WHOLE": "Structural similarity of whole tiles",
    "SPECTRAL_ANGLE_DEG_WHOLE": "Spectral angle of whole tiles (degrees)",
}


class Pretraining(ResumableTraining):
    """Trains an encoder on scenes alone, by hiding parts of them."""

    section = ("backbones", "Backbones")
    presets: ClassVar[tuple[str, ...]] = ()
    """Sizes of the model; the first is the default."""
    default_epochs: ClassVar[int] = DEFAULT_EPOCHS

    def define_teacher(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List what comes between the scenes and the preset."""
        return ()

    def define_method(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the advanced parameters of the method itself."""
        return ()

    def define(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the parameters."""
        yield make.scenes("INPUT", self.tr("Scenes"))
        yield from self.define_teacher()
        yield make.choice("PRESET", self.tr("Size of the model"), self.presets)
        yield make.epochs("EPOCHS", self.tr("Epochs"), self.default_epochs)
        yield from (make.advanced(definition) for definition in self._define_advanced())
        yield make.package("OUTPUT", self.tr("Model package"))
        yield make.html_report("REPORT", self.tr("Report"))

    def _define_advanced(self) -> Iterable[QgsProcessingParameterDefinition]:
        yield self.resume_parameter()
        yield make.number(
            "MASK_RATIO",
            self.tr("Share of each tile that is hidden"),
            DEFAULT_MASK_RATIO,
            0.1,
            0.95,
        )
        yield from self.define_method()
        yield make.batch_size("BATCH_SIZE", self.tr("Tiles in a step"))
        yield make.learning_rate("LEARNING_RATE", self.tr("Learning rate"))
        yield make.validation(
            "VALIDATION", self.tr("Share of the ground held out"), DEFAULT_VALIDATION
        )
        yield make.seed("SEED", self.tr("Seed"))
        yield make.table("BANDS", self.tr("Band table (CSV)"))
        yield make.device("DEVICE", self.tr("Device"))
        yield make.require_gpu("REQUIRE_GPU", self.tr("Stop when there is no usable GPU"))
        yield make.whole_number("GPUS", self.tr("GPUs that train together"), 1, 1, MAX_GPUS)
        yield make.precision("PRECISION", self.tr("Precision"))
        yield from self.define_package_texts()

    def define_outputs(self) -> Iterable[QgsProcessingOutputDefinition]:
        """List the scores on tiles that were held out."""
        return self.number_outputs(SCORES)

    def find_problem(self, values: ValueReader) -> str:
        """Check that there is a place from which an interrupted run can go on."""
        return self.resume_problem(values)

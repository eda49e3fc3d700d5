"""Train a segmentation: labelled places and a backbone in, a package of adapters and head out."""

from __future__ import annotations

from collections.abc import Iterable

from qgis.core import QgsProcessingOutputDefinition, QgsProcessingParameterDefinition

from . import parameters as make
from .adapt_backbone import DEFAULT_BACKBONE, MAX_BALANCING, PRESETS, SCALINGS
from .training import ClassTraining
from .values import ValueReader

DEFAULT_EPOCHS = 40
MORE_SCORES = {
    "ECE": "Expected calibration error of the confidence",
    "TRAINABLE_PARAMETERS": "Trained parameters",
}
METHODS = ("spectralx", "full", "frozen", "lora", "slr")


class TrainSegmentation(ClassTraining):
    """Makes a segmentation model of the user's own on a foundation model (SpectralX)."""

    command = "train_segmentation"
    title = "Train a segmentation"
    keywords = (
        "train",
        "SpectralX",
        "segmentation",
        "adapter",
        "fine-tuning",
        "LoRA",
        "foundation model",
        "domain generalization",
        "UPerNet",
        "deep learning",
    )

    default_epochs = DEFAULT_EPOCHS

    def define_start(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the backbone, adapted already or not, and the size of what is built on it."""
        yield make.model("ADAPTED", self.tr("Adapted backbone"), None, use="adapted", optional=True)
        yield make.model("BACKBONE", self.tr("Backbone"), DEFAULT_BACKBONE, use="foundation")
        yield make.choice("PRESET", self.tr("Size of the model"), PRESETS)

    def define_method(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the parameters of the adapters and of the head."""
        yield make.choice("ADAPTATION", self.tr("How the backbone is adapted"), METHODS)
        yield make.yes_or_no("TRAIN_TOKENIZER", self.tr("Train the whole tokenizer"))
        yield make.choice_of_preset("SCALING", self.tr("How spectra are scaled"), SCALINGS)
        yield make.number(
            "LOAD_BALANCING", self.tr("Weight of even use of experts"), 0.0, 0.0, MAX_BALANCING
        )
        yield make.yes_or_no("REFINE", self.tr("Refine tokens between blocks"))
        yield make.choice_of_preset(
            "MATCH", self.tr("How tokens find their details"), ("hard", "soft")
        )
        yield make.yes_or_no("SPECTRAL_PATH", self.tr("Let each pixel's spectrum answer too"))

    def define_more(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the parameters of blocks, steps and packages."""
        yield make.block_size("BLOCK_SIZE", self.tr("Side of a block (pixels)"))
        yield make.batch_size("BATCH_SIZE", self.tr("Chips in a step"))
        yield make.learning_rate("LEARNING_RATE", self.tr("Learning rate"))
        yield make.table("BANDS", self.tr("Band table (CSV)"))
        yield from self.define_package_texts()

    def define_computing(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List device and precision: large backbones want a GPU."""
        yield from super().define_computing()
        yield make.require_gpu("REQUIRE_GPU", self.tr("Stop when there is no usable GPU"))
        yield make.precision("PRECISION", self.tr("Precision"))

    def define_outputs(self) -> Iterable[QgsProcessingOutputDefinition]:
        """List the scores on the held-out blocks, and how much was trained."""
        return [*super().define_outputs(), *self.number_outputs(MORE_SCORES)]

    def find_start_problem(self, values: ValueReader) -> str:
        """Check the backbone and its adapters."""
        adapted = values.text("ADAPTED")
        problem = self.session.model_problem(adapted, "adapted") if adapted else ""
        return problem or self.session.model_problem(values.text("BACKBONE"), "foundation")

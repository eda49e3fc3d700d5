"""Adapt a backbone: scenes and a frozen foundation model in, its adapters for spectra out."""

from __future__ import annotations

from collections.abc import Iterable

from qgis.core import QgsProcessingOutputDefinition, QgsProcessingParameterDefinition

from . import parameters as make
from .pretraining import Pretraining
from .values import ValueReader

DEFAULT_BACKBONE = "galileo-nano"
DEFAULT_EPOCHS = 400
PRESETS = ("laptop", "medium", "large", "paper")
SCALINGS = ("standard", "unit", "chip")
MAX_BALANCING = 1.0


class AdaptBackbone(Pretraining):
    """Teaches a frozen foundation model to see all bands of the user's scenes (SpectralX)."""

    command = "adapt_backbone"
    title = "Adapt a backbone"
    keywords = (
        "SpectralX",
        "adapter",
        "fine-tuning",
        "foundation model",
        "masked autoencoder",
        "domain generalization",
        "self-supervised",
        "ScaleMAE",
        "SatMAE++",
        "DINOv3",
        "Prithvi",
        "Galileo",
        "EnMAP",
        "deep learning",
    )
    presets = PRESETS
    default_epochs = DEFAULT_EPOCHS

    def define_teacher(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the backbone, which stays as it is."""
        yield make.model("BACKBONE", self.tr("Backbone"), DEFAULT_BACKBONE, use="foundation")

    def define_method(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the parameters of the adapters."""
        yield make.scenes(
            "TARGETS", self.tr("Further scenes, trained on without scores"), optional=True
        )
        yield make.yes_or_no("MASK_INPUT", self.tr("Hide pixels before the tokenizer"))
        yield make.yes_or_no("TRAIN_TOKENIZER", self.tr("Train the whole tokenizer"))
        yield make.choice_of_preset("SCALING", self.tr("How spectra are scaled"), SCALINGS)
        yield make.number(
            "LOAD_BALANCING", self.tr("Weight of even use of experts"), 0.0, 0.0, MAX_BALANCING
        )

    def define_outputs(self) -> Iterable[QgsProcessingOutputDefinition]:
        """List the scores on held-out tiles, and how much was trained."""
        parameters = {"TRAINABLE_PARAMETERS": "Trained parameters"}
        return [*super().define_outputs(), *self.number_outputs(parameters)]

    def find_problem(self, values: ValueReader) -> str:
        """Check the backbone."""
        problem = self.session.model_problem(values.text("BACKBONE"), "foundation")
        return problem or super().find_problem(values)

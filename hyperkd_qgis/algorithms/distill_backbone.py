"""Distil a backbone: hyperspectral scenes and a multispectral teacher in, an encoder out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qgis.core import QgsProcessingParameterDefinition

from . import parameters as make
from .pretraining import Pretraining
from .values import ValueReader

DEFAULT_TEACHER = "galileo-nano"
MAX_WEIGHT = 1000.0
WEIGHTS = {
    "MSE_WEIGHT": ("Weight of the squared error", 1.0),
    "SSIM_WEIGHT": ("Weight of structural similarity", 0.1),
    "FEATURE_WEIGHT": ("Weight of the teacher", 1.0),
    "SPECTRAL_WEIGHT": ("Weight of the spectra's shape", 0.0),
}
# EnMAP's product tool leaves these out by default: water vapour lets no light through.
DEFAULT_DROP_RANGES = "1358-1453, 1814-1961"
NO_RANGES = "none"


class DistillBackbone(Pretraining):
    """Makes an encoder of hyperspectral scenes that has learnt from a teacher."""

    command = "distill_backbone"
    title = "Distil a backbone"
    keywords = (
        "distillation",
        "teacher",
        "student",
        "masked autoencoder",
        "foundation model",
        "pretraining",
        "self-supervised",
        "Prithvi",
        "Galileo",
        "EnMAP",
        "deep learning",
    )
    presets = ("laptop", "small64", "base128", "d512", "vit_b")

    def define_teacher(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the teacher."""
        yield make.model("TEACHER", self.tr("Teacher"), DEFAULT_TEACHER, use="teacher")

    def define_method(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the parameters of masking, loss and band alignment, in this order."""
        yield make.number(
            "GUIDED_SHARE", self.tr("Share of the hiding that follows the image"), 0.25, 0.0, 1.0
        )
        yield make.choice("HIDE", self.tr("What is rather hidden"), ("informative", "plain"))
        for name, (title, default) in WEIGHTS.items():
            yield make.number(name, self.tr(title), default, 0.0, MAX_WEIGHT)
        yield make.number("TEMPERATURE", self.tr("Temperature of the teacher"), 2.0, 0.1, 20.0)
        yield make.choice("FEATURE_LOSS", self.tr("How features are compared"), ("kl", "mse"))
        yield make.choice("FEATURE_LAYERS", self.tr("Layers compared"), ("last", "quarters"))
        yield make.choice(
            "ALIGNMENT",
            self.tr("How bands become the teacher's"),
            ("mean", "response", "nearest"),
        )
        yield make.table("RESPONSES", self.tr("Response functions of the teacher's bands (CSV)"))
        yield make.text(
            "DROP_RANGES", self.tr("Wavelengths left out (nm)"), default=DEFAULT_DROP_RANGES
        )
        yield make.switch("COPY_TEACHER", self.tr("Begin with copies of the teacher's blocks"))

    def find_problem(self, values: ValueReader) -> str:
        """Check the teacher, the loss and the response functions."""
        return (
            self.session.model_problem(values.text("TEACHER"), "teacher")
            or super().find_problem(values)
            or self._loss_problem(values)
            or self._responses_problem(values)
        )

    def build_request(self, values: ValueReader) -> dict[str, Any]:
        """Say it when no wavelengths are to be left out; silence would mean the usual ones."""
        request = super().build_request(values)
        request["DROP_RANGES"] = request["DROP_RANGES"] or NO_RANGES
        return request

    def _loss_problem(self, values: ValueReader) -> str:
        if any(values.number(name) > 0 for name in WEIGHTS):
            return ""
        return self.tr("All weights are 0, so there is nothing to learn. Give {name} one.").format(
            name="MSE_WEIGHT"
        )

    def _responses_problem(self, values: ValueReader) -> str:
        if not values.text("RESPONSES") or values.text("ALIGNMENT") == "response":
            return ""
        return self.tr(
            "RESPONSES is only used when ALIGNMENT is response. Choose that, or leave it out."
        )

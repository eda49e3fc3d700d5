"""Train a regression: places where a quantity is known in scenes in, a model package out."""

from __future__ import annotations

from collections.abc import Iterable

from qgis.core import QgsProcessingOutputDefinition, QgsProcessingParameterDefinition

from . import parameters as make
from .training import PlacesTraining

SCORES = {
    "RMSE": "Root mean square error, in the quantity's unit",
    "MAE": "Mean absolute error, in the quantity's unit",
    "R2": "Share of the variance that is explained (R²)",
}


class TrainRegression(PlacesTraining):
    """Makes a model of a quantity, such as soil organic carbon."""

    command = "train_regression"
    title = "Train a regression"
    keywords = (
        "train",
        "fit",
        "quantity",
        "regression",
        "soil organic carbon",
        "biomass",
        "PLSR",
        "deep learning",
    )
    section = ("quantities", "Quantities")
    field_parameter = "VALUE_FIELD"

    def define_labels(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the parameters of the places where the quantity is known."""
        yield make.labels("TRAINING", self.tr("Places with known values"))
        yield make.value_field("VALUE_FIELD", self.tr("Field with the values"), "TRAINING")
        yield make.text("QUANTITY", self.tr("Name of the quantity"))
        yield make.text("UNIT", self.tr("Unit"))

    def define_more(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the advanced parameters that only this training has."""
        yield make.block_size("BLOCK_SIZE", self.tr("Side of a block (pixels)"))
        yield make.table("BANDS", self.tr("Band table (CSV)"))
        yield from self.define_package_texts()

    def define_outputs(self) -> Iterable[QgsProcessingOutputDefinition]:
        """List the scores on the held-out blocks."""
        return self.number_outputs(SCORES)

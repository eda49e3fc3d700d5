"""What a model says about itself: everything but its weights, checked when made."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.errors import PackageError
from engine.raster.spectra import BandTable
from engine.raster.style import ClassInfo
from engine.raster.tiles import Tiling

Task = Literal["semantic-segmentation", "regression", "generative", "super-resolution"]
"""What a model is for, in the words of the MLM extension; an encoder alone is generative, and what
fuses two images of one place is for super-resolution."""

# A name is a folder's name on every system, and a valid mlm:name.
NAME_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9_.-]+[A-Za-z0-9]")
LICENCE_PATTERN = re.compile(r"[\w.+-]+")  # SPDX identifiers, as STAC's licensing schema has them
CLASS_VALUES = range(1, 256)  # class maps are uint8, and 0 is their nodata


@dataclass(frozen=True, eq=False)
class Normalisation:
    """The mean spectrum of the training pixels and its spread, in the model's units.

    The model applies it itself, by buffers among its weights; here it stands to be read.

    Args:
        mean: (C,) one value a band.
        std: (C,) one value a band, above 0.

    Raises:
        PackageError: a value is NaN or infinite, a spread is not above 0, the lengths differ.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @classmethod
    def of(cls, mean: ArrayLike, std: ArrayLike) -> Normalisation:
        """Make one from anything that numpy takes as a row of numbers."""
        return cls(np.asarray(mean, dtype=np.float64), np.asarray(std, dtype=np.float64))

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            raise PackageError(
                f"The normalisation has {self.mean.size} means and {self.std.size} spreads.",
                "Each band needs one of both.",
            )
        wrong = ~np.isfinite(self.mean) | ~np.isfinite(self.std) | ~(self.std > 0)
        if wrong.any():
            band_index = int(np.flatnonzero(wrong)[0])
            raise PackageError(
                f"The normalisation of band number {band_index + 1} is mean "
                f"{self.mean[band_index]}, spread {self.std[band_index]}.",
                "Both must be finite and the spread above 0: train again without this band, or "
                "check the training scenes for pixels that are not reflectance.",
            )


@dataclass(frozen=True)
class Quantity:
    """What a model estimates.

    Args:
        name: such as "soil organic carbon".
        unit: such as "g/kg"; empty for a number without one.
        low: smallest value that the model was trained on, in the unit.
        high: largest one.

    Raises:
        PackageError: there is no name, or the range is not finite or not in order.
    """

    name: str
    unit: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise PackageError("The quantity that the model estimates has no name.", "Give it one.")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise PackageError(
                f"The training values of {self.name!r} reach from {self.low} to {self.high}.",
                "Both must be finite and in order: train the model again.",
            )

    @property
    def label(self) -> str:
        """Name and unit as people write them."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


@dataclass(frozen=True, eq=False)
class ModelInfo:
    """A model without its weights.

    Args:
        name: short and stable, letters, digits, ``-``, ``_`` and ``.``; the package's file name.
        title: for people, one line.
        description: for people; what it was made for and what it cannot do.
        version: of the model, not of the engine.
        architecture: key of `engine.packages.build.ARCHITECTURES`.
        config: the architecture's settings; plain values that JSON holds.
        bands: those that the model reads, in its order.
        classes: in the order of the model's outputs; none for a model that has no classes.
        normalisation: of the bands, in their order.
        tiling: how a scene is cut for this model.
        licence: SPDX identifier of the weights' licence, or "other".
        task: what the model is for.
        quantity: what a model for regression estimates; None for every other.
        fine_bands: those of the second, finer image that a model for super-resolution reads, in
            its order; None for every other.
        attribution: whom the licence asks to name, and the data that it was trained on.
        units: of the values that the model reads.
        training: how it was trained, free; plain values.
        scores: on places that training did not see, by name; NaN where there was no sample.
        training_area: (west, south, east, north) in degrees, WGS 84; west > east when it crosses
            the antimeridian.
        training_period: first and last acquisition of the training scenes, aware of time zone.
        created: when the weights were made, aware of time zone.
        engine_version: of the engine that trained it.

    Raises:
        PackageError: a value is missing, out of range, or contradicts another.
    """

    name: str
    title: str
    description: str
    version: str
    architecture: str
    config: dict[str, Any]
    bands: BandTable
    classes: tuple[ClassInfo, ...]
    normalisation: Normalisation
    tiling: Tiling
    licence: str
    task: Task = "semantic-segmentation"
    quantity: Quantity | None = None
    fine_bands: BandTable | None = None
    attribution: str = ""
    units: str = "reflectance 0-1"
    training: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    training_area: tuple[float, float, float, float] | None = None
    training_period: tuple[datetime, datetime] | None = None
    created: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    engine_version: str = ""

    def __post_init__(self) -> None:
        self._check_words()
        self._check_classes()
        self._check_quantity()
        self._check_fine_bands()
        if len(self.normalisation.mean) != len(self.bands):
            raise PackageError(
                f"The model has {len(self.bands)} bands and a normalisation of "
                f"{len(self.normalisation.mean)}.",
                "Each band needs one mean and one spread.",
            )
        _check_area(self.training_area)
        _check_period(self.training_period)

    @property
    def ratio(self) -> int | None:
        """Fine pixels along one side of a coarse one; None for a model of one image."""
        return None if self.fine_bands is None else int(self.config["ratio"])

    def _check_words(self) -> None:
        """Refuse names and identifiers that STAC or a file system would not take."""
        if not NAME_PATTERN.fullmatch(self.name):
            raise PackageError(
                f"{self.name!r} cannot name a model.",
                "Use three or more letters, digits, '-', '_' or '.', a letter first.",
            )
        if not LICENCE_PATTERN.fullmatch(self.licence):
            raise PackageError(
                f"{self.licence!r} is not a licence identifier.",
                "Use an SPDX identifier such as CC-BY-SA-4.0, or 'other'.",
            )
        if self.task not in get_args(Task):
            raise PackageError(
                f"The task {self.task!r} is unknown to this engine.",
                f"It knows {', '.join(get_args(Task))}.",
            )

    def _check_classes(self) -> None:
        """Refuse classes that a class map cannot hold or tell apart."""
        if self.task == "semantic-segmentation" and not self.classes:
            raise PackageError(
                f"The model {self.name!r} classifies but lists no classes.",
                "A package needs value, name and colour of each class: train the model again.",
            )
        values = [item.value for item in self.classes]
        repeated = sorted({value for value in values if values.count(value) > 1})
        if repeated:
            raise PackageError(
                f"The class value {repeated[0]} stands more than once in the model.",
                "Each class needs a value of its own.",
            )
        for item in self.classes:
            _check_class(item)

    def _check_quantity(self) -> None:
        """Refuse a model for regression that does not say what its numbers are."""
        if self.task == "regression" and self.quantity is None:
            raise PackageError(
                f"The model {self.name!r} estimates a quantity but does not say which.",
                "A package needs name, unit and range of the quantity: train the model again.",
            )
        if self.task == "regression" and self.classes:
            raise PackageError(
                f"The model {self.name!r} is for regression but lists classes.",
                "It is for one or the other: train the model again.",
            )
        if self.task != "regression" and self.quantity is not None:
            raise PackageError(
                f"The model {self.name!r} is for {self.task} but names the quantity "
                f"{self.quantity.name!r}.",
                "Only models for regression have one: train the model again.",
            )

    def _check_fine_bands(self) -> None:
        """Refuse a fusion that does not say what its second image is, or another model with one."""
        if self.task == "super-resolution" and self.fine_bands is None:
            raise PackageError(
                f"The model {self.name!r} fuses two images but lists the bands of one.",
                "A package needs the bands of the finer image too: train the model again.",
            )
        ratio = self.config.get("ratio")
        if self.task == "super-resolution" and not (isinstance(ratio, int) and ratio >= 2):
            raise PackageError(
                f"The model {self.name!r} fuses two images at a ratio of {ratio}.",
                "Among its settings there has to be one of 2 or more: train the model again.",
            )
        if self.task == "super-resolution" and self.classes:
            raise PackageError(
                f"The model {self.name!r} is for super-resolution but lists classes.",
                "It is for one or the other: train the model again.",
            )
        if self.task != "super-resolution" and self.fine_bands is not None:
            raise PackageError(
                f"The model {self.name!r} is for {self.task} but lists the bands of a second "
                "image.",
                "Only models for super-resolution read two: train the model again.",
            )


def _check_class(item: ClassInfo) -> None:
    """Refuse a class that a map of bytes cannot hold, or a legend cannot name."""
    if item.value not in CLASS_VALUES:
        raise PackageError(
            f"The class {item.name!r} has the value {item.value}.",
            f"Class maps hold values from {CLASS_VALUES[0]} to {CLASS_VALUES[-1]}.",
        )
    if not item.name.strip():
        raise PackageError(f"The class with value {item.value} has no name.", "Give it one.")


def _check_area(area: Sequence[float] | None) -> None:
    """Refuse a training area that is not on the globe."""
    if area is None:
        return
    west, south, east, north = area
    on_globe = -180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90
    if not (on_globe and all(math.isfinite(value) for value in area)):
        raise PackageError(
            f"The training area {tuple(area)} is not west, south, east, north in degrees.",
            "Transform it to WGS 84 longitude and latitude.",
        )


def _check_period(period: tuple[datetime, datetime] | None) -> None:
    """Refuse a period that ends before it starts, or times that name no zone."""
    if period is None:
        return
    if any(time.tzinfo is None for time in period) or period[0] > period[1]:
        raise PackageError(
            f"The training period {period[0]} to {period[1]} is not in order, or has no time zone.",
            "Give the first and the last acquisition, in UTC.",
        )

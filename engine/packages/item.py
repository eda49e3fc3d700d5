"""Reading ``model.json``: a STAC Item whose types, version and agreement are checked.

Which field stands for what is in ``docs/model_package.md``; `engine.packages.item_text` writes it.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.errors import BandTableError, PackageError
from engine.packages.metadata import ModelInfo, Normalisation, Quantity, Task
from engine.raster.spectra import BandTable
from engine.raster.style import ClassInfo
from engine.raster.tiles import Tiling

FORMAT_VERSION = 1
"""Raised when an older engine would misread the package; new optional fields do not raise it."""

WEIGHTS_NAME = "weights.safetensors"
CHECKSUM_NOTE = "hyperkd:checksum_note"
# Multihash: 0x12 is SHA-256, 0x20 its length in bytes. https://github.com/multiformats/multihash
SHA256_PREFIX = "1220"
# Of the bands of the finer image in STAC's lists, where all names of an item stand together.
FINE_PREFIX = "fine "
# STAC wants micrometres, we nanometres; seven digits keep 0.0001 nm, this much may get lost.
BAND_TOLERANCE_NM = 0.01

MOST_NAMED = 4
"""How many wrong fields or weights a message names."""

DAMAGED_REMEDY = (
    "model.json was edited or is damaged: take the package as it was trained or published."
)


class _Part(BaseModel):
    """A part of model.json; fields that this engine does not know are left alone."""

    model_config = ConfigDict(frozen=True)


class _Band(_Part):
    name: str = Field(min_length=1)
    wavelength_nm: float
    fwhm_nm: float | None = None
    good: bool = True


class _StacBand(_Part):
    name: str
    center_wavelength_um: float = Field(alias="eo:center_wavelength")
    full_width_half_max_um: float | None = Field(default=None, alias="eo:full_width_half_max")


class _Class(_Part):
    value: int
    description: str
    color_hint: str


class _Structure(_Part):
    shape: list[int] = Field(min_length=2)


class _Input(_Part):
    bands: list[str]
    structure: _Structure = Field(alias="input")


class _Output(_Part):
    classes: list[_Class] = Field(default=[], alias="classification:classes")
    structure: _Structure = Field(alias="result")


class _Tiling(_Part):
    tile_size_px: int = Field(ge=1)
    halo_px: int = Field(ge=0)
    blend: bool = False
    align_px: int = Field(default=1, ge=1)


class _Normalisation(_Part):
    mean: list[float]
    std: list[float]


class _Quantity(_Part):
    name: str
    unit: str
    low: float
    high: float


class _Properties(_Part):
    title: str
    description: str
    version: str
    licence: str = Field(alias="license")
    created: datetime
    start: datetime | None = Field(default=None, alias="start_datetime")
    end: datetime | None = Field(default=None, alias="end_datetime")
    stac_bands: list[_StacBand] = Field(alias="bands", min_length=1)
    name: str = Field(alias="mlm:name")
    architecture: str = Field(alias="mlm:architecture")
    tasks: tuple[Task] = Field(alias="mlm:tasks")
    inputs: tuple[_Input, ...] = Field(alias="mlm:input", min_length=1, max_length=2)
    outputs: tuple[_Output] = Field(alias="mlm:output")
    config: dict[str, Any] = Field(default={}, alias="mlm:hyperparameters")
    bands: list[_Band] = Field(alias="hyperkd:bands", min_length=1)
    fine_bands: list[_Band] | None = Field(default=None, alias="hyperkd:fine_bands", min_length=1)
    units: str = Field(alias="hyperkd:units")
    normalisation: _Normalisation = Field(alias="hyperkd:normalisation")
    tiling: _Tiling = Field(alias="hyperkd:tiling")
    quantity: _Quantity | None = Field(default=None, alias="hyperkd:quantity")
    training: dict[str, Any] = Field(default={}, alias="hyperkd:training")
    scores: dict[str, float] = Field(default={}, alias="hyperkd:scores")
    attribution: str = Field(default="", alias="hyperkd:attribution")
    engine_version: str = Field(default="", alias="hyperkd:engine_version")


class _Weights(_Part):
    href: Literal["./weights.safetensors"]
    checksum: str = Field(alias="file:checksum", pattern=f"^{SHA256_PREFIX}[0-9a-f]{{64}}$")
    size_bytes: int = Field(alias="file:size", ge=0)


class _Assets(_Part):
    weights: _Weights


class ModelItem(_Part):
    """All of model.json that the engine reads, with its types checked."""

    type: Literal["Feature"]
    bbox: tuple[float, float, float, float] | None = None
    properties: _Properties
    assets: _Assets

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights file, 64 hexadecimal digits."""
        return self.assets.weights.checksum.removeprefix(SHA256_PREFIX)

    @property
    def weights_size_bytes(self) -> int:
        """Length of the weights file."""
        return self.assets.weights.size_bytes


def parse_item(text: bytes) -> ModelItem:
    """Read model.json.

    Raises:
        PackageError: it is not JSON, not a model of ours, of a newer format, or a field is wrong.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PackageError(
            f"model.json is not valid JSON: {error}.", "Copy or download the package again."
        ) from error
    _check_format_version(content)
    try:
        return ModelItem.model_validate(content)
    except ValidationError as error:
        raise PackageError(
            f"model.json is not complete: {problems_text(error)}.",
            DAMAGED_REMEDY,
        ) from error


def problems_text(error: ValidationError) -> str:
    """Write what is wrong with which fields; the first few show what kind of wrong it is."""
    problems = [
        f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
        for problem in error.errors(include_url=False)
    ]
    more = f"; and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
    return "; ".join(problems[:MOST_NAMED]) + more


def _check_format_version(content: Any) -> None:
    """Refuse what is no package of ours, and what is newer than this engine."""
    properties = content.get("properties") if isinstance(content, dict) else None
    version = properties.get("hyperkd:format_version") if isinstance(properties, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise PackageError(
            "model.json has no hyperkd:format_version.",
            "This is not a HyperKD model package, or it is damaged.",
        )
    if version > FORMAT_VERSION:
        raise PackageError(
            f"The model package has format {version}; this engine reads up to {FORMAT_VERSION}.",
            "Update HyperKD, or ask for the package in the older format.",
        )


def info_from_item(item: ModelItem) -> ModelInfo:
    """Make a `ModelInfo` of what model.json says.

    Raises:
        PackageError: two fields contradict each other, or a value is out of range.
    """
    properties = item.properties
    _check_agreement(properties)
    normalisation = properties.normalisation
    return ModelInfo(
        name=properties.name,
        title=properties.title,
        description=properties.description,
        version=properties.version,
        architecture=properties.architecture,
        config=_without_notes(properties.config),
        task=properties.tasks[0],
        bands=_band_table(properties.bands),
        fine_bands=None if properties.fine_bands is None else _band_table(properties.fine_bands),
        classes=_make_classes(properties.outputs[0].classes),
        normalisation=Normalisation.of(normalisation.mean, normalisation.std),
        tiling=_make_tiling(properties.tiling),
        licence=properties.licence,
        quantity=_make_quantity(properties.quantity),
        attribution=properties.attribution,
        units=properties.units,
        training=_without_notes(properties.training),
        scores=properties.scores,
        training_area=item.bbox,
        training_period=_period(properties),
        created=properties.created,
        engine_version=properties.engine_version,
    )


def _without_notes(value: Any) -> Any:
    """Take away what `engine.packages.item_text` puts beside checksums for a scanner."""
    if isinstance(value, dict):
        return {key: _without_notes(item) for key, item in value.items() if key != CHECKSUM_NOTE}
    return [_without_notes(item) for item in value] if isinstance(value, list) else value


def _period(properties: _Properties) -> tuple[datetime, datetime] | None:
    """Return the first and last acquisition, where the package knows both."""
    if properties.start is None or properties.end is None:
        return None
    return properties.start, properties.end


def _make_quantity(part: _Quantity | None) -> Quantity | None:
    """Turn the package's quantity into the one that maps are named and checked by."""
    return None if part is None else Quantity(part.name, part.unit, part.low, part.high)


def _make_classes(parts: list[_Class]) -> tuple[ClassInfo, ...]:
    """Turn the package's classes into those that maps are drawn with."""
    try:
        return tuple(
            ClassInfo(value=part.value, name=part.description, color=f"#{part.color_hint}")
            for part in parts
        )
    except ValueError as error:
        raise PackageError(
            f"The model's classes cannot be used: {error}", DAMAGED_REMEDY
        ) from error


def _make_tiling(part: _Tiling) -> Tiling:
    """Turn the package's tiling into the one that streaming works with."""
    try:
        return Tiling(part.tile_size_px, part.halo_px, part.blend, part.align_px)
    except ValueError as error:
        raise PackageError(f"The model's tiling cannot be used: {error}", DAMAGED_REMEDY) from error


def _band_table(bands: list[_Band]) -> BandTable:
    """Turn the package's bands into the table that matching works with."""
    try:
        return BandTable(
            names=tuple(band.name for band in bands),
            wavelength_nm=np.array([band.wavelength_nm for band in bands], dtype=np.float64),
            fwhm_nm=np.array(
                [np.nan if band.fwhm_nm is None else band.fwhm_nm for band in bands],
                dtype=np.float64,
            ),
            good=np.array([band.good for band in bands], dtype=np.bool_),
            origin="model package",
        )
    except BandTableError as error:
        raise PackageError(f"The model's bands cannot be used: {error}", DAMAGED_REMEDY) from error


def _check_agreement(properties: _Properties) -> None:
    """Refuse a model.json whose STAC fields say other things than its hyperkd: fields.

    Another tool may have edited one and not the other, and then nobody knows which holds.
    """
    fine = properties.fine_bands or []
    _check_bands([*properties.bands, *fine], properties)
    _check_inputs(properties)
    classes = properties.outputs[0].classes
    if classes and properties.outputs[0].structure.shape[1] != len(classes):
        raise _contradiction("number of classes", "mlm:output")
    if properties.quantity is not None and properties.outputs[0].structure.shape[1] != 1:
        raise _contradiction("number of quantities", "mlm:output and hyperkd:quantity")
    if fine and properties.outputs[0].structure.shape[1] != len(properties.bands):
        raise _contradiction("number of fused bands", "mlm:output")


def _check_bands(ours: list[_Band], properties: _Properties) -> None:
    """Refuse STAC's bands, first the model's and then those of the finer image, that differ."""
    coarse_count = len(properties.bands)
    names = [
        band.name if index < coarse_count else FINE_PREFIX + band.name
        for index, band in enumerate(ours)
    ]
    read = [name for part in properties.inputs for name in part.bands]
    if names != [band.name for band in properties.stac_bands] or names != read:
        raise _contradiction(
            "names or the number of bands", "bands, mlm:input, hyperkd:bands and hyperkd:fine_bands"
        )
    for band, other in zip(ours, properties.stac_bands, strict=True):
        pairs = (
            (band.wavelength_nm, other.center_wavelength_um),
            (band.fwhm_nm, other.full_width_half_max_um),
        )
        if not all(_same_length(length_nm, length_um) for length_nm, length_um in pairs):
            raise _contradiction(f"wavelength or width of band {band.name!r}", "bands (um)")


def _check_inputs(properties: _Properties) -> None:
    """Refuse an input too many or too few, and one of another number of bands than ours."""
    counts = [len(properties.bands)]
    counts += [] if properties.fine_bands is None else [len(properties.fine_bands)]
    if len(properties.inputs) != len(counts):
        raise _contradiction("number of inputs", "mlm:input and hyperkd:fine_bands")
    for part, count in zip(properties.inputs, counts, strict=True):
        if part.structure.shape[1] != count or len(part.bands) != count:
            raise _contradiction("number of bands", "mlm:input")


def _same_length(length_nm: float | None, length_um: float | None) -> bool:
    """Whether both are unknown, or the same but for the rounding of micrometres."""
    if length_nm is None or length_um is None:
        return length_nm is length_um
    return abs(length_nm - 1000 * length_um) <= BAND_TOLERANCE_NM


def _contradiction(what: str, where: str) -> PackageError:
    return PackageError(
        f"model.json contradicts itself about the {what} ({where}).",
        DAMAGED_REMEDY,
    )

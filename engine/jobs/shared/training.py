"""What the jobs share that train a model on labelled places: request, scenes, backbone, package."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BeforeValidator, Field
from rasterio.warp import transform_bounds

from engine.errors import OutputError, PackageError, RequestError
from engine.feedback import Feedback
from engine.jobs.request import DeviceRequest, JobRequest
from engine.models.backbone import backbone_halo_px
from engine.models.hyperkd import EncoderConfig
from engine.models.pixel_model import PixelModelConfig
from engine.packages.installed import find_package
from engine.packages.item import WEIGHTS_NAME
from engine.packages.package import ModelPackage, check_place, load_package
from engine.raster.band_presence import select_bands
from engine.raster.scene import Scene, open_scene
from engine.raster.spectra import BandTable, match_bands
from engine.raster.writer import check_outputs
from engine.training.context_fit import EncoderStart
from engine.training.gate import GateChoice
from engine.training.samples import SampleSizes, ScenePixels
from engine.training.targets import PixelTargets

# Below this many bands spectra say too little for a model of spectra; RGB and NIR are four.
MIN_BANDS = 3
# An encoder's weights in a package, and the architectures that have them.
ENCODER_PREFIX = "encoder."
WITH_ENCODER = ("hyperkd-backbone", "hyperkd-classifier", "hyperkd-regressor")

ConfigT = TypeVar("ConfigT", bound=PixelModelConfig)


def as_list(value: Any) -> Any:
    """A single source is a list of one."""
    return [value] if isinstance(value, str) else value


class LabelledRequest(DeviceRequest):
    """The parameters of every training on labelled places.

    ``input`` lists scenes; a scene is a source that GDAL opens, or a list of single-band files.
    ``validation`` is the share of ground blocks that are held out for the scores; ``block_size``
    is the side of a block in pixels of the first scene. ``title`` to ``attribution`` go into the
    package as they are.
    """

    input: Annotated[list[str | list[str]], BeforeValidator(as_list)] = Field(min_length=1)
    training: str
    validation: float = Field(default=0.25, ge=0.0, le=0.5)
    seed: int = Field(default=0, ge=0, lt=2**31)
    block_size: int = Field(default=10, ge=1, le=1000)
    output: str
    report: str | None = None
    bands: str | None = None
    title: str | None = None
    description: str | None = None
    licence: str = "other"
    attribution: str = ""


class PlacesRequest(LabelledRequest):
    """The parameters of every training of a model of pixels, see `LabelledRequest`.

    ``backbone`` is a package whose encoder training begins with; ``freeze_backbone`` leaves it as
    it is.
    """

    backbone: str | None = None
    freeze_backbone: bool = False
    epochs: int = Field(default=100, ge=1, le=10_000)


@dataclass(frozen=True, eq=False)
class Backbone:
    """An encoder from a package, and how it sees scenes.

    Args:
        start: its weights.
        bands: that it reads.
        settings: of a model of pixels around it: the encoder's, and the sides of its chips.
    """

    start: EncoderStart
    bands: BandTable
    settings: dict[str, Any]

    def configure(self, config: ConfigT) -> ConfigT:
        """Give a model's settings this encoder and its chips."""
        values = {field.name: getattr(config, field.name) for field in fields(config)}
        return type(config)(**(values | self.settings))


def load_backbone(request: PlacesRequest) -> Backbone | None:
    """Load the package that training begins with, if there is one.

    Raises:
        PackageError: it cannot be loaded, or has no encoder of ours.
        RequestError: there is none, but it is to be left as it is.
    """
    if request.backbone is None:
        if request.freeze_backbone:
            raise RequestError(
                "There is no backbone that could be left as it is.",
                "Choose one to begin with (backbone), or switch freeze_backbone off.",
            )
        return None
    package = load_package(request.backbone)
    weights = {
        name.removeprefix(ENCODER_PREFIX): tensor
        for name, tensor in package.state.items()
        if name.startswith(ENCODER_PREFIX)
    }
    if package.info.architecture not in WITH_ENCODER or not weights:
        raise PackageError(
            f"The model {package.info.name!r} has no encoder to begin with: its architecture is "
            f"{package.info.architecture}.",
            "Choose a backbone that 'Distil a backbone' made, or a model that a training of this "
            "engine made, or leave the backbone out.",
        )
    start = EncoderStart(weights, frozen=request.freeze_backbone)
    return Backbone(start, package.info.bands, _encoder_settings(package))


def _encoder_settings(package: ModelPackage) -> dict[str, Any]:
    """The encoder's own settings, and the chips that it was trained on.

    A distilled encoder knows the positions of its tiles, so chips are as large as those. In a
    model of pixels both are settings already.
    """
    config = package.info.config
    names = {field.name for field in fields(EncoderConfig)} - {"in_channels", "dropout"}
    settings = {name: config[name] for name in names if name in config}
    if package.info.architecture == "hyperkd-backbone":
        tile_size_px = int(config["tile_size_px"])
        return settings | {"chip_px": tile_size_px, "halo_px": backbone_halo_px(tile_size_px)}
    return settings | {name: config[name] for name in ("chip_px", "halo_px") if name in config}


def open_scenes(request: LabelledRequest, feedback: Feedback) -> list[Scene]:
    """Open all scenes and pass on what was assumed about them."""
    scenes = [open_scene(source, request.bands) for source in request.input]
    for scene in scenes:
        for note in scene.notes:
            feedback.warning(note)
        if scene.crs is None:
            feedback.warning(f"{scene.name} has no CRS: labels are taken to be in its own.")
    return scenes


def check_training_outputs(
    request: LabelledRequest, scenes: Sequence[Scene], others: Iterable[str] = ()
) -> None:
    """Refuse outputs that cannot be written, before work begins.

    Args:
        request: what was asked for.
        scenes: that must not be overwritten, as little as the labels.
        others: files and packages that must not be either, see `check_package_outputs`.
    """
    inputs = [*(file for scene in scenes for file in scene.files), request.training]
    check_package_outputs(request.output, request.report, inputs, others)


def check_package_outputs(
    output: str, report: str | None, inputs: Iterable[str], others: Iterable[str]
) -> None:
    """Refuse a package and a report that cannot be written, before work begins.

    Args:
        output: where the package is wanted. An older one there is replaced.
        report: where it is wanted; None: nowhere.
        inputs: files that must not be overwritten.
        others: further files, and packages by path or name. What was adapted from a backbone
            would be worth nothing in its place.

    Raises:
        OutputError: one of them cannot be written.
    """
    place = Path(output)
    check_place(place)
    others = list(others)
    if any(_is_at(place, other) for other in others):
        raise OutputError(
            f"The output {output} is also an input: the package that training begins with.",
            "Choose another path.",
        )
    sources = [*inputs, *others]
    if not place.is_dir():  # else an older package, which the new one replaces
        check_outputs([output], sources, suffixes=(".zip", place.suffix))
    check_outputs([report], sources, suffixes=(".html", ".htm"))


def _is_at(place: Path, source: str) -> bool:
    """Whether a package, by its name, its path or that of one of its files, stands at a place."""
    path = Path(source)
    try:
        found = find_package(str(path.parent) if path.name == WEIGHTS_NAME else source)
    except PackageError:  # a file of weights, or something that its reader will complain about
        return False
    return place.exists() and place.samefile(found)


def good_bands(table: BandTable) -> BandTable:
    """The bands that a new model reads: those that are not marked as bad."""
    count = int(table.good.sum())
    if count < MIN_BANDS:
        raise PackageError(
            f"The first scene has {count} good bands.",
            f"A model of spectra needs {MIN_BANDS} or more: choose another scene.",
        )
    return select_bands(table, table.good)


def match_scene(
    scene: Scene, bands: BandTable, targets: PixelTargets, feedback: Feedback
) -> ScenePixels:
    """Match a scene's bands to the model's and say what was resampled."""
    match = match_bands(bands, scene.require_bands())
    if any(row.action != "same" for row in match.rows):
        feedback.info(f"Bands of the model in {scene.name}:\n{match.table()}")
    return ScenePixels(scene, match, targets)


def sample_sizes(config: PixelModelConfig, block_px: int) -> SampleSizes:
    """Samples are the cores of chips, so that the encoder learns to answer with context around."""
    return SampleSizes(config.chip_px, config.chip_px - 2 * config.halo_px, block_px)


def tell_parts(heads: GateChoice, encoder: GateChoice, feedback: Feedback) -> None:
    """Say what the parts of a model add to its answers."""
    feedback.info(
        f"Small networks have a share of {heads.gate:.0%} in the answer from the spectrum, a "
        "linear layer the rest: best on blocks held out within the training."
    )
    feedback.info(
        f"The encoder adds with a weight of {encoder.gate:g}: these blocks confirmed it."
        if encoder.gate > 0
        else "The encoder adds nothing: these blocks did not confirm that it helps. The model "
        "answers for each pixel by its spectrum."
    )


def package_name(output: str) -> str:
    """A valid name from the output's file name."""
    stem = Path(output).name.removesuffix(".zip")
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-_.")
    return name if re.fullmatch(r"[A-Za-z].+", name) and len(name) >= 3 else f"model-{name or '1'}"


def shareable(request: JobRequest) -> dict[str, Any]:
    """The request with file names instead of paths: packages are passed on to others."""

    def name_only(source: Any) -> Any:
        return (
            [name_only(item) for item in source] if isinstance(source, list) else Path(source).name
        )

    values: dict[str, Any] = json.loads(request.model_dump_json(exclude_none=True))
    for key in (
        "input", "training", "output", "report", "backbone", "bands", "teacher", "responses",
        "targets", "adapted", "hyperspectral", "multispectral", "response", "multispectral_bands",
    ):  # fmt: skip
        if key in values:
            values[key] = name_only(values[key])
    return values


def training_area(scenes: Sequence[Scene]) -> tuple[float, float, float, float] | None:
    """Degrees around all scenes that know where they are."""
    boxes = []
    for scene in scenes:
        if scene.crs is not None:
            corners = [
                scene.transform @ corner
                for corner in (
                    (0, 0), (scene.width, 0), (scene.width, scene.height), (0, scene.height),
                )
            ]  # fmt: skip
            xs, ys = zip(*corners, strict=True)
            box = transform_bounds(scene.crs, "EPSG:4326", min(xs), min(ys), max(xs), max(ys))
            boxes.append(box)
    if not boxes or not np.isfinite(boxes).all():
        return None
    west, south, east, north = zip(*boxes, strict=True)
    return min(west), min(south), max(east), max(north)

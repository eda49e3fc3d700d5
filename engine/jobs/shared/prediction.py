"""The street that every job takes which runs a model over one scene: from a request to tiles."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engine.device import DeviceChoice, choose_device
from engine.errors import PackageError
from engine.feedback import Feedback
from engine.jobs.request import PredictRequest
from engine.packages.cache import LoadedModel, load_model
from engine.packages.metadata import ModelInfo, Task
from engine.packages.package import load_info
from engine.raster.burn import burn_mask
from engine.raster.extent import window_of_extent
from engine.raster.outputs import RASTER_SUFFIXES, check_outputs
from engine.raster.scene import Scene, open_scene
from engine.raster.spectra import BandMatch, match_bands
from engine.raster.stream import Sink, StripModel, stream_scene
from engine.raster.tiles import Window
from engine.raster.vector import crs_note, read_shapes, require_overlap
from engine.raster.writer import Grid
from engine.version import engine_version

Precision = Literal["float32", "bfloat16"]
ValidMask = Callable[[Window], NDArray[np.bool_]]

# Of training pixels, how many must get the same answer in bfloat16 before it is used unasked.
MIN_BFLOAT16_AGREEMENT = 0.999
BFLOAT16_KEY = "bfloat16_agreement"  # in a package's ``training``
BYTES_WHILE_WRITING = 2  # for each byte of an output: its rows, and the copy that is kept

# What models of a task are for, and what such a model is called in the toolbox.
_USES: dict[Task, tuple[str, str]] = {
    "semantic-segmentation": ("classification", "'Classify land cover' takes this one"),
    "regression": ("estimates of a quantity", "'Estimate a quantity' takes this one"),
    "generative": ("pre-training", "trainings and distillations start from this one"),
    "super-resolution": (
        "fusing two images",
        "'Fuse a hyperspectral and a multispectral image' takes this one",
    ),
}
_WANTED: dict[Task, str] = {
    "semantic-segmentation": "Choose a classifier",
    "regression": "Choose a model of a quantity, as 'Train a regression' makes them",
}


@dataclass(frozen=True, eq=False)
class Prediction:
    """A model and a scene that fit each other, ready to run.

    Args:
        request: what was asked for.
        loaded: the model.
        choice: the device.
        precision: that the model is run with.
        scene: to read.
        match: the model's bands in it.
        extent: part of the scene that is wanted.
        grid: of the outputs.
        mask: which pixels of a window are wanted; None: all.
    """

    request: PredictRequest
    loaded: LoadedModel
    choice: DeviceChoice
    precision: Precision
    scene: Scene
    match: BandMatch
    extent: Window
    grid: Grid
    mask: ValidMask | None

    @property
    def info(self) -> ModelInfo:
        """What the model says about itself."""
        return self.loaded.package.info

    def check_outputs(
        self,
        paths: Sequence[str | None],
        pixel_bytes: int,
        suffixes: Sequence[str] = RASTER_SUFFIXES,
    ) -> None:
        """Refuse outputs that cannot be written, before work begins.

        Args:
            paths: of the outputs; None: not wanted.
            pixel_bytes: of all of them together.
            suffixes: that they may have.

        Raises:
            OutputError: one of them cannot be written.
        """
        request = self.request
        inputs = [*self.scene.files, *([request.mask] if request.mask else [])]
        needed_bytes = self.grid.height * self.grid.width * pixel_bytes * BYTES_WHILE_WRITING
        check_outputs(paths, inputs, suffixes=suffixes, needed_bytes=needed_bytes)

    def run(self, model: StripModel, sink: Sink, *, step: str, feedback: Feedback) -> None:
        """Run the model over the scene, see `stream_scene`."""
        stream_scene(
            self.scene,
            self.match,
            model,
            sink,
            device=self.choice.device,
            precision=self.precision,
            extent=self.extent,
            valid_mask=self.mask,
            tile_size_px=self.request.tile_size,
            feedback=feedback,
            step=step,
        )

    def provenance(self) -> dict[str, str]:
        """Tags that tell where a map comes from, enough to make it again."""
        info, request = self.info, self.request
        rows = [
            {
                "model": row.model_band,
                "nm": round(row.model_wavelength_nm, 2),
                "scene": row.scene_bands,
                "distance_nm": round(row.distance_nm, 2),
                "action": row.action,
            }
            for row in self.match.rows
        ]
        tags = {
            "TIFFTAG_SOFTWARE": f"HyperKD for QGIS {engine_version()}",
            "ENGINE_VERSION": engine_version(),
            "MODEL": info.name,
            "MODEL_VERSION": info.version,
            "MODEL_SHA256": self.loaded.package.sha256,
            "MODEL_LICENCE": info.licence,
            "MODEL_ATTRIBUTION": info.attribution,
            "PARAMETERS": json.dumps(request.model_dump(exclude_none=True), ensure_ascii=False),
            "BAND_MATCHING": json.dumps(rows, ensure_ascii=False),
            "DEVICE": f"{self.choice.device} ({self.choice.reason}), {self.precision}",
        }
        return {name: text for name, text in tags.items() if text}  # GDAL keeps no empty tags

    def speed_text(self, seconds: float) -> str:
        """Size and speed, for the log."""
        height, width = self.grid.height, self.grid.width
        rate = height * width / 1e6 / seconds
        return f"{width} x {height} px in {seconds:.1f} s ({rate:.2f} Mpx/s)"


def prepare(request: PredictRequest, task: Task, feedback: Feedback) -> Prediction:
    """Choose the device, load the model, open the scene and bring both together.

    Args:
        request: what was asked for.
        task: that the model must be for.
        feedback: told what was chosen, found and assumed.

    Raises:
        DeviceError: a GPU is required and there is none.
        PackageError: the model cannot be loaded, or is for another task.
        SceneError, BandTableError, BandMatchError: the scene cannot be read or does not fit.
        RequestError, LabelError: extent or mask lie outside the scene.
    """
    choice = choose_device(request.device, request.require_gpu, request.precision)
    _tell_device(choice, request, feedback)
    feedback.progress(0.0, "Loading the model")
    _require_task(load_info(request.model), task)  # before weights that are not wanted are read
    loaded = load_model(request.model, choice.device)
    info = loaded.package.info
    feedback.info(f"Model: {info.title}, version {info.version} (SHA-256 {loaded.package.sha256})")
    precision = _precision(choice, request, info, feedback)
    scene, match = _open_scene(request, info, feedback)
    extent = _extent(request, scene)
    grid = Grid(scene.height, scene.width, scene.transform, scene.crs).crop(extent)
    mask = _mask(request, scene, grid, feedback)
    return Prediction(request, loaded, choice, precision, scene, match, extent, grid, mask)


def _require_task(info: ModelInfo, task: Task) -> None:
    """Refuse a model for another task, and say what takes it."""
    if info.task == task:
        return
    use, taker = _USES[info.task]
    raise PackageError(
        f"The model {info.name!r} is for {use}, not for {_USES[task][0]}.",
        f"{_WANTED[task]}; {taker}.",
    )


def _tell_device(choice: DeviceChoice, request: PredictRequest, feedback: Feedback) -> None:
    """Say what it runs on; a GPU that was wished for and is not there is worth a warning."""
    message = f"Device: {choice.device} ({choice.reason})"
    if request.device == "cuda" and choice.device.type != "cuda":
        feedback.warning(message)
    else:
        feedback.info(message)


def _precision(
    choice: DeviceChoice, request: PredictRequest, info: ModelInfo, feedback: Feedback
) -> Precision:
    """Use bfloat16 when asked to, or when the model's training has measured that maps agree."""
    agreement = info.training.get(BFLOAT16_KEY)
    measured = isinstance(agreement, (int, float)) and agreement >= MIN_BFLOAT16_AGREEMENT
    precision = choice.precision
    if request.precision == "auto" and not measured:
        precision = "float32"
    feedback.info(f"Precision: {precision}")
    return precision


def _open_scene(
    request: PredictRequest, info: ModelInfo, feedback: Feedback
) -> tuple[Scene, BandMatch]:
    """Open the scene, find the model's bands in it, and say what was assumed and found."""
    scene = open_scene(request.input, request.bands)
    for note in scene.notes:
        feedback.warning(note)
    match = match_bands(info.bands, scene.require_bands())
    feedback.info(f"Bands of the model in {scene.name}:\n{match.table()}")
    return scene, match


def _extent(request: PredictRequest, scene: Scene) -> Window:
    if request.extent is None:
        return Window(0, 0, scene.height, scene.width)
    return window_of_extent(request.extent, scene.transform, scene.height, scene.width)


def _mask(
    request: PredictRequest, scene: Scene, grid: Grid, feedback: Feedback
) -> ValidMask | None:
    """Make the function that tells which pixels lie inside the polygons.

    Raises:
        LabelError: none does, or they cannot be read.
    """
    if request.mask is None:
        return None
    shapes = read_shapes(request.mask, None, scene.crs)
    require_overlap(shapes, request.mask, grid.height, grid.width, grid.transform)
    if note := crs_note(request.mask, scene.crs):
        feedback.warning(note)
    return lambda window: burn_mask(shapes, window, scene.transform)

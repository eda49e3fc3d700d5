"""classify: a scene through a classifier, as a map of classes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from engine.device import DeviceChoice, choose_device
from engine.errors import PackageError
from engine.feedback import Feedback, StepFeedback
from engine.jobs.request import PredictRequest
from engine.packages.cache import LoadedModel, load_model
from engine.packages.metadata import ModelInfo
from engine.raster.extent import window_of_extent
from engine.raster.scene import Scene, open_scene
from engine.raster.spectra import BandMatch, match_bands
from engine.raster.stream import stream_scene
from engine.raster.style import ClassInfo, ClassStyle, RampStyle
from engine.raster.tiles import Window
from engine.raster.vector import burn_mask, crs_note, read_shapes, require_overlap
from engine.raster.writer import Grid, RasterWriter, check_outputs
from engine.version import engine_version

Precision = Literal["float32", "bfloat16"]
_Select = Callable[[NDArray[Any]], NDArray[Any]]

# Of training pixels, how many must get the same class in bfloat16 before it is used unasked.
MIN_BFLOAT16_AGREEMENT = 0.999
BFLOAT16_KEY = "bfloat16_agreement"  # in a package's ``training``

NO_CLASS = 0  # in class maps
NO_SHARE = float("nan")  # a float that no reader takes for a measurement
BYTES_WHILE_WRITING = 2  # for each byte of an output: its rows, and the copy that is kept


class Request(PredictRequest):
    """The parameters of `PredictRequest`, and what to make.

    ``output`` is the class map: uint8, 0 = nodata. ``confidence`` is the largest probability, and
    ``probabilities`` has a band for each class, in the model's order; both are float32 from 0 to
    1 with NaN as nodata, because rounding them to bytes would lose what is between 0.99 and 1.
    """

    output: str
    confidence: str | None = None
    probabilities: str | None = None


def classify(request: Request, feedback: Feedback) -> dict[str, Any]:
    """Make a class map of a scene.

    Returns:
        ``output`` and, when asked for, ``confidence`` and ``probabilities`` (paths);
        ``valid_pixels`` (with a class), ``seconds``, ``device``.

    Raises:
        DeviceError: a GPU is required and there is none.
        PackageError: the model cannot be loaded, or is no classifier.
        SceneError, BandTableError, BandMatchError: the scene cannot be read or does not fit.
        RequestError, LabelError: extent or mask lie outside the scene.
        OutputError: an output cannot be written.
    """
    start_s = time.monotonic()
    choice = choose_device(request.device, request.require_gpu, request.precision)
    _tell_device(choice, request, feedback)
    feedback.progress(0.0, "Loading the model")
    loaded = load_model(request.model, choice.device)
    info = loaded.package.info
    if info.task != "semantic-segmentation":
        raise PackageError(
            f"The model {info.name!r} is for {info.task}, not for classification.",
            "Choose a classifier.",
        )
    feedback.info(f"Model: {info.title}, version {info.version} (SHA-256 {loaded.package.sha256})")
    precision = _precision(choice, request, info, feedback)

    scene, match = _open_scene(request, info, feedback)
    extent = _extent(request, scene)
    grid = Grid(scene.height, scene.width, scene.transform, scene.crs).crop(extent)
    mask = _mask(request, scene, grid, feedback)
    _check_outputs(request, scene, grid, len(info.classes))

    tags = _provenance(request, loaded, match, choice, precision)
    with _Outputs(request, grid, info.classes, tags, feedback) as outputs:
        stream_scene(
            scene,
            match,
            _Classifier(loaded),
            outputs.write,
            device=choice.device,
            precision=precision,
            extent=extent,
            valid_mask=mask,
            tile_size_px=request.tile_size,
            feedback=StepFeedback(feedback, 0.02, 0.95),
            step="Classifying",
        )
        feedback.progress(0.95, "Finishing the files")
        outputs.finish()
    seconds = time.monotonic() - start_s
    _tell_result(outputs, info.classes, grid, seconds, feedback)
    feedback.progress(1.0, "Done")
    return {
        **outputs.paths,
        "valid_pixels": outputs.valid_pixels,
        "seconds": seconds,
        "device": str(choice.device),
    }


class _Classifier:
    """A model of logits as one of probabilities, which may be blended."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._module = loaded.module
        self.tiling = loaded.package.info.tiling
        self.out_channels = len(loaded.package.info.classes)

    def __call__(self, reflectance: Tensor, valid: Tensor) -> Tensor:
        logits: Tensor = self._module(reflectance, valid)
        return logits.float().softmax(dim=1)


class _Outputs:
    """The files of one run; they appear together with the end of the context, or not at all.

    Args:
        request: says which.
        grid: of all of them.
        classes: of the model, in the order of its outputs.
        tags: provenance.
        feedback: asked about a cancel while the files are finished.
    """

    def __init__(
        self,
        request: Request,
        grid: Grid,
        classes: tuple[ClassInfo, ...],
        tags: dict[str, str],
        feedback: Feedback,
    ) -> None:
        self._values = np.array([info.value for info in classes], np.uint8)
        self.pixels_by_class = np.zeros(len(classes), np.int64)
        self.paths = {"output": request.output}
        self._class_writer = RasterWriter(
            request.output, grid, ["class"], "uint8", NO_CLASS,
            tags=tags, style=ClassStyle(classes), feedback=feedback,
        )  # fmt: skip
        self._share_writers: dict[str, tuple[RasterWriter, _Select]] = {}
        for name, path, bands, select in (
            ("confidence", request.confidence, ["confidence"], _largest),
            ("probabilities", request.probabilities, [c.name for c in classes], _all),
        ):
            if path is not None:
                writer = RasterWriter(
                    path, grid, bands, "float32", NO_SHARE,
                    tags=tags, style=RampStyle(), feedback=feedback,
                )  # fmt: skip
                self._share_writers[path] = (writer, select)
                self.paths[name] = path
        self._stack = ExitStack()

    @property
    def valid_pixels(self) -> int:
        """Pixels that have a class."""
        return int(self.pixels_by_class.sum())

    def __enter__(self) -> _Outputs:
        with ExitStack() as stack:  # closes what is open when a later one cannot be opened
            # The class map is renamed last: where it is, everything is.
            stack.enter_context(self._class_writer)
            for writer, _select in self._share_writers.values():
                stack.enter_context(writer)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def finish(self) -> None:
        """Make all files, so that none of them appears when another cannot be made."""
        for writer in (self._class_writer, *(writer for writer, _ in self._share_writers.values())):
            writer.finish()

    def write(
        self, window: Window, probabilities: NDArray[np.float32], valid: NDArray[np.bool_]
    ) -> None:
        """Write (K, h, w) probabilities and what follows from them; called in row order."""
        # A spectrum that is absurd enough gives no number, and then it has no class either.
        valid = valid & np.isfinite(probabilities).all(axis=0)
        class_index = probabilities.argmax(axis=0)
        counts = np.bincount(class_index[valid], minlength=len(self._values))
        self.pixels_by_class += counts
        classes = np.where(valid, self._values[class_index], NO_CLASS).astype(np.uint8)
        self._class_writer.write(window, classes[None])
        for writer, select in self._share_writers.values():
            writer.write(window, np.where(valid, select(probabilities), np.float32(NO_SHARE)))


def _largest(probabilities: NDArray[Any]) -> NDArray[Any]:
    largest: NDArray[Any] = probabilities.max(axis=0, keepdims=True)
    return largest


def _all(probabilities: NDArray[Any]) -> NDArray[Any]:
    return probabilities


def _tell_device(choice: DeviceChoice, request: Request, feedback: Feedback) -> None:
    """Say what it runs on; a GPU that was wished for and is not there is worth a warning."""
    message = f"Device: {choice.device} ({choice.reason})"
    if request.device == "cuda" and choice.device.type != "cuda":
        feedback.warning(message)
    else:
        feedback.info(message)


def _precision(
    choice: DeviceChoice, request: Request, info: ModelInfo, feedback: Feedback
) -> Precision:
    """Use bfloat16 when asked to, or when the model's training has measured that maps agree."""
    agreement = info.training.get(BFLOAT16_KEY)
    measured = isinstance(agreement, (int, float)) and agreement >= MIN_BFLOAT16_AGREEMENT
    precision = choice.precision
    if request.precision == "auto" and not measured:
        precision = "float32"
    feedback.info(f"Precision: {precision}")
    return precision


def _open_scene(request: Request, info: ModelInfo, feedback: Feedback) -> tuple[Scene, BandMatch]:
    """Open the scene, find the model's bands in it, and say what was assumed and found."""
    scene = open_scene(request.input, request.bands)
    for note in scene.notes:
        feedback.warning(note)
    match = match_bands(info.bands, scene.require_bands())
    feedback.info(f"Bands of the model in {scene.name}:\n{match.table()}")
    return scene, match


def _extent(request: Request, scene: Scene) -> Window:
    if request.extent is None:
        return Window(0, 0, scene.height, scene.width)
    return window_of_extent(request.extent, scene.transform, scene.height, scene.width)


def _mask(
    request: Request, scene: Scene, grid: Grid, feedback: Feedback
) -> Callable[[Window], NDArray[np.bool_]] | None:
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


def _check_outputs(request: Request, scene: Scene, grid: Grid, num_classes: int) -> None:
    """Refuse outputs that cannot be written, before work begins."""
    inputs = [*scene.files, *([request.mask] if request.mask else [])]
    paths = [request.output, request.confidence, request.probabilities]
    pixel_bytes = 1 + 4 * (request.confidence is not None)
    pixel_bytes += 4 * num_classes * (request.probabilities is not None)
    needed_bytes = grid.height * grid.width * pixel_bytes * BYTES_WHILE_WRITING
    check_outputs(paths, inputs, needed_bytes=needed_bytes)


def _provenance(
    request: Request,
    loaded: LoadedModel,
    match: BandMatch,
    choice: DeviceChoice,
    precision: Precision,
) -> dict[str, str]:
    """Tags that tell where a map comes from, enough to make it again."""
    info = loaded.package.info
    rows = [
        {
            "model": row.model_band,
            "nm": round(row.model_wavelength_nm, 2),
            "scene": row.scene_bands,
            "distance_nm": round(row.distance_nm, 2),
            "action": row.action,
        }
        for row in match.rows
    ]
    tags = {
        "TIFFTAG_SOFTWARE": f"HyperKD for QGIS {engine_version()}",
        "ENGINE_VERSION": engine_version(),
        "MODEL": info.name,
        "MODEL_VERSION": info.version,
        "MODEL_SHA256": loaded.package.sha256,
        "MODEL_LICENCE": info.licence,
        "MODEL_ATTRIBUTION": info.attribution,
        "PARAMETERS": json.dumps(request.model_dump(exclude_none=True), ensure_ascii=False),
        "BAND_MATCHING": json.dumps(rows, ensure_ascii=False),
        "DEVICE": f"{choice.device} ({choice.reason}), {precision}",
    }
    return {name: text for name, text in tags.items() if text}  # GDAL keeps no empty tags


def _tell_result(
    outputs: _Outputs,
    classes: tuple[ClassInfo, ...],
    grid: Grid,
    seconds: float,
    feedback: Feedback,
) -> None:
    """Say how fast it was and what is in the map."""
    total_mpx = grid.height * grid.width / 1e6
    feedback.info(
        f"{grid.width} x {grid.height} px in {seconds:.1f} s ({total_mpx / seconds:.2f} "
        f"Mpx/s); {outputs.valid_pixels:,} pixels have a class."
    )
    if outputs.valid_pixels == 0:
        feedback.warning("No pixel has a class: check the scene's nodata, the mask and the extent.")
        return
    shares = outputs.pixels_by_class / outputs.valid_pixels
    lines = [f"{info.name}: {share:.1%}" for info, share in zip(classes, shares, strict=True)]
    feedback.info("\n".join(lines))

"""From a model of classes to the files of a map: what classify and segment write alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import PackageError, RequestError
from engine.feedback import Feedback, StepFeedback
from engine.jobs.request import PredictRequest
from engine.jobs.shared.prediction import Prediction
from engine.models.support import FAMILIAR
from engine.packages.cache import LoadedModel
from engine.raster.style import ClassInfo, ClassStyle, RampStyle
from engine.raster.tiles import Tiling, Window
from engine.raster.writer import RasterWriter

NO_CLASS = 0  # in class maps
NO_SHARE = float("nan")  # a float that no reader takes for a measurement
# Of pixels like those of the training places, one in twenty reads as unfamiliar.
MANY_UNFAMILIAR = 0.2
# Models that take chips of one size only.
WITH_CHIPS = ("spectralx-segmenter",)

_Select = Callable[[NDArray[Any]], NDArray[Any]]


class ClassMapRequest(PredictRequest):
    """The parameters of `PredictRequest`, and the files of a map of classes.

    ``output`` is the class map: uint8, 0 = nodata. ``confidence`` is the largest probability, and
    ``probabilities`` has a band for each class, in the model's order. ``support`` says how
    familiar each spectrum is to the model: 0.5 or more where it is like those of the places it
    was tested on, near 0 where it is like nothing in its training. These three are float32 from 0
    to 1 with NaN as nodata, because rounding them to bytes would lose what is between 0.99 and 1.
    """

    output: str
    confidence: str | None = None
    probabilities: str | None = None
    support: str | None = None


class PatchSink(Protocol):
    """What else is made of a class map while it is written, such as polygons."""

    path: str

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, *error: Any) -> None:
        """Let it appear, or remove it after an error."""

    def write(
        self, window: Window, classes: NDArray[np.uint8], confidence: NDArray[np.float32]
    ) -> None:
        """Take (h, w) class values, 0 = none, and confidence; called in row order."""

    def finish(self) -> None:
        """Make it, so that only its renaming is left."""


def require_support(request: ClassMapRequest, ready: Prediction) -> None:
    """Refuse a request for support that the model's package cannot answer.

    Raises:
        PackageError: it holds no statistics of its training spectra.
    """
    if request.support is not None and ready.loaded.support is None:
        raise PackageError(
            f"The model {ready.info.name!r} cannot say what is familiar to it: its package holds "
            "no statistics of its training spectra, as those of older engines do not.",
            "Leave the output 'support' out, or train the model again.",
        )


def require_own_tiles(request: PredictRequest, tiling: Tiling) -> None:
    """Refuse tiles of another size than the chips that a model was trained on.

    Raises:
        RequestError: the request asks for them.
    """
    if request.tile_size not in (None, tiling.tile_size_px):
        raise RequestError(
            f"The model reads tiles of {tiling.tile_size_px} px, not of {request.tile_size} px: "
            "it was trained on chips of this size, and its attention knows no other.",
            "Leave the tile size out.",
        )


def write_class_map(
    request: ClassMapRequest,
    ready: Prediction,
    feedback: Feedback,
    *,
    step: str,
    start_s: float,
    tiling: Tiling | None = None,
    polygons: PatchSink | None = None,
) -> dict[str, Any]:
    """Run a model of classes over a scene and write what was asked for.

    Args:
        request: says which files.
        ready: model and scene.
        feedback: told the progress and what is in the map.
        step: name of the work in the progress message.
        start_s: when the job began, by `time.monotonic`.
        tiling: replaces the model's.
        polygons: made of the class map too.

    Returns:
        the paths by their names in the request; ``valid_pixels`` (with a class), ``seconds`` and
        ``device``.

    Raises:
        PackageError: support is asked of a model that has none.
        OutputError: an output cannot be written.
    """
    require_support(request, ready)
    _check_outputs(request, ready)
    model = ProbabilityModel(ready.loaded, tiling, with_support=request.support is not None)
    with ClassOutputs(request, ready, feedback, polygons) as outputs:
        ready.run(model, outputs.write, step=step, feedback=StepFeedback(feedback, 0.02, 0.95))
        feedback.progress(0.95, "Finishing the files")
        outputs.finish()
    seconds = time.monotonic() - start_s
    _tell_result(outputs, ready, seconds, feedback)
    feedback.progress(1.0, "Done")
    return {
        **outputs.paths,
        "valid_pixels": outputs.valid_pixels,
        "seconds": seconds,
        "device": str(ready.choice.device),
    }


def _check_outputs(request: ClassMapRequest, ready: Prediction) -> None:
    """Refuse outputs that cannot be written, before work begins."""
    floats = (request.confidence is not None) + (request.support is not None)
    floats += len(ready.info.classes) * (request.probabilities is not None)
    paths = [request.output, request.confidence, request.probabilities, request.support]
    ready.check_outputs(paths, pixel_bytes=1 + 4 * floats)


class ProbabilityModel:
    """A model of logits as one of calibrated probabilities, which may be blended.

    Args:
        loaded: the model.
        tiling: replaces the model's.
        with_support: the last channel is support then.
    """

    def __init__(
        self, loaded: LoadedModel, tiling: Tiling | None = None, *, with_support: bool = False
    ) -> None:
        self._module = loaded.module
        self._temperature = loaded.temperature
        self._support = loaded.support if with_support else None
        self.tiling = tiling or loaded.package.info.tiling
        self.out_channels = len(loaded.package.info.classes) + (self._support is not None)

    def __call__(self, reflectance: Tensor, valid: Tensor) -> Tensor:
        """(B, K, h, w) probabilities, and (B, 1, h, w) support below them; see `StripModel`."""
        logits: Tensor = self._module(reflectance, valid)
        probabilities = (logits.float() / self._temperature).softmax(dim=1)
        if self._support is None:
            return probabilities
        return torch.cat([probabilities, self._support(reflectance, valid)], dim=1)


class ClassOutputs:
    """The files of one run; they appear together with the end of the context, or not at all.

    Args:
        request: says which.
        ready: whose classes, grid and provenance they have.
        feedback: asked about a cancel while the files are finished.
        polygons: made of the class map too.
    """

    def __init__(
        self,
        request: ClassMapRequest,
        ready: Prediction,
        feedback: Feedback,
        polygons: PatchSink | None = None,
    ) -> None:
        classes = ready.info.classes
        self._values = np.array([info.value for info in classes], np.uint8)
        self.pixels_by_class = np.zeros(len(classes), np.int64)
        self.unfamiliar_pixels: int | None = None if request.support is None else 0
        self.paths = {"output": request.output}
        tags = ready.provenance()
        self._class_writer = RasterWriter(
            request.output, ready.grid, ["class"], "uint8", NO_CLASS,
            tags=tags, style=ClassStyle(classes), feedback=feedback,
        )  # fmt: skip
        self._share_writers: list[tuple[RasterWriter, _Select]] = []
        for name, path, bands, select in (
            ("confidence", request.confidence, ["confidence"], _largest(len(classes))),
            ("probabilities", request.probabilities, [c.name for c in classes],
             _first(len(classes))),
            ("support", request.support, ["support"], _last),
        ):  # fmt: skip
            if path is not None:
                writer = RasterWriter(
                    path, ready.grid, bands, "float32", NO_SHARE,
                    tags=tags, style=RampStyle(), feedback=feedback,
                )  # fmt: skip
                self._share_writers.append((writer, select))
                self.paths[name] = path
        self._polygons = polygons
        if polygons is not None:
            self.paths["polygons"] = polygons.path
        self._stack = ExitStack()

    @property
    def valid_pixels(self) -> int:
        """Pixels that have a class."""
        return int(self.pixels_by_class.sum())

    @property
    def _all(self) -> list[RasterWriter | PatchSink]:
        """All that is written, in the order in which it is finished."""
        others = [] if self._polygons is None else [self._polygons]
        return [self._class_writer, *(writer for writer, _select in self._share_writers), *others]

    def __enter__(self) -> Self:
        with ExitStack() as stack:  # closes what is open when a later one cannot be opened
            # The class map is renamed last: where it is, everything is.
            for writer in self._all:
                stack.enter_context(writer)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def finish(self) -> None:
        """Make all files, so that none of them appears when another cannot be made."""
        for writer in self._all:
            writer.finish()

    def write(self, window: Window, values: NDArray[np.float32], valid: NDArray[np.bool_]) -> None:
        """Write (K, h, w) probabilities, and support as one more channel if it is asked for.

        Called in row order.
        """
        probabilities = values[: len(self._values)]
        # A spectrum that is absurd enough gives no number, and then it has no class either.
        valid = valid & np.isfinite(probabilities).all(axis=0)
        class_index = probabilities.argmax(axis=0)
        counts = np.bincount(class_index[valid], minlength=len(self._values))
        self.pixels_by_class += counts
        if self.unfamiliar_pixels is not None:
            self.unfamiliar_pixels += int((valid & (values[-1] < FAMILIAR)).sum())
        classes = np.where(valid, self._values[class_index], NO_CLASS).astype(np.uint8)
        self._class_writer.write(window, classes[None])
        for writer, select in self._share_writers:
            writer.write(window, np.where(valid, select(values), np.float32(NO_SHARE)))
        if self._polygons is not None:
            self._polygons.write(window, classes, probabilities.max(axis=0))


def _largest(count: int) -> _Select:
    return lambda values: values[:count].max(axis=0, keepdims=True)


def _first(count: int) -> _Select:
    return lambda values: values[:count]


def _last(values: NDArray[Any]) -> NDArray[Any]:
    return values[-1:]


def _tell_result(
    outputs: ClassOutputs, ready: Prediction, seconds: float, feedback: Feedback
) -> None:
    """Say how fast it was, what is in the map, and how much of it is a guess."""
    feedback.info(f"{ready.speed_text(seconds)}; {outputs.valid_pixels:,} pixels have a class.")
    if outputs.valid_pixels == 0:
        feedback.warning("No pixel has a class: check the scene's nodata, the mask and the extent.")
        return
    shares = outputs.pixels_by_class / outputs.valid_pixels
    feedback.info("\n".join(_share_lines(ready.info.classes, shares)))
    if outputs.unfamiliar_pixels is None:
        return
    unfamiliar = outputs.unfamiliar_pixels / outputs.valid_pixels
    tell = feedback.warning if unfamiliar > MANY_UNFAMILIAR else feedback.info
    tell(
        f"{unfamiliar:.1%} of the pixels have a support below {FAMILIAR}: their spectra are unlike "
        "those of the places that the model was tested on, where one in twenty reads so. The map "
        "is a guess there."
    )


def _share_lines(classes: tuple[ClassInfo, ...], shares: NDArray[np.float64]) -> list[str]:
    return [f"{info.name}: {share:.1%}" for info, share in zip(classes, shares, strict=True)]

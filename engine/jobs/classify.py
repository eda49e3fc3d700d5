"""classify: a scene through a classifier, as a map of classes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from engine.feedback import Feedback, StepFeedback
from engine.jobs.request import PredictRequest
from engine.jobs.shared.prediction import Prediction, prepare
from engine.packages.cache import LoadedModel
from engine.raster.style import ClassInfo, ClassStyle, RampStyle
from engine.raster.tiles import Window
from engine.raster.writer import Grid, RasterWriter

_Select = Callable[[NDArray[Any]], NDArray[Any]]

NO_CLASS = 0  # in class maps
NO_SHARE = float("nan")  # a float that no reader takes for a measurement


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
    ready = prepare(request, "semantic-segmentation", feedback)
    classes = ready.info.classes
    _check_outputs(request, ready)
    with _Outputs(request, ready.grid, classes, ready.provenance(), feedback) as outputs:
        ready.run(
            _Classifier(ready.loaded),
            outputs.write,
            step="Classifying",
            feedback=StepFeedback(feedback, 0.02, 0.95),
        )
        feedback.progress(0.95, "Finishing the files")
        outputs.finish()
    seconds = time.monotonic() - start_s
    _tell_result(outputs, classes, ready, seconds, feedback)
    feedback.progress(1.0, "Done")
    return {
        **outputs.paths,
        "valid_pixels": outputs.valid_pixels,
        "seconds": seconds,
        "device": str(ready.choice.device),
    }


def _check_outputs(request: Request, ready: Prediction) -> None:
    """Refuse outputs that cannot be written, before work begins."""
    pixel_bytes = 1 + 4 * (request.confidence is not None)
    pixel_bytes += 4 * len(ready.info.classes) * (request.probabilities is not None)
    ready.check_outputs([request.output, request.confidence, request.probabilities], pixel_bytes)


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


def _tell_result(
    outputs: _Outputs,
    classes: tuple[ClassInfo, ...],
    ready: Prediction,
    seconds: float,
    feedback: Feedback,
) -> None:
    """Say how fast it was and what is in the map."""
    feedback.info(f"{ready.speed_text(seconds)}; {outputs.valid_pixels:,} pixels have a class.")
    if outputs.valid_pixels == 0:
        feedback.warning("No pixel has a class: check the scene's nodata, the mask and the extent.")
        return
    shares = outputs.pixels_by_class / outputs.valid_pixels
    lines = [f"{info.name}: {share:.1%}" for info, share in zip(classes, shares, strict=True)]
    feedback.info("\n".join(lines))

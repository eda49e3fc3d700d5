"""estimate: a scene through a model of a quantity, as a map of its values."""

from __future__ import annotations

import time
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from engine.feedback import Feedback, StepFeedback
from engine.jobs.request import PredictRequest
from engine.jobs.shared.prediction import Prediction, prepare
from engine.packages.cache import LoadedModel
from engine.packages.metadata import Quantity
from engine.raster.style import RampStyle
from engine.raster.tiles import Window
from engine.raster.writer import Grid, RasterWriter

NO_VALUE = float("nan")  # a float that no reader takes for a measurement
# So many pixels outside the range of the training values say that the model is on foreign ground.
MANY_OUTSIDE = 0.05


class Request(PredictRequest):
    """The parameters of `PredictRequest`, and what to make.

    ``output`` is the map of values: float32 in the model's unit, NaN as nodata.
    """

    output: str


def estimate(request: Request, feedback: Feedback) -> dict[str, Any]:
    """Make a map of a quantity, such as soil organic carbon; values are never cut off.

    Returns:
        ``output`` (path); ``valid_pixels`` (with a value), ``outside_share`` (of them, outside the
        range of the training values, 0 to 1), ``seconds``, ``device``.

    Raises:
        DeviceError: a GPU is required and there is none.
        PackageError: the model cannot be loaded, or estimates nothing.
        SceneError, BandTableError, BandMatchError: the scene cannot be read or does not fit.
        RequestError, LabelError: extent or mask lie outside the scene.
        OutputError: the output cannot be written.
    """
    start_s = time.monotonic()
    ready = prepare(request, "regression", feedback)
    quantity = cast(Quantity, ready.info.quantity)  # a package for regression has one
    ready.check_outputs([request.output], pixel_bytes=4)
    with _Output(request, ready.grid, quantity, ready.provenance(), feedback) as output:
        ready.run(
            _Regressor(ready.loaded),
            output.write,
            step="Estimating",
            feedback=StepFeedback(feedback, 0.02, 0.95),
        )
        feedback.progress(0.95, "Finishing the file")
    seconds = time.monotonic() - start_s
    _tell_result(output, quantity, ready, seconds, feedback)
    feedback.progress(1.0, "Done")
    return {
        "output": request.output,
        "valid_pixels": output.valid_pixels,
        "outside_share": output.outside_share,
        "seconds": seconds,
        "device": str(ready.choice.device),
    }


class _Regressor:
    """A model of one value a pixel, which may be blended."""

    out_channels = 1

    def __init__(self, loaded: LoadedModel) -> None:
        self._module = loaded.module
        self.tiling = loaded.package.info.tiling

    def __call__(self, reflectance: Tensor, valid: Tensor) -> Tensor:
        values: Tensor = self._module(reflectance, valid)
        return values.float()


class _Output:
    """The file of one run, and what was written to it; appears with the end of the context.

    Args:
        request: says where.
        grid: of the file.
        quantity: what it holds.
        tags: provenance.
        feedback: asked about a cancel while the file is finished.
    """

    def __init__(
        self,
        request: Request,
        grid: Grid,
        quantity: Quantity,
        tags: dict[str, str],
        feedback: Feedback,
    ) -> None:
        self._quantity = quantity
        self.valid_pixels = self.outside_pixels = self.absurd_pixels = 0
        self._sum, self._low, self._high = 0.0, np.inf, -np.inf
        self._writer = RasterWriter(
            request.output, grid, [quantity.name], "float32", NO_VALUE,
            tags=tags | _quantity_tags(quantity),
            style=RampStyle(quantity.low, quantity.high),
            unit=quantity.unit, feedback=feedback,
        )  # fmt: skip

    def __enter__(self) -> _Output:
        self._writer.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._writer.__exit__(*error)

    @property
    def outside_share(self) -> float:
        """Of the pixels with a value, those outside the range of the training values, 0 to 1."""
        return self.outside_pixels / self.valid_pixels if self.valid_pixels else 0.0

    def summary(self) -> str:
        """Lowest, mean and highest value."""
        unit = f" {self._quantity.unit}" if self._quantity.unit else ""
        mean = self._sum / self.valid_pixels
        return f"{self._low:.4g} to {self._high:.4g}{unit}, {mean:.4g}{unit} on average"

    def write(self, window: Window, values: NDArray[np.float32], valid: NDArray[np.bool_]) -> None:
        """Write (1, h, w) values; called in row order."""
        # A spectrum that is absurd enough gives no number, and then there is no value either.
        finite = np.isfinite(values[0])
        self.absurd_pixels += int((valid & ~finite).sum())
        valid = valid & finite
        known = values[0][valid].astype(np.float64)
        if len(known):
            self.valid_pixels += len(known)
            outside = (known < self._quantity.low) | (known > self._quantity.high)
            self.outside_pixels += int(outside.sum())
            self._sum += float(known.sum())
            self._low = min(self._low, float(known.min()))
            self._high = max(self._high, float(known.max()))
        self._writer.write(window, np.where(valid, values, np.float32(NO_VALUE)))


def _quantity_tags(quantity: Quantity) -> dict[str, str]:
    """What the numbers are, for readers that do not look at the band."""
    tags = {
        "QUANTITY": quantity.name,
        "QUANTITY_UNIT": quantity.unit,
        "TRAINING_RANGE": f"{quantity.low:.9g} {quantity.high:.9g}",
    }
    return {name: text for name, text in tags.items() if text}  # GDAL keeps no empty tags


def _tell_result(
    output: _Output, quantity: Quantity, ready: Prediction, seconds: float, feedback: Feedback
) -> None:
    """Say how fast it was, what is in the map, and how much of it is a guess."""
    feedback.info(f"{ready.speed_text(seconds)}; {output.valid_pixels:,} pixels have a value.")
    if output.absurd_pixels:
        feedback.warning(
            f"{output.absurd_pixels:,} pixels have spectra so far from all that was learned that "
            "no number came out; they are nodata."
        )
    if output.valid_pixels == 0:
        feedback.warning("No pixel has a value: check the scene's nodata, the mask and the extent.")
        return
    feedback.info(f"{quantity.name}: {output.summary()}.")
    tell = feedback.warning if output.outside_share > MANY_OUTSIDE else feedback.info
    unit = f" {quantity.unit}" if quantity.unit else ""
    tell(
        f"{output.outside_share:.1%} of the pixels lie outside {quantity.low:.4g} to "
        f"{quantity.high:.4g}{unit}, the range that the model was trained on; there it guesses."
    )

"""A fused image on its way: a method as the stream runs it, and the files that its tiles fill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.jobs.shared.fusion_methods import ChosenMethod, RoutedMethod
from engine.jobs.shared.pairs import ReadyPair
from engine.models.fusion.consistency import measure_consistency, relative_difference
from engine.models.fusion.method import (
    BICUBIC_REACH_PX,
    FILL_REACH_PX,
    ImagePair,
    fill_invalid,
    upsample,
)
from engine.raster.tiles import Window
from engine.raster.writer import Grid, RasterWriter

CONSISTENCY_LAYERS = 4
RATIO_TAG = "FUSION_RATIO"  # of a fused image, so that it can be assessed
INT16_SCALE = 1e-4
INT16_NODATA = -32768
_INT16_LIMIT = 32767
OVERVIEW_PX = 480  # along the longer side of the pictures that are kept for the report


class WholeCube(nn.Module):
    """Makes all bands of the hyperspectral image fine, and looks how well both are given back.

    Bands that the method does not know, bad ones among them, are interpolated: they get no detail
    of the multispectral image. The last four channels are `Consistency.layers`.

    Args:
        chosen: the method, on ``device``.
        ready: the pair; the stream reads all its bands.
        device: to run on.
    """

    def __init__(self, chosen: ChosenMethod, ready: ReadyPair, device: torch.device) -> None:
        super().__init__()
        self.ratio = ready.pair.ratio
        self.routed = RoutedMethod(chosen)
        self._physics = ready.physics.to(device)
        places = {band: i for i, band in enumerate(ready.pair.hsi_index)}
        self._usable = [places[band] for band in ready.pair.usable_hsi_index]
        self.bands = len(places)
        known = {self._usable[i] for i in np.flatnonzero(chosen.route.place >= 0)}
        self._plain = [i for i in range(self.bands) if i not in known]
        self._unusable = [i for i in range(self.bands) if i not in set(self._usable)]
        self._nothing = torch.zeros(self.bands, device=device)

    @property
    def out_channels(self) -> int:
        """Bands, and what consistency is made of."""
        return self.bands + CONSISTENCY_LAYERS

    @property
    def reach_px(self) -> int:
        """Of the method and of the look at its result, or of interpolating."""
        method_px = self.routed.method.reach_px + self._physics.spread.reach_px
        return max(method_px, FILL_REACH_PX + BICUBIC_REACH_PX)

    @property
    def plain_count(self) -> int:
        """Bands that are only interpolated."""
        return len(self._plain)

    def forward(self, pair: ImagePair) -> Tensor:
        """(B, L, h, w) to (B, L + 4, h*r, w*r)."""
        usable = self._of_usable(pair)
        fused = self.routed(usable)
        if self._plain:
            fused = self._with_plain(pair, fused)
        seen = fused[:, self._usable] if len(self._usable) < self.bands else fused
        physics = self._physics
        with torch.autocast(seen.device.type, enabled=False):  # half precision is for networks
            found = measure_consistency(seen, usable, physics.spread, physics.response)
        return torch.cat([fused, found.layers()], dim=1)

    def _of_usable(self, pair: ImagePair) -> ImagePair:
        if len(self._usable) == self.bands:
            return pair
        return ImagePair(pair.hsi[:, self._usable], pair.msi, pair.hsi_valid, pair.msi_valid)

    def _with_plain(self, pair: ImagePair, fused: Tensor) -> Tensor:
        """All bands: the fused ones, and the others interpolated."""
        b, _, h, w = fused.shape
        cube = fused.new_empty((b, self.bands, h, w))
        cube[:, self._usable] = fused
        coarse = fill_invalid(pair.hsi, pair.hsi_valid, self._nothing)[:, self._plain]
        cube[:, self._plain] = upsample(coarse, self.ratio)
        if self._unusable:
            # The reader gives 0 where a bad band measured nothing.
            empty = pair.hsi[:, self._unusable] == 0
            empty = empty.repeat_interleave(self.ratio, 2).repeat_interleave(self.ratio, 3)
            cube[:, self._unusable] = cube[:, self._unusable].masked_fill(empty, torch.nan)
        return cube


@dataclass
class Given:
    """Sums over all pixels of how well one of both images is given back.

    Args:
        error: sum of squared differences.
        energy: sum of squares.
        pixels: fine pixels that are known.
    """

    error: float = 0.0
    energy: float = 0.0
    pixels: int = 0

    def add(self, error: NDArray[np.float32], energy: NDArray[np.float32]) -> None:
        """Add pixels; NaN where one is not known."""
        known = np.isfinite(error)
        self.error += float(error[known].sum(dtype=np.float64))
        self.energy += float(energy[known].sum(dtype=np.float64))
        self.pixels += int(known.sum())

    @property
    def relative(self) -> float:
        """Root mean square difference relative to the image; NaN when nothing is known."""
        if not self.pixels:
            return float("nan")
        return float(np.sqrt(self.error / self.energy)) if self.energy else 0.0


class Overview:
    """Some pixels of maps, as many as a picture shows.

    Args:
        maps: K.
        window: that the maps cover.
    """

    def __init__(self, maps: int, window: Window) -> None:
        self._window = window
        self._step = max(1, -(-max(window.height, window.width) // OVERVIEW_PX))
        shape = (maps, -(-window.height // self._step), -(-window.width // self._step))
        self.picture = np.full(shape, np.nan, np.float32)

    def keep(self, window: Window, values: NDArray[np.floating[Any]]) -> None:
        """Keep some of the (K, h, w) pixels of a window inside the whole."""
        row_off = window.row_off - self._window.row_off
        col_off = window.col_off - self._window.col_off
        first_row, first_col = -row_off % self._step, -col_off % self._step
        some = values[:, first_row :: self._step, first_col :: self._step]
        row, col = (row_off + first_row) // self._step, (col_off + first_col) // self._step
        self.picture[:, row : row + some.shape[1], col : col + some.shape[2]] = some


class FusedOutput:
    """What the tiles of a fused image become: the cube, its consistency, and sums for the report.

    Args:
        cube: writer of the bands, entered by this context.
        consistency: writer of two bands, likewise; None when not wanted.
        grid: of both.
        bands: L.
        integers: whether the cube is int16, reflectance / `INT16_SCALE`; else it is float32.
    """

    def __init__(
        self,
        cube: RasterWriter,
        consistency: RasterWriter | None,
        grid: Grid,
        *,
        bands: int,
        integers: bool,
    ) -> None:
        self._cube = cube
        self._consistency = consistency
        self._bands = bands
        self._integers = integers
        self.valid_pixels = self.clipped_values = 0
        self.hsi, self.msi = Given(), Given()
        self._overview = Overview(2, Window(grid.row_off, grid.col_off, grid.height, grid.width))

    @property
    def overview(self) -> NDArray[np.float32]:
        """(2, h, w) relative differences from both images, of some fine pixels."""
        return self._overview.picture

    def __enter__(self) -> Self:
        self._cube.__enter__()
        try:
            if self._consistency is not None:
                self._consistency.__enter__()
        except BaseException as error:
            self._cube.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            if self._consistency is not None:
                self._consistency.__exit__(*error)
        except BaseException as own:
            self._cube.__exit__(type(own), own, own.__traceback__)
            raise
        self._cube.__exit__(*error)

    def write(self, window: Window, values: NDArray[np.float32], valid: NDArray[np.bool_]) -> None:
        """Take a tile: (L + 4, h, w) values and (h, w) valid, from the stream."""
        cube, layers = values[: self._bands], values[self._bands :]
        self.valid_pixels += int(valid.sum())
        layers[:, ~valid] = np.nan
        self.hsi.add(*layers[:2])
        self.msi.add(*layers[2:])
        error, energy = torch.from_numpy(layers[::2]), torch.from_numpy(layers[1::2])
        relative = relative_difference(error, energy).numpy()
        if self._consistency is not None:
            self._consistency.write(window, relative)
        self._overview.keep(window, relative)
        self._cube.write(window, self._stored(cube, valid))

    def _stored(self, cube: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[Any]:
        """Numbers as the file holds them."""
        if not self._integers:
            return np.where(valid, cube, np.float32(np.nan))
        numbers = cube * np.float32(1 / INT16_SCALE)
        np.rint(numbers, out=numbers)
        missing = np.isnan(numbers)
        missing |= ~valid
        outside = np.abs(numbers) > _INT16_LIMIT
        self.clipped_values += int(np.count_nonzero(outside & ~missing))
        np.clip(numbers, -_INT16_LIMIT, _INT16_LIMIT, out=numbers)
        numbers[missing] = INT16_NODATA
        return numbers.astype(np.int16)

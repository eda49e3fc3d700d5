"""A raster of any grid, sampled on the pixels of a scene."""

from __future__ import annotations

from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as transform_points

from engine.raster.dataset import open_dataset
from engine.raster.scene import Scene
from engine.raster.tiles import Window
from engine.raster.writer import Grid

MAX_SUPERSAMPLE = 10  # 3 m inside 30 m: shares to one per cent


class SampledRaster:
    """The first band of a raster of any grid, sampled several times in each pixel of a scene.

    Args:
        source: of the raster.
        scene: whose pixels are sampled.
        nodata: what samples outside the raster, or on its nodata, become.
        dtype: of the samples; None for the raster's own.
    """

    def __init__(
        self, source: str, scene: Scene | Grid, *, nodata: float, dtype: str | None = None
    ) -> None:
        self._source = source
        self._nodata = nodata
        self._dtype = dtype
        with open_dataset(source) as labels:
            crs = labels.crs or scene.crs
            fineness = _pixels_per_pixel(labels.transform, crs, scene)
        s = int(np.clip(round(fineness), 1, MAX_SUPERSAMPLE))
        self.supersample = s
        self._grid: dict[str, Any] = {
            "transform": scene.transform @ Affine.scale(1 / s),
            "height": scene.height * s,
            "width": scene.width * s,
        }
        if scene.crs is not None:
            self._grid |= {"crs": scene.crs, "src_crs": crs}

    def read(self, window: Window) -> NDArray[Any]:
        """Sample a window of the scene: (h * supersample, w * supersample)."""
        s = self.supersample
        pixels = rasterio.windows.Window(
            window.col_off * s, window.row_off * s, window.width * s, window.height * s
        )
        options = self._grid | ({} if self._dtype is None else {"dtype": self._dtype})
        with (
            open_dataset(self._source) as labels,
            WarpedVRT(
                labels, resampling=Resampling.nearest, nodata=self._nodata, **options
            ) as warped,
        ):
            samples: NDArray[Any] = warped.read(1, window=pixels)
        return samples


def _pixels_per_pixel(transform: Affine, crs: CRS | None, scene: Scene | Grid) -> float:
    """How many label pixels lie along a scene pixel's side, in the middle of the scene."""
    middle = scene.width / 2, scene.height / 2
    corners = [scene.transform @ middle, scene.transform @ (middle[0] + 1, middle[1] + 1)]
    xs, ys = [x for x, _y in corners], [y for _x, y in corners]
    if scene.crs is not None and crs is not None and crs != scene.crs:
        xs, ys = transform_points(scene.crs, crs, xs, ys)[:2]
    (col0, row0), (col1, row1) = (~transform @ xy for xy in zip(xs, ys, strict=True))
    return float(np.sqrt(max(abs((col1 - col0) * (row1 - row0)), 1e-6)))

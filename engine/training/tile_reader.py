"""Reading tiles of many scenes: windows on the fly, small scenes from memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from engine.raster.band_presence import PresentBands
from engine.raster.reflectance import Reflectance, Scratch
from engine.raster.scene import Scene, SceneReader
from engine.raster.tiles import Window

# Scenes are kept as stored integers while they fit in here, the smallest first: a tile of a small
# scene then costs no call of GDAL. A scene of EnMAP (450 MB) is read window by window.
CACHE_BYTES = 256 * 1024**2
MAX_OPEN_SCENES = 32  # far below the number of files that a process may open


class StoredScenes:
    """Small scenes in memory, in their stored type; bounded by `CACHE_BYTES` in all.

    Args:
        scenes: all scenes.
        bands: what each gives, in the same order.
    """

    def __init__(self, scenes: Sequence[Scene], bands: Sequence[PresentBands]) -> None:
        self.scenes = tuple(scenes)
        self.bands = tuple(bands)
        self._stored: dict[int, NDArray[Any]] = {}
        sizes = [
            scene.height * scene.width * len(item.match.scene_band_index) * scene.dtype.itemsize
            for scene, item in zip(scenes, bands, strict=True)
        ]
        self._kept = set()
        left = CACHE_BYTES
        for index in sorted(range(len(sizes)), key=sizes.__getitem__):
            left -= sizes[index]
            if left < 0:
                break
            self._kept.add(index)

    def get(self, scene_index: int) -> NDArray[Any] | None:
        """(C, H, W) of a scene, read at the first call; None when it is too large to keep."""
        if scene_index not in self._kept:
            return None
        if scene_index not in self._stored:
            scene = self.scenes[scene_index]
            with SceneReader(scene, self.bands[scene_index].match.scene_band_index) as reader:
                whole = Window(0, 0, scene.height, scene.width)
                self._stored[scene_index] = reader.read(whole)
        return self._stored[scene_index]


class TileReader:
    """Reads tiles as reflectance; open it with ``with``, use it from one thread.

    Args:
        stored: the scenes.
        channels: C, bands of the model.
    """

    def __init__(self, stored: StoredScenes, channels: int) -> None:
        self._stored = stored
        self._channels = channels
        self._open: OrderedDict[int, tuple[ExitStack, SceneReader]] = OrderedDict()
        self._reflectance: dict[int, Reflectance] = {}
        self._scratch = Scratch(torch.device("cpu"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the files."""
        for stack, _reader in self._open.values():
            stack.close()
        self._open.clear()

    def read(
        self, scene_index: int, window: Window
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Read one tile.

        Returns:
            (P, h, w) float32 reflectance of the bands that the scene has, 0 where not valid, good
            until the next call; and (h, w) bool valid.

        Raises:
            SceneError: the scene cannot be read.
        """
        to_reflectance = self._to_reflectance(scene_index)
        values = self._stored.get(scene_index)
        if values is None:
            values = self._reader(scene_index).read(window)
        else:
            rows = slice(window.row_off, window.row_stop)
            values = values[:, rows, window.col_off : window.col_stop]
        piece = to_reflectance.load(values)
        whole = slice(0, window.height), slice(0, window.width)
        (reflectance,), (valid,) = to_reflectance.batch(piece, [whole], self._scratch)
        return reflectance.numpy(), valid.numpy()

    def _to_reflectance(self, scene_index: int) -> Reflectance:
        if scene_index not in self._reflectance:
            scene, bands = self._stored.scenes[scene_index], self._stored.bands[scene_index]
            self._reflectance[scene_index] = Reflectance(scene, bands.match, torch.device("cpu"))
        return self._reflectance[scene_index]

    def _reader(self, scene_index: int) -> SceneReader:
        """The open scene; the one that was used longest ago is closed when there are many."""
        if scene_index in self._open:
            self._open.move_to_end(scene_index)
            return self._open[scene_index][1]
        if len(self._open) >= MAX_OPEN_SCENES:
            _index, (oldest, _reader) = self._open.popitem(last=False)
            oldest.close()
        stack = ExitStack()
        scene = self._stored.scenes[scene_index]
        match = self._stored.bands[scene_index].match
        reader = stack.enter_context(SceneReader(scene, match.scene_band_index))
        self._open[scene_index] = (stack, reader)
        return reader

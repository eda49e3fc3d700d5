"""Reading windows of a scene: many bands in one call, in the stored type, without copies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from rasterio import windows
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

from engine.errors import SceneError
from engine.raster.dataset import (
    check_raw_length,
    gdal_reason,
    local_files,
    open_dataset,
    raw_bytes,
)
from engine.raster.gzipped import is_gzipped, unpack_envi
from engine.raster.tiles import Window

if TYPE_CHECKING:
    from engine.raster.scene import Scene


class SceneReader:
    """Reads windows of some bands of a scene; open it with ``with``, use it from one thread.

    Args:
        scene: the scene.
        band_index: 0-based bands, in the order in which they are wanted.
        unpack: unpack a compressed ENVI file first, which checks it and makes strips fast; not
            worth it for a few small windows.
    """

    def __init__(self, scene: Scene, band_index: Sequence[int], *, unpack: bool = True) -> None:
        self._scene = scene
        self._unpack = unpack
        self._runs = _runs_of_one_file([scene.band_sources[i] for i in band_index])
        self._count = len(band_index)
        self._stack = ExitStack()
        self._datasets: dict[int, DatasetReader] = {}
        self._lengths: dict[str, int] = {}

    def __enter__(self) -> Self:
        """Open the files.

        Raises:
            SceneError: one is gone, truncated, or another than when the scene was opened.
        """
        try:
            for file_index in dict.fromkeys(run.file_index for run in self._runs):
                self._datasets[file_index] = self._open(self._scene.files[file_index])
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the files."""
        self._datasets.clear()
        self._stack.close()

    def read(self, window: Window, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read a window.

        Args:
            window: a rectangle inside the scene.
            out: (C, h, w) of the scene's type to read into; a new array when None.

        Returns:
            (C, h, w) in the stored type, bands in the order asked for.

        Raises:
            SceneError: a file was removed, changed or is damaged; file and block are named.
        """
        self.check_lengths(window)
        if out is None:
            shape = (self._count, window.height, window.width)
            out = np.empty(shape, self._scene.dtype)
        for run in self._runs:
            part = out[run.start : run.start + len(run.band_numbers)]
            self._read_run(run, window, part)
        return out

    def _open(self, file: str) -> DatasetReader:
        dataset = self._stack.enter_context(open_dataset(file))
        scene = self._scene
        if (dataset.height, dataset.width) != (scene.height, scene.width):
            raise SceneError(f"{file} was replaced by another raster.", "Start again.")
        check_raw_length(dataset)
        self._lengths.update(local_files(dataset))
        if self._unpack and is_gzipped(dataset):
            folder = self._stack.enter_context(TemporaryDirectory(prefix="hyperkd-"))
            unpacked = unpack_envi(dataset, Path(folder), raw_bytes(dataset))
            return self._stack.enter_context(open_dataset(unpacked))
        if dataset.driver == "GTiff" and dataset.compression is not None:
            # Only where there is something to decode: it slows plain files down.
            return self._stack.enter_context(open_dataset(file, threads=True))
        return dataset

    def _read_run(self, run: _Run, window: Window, out: NDArray[Any]) -> None:
        dataset = self._datasets[run.file_index]
        rectangle = windows.Window(window.col_off, window.row_off, window.width, window.height)
        try:
            dataset.read(run.band_numbers, window=rectangle, out=out)
        except (RasterioError, OSError, ValueError) as error:
            raise SceneError(
                f"{self._scene.files[run.file_index]} cannot be read in {_block(window)}: "
                f"{gdal_reason(error)}.",
                "The file is damaged or incomplete; copy or download it again.",
            ) from error

    def open_bands(self) -> list[tuple[DatasetReader, int]]:
        """The open data set and the band number of each band, for what warps instead of reads."""
        return [
            (self._datasets[run.file_index], number)
            for run in self._runs
            for number in run.band_numbers
        ]

    def check_lengths(self, window: Window) -> None:
        """See that no file was removed or cut since it was opened: GDAL may not notice.

        Args:
            window: that is about to be read, for the message.

        Raises:
            SceneError: one was.
        """
        for name, length in self._lengths.items():
            try:
                now = os.path.getsize(name)
            except OSError as error:
                raise SceneError(
                    f"{name} was removed while it was read, in {_block(window)}.",
                    "Put it back and start again.",
                ) from error
            if now < length:
                raise SceneError(
                    f"{name} was truncated from {length:,} to {now:,} bytes while it was read, "
                    f"in {_block(window)}.",
                    "Copy or download it again.",
                )


class _Run:
    """Bands that are wanted one after the other and lie in one file.

    Args:
        file_index: into the scene's files.
        start: place of the first of them in the array.
    """

    def __init__(self, file_index: int, start: int) -> None:
        self.file_index = file_index
        self.start = start
        self.band_numbers: list[int] = []


def _runs_of_one_file(sources: Sequence[tuple[int, int]]) -> list[_Run]:
    """Group (file, band number) pairs so that each group is one call of GDAL."""
    runs: list[_Run] = []
    for place, (file_index, band_number) in enumerate(sources):
        if not runs or runs[-1].file_index != file_index:
            runs.append(_Run(file_index, place))
        runs[-1].band_numbers.append(band_number)
    return runs


def _block(window: Window) -> str:
    """A window in words, counted from 0 as GDAL counts."""
    return (
        f"the block of rows {window.row_off} to {window.row_stop - 1} and columns "
        f"{window.col_off} to {window.col_stop - 1}"
    )

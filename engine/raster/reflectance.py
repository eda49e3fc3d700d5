"""From stored values to what a model sees: the reflectance of its bands, and what is valid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.raster.nodata import Nodata
from engine.raster.pieces import Stored
from engine.raster.scene import Scene
from engine.raster.spectra import BandMatch

# Values that are converted at a time on a CPU: they and their results fit into its second cache.
_CACHED_VALUES = 2**16


@dataclass(frozen=True, eq=False)
class LoadedPiece:
    """Stored values where they are converted.

    Args:
        values: (C, h, w) stored type; on the CPU a view of what was read.
        valid: (h, w) bool, True where all bands are finite and none is nodata.
    """

    values: Tensor
    valid: Tensor


class Scratch:
    """Memory that is used from batch to batch: fresh pages cost as much as the conversion."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._rooms: dict[str, Tensor] = {}

    def room(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Give float32 memory of a shape, with whatever stands there."""
        size = prod(shape)
        if name not in self._rooms or self._rooms[name].numel() < size:
            self._rooms[name] = torch.empty(size, device=self._device)
        return self._rooms[name][:size].view(shape)


class Reflectance:
    """Turns stored values into the model's bands: reflectance = stored * scale + offset.

    Args:
        scene: whose scale, offset and nodata hold.
        match: which bands are read, and their weights in the model's bands.
        device: to work on.
    """

    def __init__(self, scene: Scene, match: BandMatch, device: torch.device) -> None:
        index = list(match.scene_band_index)
        self._device = device
        self._scale = scene.scale[index].astype(np.float32)[:, None, None]
        self._offset = scene.offset[index].astype(np.float32)[:, None, None]
        self._on_device = [torch.from_numpy(x).to(device) for x in (self._scale, self._offset)]
        self._nodata = _Nodata([scene.nodata[band] for band in index], scene.dtype)
        self._weights = (
            None if match.weights is None else torch.from_numpy(match.weights).to(device)
        )
        self._scratch = Scratch(device)

    @property
    def channels(self) -> int:
        """M, the model's bands."""
        return len(self._scale) if self._weights is None else len(self._weights)

    def load(self, stored: Stored) -> LoadedPiece:
        """Bring (C, h, w) stored values to the device, and tell which pixels can be used."""
        if self._device.type == "cpu":
            return LoadedPiece(torch.from_numpy(stored), torch.from_numpy(self._valid(stored)))
        values = torch.from_numpy(stored).to(self._device, non_blocking=True)
        return LoadedPiece(values, self._nodata.valid_on_device(values))

    def batch(
        self,
        piece: LoadedPiece,
        tiles: Sequence[tuple[slice, slice]],
        scratch: Scratch | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Convert tiles of one shape, given as rows and columns of a piece.

        Threads may do so at the same time, each into a scratch of its own.

        Args:
            piece: that was loaded.
            tiles: of it.
            scratch: what to convert into; None: one that this object has.

        Returns:
            (B, M, h, w) float32 reflectance of the model's bands, 0 where not valid, good until
            the scratch is used again; and (B, h, w) bool valid.
        """
        convert = self._convert_here if self._device.type == "cpu" else self._convert_there
        scratch = scratch or self._scratch
        valid = torch.stack([piece.valid[tile] for tile in tiles])
        b, h, w = valid.shape
        reflectance = scratch.room("read", (b, len(self._scale), h, w))
        convert(piece, tiles, valid, reflectance)
        if self._weights is not None:
            matched = scratch.room("matched", (b, self.channels, h * w))
            torch.matmul(self._weights, reflectance.flatten(2), out=matched)
            reflectance = matched.view(b, -1, h, w)
        return reflectance, valid

    def _valid(self, stored: Stored) -> NDArray[np.bool_]:
        valid = np.ones(stored.shape[1:], np.bool_)
        step = max(1, _CACHED_VALUES // valid.size)
        for start in range(0, len(stored), step):
            bands = slice(start, start + step)
            self._nodata.mark(stored[bands], bands, valid)
        return valid

    def _convert_here(
        self,
        piece: LoadedPiece,
        tiles: Sequence[tuple[slice, slice]],
        valid: Tensor,
        reflectance: Tensor,
    ) -> None:
        """Convert on the CPU, in parts that stay in its cache, and in this thread alone.

        torch would share each step among its threads, which wait for each other at the end of it:
        with the reader on one of few cores that takes longer than the step itself.
        """
        stored = piece.values.numpy()
        has_scale, has_offset = bool(np.any(self._scale != 1)), bool(np.any(self._offset != 0))
        for (rows, cols), usable, tile in zip(
            tiles, valid.numpy(), reflectance.numpy(), strict=True
        ):
            step = max(1, _CACHED_VALUES // usable.size)
            for start in range(0, len(stored), step):
                bands = slice(start, start + step)
                out = tile[bands]
                np.copyto(out, stored[bands, rows, cols], casting="same_kind")
                if has_scale:
                    np.multiply(out, self._scale[bands], out=out)
                if has_offset:
                    np.add(out, self._offset[bands], out=out)
            if not usable.all():
                np.copyto(tile, 0, where=~usable)

    def _convert_there(
        self,
        piece: LoadedPiece,
        tiles: Sequence[tuple[slice, slice]],
        valid: Tensor,
        reflectance: Tensor,
    ) -> None:
        """Convert on the device, to which the stored integers have travelled."""
        for (rows, cols), tile in zip(tiles, reflectance, strict=True):
            tile.copy_(piece.values[:, rows, cols])
        scale, offset = self._on_device
        reflectance.mul_(scale).add_(offset).masked_fill_(~valid[:, None], 0.0)


class _Nodata(Nodata):
    """The same for stored values that lie on a device."""

    def valid_on_device(self, values: Tensor) -> Tensor:
        """Same as `mark` for all bands (C, h, w) of a tensor, as a new (h, w) bool tensor."""
        device = values.device
        has_number = torch.from_numpy(self._has_number).to(device)[:, None, None]
        numbers = torch.from_numpy(self._numbers).to(device)
        # torch cannot compare unsigned integers; equal bits say the same.
        signed = _SIGNED.get(values.dtype, values.dtype)
        usable = (values.view(signed) != numbers.view(signed)) | ~has_number
        if values.dtype.is_floating_point:
            usable &= torch.isfinite(values)
        return usable.all(0)


_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32}

"""From stored values to what a model sees: the reflectance of its bands, and what is valid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.raster.pieces import Stored
from engine.raster.scene import Scene
from engine.raster.spectra import BandMatch


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
        self._scale = _per_band(scene.scale[index], device)
        self._offset = _per_band(scene.offset[index], device)
        self._nodata = _nodata_bands([scene.nodata[band] for band in index], scene.dtype)
        self._weights = (
            None if match.weights is None else torch.from_numpy(match.weights).to(device)
        )
        self._scratch: dict[str, Tensor] = {}

    def __call__(self, stored: Stored) -> tuple[Tensor, Tensor]:
        """Convert a piece.

        Args:
            stored: (C, h, w).

        Returns:
            (M, h, w) float32 reflectance of the model's bands, 0 where not valid, good until the
            next call; and (h, w) bool, True where all bands are finite and none is nodata.
        """
        values = torch.from_numpy(stored).to(self._device, non_blocking=True)
        valid = self._valid(values)
        c, h, w = values.shape
        reflectance = self._room("read", (c, h, w)).copy_(values)
        if not isinstance(self._scale, float) or self._scale != 1.0:
            reflectance.mul_(self._scale)
        if not isinstance(self._offset, float) or self._offset != 0.0:
            reflectance.add_(self._offset)
        if self._weights is not None:
            room = self._room("matched", (len(self._weights), h * w))
            torch.matmul(self._weights, reflectance.view(c, h * w), out=room)
            reflectance = room.view(-1, h, w)
        if not bool(valid.all()):
            reflectance.masked_fill_(~valid, 0.0)
        return reflectance, valid

    def _valid(self, values: Tensor) -> Tensor:
        """Tell which (h, w) pixels of the stored (C, h, w) can be used."""
        valid = torch.ones(values.shape[1:], dtype=torch.bool, device=self._device)
        # numpy compares stored integers several times faster than torch does on a CPU, and torch
        # cannot compare unsigned ones: there, the bits of the signed type are compared.
        on_cpu = self._device.type == "cpu"
        x: Any = values.numpy() if on_cpu else _signed(values)
        if values.dtype.is_floating_point:
            valid &= torch.as_tensor((np if on_cpu else torch).isfinite(x).all(0))
        for number, bands in self._nodata:
            some = x if len(bands) == len(x) else x[bands]
            valid &= torch.as_tensor((some != (number if on_cpu else _wrapped(number))).all(0))
        return valid

    def _room(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Reuse memory from piece to piece: fresh pages cost as much as the conversion."""
        size = int(np.prod(shape))
        if name not in self._scratch or self._scratch[name].numel() < size:
            self._scratch[name] = torch.empty(size, device=self._device)
        return self._scratch[name][:size].view(shape)


def _per_band(values: NDArray[np.float64], device: torch.device) -> Tensor | float:
    """One number when all bands have the same, else (C, 1, 1) float32."""
    if np.all(values == values[0]):
        return float(values[0])
    return torch.from_numpy(values.astype(np.float32)[:, None, None]).to(device)


def _nodata_bands(
    nodata: Sequence[float | None], dtype: np.dtype[Any]
) -> list[tuple[np.generic, list[int]]]:
    """Group the bands by nodata value; a value that the type cannot store is in no pixel.

    NaN and infinities are left out too: no pixel with such a value in a band is valid.
    """
    groups: dict[float, list[int]] = {}
    for band, number in enumerate(nodata):
        if number is not None and np.isfinite(number):
            groups.setdefault(number, []).append(band)
    if dtype.kind == "f":
        return [(dtype.type(number), bands) for number, bands in groups.items()]
    limits = np.iinfo(dtype)
    return [
        (dtype.type(number), bands)
        for number, bands in groups.items()
        if number == int(number) and limits.min <= number <= limits.max
    ]


_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


def _signed(values: Tensor) -> Tensor:
    """The same bits as a type that torch can compare."""
    return values.view(_SIGNED.get(values.dtype, values.dtype))


def _wrapped(number: np.generic) -> float | int:
    """The number that `_signed` makes of a stored one."""
    kind = number.dtype.kind
    value: float | int = (
        number.view(f"i{number.itemsize}") if kind == "u" and number.itemsize > 1 else number
    ).item()
    return value

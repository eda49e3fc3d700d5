"""What every fusion has in common: a pair of images in, the hyperspectral one made fine out.

The geometry is that of blocks throughout: a coarse pixel is the square of ``ratio`` x ``ratio``
fine pixels, so that centres of pixels, not those of corners, are aligned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

if TYPE_CHECKING:
    from engine.models.fusion.degradation import PointSpread, SpectralResponse

FILL_REACH_PX = 2
"""How far the mean that replaces an invalid pixel looks, in pixels of its own image."""

BICUBIC_REACH_PX = 2
"""How many coarse pixels around its own one a fine pixel of `upsample` depends on."""


@dataclass(frozen=True, eq=False)
class ImagePair:
    """A hyperspectral and a multispectral image of one place, on grids that nest.

    Args:
        hsi: (B, L, h, w) float32 reflectance, 0 where not valid.
        msi: (B, M, h*r, w*r) float32 likewise, r an integer of at least 1.
        hsi_valid: (B, h, w) bool, True = use.
        msi_valid: (B, h*r, w*r) bool.

    Raises:
        ValueError: the images do not nest, or a mask has another size than its image.
    """

    hsi: Tensor
    msi: Tensor
    hsi_valid: Tensor
    msi_valid: Tensor

    def __post_init__(self) -> None:
        """Check the sizes: a mistake here would come out as a picture that looks right."""
        batch, _, rows, columns = self.hsi.shape
        fine_batch, _, fine_rows, fine_columns = self.msi.shape
        ratio = fine_columns // columns
        if batch != fine_batch or (fine_rows, fine_columns) != (rows * ratio, columns * ratio):
            raise ValueError(f"{tuple(self.msi.shape)} does not nest in {tuple(self.hsi.shape)}")
        if self.hsi_valid.shape != (batch, rows, columns):
            raise ValueError(f"hsi_valid is {tuple(self.hsi_valid.shape)}")
        if self.msi_valid.shape != (batch, fine_rows, fine_columns):
            raise ValueError(f"msi_valid is {tuple(self.msi_valid.shape)}")

    @property
    def ratio(self) -> int:
        """Fine pixels along one side of a coarse one."""
        return int(self.msi.shape[-1] // self.hsi.shape[-1])

    def crop(self, rows: slice, columns: slice) -> ImagePair:
        """Return the part of both images under the coarse ``rows`` and ``columns``.

        Args:
            rows: with step 1; its ends may be None or negative, as for a list.
            columns: likewise.
        """
        rows = slice(*rows.indices(self.hsi.shape[-2]))
        columns = slice(*columns.indices(self.hsi.shape[-1]))
        fine_rows = slice(rows.start * self.ratio, rows.stop * self.ratio)
        fine_columns = slice(columns.start * self.ratio, columns.stop * self.ratio)
        return ImagePair(
            self.hsi[..., rows, columns],
            self.msi[..., fine_rows, fine_columns],
            self.hsi_valid[:, rows, columns],
            self.msi_valid[:, fine_rows, fine_columns],
        )

    def to(self, device: torch.device | str) -> ImagePair:
        """Return the pair with all its tensors on ``device``."""
        return ImagePair(
            self.hsi.to(device),
            self.msi.to(device),
            self.hsi_valid.to(device),
            self.msi_valid.to(device),
        )


class Physics(Protocol):
    """How the two sensors see one ground: what `engine.training.pair_physics` estimates."""

    @property
    def ratio(self) -> int:
        """Fine pixels along one side of a coarse one."""
        ...

    @property
    def spread(self) -> PointSpread:
        """From the fine grid to what the coarse sensor sees of it."""
        ...

    @property
    def response(self) -> SpectralResponse:
        """From hyperspectral bands to the multispectral ones."""
        ...


class FusionMethod(nn.Module, ABC):
    """Anything that makes a hyperspectral image fine with the help of a multispectral one.

    What has to be learned of the scene is in it when it is made. Applying it is local: a result
    depends on no more than ``reach_px`` coarse pixels around its own one, so that an image
    computed in tiles with such a margin equals one computed whole.

    Attributes:
        name: short, lower case, as in the request's ``method``.
        ratio: fine pixels along one side of a coarse one.
    """

    name: str
    ratio: int

    @property
    @abstractmethod
    def reach_px(self) -> int:
        """How many coarse pixels around its own one a result depends on."""

    @abstractmethod
    def forward(self, pair: ImagePair) -> Tensor:
        """Return (B, L, h*r, w*r) float32 reflectance, finite also where nothing is valid.

        Args:
            pair: of any size from one coarse pixel on; its ratio is the method's.
        """

    def check(self, pair: ImagePair) -> None:
        """Refuse a pair of another ratio.

        Raises:
            ValueError: naming both ratios.
        """
        if pair.ratio != self.ratio:
            raise ValueError(f"{self.name} is for a ratio of {self.ratio}, not {pair.ratio}")


def fill_invalid(
    values: Tensor, valid: Tensor, usual: Tensor, radius_px: int = FILL_REACH_PX
) -> Tensor:
    """Replace what is not valid, so that filters next to it see something likely.

    Args:
        values: (B, C, H, W) float; anything, also not finite, where not valid.
        valid: (B, H, W) bool.
        usual: (C,) what stands where no valid pixel is near.
        radius_px: how far, along rows and columns, valid pixels are averaged.

    Returns:
        (B, C, H, W), the same tensor when all is valid.
    """
    if bool(valid.all()):
        return values
    use = valid.unsqueeze(1)
    known = torch.where(use, values, 0.0)
    window = 2 * radius_px + 1
    share = avg_pool2d(use.to(values.dtype), window, 1, radius_px)
    mean = avg_pool2d(known, window, 1, radius_px) / share.clamp(min=0.5 / window**2)
    nothing = usual.to(values).view(1, -1, 1, 1)
    return torch.where(use, values, torch.where(share > 0, mean, nothing))


def upsample(values: Tensor, ratio: int) -> Tensor:
    """Interpolate coarse pixels onto the fine grid by cubic convolution.

    With Keys' parameter of -0.5 (IEEE TASSP 29(6), 1981), which keeps slopes straight. torch has
    it where it antialiases, which enlarging does not need; without, its parameter is -0.75, a
    slope gets steps, and it takes twice as long.

    Args:
        values: (B, C, h, w) float, valid everywhere, see `fill_invalid`.
        ratio: fine pixels along a coarse one.

    Returns:
        (B, C, h*ratio, w*ratio); depends on `BICUBIC_REACH_PX` coarse pixels around.
    """
    size = (values.shape[-2] * ratio, values.shape[-1] * ratio)
    return interpolate(values, size=size, mode="bicubic", align_corners=False, antialias=True)

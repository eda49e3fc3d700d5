"""How a sensor sees what a finer one sees: its point spread, and its spectral response.

Geometry everywhere: a coarse pixel is a block of ``ratio`` x ``ratio`` fine pixels, and its point
spread lies around the block's centre, which is a fine pixel's centre where the ratio is odd and
the corner of four where it is even. So a kernel has the ratio's parity.
"""

from __future__ import annotations

import math
from typing import Self, overload

import torch
from torch import Tensor, nn
from torch.nn import functional

# A Gaussian's full width at half of its height, in standard deviations.
FWHM_OF_SIGMA = 2 * math.sqrt(2 * math.log(2))
# A kernel ends at this many standard deviations: 0.3 % of a Gaussian's weight lies beyond.
_REACH_SIGMA = 3.0
# Of the published data's kernel, as far as it is known (`PointSpread.published`).
_PUBLISHED_SIGMA_PX = 2.0


class PointSpread(nn.Module):
    """The weights with which a coarse pixel takes in fine ones.

    Its only state is the buffer ``kernel``, so that a package stores it; `of_size` makes one to
    load such a state into.

    Args:
        kernel: (K, K) float32, not negative; made to sum to 1. K has the ratio's parity and is at
            least the ratio, filled up with zeros where it is not.
        ratio: fine pixels along a coarse one.

    Raises:
        ValueError: a kernel that is not square, is negative, or sums to nothing.
    """

    kernel: Tensor

    def __init__(self, kernel: Tensor, ratio: int) -> None:
        super().__init__()
        if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1]:
            raise ValueError(f"A point spread is square, not {tuple(kernel.shape)}.")
        if not bool((kernel >= 0).all()) or float(kernel.sum()) <= 0:
            raise ValueError("The weights of a point spread are not negative, and not all zero.")
        self.ratio = ratio
        kernel = _as_wide_as_a_block(kernel.double(), ratio)
        self.register_buffer("kernel", (kernel / kernel.sum()).float())

    @classmethod
    def of_kernel(cls, kernel: Tensor, ratio: int) -> Self:
        """A measured point spread (K, K), on fine pixels; odd or even as it comes."""
        return cls(kernel, ratio)

    @classmethod
    def gaussian(
        cls, ratio: int, *, fwhm_px: float | None = None, mtf_nyquist: float | None = None
    ) -> Self:
        """A Gaussian, sampled at the fine pixels' centres.

        Args:
            ratio: fine pixels along a coarse one.
            fwhm_px: full width at half maximum, in fine pixels; ``ratio`` when neither is given,
                which is what real sensors are near to.
            mtf_nyquist: instead of a width: what is left, 0 to 1, of a wave at the coarse image's
                Nyquist frequency, 1 / (2 ratio) a fine pixel (Aiazzi et al. 2006).
        """
        if mtf_nyquist is not None:
            fwhm_px = FWHM_OF_SIGMA * ratio / math.pi * math.sqrt(-2 * math.log(mtf_nyquist))
        sigma_px = (ratio if fwhm_px is None else fwhm_px) / FWHM_OF_SIGMA
        size = max(ratio, 2 * math.ceil(_REACH_SIGMA * sigma_px - (ratio % 2) / 2) + ratio % 2)
        return cls(_gaussian_kernel(sigma_px, size), ratio)

    @classmethod
    def block(cls, ratio: int) -> Self:
        """The plain mean of a block."""
        return cls(torch.ones(ratio, ratio), ratio)

    @classmethod
    def published(cls, ratio: int) -> Self:
        """A Gaussian of sigma 2 px cut to one block, as near as is known to CSAKD's own data.

        The paper's code reads degraded images that were made elsewhere; this is the kernel which
        code of the same group's partners uses at a ratio of 4.
        """
        return cls(_gaussian_kernel(_PUBLISHED_SIGMA_PX, ratio), ratio)

    @classmethod
    def of_size(cls, size: int, ratio: int) -> Self:
        """A kernel of (size, size) whose weights are still to be loaded; until then a mean."""
        return cls(torch.ones(size, size), ratio)

    @property
    def size(self) -> int:
        """Fine pixels along the kernel."""
        return int(self.kernel.shape[0])

    @property
    def radius_px(self) -> int:
        """Fine pixels beyond its block that a coarse pixel takes in."""
        return (self.size - self.ratio) // 2

    @property
    def reach_px(self) -> int:
        """Coarse pixels around one whose fine pixels it takes in."""
        return -(-self.radius_px // self.ratio)

    @property
    def fwhm_px(self) -> float:
        """Of the Gaussian with this kernel's variance, in fine pixels."""
        place = torch.arange(self.size, dtype=torch.float64, device=self.kernel.device)
        place = place - (self.size - 1) / 2
        along = self.kernel.double().sum(0) + self.kernel.double().sum(1)
        return FWHM_OF_SIGMA * math.sqrt(float((along * place**2).sum() / 2))

    @overload
    def degrade(self, x: Tensor) -> Tensor: ...

    @overload
    def degrade(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]: ...

    def degrade(self, x: Tensor, valid: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """The image as the coarse sensor sees it.

        At its border an image goes on as its mirror.

        Args:
            x: (B, C, H, W); H and W are multiples of the ratio.
            valid: (B, H, W) bool, True = use; what is not valid has no weight.

        Returns:
            (B, C, H / ratio, W / ratio). With ``valid`` also which of these pixels are valid, (B,
            H / ratio, W / ratio) bool: those whose whole block is. Others are 0.

        Raises:
            ValueError: the size is no multiple of the ratio.
        """
        height, width = x.shape[-2:]
        if height % self.ratio or width % self.ratio:
            raise ValueError(f"{height} x {width} px is no multiple of {self.ratio}.")
        if valid is None:
            return self._weighted(x, self.kernel, self.ratio, self.radius_px)
        values = self._weighted_valid(x, valid, self.ratio, self.radius_px)
        blocks = (len(valid), height // self.ratio, self.ratio, width // self.ratio, self.ratio)
        whole = valid.reshape(blocks).all(-1).all(-2)
        return values * whole[:, None], whole

    def sweep(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """What a coarse pixel would see wherever it lay, in steps of a fine pixel.

        Args:
            x: (B, C, H, W).
            valid: (B, H, W) bool, True = use; what is not valid has no weight.

        Returns:
            An odd kernel is moved from pixel to pixel: (B, C, H, W). An even one has its middle
            between pixels and is moved from corner to corner, the image's outer ones included:
            (B, C, H + 1, W + 1). 0 where no valid pixel is within reach.
        """
        if valid is None:
            return self._weighted(x, self.kernel, 1, self.size // 2)
        return self._weighted_valid(x, valid, 1, self.size // 2)

    def blur(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """The image as the coarse sensor would see it around every fine pixel.

        An even kernel has no pixel in its middle: its four corners' mean is taken there.

        Args:
            x: (B, C, H, W).
            valid: (B, H, W) bool, True = use; what is not valid has no weight.

        Returns:
            (B, C, H, W); 0 where no valid pixel is within reach.
        """
        swept = self.sweep(x, valid)
        return swept if self.size % 2 else functional.avg_pool2d(swept, 2, 1)

    def _weighted_valid(self, x: Tensor, valid: Tensor, step: int, reach_px: int) -> Tensor:
        """Weighted means of what is valid; 0 where nothing is."""
        if bool(valid.all()):
            return self._weighted(x, self.kernel, step, reach_px)
        share = valid[:, None].to(x.dtype)
        weight = self._weighted(share, self.kernel, step, reach_px)
        # Below this a weight is rounding.
        seen = weight > 1e-6
        values = self._weighted(x * share, self.kernel, step, reach_px)
        return values / torch.where(seen, weight, 1) * seen

    @staticmethod
    def _weighted(x: Tensor, kernel: Tensor, step: int, reach_px: int) -> Tensor:
        """Sums weighted by ``kernel`` in steps, beginning ``reach_px`` before the image."""
        batch, channels = x.shape[:2]
        # A mirror shows no more than the image holds; a smaller one goes on as its last pixel.
        mode = "reflect" if reach_px < min(x.shape[-2:]) else "replicate"
        # Bands are samples here, because they share the kernel.
        padded = functional.pad(x.flatten(0, 1)[:, None], (reach_px,) * 4, mode=mode)
        weighted = functional.conv2d(padded, kernel.to(x)[None, None], stride=step)
        return weighted.reshape(batch, channels, *weighted.shape[-2:])


class SpectralResponse(nn.Module):
    """Multispectral bands as weighted sums of hyperspectral ones.

    Its state are the buffers ``weights`` and ``offset``.

    Args:
        weights: (M, L), one row a multispectral band.
        offset: (M,) reflectance that is added (haze, other calibration); zero when None.

    Raises:
        ValueError: the offset is not one number a row.
    """

    weights: Tensor
    offset: Tensor

    def __init__(self, weights: Tensor, offset: Tensor | None = None) -> None:
        super().__init__()
        offset = torch.zeros(len(weights)) if offset is None else offset
        if weights.ndim != 2 or offset.shape != weights.shape[:1]:
            raise ValueError(
                f"Weights {tuple(weights.shape)} and offset {tuple(offset.shape)} do not fit."
            )
        self.register_buffer("weights", weights.float())
        self.register_buffer("offset", offset.float())

    def forward(self, hsi: Tensor) -> Tensor:
        """(B, L, H, W) reflectance → (B, M, H, W)."""
        seen = torch.einsum("ml,blhw->bmhw", self.weights.to(hsi), hsi)
        return seen + self.offset.to(hsi)[:, None, None]


def _gaussian_kernel(sigma_px: float, size: int) -> Tensor:
    """(size, size) float64, not yet summing to 1."""
    place = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    # The nearest pixel has weight 1 also where the width is next to nothing.
    log_weight = -(place**2 - place.abs().min() ** 2) / (2 * sigma_px**2)
    return torch.outer(log_weight.exp(), log_weight.exp())


def _as_wide_as_a_block(kernel: Tensor, ratio: int) -> Tensor:
    """Fill a kernel up with zeros to the ratio's size; one of the other parity is moved onto it.

    A kernel of the other parity has its middle half a pixel beside the block's; it is shared
    between both neighbours.
    """
    if (kernel.shape[0] - ratio) % 2:
        kernel = functional.avg_pool2d(functional.pad(kernel[None], (1, 1, 1, 1)), 2, 1)[0]
    missing = max(0, ratio - kernel.shape[0])
    return functional.pad(kernel, (missing // 2,) * 4)

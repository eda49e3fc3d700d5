"""A made ground, and the pair of images that two sensors take of it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from engine.models.fusion.degradation import PointSpread, SpectralResponse
from engine.models.fusion.method import ImagePair

BANDS, MATERIALS = 24, 5


def ground(height: int, width: int, *, bands: int = BANDS, seed: int = 0) -> Tensor:
    """(1, L, H, W) reflectance: fields of materials with smooth spectra, and texture on them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, MATERIALS, max(height // 7, 2), max(width // 7, 2), generator=generator)
    fields = interpolate(coarse, size=(height, width), mode="nearest")
    fine = torch.rand(1, MATERIALS, height, width, generator=generator)
    share = (6 * fields + fine).softmax(1)
    place = torch.linspace(0, 6, bands)
    spectra = torch.stack(
        [
            0.3 + 0.2 * torch.sin(place * rate + start)
            for rate, start in (4 * torch.rand(MATERIALS, 2, generator=generator)).tolist()
        ]
    )
    return torch.einsum("bkhw,kl->blhw", share, spectra)


def response(bands: int = BANDS, count: int = 3, width: int = 5) -> SpectralResponse:
    """Boxes of ``width`` bands that do not overlap, in the first of them."""
    weights = torch.zeros(count, bands)
    for i in range(count):
        weights[i, 1 + i * (width + 1) : 1 + i * (width + 1) + width] = 1 / width
    return SpectralResponse(weights)


def take_pair(
    image: Tensor,
    ratio: int,
    *,
    fwhm_px: float | None = None,
    shift_px: tuple[int, int] = (0, 0),
    noise: float = 1e-3,
) -> ImagePair:
    """Both sensors' images of the middle of a ground.

    Args:
        image: (1, L, H, W).
        ratio: fine pixels along a coarse one.
        fwhm_px: of the coarse sensor, fine pixels; the ratio when None.
        shift_px: fine pixels that the multispectral content lies to the right and down.
        noise: standard deviation of the hyperspectral image's noise.
    """
    rim = max(4, 1 + max(map(abs, shift_px)) // ratio)
    spread = PointSpread.gaussian(ratio, fwhm_px=fwhm_px)
    rows, columns = (size // ratio - 2 * rim for size in image.shape[-2:])
    image = image[..., : (rows + 2 * rim) * ratio, : (columns + 2 * rim) * ratio]
    hsi = spread.degrade(image)[..., rim:-rim, rim:-rim]
    generator = torch.Generator().manual_seed(9)
    hsi = hsi + noise * torch.randn(hsi.shape, generator=generator)
    left, top = rim * ratio - shift_px[0], rim * ratio - shift_px[1]
    msi = response(image.shape[1])(image)
    msi = msi[..., top : top + rows * ratio, left : left + columns * ratio]
    return ImagePair(hsi, msi, whole(hsi), whole(msi))


def whole(image: Tensor) -> Tensor:
    """(B, H, W) all True."""
    return torch.ones(image.shape[0], *image.shape[-2:], dtype=torch.bool)

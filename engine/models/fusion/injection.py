"""Regression-based injection of details: the strong start, which a network has to be better than.

Ours. Like MTF-GLP-HS it adds what regressions make of the fine image's details; unlike it, they
are fitted to images whose fine version is known, so that they may ask for more than one weight a
band. `engine.models.fusion.injection_fit` fits one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from engine.models.fusion.degradation import PointSpread
from engine.models.fusion.details import unseen_details, without_gaps
from engine.models.fusion.method import BICUBIC_REACH_PX, FusionMethod, ImagePair, upsample

MOST_CURVED = 6
"""Axes of the fine image's spectra along which curves are fitted; of more bands, leading ones."""

SPECTRAL_AXES = 4
"""Principal components of the coarse spectra with which the details' weights change."""


@dataclass(frozen=True)
class InjectionConfig:
    """What the sizes of an `Injection` follow from.

    Args:
        hsi_channels: L, hyperspectral bands.
        msi_channels: M, multispectral bands.
        ratio: fine pixels along a coarse one.
        spread_size_px: fine pixels along the kernel of the point spread.
    """

    hsi_channels: int
    msi_channels: int
    ratio: int
    spread_size_px: int

    @property
    def curved(self) -> int:
        """Axes of the multispectral bands along which curves are fitted."""
        return min(self.msi_channels, MOST_CURVED)

    @property
    def spectral(self) -> int:
        """Axes of the hyperspectral bands with which the weights change."""
        return min(self.hsi_channels, SPECTRAL_AXES)

    def groups(self) -> dict[str, int]:
        """Name → number of the features, in the order in which they stand."""
        curved = self.curved
        return {
            "details": self.msi_channels,
            "around": 8 * self.msi_channels,
            "products": curved * (curved + 1) // 2,
            "curves": 2 * curved,
            "spectrum": self.spectral * self.msi_channels,
        }

    @property
    def features(self) -> int:
        """P, of all groups together."""
        return sum(self.groups().values())


class Injection(FusionMethod):
    """The coarse image without its noise, interpolated, plus weighted details of the fine one.

        y = up(x + D (x - mean) + B (x - degrade(up(x) + W f))) + W f

    The features ``f`` of a fine pixel are, all of them minus what the coarse sensor sees of them:

    * *details*: its multispectral bands;
    * *around*: those of its eight neighbours, because no two images have the same sharpness, nor
      lie exactly on each other;
    * *products*: those of pairs of bands; *curves*: of the cube and the absolute value of each:
      bands at 2 µm do not follow the visible ones on a straight line;
    * *spectrum*: its details times the leading components of the coarse spectrum there, because
      what one band's detail means depends on the material.

    ``D`` takes noise away: along components of the spectra in which the coarse image says nothing
    about the known one. ``B`` gives back what the first result, degraded, lacks of the coarse
    image, along each component as much as the known image confirms.

    There is nothing to train here: all of it are buffers.

    Args:
        config: the sizes.
    """

    weights: Tensor
    msi_mean: Tensor
    msi_std: Tensor
    curved_axes: Tensor
    curved_limits: Tensor
    hsi_mean: Tensor
    spectral_axes: Tensor
    spectral_limits: Tensor
    denoising: Tensor
    giving_back: Tensor

    name = "injection"

    def __init__(self, config: InjectionConfig) -> None:
        super().__init__()
        self.config = config
        self.ratio = config.ratio
        self.spread = PointSpread.of_size(config.spread_size_px, config.ratio)
        bands, fine_bands = config.hsi_channels, config.msi_channels
        shapes = {
            "weights": (bands, config.features),
            "msi_mean": (fine_bands,),
            "msi_std": (fine_bands,),
            "curved_axes": (config.curved, fine_bands),
            "curved_limits": (2, config.curved),
            "hsi_mean": (bands,),
            "spectral_axes": (config.spectral, bands),
            "spectral_limits": (2, config.spectral),
            "denoising": (bands, bands),
            "giving_back": (bands, bands),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))

    @property
    def reach_px(self) -> int:
        """Of filling gaps (1), two degradations and interpolations, and the neighbours (1)."""
        return 2 + 2 * (self.spread.reach_px + BICUBIC_REACH_PX)

    def forward(self, pair: ImagePair) -> Tensor:
        """Sharpen (B, L, h, w) to (B, L, h*r, w*r)."""
        self.check(pair)
        hsi, msi = without_gaps(pair, self.hsi_mean, self.msi_mean)
        features = self.features(hsi, msi)
        missing = hsi - self.spread.degrade(upsample(hsi, self.ratio))
        missing = missing - self.injected(self.spread.degrade(features))
        coarse = hsi + _mixed(self.denoising, hsi - self.hsi_mean[:, None, None])
        coarse = coarse + _mixed(self.giving_back, missing)
        return upsample(coarse, self.ratio) + self.injected(features)

    def features(self, hsi: Tensor, msi: Tensor) -> Tensor:
        """Return (B, P, h*r, w*r): what is weighted, in `InjectionConfig.groups`' order.

        Args:
            hsi: (B, L, h, w), valid everywhere.
            msi: (B, M, h*r, w*r), valid everywhere.
        """
        standard = (msi - self.msi_mean[:, None, None]) / self.msi_std[:, None, None]
        curved, spectrum = self.along_axes(hsi, msi)
        seen = torch.cat([standard, self._curves(curved)], 1)
        unseen = unseen_details(seen, self.spread)
        details = unseen[:, : msi.shape[1]]
        spectrum = upsample(_limited(spectrum, self.spectral_limits), self.ratio)
        changing = (spectrum[:, :, None] * details[:, None]).flatten(1, 2)
        curves = unseen[:, msi.shape[1] :]
        return torch.cat([details, _neighbours(details), curves, changing], 1)

    def injected(self, features: Tensor) -> Tensor:
        """(B, P, H, W) → (B, L, H, W) reflectance, which is added."""
        return _mixed(self.weights, features)

    def along_axes(self, hsi: Tensor, msi: Tensor) -> tuple[Tensor, Tensor]:
        """Return where pixels lie on the axes of curves and of spectra.

        Args:
            hsi: (B, L, h, w), valid everywhere.
            msi: (B, M, H, W), valid everywhere.

        Returns:
            (B, Q, H, W) and (B, K, h, w).
        """
        standard = (msi - self.msi_mean[:, None, None]) / self.msi_std[:, None, None]
        spectrum = _mixed(self.spectral_axes, hsi - self.hsi_mean[:, None, None])
        return _mixed(self.curved_axes, standard), spectrum

    def _curves(self, values: Tensor) -> Tensor:
        """(B, Q, H, W) → products, cubes and absolute values, within what the fit has seen.

        Beyond it a polynomial goes anywhere; the fine image of the full scale is sharper, and has
        values further out, than the degraded one of the fit.
        """
        values = _limited(values, self.curved_limits)
        first, second = torch.triu_indices(self.config.curved, self.config.curved)
        products = values[:, first] * values[:, second]
        return torch.cat([products, values**3, values.abs()], 1)


def _mixed(matrix: Tensor, image: Tensor) -> Tensor:
    """(K, C) and (B, C, H, W) → (B, K, H, W)."""
    return torch.einsum("kc,bchw->bkhw", matrix, image)


def _limited(image: Tensor, limits: Tensor) -> Tensor:
    """Clamp (B, K, H, W) to the least and most of each band, (2, K)."""
    least, most = limits[:, :, None, None]
    return image.clamp(least, most)


def _neighbours(image: Tensor) -> Tensor:
    """(B, C, H, W) → (B, 8 C, H, W), the eight neighbours; the image goes on as its border."""
    height, width = image.shape[-2:]
    wide = pad(image, (1, 1, 1, 1), mode="replicate")
    places = [(row, column) for row in range(3) for column in range(3) if (row, column) != (1, 1)]
    return torch.cat(
        [wide[..., row : row + height, column : column + width] for row, column in places], 1
    )

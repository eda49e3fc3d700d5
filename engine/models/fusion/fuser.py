"""CSAKD's network as a fusion method for reflectance: a start, and what the network adds to it.

The published network makes the whole image of two images on a scale of their own (arXiv
2406.19666). Ours may stand on a *start*, a regression or an interpolation, and learn what that
leaves; spectra go through it as coefficients of a basis, so that its width does not depend on the
number of bands; and a gate says how much of each coefficient places have confirmed.

    result = start + basis · (gate · spread · network(coefficients, fine bands))
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from engine.models.fusion.bicubic import Bicubic
from engine.models.fusion.details import without_gaps
from engine.models.fusion.dts import DTSConfig, DTSNet
from engine.models.fusion.injection import Injection, InjectionConfig
from engine.models.fusion.method import FILL_REACH_PX, FusionMethod, ImagePair

Start = Literal["none", "bicubic", "injection"]
"""What the network adds to: nothing (as published), interpolation, or fitted detail injection."""
STARTS: tuple[Start, ...] = get_args(Start)

# Coarse pixels: measured, at most 1e-6 of the range is left at the border of a tile with them, with
# networks trained on three cubes, and 3e-6 without them.
_BEHIND_PX = 2


@dataclass(frozen=True)
class FuserConfig:
    """Sizes of a `Fuser`, from which it is built before its state is loaded.

    Args:
        hsi_channels: L, bands of the hyperspectral image and of the result.
        msi_channels: M, bands of the multispectral one.
        ratio: fine pixels along a coarse one.
        network: of the network; its channels are those of `network_channels`.
        basis_size: K coefficients of each spectrum; None: the bands themselves.
        start: see `Start`.
        injection: sizes of the start "injection", else None.

    Raises:
        ValueError: the sizes do not fit one another.
    """

    hsi_channels: int
    msi_channels: int
    ratio: int
    network: DTSConfig
    basis_size: int | None = None
    start: Start = "injection"
    injection: InjectionConfig | None = None

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise ValueError(f"There is no start {self.start!r}; there are {', '.join(STARTS)}.")
        if (self.start == "injection") != (self.injection is not None):
            raise ValueError("Sizes of an injection are needed for the start injection alone.")
        if self.basis_size is not None and not 0 < self.basis_size <= self.hsi_channels:
            raise ValueError(
                f"A basis of {self.basis_size} spectra does not fit {self.hsi_channels} bands."
            )
        expected = network_channels(
            self.hsi_channels, self.msi_channels, self.basis_size, self.start
        )
        found = (self.network.hsi_channels, self.network.msi_channels)
        if found != expected or self.network.ratio != self.ratio:
            raise ValueError(
                f"A network of {found} channels at ratio {self.network.ratio} does not fit; it "
                f"needs {expected} at {self.ratio}."
            )


def network_channels(
    hsi_channels: int, msi_channels: int, basis_size: int | None, start: Start
) -> tuple[int, int]:
    """Channels of the network's coarse and fine input.

    The fine input holds the start's coefficients too, because what it leaves depends on them.

    Args:
        hsi_channels: L.
        msi_channels: M.
        basis_size: K, or None for all bands.
        start: see `Start`.
    """
    spectral = hsi_channels if basis_size is None else basis_size
    return spectral, msi_channels + (0 if start == "none" else spectral)


class FuserInputs(NamedTuple):
    """A pair as the network sees it, without gaps.

    Attributes:
        coarse: (B, K, h, w) coefficients of the hyperspectral image, about -1 to 1.
        fine: (B, M', H, W) multispectral bands and the start's coefficients, likewise.
        start: (B, L, H, W) on the scale of `Fuser.to_scale`; what the answer is added to. Without
            a start a single 0, (B, 1, 1, 1).
    """

    coarse: Tensor
    fine: Tensor
    start: Tensor


class Refined(NamedTuple):
    """The answer of a `Fuser` before it becomes reflectance.

    Attributes:
        image: (B, L, H, W) on the scale of `Fuser.to_scale`.
        features: (B, width, H, W) the network's fused map.
    """

    image: Tensor
    features: Tensor


class Fuser(FusionMethod):
    """Start, network, basis and gate; all that it knows is in its state.

    One affine scale serves all bands of both images, so that angles between spectra keep their
    meaning: ``low`` becomes -1 and ``high`` 1. It and the basis come from what training saw.

    Args:
        config: sizes.
    """

    name = "csakd"

    low: Tensor
    high: Tensor
    basis: Tensor
    basis_mean: Tensor
    spread: Tensor
    answer_spread: Tensor
    gate: Tensor
    fine_mean: Tensor
    fine_spread: Tensor
    usual_hsi: Tensor
    usual_msi: Tensor

    def __init__(self, config: FuserConfig) -> None:
        super().__init__()
        self.config = config
        self.ratio = config.ratio
        bands, channels = config.hsi_channels, config.network.hsi_channels
        self.network = DTSNet(config.network)
        self.start = _build_start(config)
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.ones(()))
        # Orthonormal columns; without a basis they are the bands' own and not stored.
        shape = (bands, channels if config.basis_size is not None else 0)
        self.register_buffer("basis", torch.eye(*shape))
        self.register_buffer("basis_mean", torch.zeros(bands))
        self.register_buffer("spread", torch.ones(channels))
        self.register_buffer("answer_spread", torch.ones(channels))
        self.register_buffer("gate", torch.ones(channels))
        self.register_buffer("fine_mean", torch.zeros(config.msi_channels))
        self.register_buffer("fine_spread", torch.ones(config.msi_channels))
        self.register_buffer("usual_hsi", torch.zeros(bands))
        self.register_buffer("usual_msi", torch.zeros(config.msi_channels))

    @property
    def reach_px(self) -> int:
        """Of the start, where there is one, or of the network as far as that has an effect.

        Both are looked at by the network at the same place, so that the larger counts; beyond
        what the start reaches the network looks at little that is still wrong by little.
        """
        network = FILL_REACH_PX + self.network.halo_px
        return network if self.start is None else max(network, self.start.reach_px + _BEHIND_PX)

    def forward(self, pair: ImagePair) -> Tensor:
        """Fuse to (B, L, h*r, w*r) float32 reflectance."""
        # Half precision is for the network: the start is reflectance, and has four digits.
        with torch.autocast(pair.hsi.device.type, enabled=False):
            inputs = self.prepare(pair)
        return self.to_reflectance(self.refine(inputs).image)

    def prepare(self, pair: ImagePair) -> FuserInputs:
        """Fill gaps, start, and bring all to the network's scale; nothing here is trained."""
        self.check(pair)
        hsi, msi = without_gaps(pair, self.usual_hsi, self.usual_msi)
        coarse = self.coefficients(self.to_scale(hsi))
        fine = (self.to_scale(msi) - self.fine_mean[:, None, None]) / self.fine_spread[
            :, None, None
        ]
        if self.start is None:
            return FuserInputs(coarse, fine, fine.new_zeros((len(fine), 1, 1, 1)))
        started = self.to_scale(self.start(pair))
        return FuserInputs(coarse, torch.cat([fine, self.coefficients(started)], 1), started)

    def refine(self, inputs: FuserInputs) -> Refined:
        """Add the network's answer to the start."""
        answer, features = self.answer(inputs)
        image = self.to_bands(answer)
        if self.start is None:
            image = image + self.basis_mean[:, None, None]
        return Refined(inputs.start + image, features)

    def answer(self, inputs: FuserInputs) -> tuple[Tensor, Tensor]:
        """What is added, (B, K, H, W) gated coefficients of the basis, and the network's map."""
        image, features = self.network(inputs.coarse, inputs.fine)
        return image * (self.gate * self.answer_spread)[:, None, None], features

    def to_scale(self, reflectance: Tensor) -> Tensor:
        """Reflectance to about -1 to 1, any shape."""
        return (reflectance - self.low) * (2.0 / (self.high - self.low)) - 1.0

    def to_reflectance(self, scaled: Tensor) -> Tensor:
        """The way back from `to_scale`, in float32."""
        return (scaled.float() + 1.0) * ((self.high - self.low) / 2.0) + self.low

    def coefficients(self, scaled: Tensor) -> Tensor:
        """(B, L, H, W) on the scale to (B, K, H, W), each about -1 to 1."""
        if self.config.basis_size is None:
            return scaled
        centred = scaled - self.basis_mean[:, None, None]
        found = torch.einsum("blhw,lk->bkhw", centred, self.basis)
        return found / self.spread[:, None, None]

    def to_bands(self, coefficients: Tensor) -> Tensor:
        """(B, K, H, W) coefficients of the basis, as they are, to (B, L, H, W)."""
        if self.config.basis_size is None:
            return coefficients
        return torch.einsum("bkhw,lk->blhw", coefficients, self.basis)

    @torch.no_grad()
    def calibrate(self, pairs: Iterable[ImagePair]) -> None:
        """Fix what the network's attention needs to know of a scene, from a sample of it."""
        inputs = (self.prepare(pair) for pair in pairs)
        self.network.calibrate((item.coarse, item.fine) for item in inputs)


def _build_start(config: FuserConfig) -> FusionMethod | None:
    """The start, its state still to be loaded."""
    if config.start == "bicubic":
        return Bicubic(torch.zeros(config.hsi_channels), config.ratio)
    if config.injection is not None:
        return Injection(config.injection)
    return None

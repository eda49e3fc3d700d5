"""How much memory a step of a fusion's training takes, found out by one small crop on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from engine.models.fusion.dts import DTSConfig, DTSNet
from engine.models.fusion.fuser import Start, network_channels
from engine.models.fusion.presets import FusionPreset
from engine.training.memory import StepMemory, measure_step

# Coarse pixels of the crop that is measured; what a network keeps grows with its pixels.
_SIDE_PX = 4
# Of spectra of all bands that a step holds: start, target, both answers and their losses' parts.
_CUBES = 12


class _Both(nn.Module):
    """Teacher and student, as a step trains them."""

    def __init__(self, configs: tuple[DTSConfig, DTSConfig]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(DTSNet(config) for config in configs)

    def loss(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Something that both answer for."""
        total = coarse.new_zeros(())
        for network in self.networks:
            image, features = network(coarse, fine)
            total = total + image.square().sum() + features.square().sum()
        return total


def estimate_memory(
    preset: FusionPreset,
    bands: int,
    fine_bands: int,
    ratio: int,
    start: Start,
    **changes: Any,
) -> StepMemory:
    """Measure what a step of teacher and student takes.

    Args:
        preset: sizes.
        bands: L, hyperspectral.
        fine_bands: M, multispectral.
        ratio: fine pixels along a coarse one.
        start: what the networks add to; its coefficients are among their inputs.
        changes: of `DTSConfig`, from the preset's.

    Returns:
        the memory in float32; a sample is a crop of the preset's size.

    Raises:
        ValueError: the preset does not fit so few bands.
    """
    basis_size = None if preset.basis_size is None else min(preset.basis_size, bands)
    coarse_channels, fine_channels = network_channels(bands, fine_bands, basis_size, start)
    configs = (
        preset.teacher(bands, fine_channels, ratio, **changes),
        preset.student(bands, fine_channels, ratio, **changes),
    )
    with torch.random.fork_rng(devices=[]):
        networks = _Both(configs)
    coarse = torch.zeros(1, coarse_channels, _SIDE_PX, _SIDE_PX)
    fine = torch.zeros(1, fine_channels, _SIDE_PX * ratio, _SIDE_PX * ratio)
    measured = measure_step(networks, lambda: networks.loss(coarse, fine))
    crop_px = max(preset.crop_px // ratio, 1) * ratio
    share = (crop_px / (_SIDE_PX * ratio)) ** 2
    cubes_bytes = _CUBES * bands * crop_px**2 * coarse.element_size()
    return StepMemory(measured.fixed_bytes, round(measured.sample_bytes * share) + cubes_bytes)

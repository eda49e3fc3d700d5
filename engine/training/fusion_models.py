"""Teacher and student before their networks are trained: start, scale and basis from the ground.

Nothing is taken from a chip, and nothing from a reference that inference does not have: all of it
is stored with the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.errors import TrainingError
from engine.models.fusion.bicubic import Bicubic
from engine.models.fusion.fuser import Fuser, FuserConfig, network_channels
from engine.models.fusion.injection_fit import fit_injection
from engine.models.fusion.method import FusionMethod
from engine.models.fusion.presets import FusionPreset
from engine.training.fusion_data import Triplet
from engine.training.fusion_settings import FusionSettings
from engine.training.pair_physics import PairPhysics

PERCENTILES = (0.001, 0.999)  # the scale's -1 and 1: single odd pixels do not decide it
MAX_SAMPLE = 50_000  # pixels for statistics; more does not change them
FLOOR = 1e-4  # of a spread, on the scale: a coefficient without any stays small


def fit_start(
    triplets: Sequence[Triplet],
    settings: FusionSettings,
    physics: PairPhysics | None,
) -> FusionMethod | None:
    """Fit what the networks add to.

    Args:
        triplets: with targets on ground that may be learned from.
        settings: which start.
        physics: of the pairs, where it is known.
    """
    if settings.start == "none":
        return None
    if settings.start == "bicubic":
        pixels = torch.cat([_pixels(item.pair.hsi, item.pair.hsi_valid) for item in triplets])
        return Bicubic(pixels.mean(0), triplets[0].pair.ratio)
    spread = None if physics is None else physics.spread
    return fit_injection(triplets, spread=spread)


def make_fusers(
    triplets: Sequence[Triplet],
    start: FusionMethod | None,
    settings: FusionSettings,
    preset: FusionPreset,
) -> tuple[Fuser, Fuser]:
    """Make student and teacher with fresh networks; both see the same inputs.

    Args:
        triplets: with targets on the ground to fit scale and basis to.
        start: see `fit_start`.
        settings: see there.
        preset: sizes.

    Raises:
        TrainingError: the preset does not fit so few bands.
    """
    pair = triplets[0].pair
    bands, fine_bands = pair.hsi.shape[1], pair.msi.shape[1]
    basis_size = None if preset.basis_size is None else min(preset.basis_size, bands)
    channels = network_channels(bands, fine_bands, basis_size, settings.start)
    changes = {} if settings.fusion is None else {"fusion": settings.fusion}
    try:
        networks = [
            make(bands, channels[1], pair.ratio, **changes)
            for make in (preset.student, preset.teacher)
        ]
    except ValueError as error:
        raise TrainingError(str(error), "Choose another preset.") from error
    sizes = getattr(start, "config", None) if settings.start == "injection" else None
    fusers = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        for network in networks:
            config = FuserConfig(
                hsi_channels=bands,
                msi_channels=fine_bands,
                ratio=pair.ratio,
                network=network,
                basis_size=basis_size,
                start=settings.start,
                injection=sizes,
            )
            fusers.append(Fuser(config))
    student, teacher = fusers
    set_start(student, start)
    _fit_scales(student, triplets)
    for name, buffer in student.named_buffers(recurse=False):
        getattr(teacher, name).copy_(buffer)
    set_start(teacher, start)
    if start is not None:
        for fuser in fusers:
            fuser.network.start_at_zero()
    return student, teacher


def set_start(fuser: Fuser, start: FusionMethod | None) -> None:
    """Put a fitted start into a fuser, where no training changes it."""
    if fuser.start is not None and start is not None:
        fuser.start.load_state_dict(start.state_dict())
        fuser.start.requires_grad_(False)


@torch.no_grad()
def _fit_scales(fuser: Fuser, triplets: Sequence[Triplet]) -> None:
    """Set scale, basis and spreads of a fuser whose start is fitted."""
    hsi = torch.cat([_pixels(item.pair.hsi, item.pair.hsi_valid) for item in triplets])
    msi = torch.cat([_pixels(item.pair.msi, item.pair.msi_valid) for item in triplets])
    fuser.usual_hsi.copy_(hsi.mean(0))
    fuser.usual_msi.copy_(msi.mean(0))
    low, high = _range(hsi)
    fuser.low.fill_(low)
    fuser.high.fill_(high)
    if fuser.config.basis_size is None:
        return
    truth = torch.cat([_pixels(item.target, item.target_valid) for item in triplets])
    _fit_basis(fuser, fuser.to_scale(truth))
    fine = fuser.to_scale(msi)
    fuser.fine_mean.copy_(fine.mean(0))
    fuser.fine_spread.copy_(fine.std(0).clamp(min=FLOOR))
    coefficients = (fuser.to_scale(hsi) - fuser.basis_mean) @ fuser.basis
    fuser.spread.copy_(coefficients.std(0).clamp(min=FLOOR))
    fuser.answer_spread.copy_(_left(fuser, triplets))


def _fit_basis(fuser: Fuser, truth: Tensor) -> None:
    """Principal components of (N, L) spectra on the scale."""
    mean = truth.double().mean(0)
    centred = truth.double() - mean
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    size = fuser.basis.shape[1]
    fuser.basis.copy_(vectors.flip(1)[:, :size])
    fuser.basis_mean.copy_(mean)


def _left(fuser: Fuser, triplets: Sequence[Triplet]) -> Tensor:
    """(K,) how much of each coefficient the start leaves to the network; all without a start."""
    if fuser.start is None:
        return fuser.spread
    left = []
    for item in triplets:
        rest = fuser.to_scale(item.target) - fuser.to_scale(fuser.start(item.pair))
        left.append(_pixels(rest, item.target_valid) @ fuser.basis)
    return torch.cat(left).square().mean(0).sqrt().clamp(min=FLOOR)


def _pixels(image: Tensor, valid: Tensor) -> Tensor:
    """(N, C) of the valid pixels of (B, C, H, W), spread evenly when there are very many."""
    found = image.movedim(1, -1)[valid]
    return found[:: max(len(found) // MAX_SAMPLE, 1)]


def _range(pixels: Tensor) -> tuple[float, float]:
    """The percentiles of all values, apart from one another."""
    values = pixels.flatten().sort().values
    low, high = (float(values[round(share * (len(values) - 1))]) for share in PERCENTILES)
    return low, max(high, low + FLOOR)

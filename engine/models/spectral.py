"""The classifier's answer from the pixel alone: a linear path, and small networks beside it.

Both see the same two views of a spectrum: its reflectance, and the spectrum at unit length, which
brightness and shade leave alone; both standardised by the training pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BRIGHTNESS_MIN = 1e-4  # below this length a spectrum has no direction worth dividing by
POINTWISE_TILE_PX = 512  # any size would do when no pixel sees another; this one keeps caches warm
CHUNK_PX = 8192  # hidden values of so many pixels stay in a CPU's cache


class SpectralPath(nn.Module):
    """A linear layer on both views of each pixel's spectrum, whose standardisation it owns.

    Computed in float32 always: it is a small part of the work, and bfloat16's three digits would
    move class borders.
    """

    band_mean: Tensor
    band_std: Tensor
    unit_mean: Tensor
    unit_std: Tensor

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("band_mean", torch.zeros(in_channels))
        self.register_buffer("band_std", torch.ones(in_channels))
        self.register_buffer("unit_mean", torch.zeros(in_channels))
        self.register_buffer("unit_std", torch.ones(in_channels))
        self.weight = nn.Parameter(torch.zeros(num_classes, 2 * in_channels))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    @torch.no_grad()
    def fit_views(self, spectra: Tensor, weight: Tensor) -> None:
        """Set the normalisation from training pixels.

        Args:
            spectra: (N, C) reflectance.
            weight: (N,) how much each counts, not all 0.
        """
        unit = unit_length(spectra, dim=1)
        for values, mean, std in (
            (spectra, self.band_mean, self.band_std),
            (unit, self.unit_mean, self.unit_std),
        ):
            share = (weight / weight.sum()).to(values)[:, None]
            mean.copy_((share * values).sum(dim=0))
            spread = (share * (values - mean).square()).sum(dim=0).sqrt()
            # A band that never changes tells nothing, and must not divide by 0.
            std.copy_(torch.where(spread > 1e-6 * (1 + mean.abs()), spread, 1.0))

    @torch.no_grad()
    def views(self, spectra: Tensor) -> Tensor:
        """Both standardised views of (N, C) spectra, side by side: (N, 2 C)."""
        band, unit = (self.band_mean, self.band_std), (self.unit_mean, self.unit_std)
        return standardised_views(spectra, band, unit)

    def forward(self, reflectance: Tensor) -> Tensor:
        """(B, C, H, W) reflectance to (B, K, H, W) logits, equal to ``views`` times the weights.

        The standardisation is folded into the weights, so the pixels are read once for both
        views: A r + (B r) / |r| + c.
        """
        b, c, h, w = reflectance.shape
        with torch.autocast(reflectance.device.type, enabled=False):
            band_weight, unit_weight = self.weight[:, :c].float(), self.weight[:, c:].float()
            band_weight = band_weight / self.band_std
            unit_weight = unit_weight / self.unit_std
            offset = self.bias - band_weight @ self.band_mean - unit_weight @ self.unit_mean
            pixels = reflectance.float().reshape(b, c, h * w)
            both = torch.cat([band_weight, unit_weight]) @ pixels
            band, unit = both.chunk(2, dim=1)
            logits: Tensor = band + unit / spectrum_length(pixels, dim=1) + offset[:, None]
        return logits.reshape(b, -1, h, w)


class SpectralHeads(nn.Module):
    """Several small networks on both views of a spectrum; their mean is the answer.

    All are one tensor with the network as its first axis, so that they train and answer in one
    matrix product. Few labels make one such network erratic, and the mean of several much less.

    Args:
        in_channels: C, bands.
        num_classes: K.
        members: networks.
        hidden: width of both hidden layers.
        dropout: in training.
    """

    def __init__(
        self, in_channels: int, num_classes: int, members: int, hidden: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.weight1 = _uniform(members, 2 * in_channels, hidden)
        self.bias1 = nn.Parameter(torch.zeros(members, 1, hidden))
        self.scale = nn.Parameter(torch.ones(members, 1, hidden))
        self.shift = nn.Parameter(torch.zeros(members, 1, hidden))
        self.weight2 = _uniform(members, hidden, hidden)
        self.bias2 = nn.Parameter(torch.zeros(members, 1, hidden))
        self.weight3 = _uniform(members, hidden, num_classes)
        self.bias3 = nn.Parameter(torch.zeros(members, 1, num_classes))

    def forward(self, views: Tensor) -> Tensor:
        """(N, 2 C) standardised views to (members, N, K) logits."""
        members = len(self.weight1)
        # One product for all networks: the views are by far the widest and are read once.
        weight1 = self.weight1.transpose(0, 1).flatten(1)  # (2 C, members * hidden)
        x = torch.addmm(self.bias1.flatten(), views, weight1)
        x = x.reshape(len(views), members, -1)
        x = F.layer_norm(x, x.shape[-1:]).transpose(0, 1)  # (members, N, hidden)
        x = F.gelu(torch.addcmul(self.shift, x, self.scale))
        x = F.dropout(x, self.dropout, self.training)
        x = F.gelu(torch.baddbmm(self.bias2, x, self.weight2))
        x = F.dropout(x, self.dropout, self.training)
        logits = torch.baddbmm(self.bias3, x, self.weight3)
        return logits.float()

    def mean_map(self, reflectance: Tensor, path: SpectralPath) -> Tensor:
        """Classify chips, some thousand pixels at a time.

        Args:
            reflectance: (B, C, H, W) float32.
            path: that standardises the views.

        Returns:
            (B, K, H, W) float32 logits, the mean over the networks.
        """
        _b, _c, h, w = reflectance.shape
        parts = [
            self(path.views(part.T.contiguous())).mean(dim=0).T  # (K, n)
            for chip in reflectance.flatten(2)
            for part in chip.split(CHUNK_PX, dim=1)
        ]
        per_chip = -(-h * w // CHUNK_PX)
        chips = [torch.cat(parts[i : i + per_chip], dim=1) for i in range(0, len(parts), per_chip)]
        stacked = torch.stack(chips)
        return stacked.reshape(*stacked.shape[:2], h, w)


def _uniform(members: int, rows: int, cols: int) -> nn.Parameter:
    """Initial weights as of a linear layer with ``rows`` inputs."""
    bound = rows**-0.5
    return nn.Parameter(torch.empty(members, rows, cols).uniform_(-bound, bound))


def unit_length(spectra: Tensor, dim: int) -> Tensor:
    """Divide spectra by their length; those too dark to have a direction stay short."""
    return spectra / spectrum_length(spectra, dim)


def spectrum_length(spectra: Tensor, dim: int) -> Tensor:
    """Length of spectra along ``dim``, which is kept; `BRIGHTNESS_MIN` for shorter ones.

    The sum of squares goes along many pixels at a time on a CPU; torch's own norm over bands, which
    are not the last axis of chips, takes eleven times as long.
    """
    return spectra.square().sum(dim=dim, keepdim=True).clamp_min(BRIGHTNESS_MIN**2).sqrt()


def standardised_views(
    spectra: Tensor, band: tuple[Tensor, Tensor], unit: tuple[Tensor, Tensor]
) -> Tensor:
    """Spectra as they are and at unit length, both standardised, side by side.

    Args:
        spectra: (N, C) reflectance.
        band: (C,) mean and spread of the spectra as they are.
        unit: (C,) mean and spread of the spectra at unit length.

    Returns:
        (N, 2 C).
    """
    c = spectra.shape[1]
    both = spectra.new_empty(len(spectra), 2 * c)
    at_unit_length = unit_length(spectra, dim=1)
    # (x - mean) / std in one pass each, written where it belongs.
    for values, (mean, std), part in (
        (spectra, band, both[:, :c]),
        (at_unit_length, unit, both[:, c:]),
    ):
        torch.addcmul(-mean / std, values, 1 / std, out=part)
    return both

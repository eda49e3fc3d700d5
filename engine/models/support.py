"""How familiar a spectrum is to a model: 1 like its training data, 0 like nothing that it has seen.

A classifier answers for every spectrum, with confidence too, also for one that is far from all
that it was trained on. This is the statistic that says so, kept beside the weights (ours; neither
of the published methods has one).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from engine.models.spectral import CHUNK_PX, standardised_views

FAMILIAR = 0.5
"""At and above this value a spectrum lies where 95 of 100 pixels of held-out places lie."""


class Support(nn.Module):
    """Distance of spectra to the nearest class of the training data, as a value from 0 to 1.

    A spectrum is seen as it is and at unit length, both standardised, as the models of pixels see
    it. The leading principal components of the training spectra span a subspace; in it each class
    is a Gaussian, and what lies outside is measured against what is usual for the class:

        d² = min over classes of  |W (p - centre)|² / Q  +  |outside|² / usual

    with ``p`` the (Q,) components and ``W`` the class's whitening. Both terms are about 1 within
    the training data. The value is ``2 ** -(d / d95)²``, where d95 is the distance within which 95
    of 100 pixels of held-out places lie: these read 0.5 or more.

    There is nothing to train: all of it are buffers, see `engine.training.support_fit`.

    Args:
        in_channels: C, bands.
        classes: G, Gaussians.
        components: Q, of the subspace.
    """

    band_mean: Tensor
    band_std: Tensor
    unit_mean: Tensor
    unit_std: Tensor
    basis: Tensor
    centre: Tensor
    whitening: Tensor
    usual_outside: Tensor
    distance_95: Tensor

    def __init__(self, in_channels: int, classes: int, components: int) -> None:
        super().__init__()
        for name, shape in _shapes(in_channels, classes, components).items():
            self.register_buffer(name, torch.ones(shape))

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> Support:
        """Make one of its tensors, as `state_dict` gives them.

        Raises:
            ValueError: a tensor is missing, unknown or of another shape than the others say.
        """
        names = set(_shapes(1, 1, 1))
        if set(state) != names:
            odd = ", ".join(sorted(names.symmetric_difference(state)))
            raise ValueError(f"these are missing or unknown: {odd}")
        if state["band_mean"].ndim != 1 or state["centre"].ndim != 2:
            raise ValueError("its tables have another number of axes")
        classes, components = state["centre"].shape
        shapes = _shapes(len(state["band_mean"]), classes, components)
        for name, shape in shapes.items():
            if tuple(state[name].shape) != shape:
                raise ValueError(f"{name} is {tuple(state[name].shape)} instead of {shape}")
        support = cls(len(state["band_mean"]), classes, components)
        support.load_state_dict(dict(state))
        return support

    @property
    def in_channels(self) -> int:
        """C, bands that a spectrum has."""
        return len(self.band_mean)

    @torch.no_grad()
    def distance(self, spectra: Tensor) -> Tensor:
        """(N,) float32 distances d of (N, C) spectra, 0 or more."""
        band, unit = (self.band_mean, self.band_std), (self.unit_mean, self.unit_std)
        views = standardised_views(spectra.float(), band, unit)
        inside = views @ self.basis.T
        # Not as a difference of squares: little is outside, and rounding would be most of it.
        outside = torch.addmm(views, inside, self.basis, alpha=-1).square().sum(dim=1)
        nearest = torch.full_like(outside, torch.inf)
        for centre, whitening, usual in zip(
            self.centre, self.whitening, self.usual_outside, strict=True
        ):
            within = ((inside - centre) @ whitening.T).square().mean(dim=1)
            nearest = torch.minimum(nearest, within + outside / usual)
        return nearest.sqrt()

    @torch.no_grad()
    def forward(self, reflectance: Tensor, valid: Tensor) -> Tensor:
        """Say how familiar each pixel is; it depends on no other pixel.

        Args:
            reflectance: (B, C, h, w) float32, 0 to 1, any h and w from 1.
            valid: (B, h, w) bool, True = use.

        Returns:
            (B, 1, h, w) float32, 0 to 1; 0 where not valid, and for spectra that are not finite.
        """
        b, c, h, w = reflectance.shape
        pixels = reflectance.permute(0, 2, 3, 1).reshape(-1, c)
        with torch.autocast(reflectance.device.type, enabled=False):
            distance = torch.cat([self.distance(part) for part in torch.split(pixels, CHUNK_PX)])
            support = torch.exp2(-(distance / self.distance_95).square()).nan_to_num(nan=0.0)
        return support.reshape(b, 1, h, w) * valid[:, None]


def _shapes(c: int, g: int, q: int) -> dict[str, tuple[int, ...]]:
    """Tensors of a support by name; usual_outside and distance_95 are above 0."""
    return {
        "band_mean": (c,),
        "band_std": (c,),
        "unit_mean": (c,),
        "unit_std": (c,),
        "basis": (q, 2 * c),
        "centre": (g, q),
        "whitening": (g, q, q),
        "usual_outside": (g,),
        "distance_95": (),
    }

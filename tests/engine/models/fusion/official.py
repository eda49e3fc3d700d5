"""The fixtures of CSAKD, and the published code's sizes as ours.

Sizes, seeds and names come from the sidecars, so that another set in the same layout is read too.
"""

from __future__ import annotations

from engine.models.fusion.attention import Streams
from engine.models.fusion.dts import DTSNet
from engine.packages.csakd_checkpoints import network_of
from tests.engine.models.spectralx.official import Fixture, State

__all__ = ["Fixture", "clra_state", "fuser_streams", "network"]


def network(fixture: Fixture) -> DTSNet:
    """A recorded network, with its weights, as our loader of released files makes it."""
    recorded = fixture.constructor
    return network_of(fixture.weights, recorded["scale"], fixture.name).eval()


def clra_state(weights: State) -> State:
    """Of one published block alone, for `CLRA`."""
    state = {}
    for name, tensor in weights.items():
        unit, conv, kind = name.split(".")
        number = int(unit.removeprefix("MFB")) - 1
        state[f"units.{number}.convs.{int(conv.removeprefix('conv')) - 1}.{kind}"] = tensor
    return state


def fuser_streams(fixture: Fixture, dtype) -> Streams:
    """The inputs of a fusion alone, in the published order: all on one grid."""
    hsi, msi, coarse, fine = (fixture.input(f"x{i}").to(dtype) for i in (1, 2, 3, 4))
    return Streams(hsi=hsi, msi=msi, mixed_coarse=coarse, mixed_fine=fine)

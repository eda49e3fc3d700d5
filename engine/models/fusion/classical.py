"""The classical methods by name: baselines of every report, and for whoever wants no training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from engine.models.fusion.bicubic import Bicubic
from engine.models.fusion.cnmf import CNMF
from engine.models.fusion.glphs import GLPHS
from engine.models.fusion.gsa import GSA
from engine.models.fusion.method import FusionMethod, ImagePair, Physics

CLASSICAL: Mapping[str, Callable[[Sequence[ImagePair], Physics], FusionMethod]] = MappingProxyType(
    {method.name: method.fit for method in (Bicubic, GSA, GLPHS, CNMF)}
)
"""Name → what fits the method to a sample of a pair and to how its sensors see."""

"""What a package holds beside its model's weights: what is familiar to it, and how sure it may be.

Both are tensors in the file of weights, under names that no model has; a package without them is
as good as ever, see ``docs/model_package.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import PackageError
from engine.models.support import Support

SUPPORT_PREFIX = "support."
TEMPERATURE_NAME = "calibration.temperature"

_REMEDY = "The package was changed or damaged: take it as it was trained."
_ABOVE_0 = ("band_std", "unit_std", "usual_outside", "distance_95")


@dataclass(frozen=True, eq=False)
class ModelParts:
    """What was learned about a model after its training.

    Args:
        support: tells how familiar a spectrum is; None for a package without it.
        temperature: that logits are divided by before they become probabilities, above 0.
    """

    support: Support | None = None
    temperature: float = 1.0

    def state(self) -> dict[str, Tensor]:
        """The tensors of these parts by their names in a package."""
        state = {TEMPERATURE_NAME: torch.tensor(self.temperature, dtype=torch.float32)}
        if self.support is not None:
            state |= {
                SUPPORT_PREFIX + name: tensor for name, tensor in self.support.state_dict().items()
            }
        return state


def is_part(name: str) -> bool:
    """Whether a tensor of a package belongs to these parts, and not to its model."""
    return name.startswith(SUPPORT_PREFIX) or name == TEMPERATURE_NAME


def split_parts(
    state: Mapping[str, Tensor], band_count: int
) -> tuple[dict[str, Tensor], ModelParts]:
    """Split what a package holds into the model's own weights and these parts.

    Args:
        state: all tensors by name.
        band_count: of the package.

    Raises:
        PackageError: a part is incomplete, for other bands, or has a number out of range.
    """
    own = {name: tensor for name, tensor in state.items() if not is_part(name)}
    kept = {
        name.removeprefix(SUPPORT_PREFIX): tensor
        for name, tensor in state.items()
        if name.startswith(SUPPORT_PREFIX)
    }
    support = _read_support(kept, band_count) if kept else None
    return own, ModelParts(support, _read_temperature(state.get(TEMPERATURE_NAME)))


def _read_support(state: Mapping[str, Tensor], band_count: int) -> Support:
    try:
        support = Support.of_state(state)
    except ValueError as error:
        raise PackageError(f"The support of the model cannot be read: {error}.", _REMEDY) from error
    if support.in_channels != band_count:
        raise PackageError(
            f"The support of the model is for {support.in_channels} bands, the model for "
            f"{band_count}.",
            _REMEDY,
        )
    for name in _ABOVE_0:
        if not bool((state[name] > 0).all()):
            raise PackageError(
                f"The support of the model has a {name} that is not above 0.", _REMEDY
            )
    return support.eval()


def _read_temperature(tensor: Tensor | None) -> float:
    if tensor is None:
        return 1.0
    if tensor.numel() != 1 or not float(tensor) > 0:
        raise PackageError(
            f"The temperature of the model is {tensor.tolist()}, not one number above 0.", _REMEDY
        )
    return float(tensor)

"""The land cover classifier: logits of classes from the spectrum and what surrounds it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from engine.models.pixel_model import PixelModel, PixelModelConfig


@dataclass(frozen=True)
class ClassifierConfig(PixelModelConfig):
    """The settings of the classifier.

    Args:
        in_channels: C, bands.
        num_classes: K.

    Raises:
        ValueError: a setting is out of range.
    """

    in_channels: int
    num_classes: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes < 2:
            raise ValueError(f"A classifier needs two classes or more, not {self.num_classes}.")

    @property
    def bands(self) -> int:
        """C."""
        return self.in_channels

    @property
    def outputs(self) -> int:
        """K."""
        return self.num_classes

    def build(self) -> HyperKDClassifier:
        """A classifier with these settings and fresh weights."""
        return HyperKDClassifier(self)


class HyperKDClassifier(PixelModel):
    """Spectral reflectance in, logits of classes out.

    Args:
        config: see there.
    """

    config: ClassifierConfig

    def forward(self, reflectance: Tensor, valid: Tensor) -> Tensor:
        """Classify chips of any size from one pixel up.

        Args:
            reflectance: (B, C, h, w) float32, 0 to 1.
            valid: (B, h, w) bool, True = use; what stands elsewhere in ``reflectance`` does not
                matter.

        Returns:
            (B, K, h, w) float32 logits; meaningless where not valid.
        """
        return self.answers(reflectance, valid)

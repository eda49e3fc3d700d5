"""SpectralX in four sizes: as published, and as scenes at their own resolution need it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from engine.models.mae import DecoderConfig
from engine.models.spectralx.adapted import AdaptedConfig, Scaling
from engine.models.spectralx.refine import Match
from engine.models.spectralx.segmenter import SegmenterConfig
from engine.models.spectralx.upernet import SCALES, Edges, Norm
from engine.models.vit import FoundationIdentity, ViTConfig


@dataclass(frozen=True, kw_only=True)
class SegmentPreset:
    """Sizes and choices of both stages; fields not named here are those of `SegmenterConfig`.

    Args:
        name: by which a request asks for it.
        title: for dialogs.
        batch_chips: chips a step, in both stages, unless the request says otherwise.
        adapt_learning_rate: of AdamW in stage 1.
        learning_rate: of AdamW in stage 2.
        decoder: of stage 1, where the foundation comes without one.
        mask_input: whether stage 1 hides pixels from the tokenizer too (ours), and not only tokens
            behind it (published).
    """

    name: str
    title: str
    chip_px: int
    patch_px: int
    batch_chips: int
    adapt_learning_rate: float
    learning_rate: float
    decoder: DecoderConfig
    mask_input: bool = True
    stem_dim: int | None = None
    map_scale: int = 2
    train_tokenizer: bool = True
    update_frozen_statistics: bool = False
    zero_init: bool = False
    scaling: Scaling = "standard"
    match: Match = "hard"
    keep_unused: bool = False
    neck_channels: int | None = None
    head_channels: int = 512
    neck_scales: tuple[float, ...] = SCALES
    head_norm: Norm = "batch"
    edges: Edges = "replicate"
    spectral_path: bool = True
    spectral_heads: int = 0

    @property
    def grid(self) -> int:
        """G, tokens a side of a chip."""
        return self.chip_px // self.patch_px

    def adapted(
        self,
        *,
        wavelength_nm: Sequence[float],
        vit: ViTConfig,
        foundation: FoundationIdentity,
        **changes: Any,
    ) -> AdaptedConfig:
        """The settings of stage 1's model.

        Args:
            wavelength_nm: (C,) of the bands.
            vit: the foundation's settings.
            foundation: which one it is.
            changes: fields of `AdaptedConfig` that shall differ from the preset's.
        """
        config = AdaptedConfig(**self._adapted_fields(wavelength_nm, vit, foundation))
        return replace(config, **changes)

    def segmenter(
        self,
        *,
        num_classes: int,
        wavelength_nm: Sequence[float],
        vit: ViTConfig,
        foundation: FoundationIdentity,
        **changes: Any,
    ) -> SegmenterConfig:
        """The settings of stage 2's model.

        Args:
            num_classes: K.
            wavelength_nm: (C,) of the bands.
            vit: the foundation's settings.
            foundation: which one it is.
            changes: fields of `SegmenterConfig` that shall differ from the preset's.
        """
        config = SegmenterConfig(
            **self._adapted_fields(wavelength_nm, vit, foundation),
            num_classes=num_classes,
            match=self.match,
            keep_unused=self.keep_unused,
            neck_channels=self.neck_channels,
            head_channels=self.head_channels,
            neck_scales=self.neck_scales,
            head_norm=self.head_norm,
            edges=self.edges,
            spectral_path=self.spectral_path,
            spectral_heads=self.spectral_heads,
        )
        return replace(config, **changes)

    def _adapted_fields(
        self, wavelength_nm: Sequence[float], vit: ViTConfig, foundation: FoundationIdentity
    ) -> dict[str, Any]:
        """The settings that both stages share, by name."""
        return {
            "in_channels": len(wavelength_nm),
            "wavelength_nm": tuple(float(value) for value in wavelength_nm),
            "vit": vit,
            "foundation": foundation,
            "chip_px": self.chip_px,
            "patch_px": self.patch_px,
            "stem_dim": self.stem_dim,
            "map_scale": self.map_scale,
            "train_tokenizer": self.train_tokenizer,
            "update_frozen_statistics": self.update_frozen_statistics,
            "zero_init": self.zero_init,
            "scaling": self.scaling,
        }


PUBLISHED = "paper"
"""The preset that does what the published code does, where a training's rules allow it."""

PRESETS: Mapping[str, SegmentPreset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            # Whatever the published code does, and the paper counts: 11,810,689 values train at
            # 32 bands, neck and head aside.
            SegmentPreset(
                name=PUBLISHED,
                title="As published: chips of 224 px, scaled one by one",
                chip_px=224,
                patch_px=16,
                batch_chips=32,
                adapt_learning_rate=1e-4,
                learning_rate=1e-4,
                decoder=DecoderConfig(512, 8, 16),
                mask_input=False,
                train_tokenizer=False,
                update_frozen_statistics=True,
                scaling="chip",
                keep_unused=True,
                edges="zeros",
                spectral_path=False,
            ),
            SegmentPreset(
                name="large",
                title="Chips of 224 px, a large GPU",
                chip_px=224,
                patch_px=16,
                batch_chips=16,
                adapt_learning_rate=1e-4,
                learning_rate=1e-4,
                decoder=DecoderConfig(512, 4, 16),
            ),
            SegmentPreset(
                name="medium",
                title="Chips of 64 px, a small GPU",
                chip_px=64,
                patch_px=4,
                batch_chips=16,
                adapt_learning_rate=3e-4,
                learning_rate=3e-4,
                decoder=DecoderConfig(256, 2, 8),
                neck_channels=128,
                head_channels=128,
                neck_scales=(2.0, 1.0, 1.0, 0.5),
            ),
            SegmentPreset(
                name="laptop",
                title="Chips of 32 px, no GPU",
                chip_px=32,
                patch_px=4,
                batch_chips=8,
                # On Jasper Ridge 150 steps left 0.62 of the held-out error, those of 1e-3 0.78.
                adapt_learning_rate=3e-3,
                learning_rate=1e-3,
                decoder=DecoderConfig(96, 2, 4),
                # A map as wide as the grid: two thirds of the time, and a package of 2.6 MB, not 6.
                map_scale=1,
                neck_channels=32,
                head_channels=32,
                neck_scales=(2.0, 1.0, 1.0, 0.5),
            ),
        )
    }
)

"""CSAKD in three sizes: as published, in a subspace of the spectra, and for two cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from engine.models.fusion.attention import Fusion
from engine.models.fusion.dts import Down, DTSConfig

_FEWEST = 4  # bands: fewer leave no width in the published rule


@dataclass(frozen=True, kw_only=True)
class FusionPreset:
    """Sizes of teacher and student, and how they are trained unless a request says otherwise.

    Args:
        name: by which a request asks for it.
        title: for dialogs.
        width: of the streams; None for the published rule, 2 * (bands // 4).
        basis_size: spectra are coefficients of so many spectra of the scene; None for all bands.
        teacher_blocks: of the streams mixed_fine, mixed_coarse, hsi and msi.
        student_blocks: likewise. The student's stream ``hsi`` is grouped by width / 2.
        fusion: of the streams.
        down: how the multispectral image comes to the coarse grid.
        crop_px: side of a training crop, in fine pixels; a multiple of the ratio is taken.
        batch: crops a step.
        epochs: as many crops as cover the training ground once.
        teacher_learning_rate: of AdamW at the start.
        student_learning_rate: likewise.
    """

    name: str
    title: str
    width: int | None
    basis_size: int | None
    teacher_blocks: tuple[int, int, int, int]
    student_blocks: tuple[int, int, int, int]
    fusion: Fusion
    down: Down
    crop_px: int
    batch: int
    epochs: int
    teacher_learning_rate: float
    student_learning_rate: float

    def network_channels(self, hsi_channels: int) -> int:
        """Channels of spectra inside the network: bands, or coefficients where these are fewer."""
        return hsi_channels if self.basis_size is None else min(self.basis_size, hsi_channels)

    def teacher(
        self, hsi_channels: int, msi_channels: int, ratio: int, **changes: Any
    ) -> DTSConfig:
        """The teacher's settings.

        Args:
            hsi_channels: bands of the hyperspectral image.
            msi_channels: bands of the multispectral one.
            ratio: fine pixels along a side of a coarse one.
            changes: fields of `DTSConfig` that shall differ from the preset's.

        Raises:
            ValueError: there are too few bands for the published rule.
        """
        config = self._config(hsi_channels, msi_channels, ratio, self.teacher_blocks)
        return replace(config, **changes)

    def student(
        self, hsi_channels: int, msi_channels: int, ratio: int, **changes: Any
    ) -> DTSConfig:
        """The student's settings, see `teacher`. Both feature maps are of one width."""
        config = self._config(hsi_channels, msi_channels, ratio, self.student_blocks)
        grouped = replace(config, h_groups=max(config.width // 2, 1))
        return replace(grouped, **changes)

    def _config(
        self, hsi_channels: int, msi_channels: int, ratio: int, blocks: tuple[int, int, int, int]
    ) -> DTSConfig:
        width = self._width(hsi_channels)
        return DTSConfig(
            hsi_channels=self.network_channels(hsi_channels),
            msi_channels=msi_channels,
            ratio=ratio,
            width=width,
            growth=width // 2,
            blocks=blocks,
            fusion=self.fusion,
            down=self.down,
        )

    def _width(self, hsi_channels: int) -> int:
        if self.width is not None:
            return self.width
        if hsi_channels < _FEWEST:
            raise ValueError(
                f"The preset {self.name!r} is as wide as half the bands, and {hsi_channels} are "
                f"too few: it needs {_FEWEST}."
            )
        return 2 * (hsi_channels // 4)


PUBLISHED = "paper"
"""The preset that does what the published code does, where a training's rules allow it."""
DEFAULT = "laptop"

PRESETS: Mapping[str, FusionPreset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            # 26,807,686 and 7,449,946 values at 172 + 4 bands.
            FusionPreset(
                name=PUBLISHED,
                title="As published: all bands, width of half of them, a large GPU",
                width=None,
                basis_size=None,
                teacher_blocks=(6, 6, 4, 4),
                student_blocks=(0, 4, 4, 1),
                fusion="released",
                down="bicubic",
                crop_px=128,
                batch=8,
                epochs=800,
                teacher_learning_rate=1e-4,
                student_learning_rate=1e-4,
            ),
            FusionPreset(
                name="subspace",
                title="Any number of bands in a basis of 32 spectra, a GPU",
                width=64,
                basis_size=32,
                teacher_blocks=(6, 6, 4, 4),
                student_blocks=(0, 4, 4, 1),
                fusion="repaired",
                down="area",
                crop_px=96,
                batch=8,
                epochs=400,
                teacher_learning_rate=3e-4,
                student_learning_rate=3e-4,
            ),
            FusionPreset(
                name=DEFAULT,
                title="Any number of bands in a basis of 16 spectra, no GPU",
                width=32,
                basis_size=16,
                teacher_blocks=(0, 1, 1, 1),
                student_blocks=(0, 1, 1, 0),
                fusion="repaired",
                down="area",
                crop_px=32,
                batch=4,
                epochs=80,
                teacher_learning_rate=3e-3,
                student_learning_rate=3e-3,
            ),
        )
    }
)

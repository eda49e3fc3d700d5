"""What the training of a segmentation begins with: a backbone, adapted already or not."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol

from torch import Tensor

from engine.errors import PackageError, RequestError
from engine.feedback import Feedback
from engine.models.spectralx.adapted import AdaptedConfig
from engine.models.spectralx.presets import PRESETS
from engine.models.spectralx.segmenter import SegmenterConfig
from engine.packages.build import parse_config
from engine.packages.foundations import (
    Foundation,
    find_foundation,
    load_foundation,
    remember_foundation,
)
from engine.packages.package import ModelPackage, load_package
from engine.raster.spectra import BandTable

ADAPTED_ARCHITECTURE = "spectralx-adapted"
DEFAULT_BACKBONE = "galileo-nano"
# Settings of a request that a package from stage 1 has decided already; None: not chosen.
_DECIDED = ("adaptation", "scaling")
# Settings of a request that are the segmenter's when they are chosen.
_CHOSEN = ("adaptation", "train_tokenizer", "scaling", "load_balancing", "refine", "match",
           "spectral_path")  # fmt: skip


class StartRequest(Protocol):
    """The parameters that say what to begin with; see `train_segmentation.Request`."""

    @property
    def adapted(self) -> str | None:
        """Package of stage 1."""

    @property
    def backbone(self) -> str:
        """Name, package or file."""


@dataclass(frozen=True, eq=False)
class SegmenterStart:
    """A backbone, and what stage 1 has made of it.

    Args:
        foundation: as it is.
        bands: that the model will read.
        adapted_config: the settings of stage 1; None without it.
        adapted_state: what it has learned; None without it.
        adapted_sha256: of its package; None without it.
    """

    foundation: Foundation
    bands: BandTable
    adapted_config: AdaptedConfig | None = None
    adapted_state: dict[str, Tensor] | None = None
    adapted_sha256: str | None = None

    def config(self, request: StartRequest, preset: str, num_classes: int) -> SegmenterConfig:
        """The settings of the segmenter.

        Args:
            request: what was asked for.
            preset: whose sizes to take, where stage 1 has not decided them.
            num_classes: K.

        Raises:
            PackageError: the backbone cannot be adapted in these sizes.
            RequestError: a setting that was chosen contradicts the others.
        """
        identity = self.foundation.identity
        settings: dict[str, Any] = {
            "wavelength_nm": self.bands.wavelength_nm.tolist(),
            "vit": self.foundation.vit.config,
            "foundation": identity,
        }
        if self.adapted_config is not None:  # all of stage 1 but what is chosen anew
            own = fields(AdaptedConfig)
            settings |= {f.name: getattr(self.adapted_config, f.name) for f in own}
        chosen = {name: getattr(request, name) for name in _CHOSEN}
        settings |= {name: value for name, value in chosen.items() if value is not None}
        try:
            return PRESETS[preset].segmenter(num_classes=num_classes, **settings)
        except ValueError as error:
            raise PackageError(
                f"The backbone {identity.name} cannot be adapted with the preset {preset}: {error}",
                "Choose another backbone or another preset.",
            ) from error

    def is_possible(self, request: StartRequest, preset: str, num_classes: int) -> bool:
        """Whether the backbone can be adapted in a preset's sizes."""
        try:
            self.config(request, preset, num_classes)
        except PackageError:
            return False
        return True


def load_start(request: StartRequest, scene_bands: BandTable, feedback: Feedback) -> SegmenterStart:
    """Load what the training begins with, and say whose it is.

    Where a backbone was loaded from is remembered, so that the model finds it without asking.

    Args:
        request: what was asked for.
        scene_bands: good bands of the first scene, which a new model reads.
        feedback: told about the backbone.

    Raises:
        PackageError: the backbone is not there, or the package is not of stage 1, or of another
            backbone than the one that was chosen.
        RequestError: a setting was chosen that stage 1 has decided otherwise.
    """
    if request.adapted is None:
        foundation = load_foundation(request.backbone)
        remember_foundation(foundation.identity, request.backbone)
        _tell(foundation, feedback)
        return SegmenterStart(foundation, scene_bands)
    package = load_package(request.adapted)
    config = _adapted_config(package)
    _check_settings(request, config, package.info.name)
    foundation = _foundation_of(request, config, package.info.name)
    _tell(foundation, feedback)
    feedback.info(
        f"Adapted before: {package.info.title} (SHA-256 {package.sha256}); chips of "
        f"{config.chip_px} px and tokens of {config.patch_px} px are from there."
    )
    return SegmenterStart(foundation, package.info.bands, config, package.state, package.sha256)


def _adapted_config(package: ModelPackage) -> AdaptedConfig:
    """The settings of stage 1."""
    info = package.info
    if info.architecture != ADAPTED_ARCHITECTURE:
        raise PackageError(
            f"The model {info.name!r} is a {info.architecture}, and no adapted backbone.",
            "Choose a package that 'Adapt a backbone' made, or leave it out.",
        )
    return parse_config(AdaptedConfig, info.config)


def _check_settings(request: Any, config: AdaptedConfig, name: str) -> None:
    """Refuse a setting that stage 1 has decided otherwise."""
    for setting in _DECIDED:
        wanted, made = getattr(request, setting), getattr(config, setting)
        if wanted is not None and wanted != made:
            raise RequestError(
                f"The adapted backbone {name!r} was made with {setting} {made!r}; {wanted!r} was "
                "asked for.",
                f"Leave {setting} as it was made, or adapt the backbone again.",
            )


def _foundation_of(request: StartRequest, config: AdaptedConfig, name: str) -> Foundation:
    """The backbone that a package was adapted from: where the request says, else where it is.

    The backbone that a request has by default is no choice: adapters belong to one backbone only.
    """
    wanted = config.foundation
    if request.backbone in (DEFAULT_BACKBONE, wanted.name):
        return find_foundation(wanted, config.vit)
    foundation = load_foundation(request.backbone, num_heads=config.vit.num_heads)
    if foundation.identity.sha256 != wanted.sha256:
        raise PackageError(
            f"The adapted backbone {name!r} was made from {wanted.name!r} (SHA-256 "
            f"{wanted.sha256[:12]}…), not from {foundation.identity.name!r} "
            f"({foundation.identity.sha256[:12]}…).",
            f"Choose {wanted.name} as the backbone (from {wanted.source}), or adapt this one.",
        )
    remember_foundation(wanted, request.backbone)
    return foundation


def _tell(foundation: Foundation, feedback: Feedback) -> None:
    """Say whose the backbone is."""
    about = foundation.identity
    feedback.info(
        f"Backbone: {about.name} ({about.kind}), {about.source}, licence {about.licence} (SHA-256 "
        f"{about.sha256})"
    )

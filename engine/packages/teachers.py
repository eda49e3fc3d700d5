"""Teachers of HyperKD: a file of published weights, or a package, becomes a network with bands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import BandTableError, PackageError
from engine.models.galileo import GalileoEncoder
from engine.models.galileo_inputs import DN_PER_REFLECTANCE
from engine.models.prithvi import PrithviMAE
from engine.models.teacher import TeacherNetwork
from engine.packages.build import build_model, load_weights
from engine.packages.checkpoints import CHECKPOINT_SUFFIXES, Checkpoint, read_checkpoint
from engine.packages.files import is_package
from engine.packages.installed import list_packages
from engine.packages.item import DAMAGED_REMEDY, WEIGHTS_NAME
from engine.packages.metadata import ModelInfo
from engine.packages.package import load_package
from engine.packages.size_hints import size_hints
from engine.packages.teacher_layouts import (
    TIME_AND_PLACE,
    read_galileo_config,
    read_prithvi_config,
    recognise,
    with_computed_positions,
)
from engine.raster.alignment import RangeBand
from engine.raster.spectra import filled_fwhm_nm

TEACHER_ARCHITECTURES = ("galileo", "prithvi-mae")
"""Of packages that can teach; keys of `engine.packages.build.ARCHITECTURES`."""

# Rectangles of the Operational Land Imager; centres and widths from its response curves.
PRITHVI_BANDS = (
    RangeBand("B02", 450.0, 510.0, 482.6, 59.0),
    RangeBand("B03", 530.0, 590.0, 561.3, 57.0),
    RangeBand("B04", 640.0, 670.0, 654.6, 37.0),
    RangeBand("B05", 850.0, 880.0, 864.6, 27.0),
    RangeBand("B06", 1570.0, 1650.0, 1609.1, 84.0),
    RangeBand("B07", 2110.0, 2290.0, 2201.3, 186.0),
)
"""Of Harmonized Landsat Sentinel-2, which all public Prithvi read."""

# Half maxima, centroids and widths of the responses of Sentinel-2A.
GALILEO_BANDS = (
    RangeBand("B2", 459.8, 524.0, 492.4, 64.3),
    RangeBand("B3", 542.8, 577.6, 559.8, 34.8),
    RangeBand("B4", 649.3, 679.9, 664.6, 30.6),
    RangeBand("B5", 697.3, 711.3, 704.1, 14.0),
    RangeBand("B6", 733.6, 747.3, 740.5, 13.6),
    RangeBand("B7", 773.5, 792.5, 782.8, 19.0),
    RangeBand("B8", 782.5, 887.3, 832.8, 104.8),
    RangeBand("B8A", 854.5, 875.0, 864.7, 20.5),
    RangeBand("B11", 1568.7, 1658.3, 1613.7, 89.7),
    RangeBand("B12", 2112.9, 2286.5, 2202.4, 173.6),
)
"""Of Sentinel-2, those of 10 and 20 m."""


@dataclass(frozen=True)
class Statistics:
    """Mean and spread of the six bands in a Prithvi's training data, reflectance x 10,000."""

    mean_dn: tuple[float, ...]
    std_dn: tuple[float, ...]


# Model card and config.json of Prithvi-EO-1.0-100M.
PRITHVI_1_STATISTICS = Statistics(
    (
        775.2290211032589,
        1080.992780391705,
        1228.5855250417867,
        2497.2022620507532,
        2204.2139147975554,
        1610.8324823273745,
    ),
    (
        1281.526139861424,
        1270.0297974547493,
        1399.4802505642526,
        1368.3446143747644,
        1291.6764008585435,
        1154.505683480695,
    ),
)
PRITHVI_2_STATISTICS = Statistics(
    (1087.0, 1342.0, 1433.0, 2734.0, 1958.0, 1363.0),
    (2248.0, 2179.0, 2178.0, 1850.0, 1242.0, 1049.0),
)
# What tells the second generation from the first.
PRITHVI_2_WIDTHS = (1024, 1280)
PRITHVI_2_FRAMES = 4


@dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen network that knows a few broad bands.

    Args:
        name: of the package, or of the file without its ending.
        network: in eval mode, without gradients, on the CPU.
        bands: that it reads, in its order.
        sha256: of the file of weights, 64 hexadecimal digits.
        licence: SPDX identifier of the weights; for a file, of the public weights of its layout.
        source: whose weights they are.
    """

    name: str
    network: TeacherNetwork
    bands: tuple[RangeBand, ...]
    sha256: str
    licence: str
    source: str


def load_teacher(
    name_or_path: str,
    *,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
) -> Teacher:
    """Load a teacher.

    Args:
        name_or_path: a file of weights of a layout that `teacher_layouts.known_layouts` lists, a
            package (folder or zip), or the name of an installed one.
        num_heads: attention heads of a file's encoder, when neither its width nor a config.json
            beside it tells.
        decoder_num_heads: likewise, of its decoder.

    Raises:
        PackageError: there is no such file or package, it is damaged, would run code, is no
            teacher, or reads other bands than the public teachers do.
    """
    path = Path(name_or_path).expanduser()
    if path.name == WEIGHTS_NAME and is_package(path.parent):
        path = path.parent
    elif path.suffix.lower() in CHECKPOINT_SUFFIXES:
        checkpoint = read_checkpoint(path)
        hints = size_hints(checkpoint, num_heads=num_heads, decoder_num_heads=decoder_num_heads)
        return _teacher_of_checkpoint(checkpoint, hints)
    return _teacher_of_package(str(path) if path.exists() else name_or_path)


def _teacher_of_package(name_or_path: str) -> Teacher:
    package = load_package(name_or_path)
    info = package.info
    network = build_model(package) if info.architecture in TEACHER_ARCHITECTURES else None
    if not isinstance(network, TeacherNetwork):
        raise PackageError(
            f"The model {info.name!r} is a {info.architecture}, and no teacher.",
            f"Choose an installed teacher ({_installed_teachers()}), or a file of weights "
            f"({', '.join(CHECKPOINT_SUFFIXES)}).",
        )
    return Teacher(
        name=info.name,
        network=network.requires_grad_(False).eval(),
        bands=_bands_of_package(info),
        sha256=package.sha256,
        licence=info.licence,
        source=info.attribution or info.title,
    )


def _installed_teachers() -> str:
    names = [item.name for item in list_packages() if item.architecture in TEACHER_ARCHITECTURES]
    return ", ".join(names) or "none"


def _bands_of_package(info: ModelInfo) -> tuple[RangeBand, ...]:
    """The bands with their ranges; where only centre and width are known, the width is the range.

    Raises:
        PackageError: a Galileo with other bands than its ten.
    """
    if info.architecture == "galileo":
        if len(info.bands) != len(GALILEO_BANDS):
            raise _other_bands(info.name, len(info.bands), GALILEO_BANDS)
        return GALILEO_BANDS
    fwhm_nm, _estimated = filled_fwhm_nm(info.bands)
    try:
        return tuple(
            RangeBand.from_centre(name, float(centre_nm), float(width_nm))
            for name, centre_nm, width_nm in zip(
                info.bands.names, info.bands.wavelength_nm, fwhm_nm, strict=True
            )
        )
    except BandTableError as error:
        raise PackageError(
            f"The bands of the teacher {info.name!r} cannot be used: {error}", DAMAGED_REMEDY
        ) from error


def _teacher_of_checkpoint(checkpoint: Checkpoint, hints: Mapping[str, Any]) -> Teacher:
    layout, state = recognise(checkpoint.state, str(checkpoint.path))
    network: TeacherNetwork
    bands: tuple[RangeBand, ...]
    if layout.family == "galileo":
        network, bands = _build_galileo(state, hints, checkpoint), GALILEO_BANDS
        licence, source = "MIT", "Galileo, github.com/nasaharvest/galileo"
    else:
        network, bands = _build_prithvi(state, hints, checkpoint), PRITHVI_BANDS
        licence, source = "Apache-2.0", "Prithvi-EO, huggingface.co/ibm-nasa-geospatial"
    _refuse_nan(network, checkpoint.path)
    return Teacher(
        name=checkpoint.path.stem,
        network=network.requires_grad_(False).eval(),
        bands=bands,
        sha256=checkpoint.sha256,
        licence=licence,
        source=source,
    )


def _build_galileo(
    state: Mapping[str, Tensor], hints: Mapping[str, Any], checkpoint: Checkpoint
) -> GalileoEncoder:
    network = GalileoEncoder(read_galileo_config(state, hints, str(checkpoint.path)))
    load_weights(network, state)
    return network


def _build_prithvi(
    state: dict[str, Tensor], hints: Mapping[str, Any], checkpoint: Checkpoint
) -> PrithviMAE:
    """Build without filling the weights first: of the largest they are 2.5 GB."""
    config = read_prithvi_config(state, hints, str(checkpoint.path))
    if config.in_channels != len(PRITHVI_BANDS):
        raise _other_bands(str(checkpoint.path), config.in_channels, PRITHVI_BANDS)
    with torch.device("meta"):
        network = PrithviMAE(config)
    network.to_empty(device="cpu")
    is_second = (
        config.embed_dim in PRITHVI_2_WIDTHS
        or config.num_frames == PRITHVI_2_FRAMES
        or any(part in name for name in checkpoint.state for part in TIME_AND_PLACE)
    )
    statistics = PRITHVI_2_STATISTICS if is_second else PRITHVI_1_STATISTICS
    load_weights(
        network,
        {
            **with_computed_positions(state, config),
            "band_mean": torch.tensor(statistics.mean_dn) / DN_PER_REFLECTANCE,
            "band_std": torch.tensor(statistics.std_dn) / DN_PER_REFLECTANCE,
        },
    )
    return network


def _other_bands(origin: str, count: int, bands: tuple[RangeBand, ...]) -> PackageError:
    names = ", ".join(f"{band.name} {band.low_nm:g}-{band.high_nm:g} nm" for band in bands)
    return PackageError(
        f"{origin} reads {count} bands; which they are is not known here.",
        f"A teacher of this kind reads {len(bands)}: {names}.",
    )


def _refuse_nan(network: TeacherNetwork, path: Path) -> None:
    for name, tensor in network.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise PackageError(
                f"The weights {name!r} of {path} hold NaN or infinite numbers.",
                "Copy or download the file again.",
            )

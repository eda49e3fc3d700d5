"""Small scenes made by code, and what is run over them; known answers for every pixel."""

from dataclasses import dataclass, field
from itertools import count

import numpy as np
import rasterio
import rasterio.shutil
import torch
from affine import Affine

from engine.errors import CancelledError
from engine.feedback import SilentFeedback
from engine.raster.scene import open_scene
from engine.raster.spectra import BandMatch
from engine.raster.stream import stream_scene
from engine.raster.tiles import Tiling, Window

BANDS = 12
# Non-square pixels.
TRANSFORM = Affine(30, 0, 400_000, 0, -20, 5_800_000)
LAYOUTS = {
    "tiled, by pixel": {"driver": "GTiff", "tiled": True, "interleave": "pixel"},
    "tiled, by band": {"driver": "GTiff", "tiled": True, "interleave": "band"},
    "striped, by pixel": {"driver": "GTiff", "blockysize": 5, "interleave": "pixel"},
    "striped, by band": {"driver": "GTiff", "blockysize": 3, "interleave": "band"},
    "deflated": {"driver": "GTiff", "tiled": True, "compress": "deflate", "interleave": "pixel"},
    "bsq": {"driver": "ENVI", "interleave": "bsq"},
    "bil": {"driver": "ENVI", "interleave": "bil"},
    "bip": {"driver": "ENVI", "interleave": "bip"},
    "vrt": {"driver": "GTiff", "tiled": True, "interleave": "pixel"},
}


def make_values(height, width, dtype, bands=BANDS, seed=0):
    """Values that differ in every pixel and band; reflectance x 10,000 for integers."""
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 9_000, (bands, height, width))
    return values.astype(dtype) if np.dtype(dtype).kind != "f" else (values / 10_000).astype(dtype)


def write_scene(path, values, nodata=None, layout="tiled, by pixel", scale=None, offset=None):
    """Write (C, h, w) values; integers are reflectance x 10,000 unless a scale is given."""
    options = dict(LAYOUTS[layout])
    if options.get("tiled"):
        options |= {"blockxsize": 16, "blockysize": 16}
    c, h, w = values.shape
    stored = path.with_suffix(".tif" if options["driver"] == "GTiff" else ".bsq")
    profile = {
        "count": c, "height": h, "width": w, "dtype": values.dtype, "nodata": nodata,
        "crs": "EPSG:32633", "transform": TRANSFORM,
    }  # fmt: skip
    with rasterio.open(stored, "w", **profile, **options) as dataset:
        dataset.write(values)
        default = 1.0 if values.dtype.kind == "f" else 1e-4
        dataset.scales = [default if scale is None else scale] * c
        dataset.offsets = [offset or 0.0] * c
        for band in range(1, c + 1):
            dataset.update_tags(band, wavelength=str(400 + 50 * band), wavelength_units="nm")
    if layout != "vrt":
        return str(stored)
    source = path.with_suffix(".vrt")
    rasterio.shutil.copy(str(stored), str(source), driver="VRT")
    return str(source)


def all_bands(scene):
    """Every band of the scene, as it is."""
    return BandMatch(tuple(range(len(scene.band_sources))), None, ())


@dataclass
class IdentityModel:
    """Returns its input."""

    tiling: Tiling
    out_channels: int = BANDS

    def __call__(self, reflectance, valid):
        return reflectance


class ConvModel(torch.nn.Module):
    """Two 3 x 3 convolutions with random weights: a reach of 2 px."""

    def __init__(self, tiling, in_channels=BANDS, out_channels=3):
        super().__init__()
        self.tiling, self.out_channels = tiling, out_channels
        generator = torch.Generator().manual_seed(0)
        self.layers = torch.nn.ModuleList(
            [
                torch.nn.Conv2d(in_channels, 8, 3, padding=1),
                torch.nn.Conv2d(8, out_channels, 3, padding=1),
            ]
        )
        for weight in self.parameters():
            weight.data.normal_(0, 0.3, generator=generator)

    def forward(self, reflectance, valid):
        hidden = torch.tanh(self.layers[0](reflectance * valid[:, None]))
        return self.layers[1](hidden).softmax(1)


@dataclass
class CancelAfter(SilentFeedback):
    """Cancels at the n-th look; keeps what it is told."""

    looks: int | None = None
    warnings: list[str] = field(default_factory=list)
    fractions: list[float] = field(default_factory=list)

    def __post_init__(self):
        self._count = count(1)

    def raise_if_cancelled(self):
        if self.looks is not None and next(self._count) >= self.looks:
            raise CancelledError

    def warning(self, message):
        self.warnings.append(message)

    def progress(self, fraction, message=""):
        self.fractions.append(fraction)


@dataclass
class Collected:
    """A sink that keeps everything: values (K, h, w), valid (h, w), and the windows in order."""

    height: int
    width: int
    channels: int

    def __post_init__(self):
        self.values = np.full((self.channels, self.height, self.width), np.nan, np.float32)
        self.valid = np.zeros((self.height, self.width), bool)
        self.windows = []

    def __call__(self, window, values, valid):
        rows, cols = window.slices_in(Window(0, 0, self.height, self.width))
        self.values[:, rows, cols], self.valid[rows, cols] = values, valid
        self.windows.append(window)


def run(source, model, *, feedback=None, match=None, **options):
    """Stream a model over a file; returns what the sink was given."""
    scene = open_scene(source)
    sink = Collected(scene.height, scene.width, model.out_channels)
    stream_scene(
        scene,
        match or all_bands(scene),
        model,
        sink,
        device=torch.device("cpu"),
        feedback=feedback or SilentFeedback(),
        **options,
    )
    return sink

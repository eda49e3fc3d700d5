"""A scene and a model whose right answer is known: the brightest of three bands."""

from pathlib import Path

import numpy as np
import rasterio
import torch

from engine.errors import CancelledError
from engine.feedback import SilentFeedback
from engine.models.classifier import ClassifierConfig, HyperKDClassifier
from engine.packages.metadata import ModelInfo, Normalisation
from engine.raster.spectra import BandTable
from engine.raster.style import ClassInfo
from engine.raster.tiles import Tiling
from tests.engine.conftest import BANDS, FWHM_NM, HEIGHT, WAVELENGTH_NM, WIDTH

CLASSES = (
    ClassInfo(2, "Water", "#1e78b4"),
    ClassInfo(7, "Meadow", "#8fce5a"),
    ClassInfo(200, "Roof", "#e31a1c"),
)
NODATA = -99


class Listener(SilentFeedback):
    def __init__(self, cancel_at=None):
        self.infos, self.warnings, self.fractions = [], [], []
        self._cancel_at = cancel_at

    def progress(self, fraction, message=""):
        self.fractions.append(fraction)

    def info(self, message):
        self.infos.append(message)

    def warning(self, message):
        self.warnings.append(message)

    def raise_if_cancelled(self):
        if self._cancel_at is not None and max(self.fractions, default=0) >= self._cancel_at:
            raise CancelledError


def model_of(*, gate=0.0):
    """Tells by the brightest of the first three bands, so that the right class is known."""
    torch.manual_seed(0)
    model = HyperKDClassifier(
        ClassifierConfig(
            in_channels=BANDS,
            num_classes=3,
            encoder_gate=gate,
            chip_px=8,
            halo_px=2,
            head_channels=8,
            embed_dim=8,
            depth=1,
            num_heads=2,
        )
    )
    with torch.no_grad():
        model.spectral.weight[:, :3] = 100 * torch.eye(3)
    return model.eval()


def info_of(model, **changes):
    config = {name: getattr(model.config, name) for name in ClassifierConfig.__dataclass_fields__}
    fields = {
        "name": "brightest",
        "title": "The brightest of three",
        "description": "For tests.",
        "version": "1.0.0",
        "architecture": "hyperkd-classifier",
        "config": config,
        "bands": BandTable(
            tuple(f"b{i}" for i in range(BANDS)), WAVELENGTH_NM, FWHM_NM, np.ones(BANDS, bool)
        ),
        "classes": CLASSES,
        "normalisation": Normalisation.of(np.full(BANDS, 0.3), np.full(BANDS, 0.1)),
        "tiling": Tiling(model.tile_size_px, model.halo_px, model.blend),
        "licence": "CC-BY-SA-4.0",
    }
    return ModelInfo(**(fields | changes))


def brightest_scene(seed=0):
    """(C, H, W) int16 reflectance x 10,000, and the (H, W) class values that are right."""
    generator = np.random.default_rng(seed)
    array = generator.integers(500, 1000, (BANDS, HEIGHT, WIDTH)).astype(np.int16)
    brightest = generator.integers(0, 3, (HEIGHT, WIDTH))
    np.put_along_axis(array, brightest[None], 6000, axis=0)
    return array, np.array([info.value for info in CLASSES], np.uint8)[brightest]


def read(path):
    with rasterio.open(path) as dataset:
        return dataset.read()


def left_in(folder):
    return sorted(path.name for path in Path(folder).iterdir())

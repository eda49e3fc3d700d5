"""A scene whose spectra tell a quantity: the slope of each patch, under changing brightness."""

import numpy as np

from engine.models.regressor import HyperKDRegressor, RegressorConfig
from engine.packages.metadata import ModelInfo, Normalisation, Quantity
from engine.raster.spectra import BandTable
from engine.raster.tiles import Tiling
from tests.engine.conftest import BANDS, FWHM_NM, TRANSFORM, WAVELENGTH_NM
from tests.engine.raster.test_vector import pixel_box, write_layer

SIDE_PX, PATCH_PX = 36, 6
LOW, HIGH = 5.0, 45.0
CLAY = Quantity("clay", "%", LOW, HIGH)


def clay_map(seed=0):
    """(H, W) values, the same within a patch of 6 x 6 px."""
    drawn = np.random.default_rng(seed).uniform(LOW, HIGH, (SIDE_PX // PATCH_PX,) * 2)
    return drawn.round(2).repeat(PATCH_PX, axis=0).repeat(PATCH_PX, axis=1)


def clay_scene(seed=0):
    """(C, H, W) int16 reflectance x 10,000."""
    rng = np.random.default_rng(seed + 1)
    slope = (clay_map(seed) - (LOW + HIGH) / 2) / (HIGH - LOW)
    shape = 1.0 + 0.8 * slope * np.linspace(-1, 1, BANDS)[:, None, None]
    array = 3000 * shape * rng.uniform(0.7, 1.3, (1, SIDE_PX, SIDE_PX))
    return (array + rng.normal(0, 30, array.shape)).round().astype(np.int16)


def clay_polygons(path, field="clay"):
    """A layer with a polygon and its value for each patch."""
    corners = [(r, c) for r in range(0, SIDE_PX, PATCH_PX) for c in range(0, SIDE_PX, PATCH_PX)]
    boxes = [pixel_box(col, row, PATCH_PX, PATCH_PX, TRANSFORM) for row, col in corners]
    return write_layer(path, boxes, values=[clay_map()[cell] for cell in corners], field=field)


def band_model(band_index=0, quantity=CLAY, factor=1.0, gate=0.0, **changes):
    """A model whose answer is known: the reflectance of one band, times a factor."""
    model = HyperKDRegressor(
        RegressorConfig(BANDS, chip_px=8, halo_px=1, embed_dim=8, depth=1, num_heads=2,
                        head_channels=4, heads=1, heads_hidden=4, value_std=factor,
                        encoder_gate=gate)
    ).eval()  # fmt: skip
    model.spectral.weight.data[0, band_index] = 1.0
    names = RegressorConfig.__dataclass_fields__
    fields = {
        "name": "clay-model",
        "title": "Clay",
        "description": "For tests.",
        "version": "1.0.0",
        "architecture": "hyperkd-regressor",
        "config": {name: getattr(model.config, name) for name in names},
        "bands": BandTable(
            tuple(f"b{i}" for i in range(BANDS)), WAVELENGTH_NM, FWHM_NM, np.ones(BANDS, bool)
        ),
        "classes": (),
        "normalisation": Normalisation.of(np.full(BANDS, 0.3), np.full(BANDS, 0.1)),
        "tiling": Tiling(model.tile_size_px, model.halo_px, model.blend),
        "licence": "CC-BY-4.0",
        "task": "regression",
        "quantity": quantity,
    }
    return model, ModelInfo(**(fields | changes))

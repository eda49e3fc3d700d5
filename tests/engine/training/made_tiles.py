"""Tiles of a small scene made by code, and a network so small that it trains in no time."""

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from engine.feedback import SilentFeedback
from engine.raster.scene import open_scene
from engine.training.scene_tiles import SceneTiles
from engine.training.tile_survey import TileShape
from tests.engine.conftest import write_raster

BANDS, HEIGHT, WIDTH, TILE_PX, PATCH_PX = 5, 26, 33, 8, 2


def made_tiles(folder, seed=0, validation=0.25):
    """A scene of smooth spectra, cut into tiles of 8 px."""
    rng = np.random.default_rng(7)
    level = rng.uniform(0.6, 1.4, (1, HEIGHT, WIDTH))
    slope = np.linspace(2000, 4000, BANDS)[:, None, None]
    array = (slope * level + rng.normal(0, 50, (BANDS, HEIGHT, WIDTH))).astype(np.int16)
    scene = open_scene(write_raster(folder / "made.tif", array=array, scale=1e-4).path)
    return SceneTiles.open(
        [scene],
        scene.require_bands(),
        TileShape(TILE_PX, PATCH_PX),
        validation=validation,
        seed=seed,
        feedback=SilentFeedback(),
    )


class LevelTask:
    """Guesses a tile's mean spectrum from half of its pixels, drawn at random."""

    def __init__(self, tiles, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = nn.Sequential(nn.Linear(BANDS, 8), nn.GELU(), nn.Linear(8, BANDS))
        self._mean = tiles.mean

    def losses(self, model, batch, generator):
        pixels = (batch.reflectance - self._mean[:, None, None]).flatten(2)
        shown = torch.rand(pixels.shape[2], generator=generator) < 0.5
        error = model(pixels[:, :, shown].mean(dim=2)) - pixels.mean(dim=2)
        mse = error.square().mean()
        size = sum(weight.square().mean() for weight in model.parameters())
        return {"loss": mse + 1e-3 * size, "mse": mse, "size": size}


def cpu():
    return Fabric(accelerator="cpu", devices=1, precision="32-true")


class StopAfter(SilentFeedback):
    """Cancels at the n-th question; keeps what it is told."""

    def __init__(self, looks=None):
        self.looks, self.asked, self.messages = looks, 0, []

    def progress(self, fraction, message=""):
        self.messages.append((fraction, message))

    def raise_if_cancelled(self):
        from engine.errors import CancelledError

        self.asked += 1
        if self.looks is not None and self.asked > self.looks:
            raise CancelledError

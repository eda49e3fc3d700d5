"""Scalings: what the network sees, and reflectance back from it to the last digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.feedback import SilentFeedback
from engine.models.spectralx.adapted import AdaptedConfig, AdaptedViT
from engine.models.vit import FoundationIdentity, ViT, ViTConfig
from engine.raster.scene import open_scene
from engine.training.scene_tiles import SceneTiles, TileBatch
from engine.training.tile_scaling import scale_tiles, scaled_statistics
from engine.training.tile_survey import TileShape
from tests.engine.training.made_tiles import made_tiles

VIT = ViTConfig(embed_dim=64, depth=1, num_heads=2, patch_px=2, grid=4)
IDENTITY = FoundationIdentity("made", "ab" * 32, "mae", "MIT", "made by a test")


@pytest.fixture
def batch():
    """Four bands, one of them absent in the second tile and one constant; a corner is not valid."""
    torch.manual_seed(0)
    reflectance = torch.rand(2, 4, 8, 8) * 0.5
    reflectance[:, 3] = 0.2
    present = torch.tensor([[True] * 4, [True, False, True, True]])
    valid = torch.ones(2, 8, 8, dtype=torch.bool)
    valid[0, :3, :2] = False
    reflectance = reflectance * valid[:, None] * present[:, :, None, None]
    return TileBatch(reflectance, valid, present, torch.zeros(2).long(), torch.full((2,), 30.0))


def model(scaling, channels=4):
    config = AdaptedConfig(
        in_channels=channels,
        wavelength_nm=tuple(np.linspace(450, 1000, channels)),
        vit=VIT,
        foundation=IDENTITY,
        chip_px=8,
        patch_px=2,
        scaling=scaling,
    )
    adapted = AdaptedViT(config, ViT(VIT))
    adapted.band_mean.copy_(torch.linspace(0.1, 0.3, channels))
    adapted.band_std.copy_(torch.linspace(0.05, 0.2, channels))
    return adapted


@pytest.mark.parametrize("scaling", ["standard", "unit", "chip"])
def test_reflectance_comes_back_where_something_was_measured(batch, scaling):
    seen = scale_tiles(model(scaling), batch)
    known = batch.valid[:, None] & batch.band_present[:, :, None, None]
    back = seen.reflectance(seen.x)
    assert torch.allclose(back[known], batch.reflectance[known], atol=1e-6)


@pytest.mark.parametrize("scaling", ["standard", "unit", "chip"])
def test_what_was_not_measured_is_0(batch, scaling):
    seen = scale_tiles(model(scaling), batch)
    known = batch.valid[:, None] & batch.band_present[:, :, None, None]
    assert not seen.x[~known].any()
    assert seen.x[known].any()


def test_a_chip_fills_the_range_of_each_band(batch):
    seen = scale_tiles(model("chip"), batch)
    inside = seen.x[1, 0]
    assert inside.min() == 0
    assert inside.max() == pytest.approx(1, abs=1e-5)


def test_standard_statistics_are_those_of_the_tiles(tmp_path):
    tiles = made_tiles(tmp_path)
    mean, std = scaled_statistics(tiles, "standard", 4, SilentFeedback())
    assert torch.equal(mean, tiles.mean)
    assert torch.equal(std, tiles.std)


def test_a_chip_needs_no_statistics(tmp_path):
    mean, std = scaled_statistics(made_tiles(tmp_path), "chip", 4, SilentFeedback())
    assert mean.tolist() == [0] * 5
    assert std.tolist() == [1] * 5


def test_unit_statistics_are_those_of_directions(make_raster):
    rng = np.random.default_rng(1)
    array = rng.uniform(1000, 5000, (3, 16, 24)).astype(np.int16)
    scene = open_scene(make_raster(array=array, scale=1e-4).path)
    tiles = SceneTiles.open(
        [scene], scene.require_bands(), TileShape(8, 2), validation=0.0, seed=0,
        feedback=SilentFeedback(),
    )  # fmt: skip
    unit = array.reshape(3, -1) / np.linalg.norm(array.reshape(3, -1), axis=0)
    mean, std = scaled_statistics(tiles, "unit", 4, SilentFeedback())
    assert mean.numpy() == pytest.approx(unit.mean(axis=1), rel=1e-5)
    assert std.numpy() == pytest.approx(unit.std(axis=1), rel=1e-4)
    adapted = model("unit", 3)
    adapted.band_mean.copy_(mean)
    adapted.band_std.copy_(std)
    (whole,) = tiles.batches_of(tiles.plan.training, 100)
    x = scale_tiles(adapted, whole).x
    assert x.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0] * 3, abs=1e-4)
    assert x.std(dim=(0, 2, 3)).tolist() == pytest.approx([1] * 3, rel=2e-2)

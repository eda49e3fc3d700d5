"""A teacher of the user's own: it learns, it can be resumed, and it can teach."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.errors import CancelledError
from engine.feedback import SilentFeedback
from engine.models.mae import DecoderConfig, StudentPreset
from engine.raster.scene import open_scene
from engine.training.run_checkpoint import RunCheckpoint
from engine.training.teacher_pretraining import (
    TEACHER_PRESETS,
    PretrainingSettings,
    open_teacher_tiles,
    pretrain,
    teacher_config,
)
from tests.engine.training.made_tiles import StopAfter, cpu

TINY = StudentPreset("tiny", "Tiny", 8, 2, 16, 2, 2, DecoderConfig(16, 1, 2), 4)
SETTINGS = PretrainingSettings(preset=TINY, epochs=3, learning_rate=1e-3)


@pytest.fixture
def tiles(make_raster):
    rng = np.random.default_rng(0)
    level = rng.uniform(0.6, 1.4, (1, 26, 33))
    array = np.linspace(2000, 4000, 4)[:, None, None] * level + rng.normal(0, 50, (4, 26, 33))
    wavelength_nm = [490.0, 560.0, 1405.0, 2200.0]
    path = make_raster(
        array=array.astype(np.int16), wavelength_nm=wavelength_nm, fwhm_nm=[60.0] * 4, scale=1e-4
    ).path
    return open_teacher_tiles([open_scene(path)], TINY, feedback=SilentFeedback())


def run(tiles, settings=SETTINGS, feedback=None, **options):
    return pretrain(tiles, settings, fabric=cpu(), feedback=feedback or SilentFeedback(), **options)


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_all_good_bands_are_kept(tiles):
    assert tiles.bands.wavelength_nm.tolist() == [490.0, 560.0, 1405.0, 2200.0]


def test_reconstruction_gets_better(tiles):
    few, many = (run(tiles, replace(SETTINGS, epochs=n)) for n in (1, 30))
    assert many.scores.psnr_db > few.scores.psnr_db + 1
    assert many.history.terms == ["loss", "mse"]


def test_a_cancelled_run_goes_on_to_the_same_network(tiles, tmp_path):
    checkpoint = RunCheckpoint(tmp_path / "run.safetensors", {})
    whole = run(tiles)
    with pytest.raises(CancelledError):
        run(tiles, feedback=StopAfter(4), checkpoint=checkpoint)
    assert same(whole.network, run(tiles, resume=checkpoint.load()).network)


def test_the_network_describes_tokens_of_a_student(tiles):
    network = run(tiles).network
    (features,) = network.features(
        torch.rand(2, 4, 12, 12),
        rows=6,
        cols=6,
        ids_keep=torch.arange(9)[None].expand(2, -1),
        pixel_size_m=torch.full((2,), 30.0),
        taps=(2,),
    )
    assert features.shape == (2, 9, 16)


def test_every_preset_makes_a_network():
    for preset in TEACHER_PRESETS.values():
        config = teacher_config(preset, 6)
        assert preset.tile_size_px == config.img_size
        assert config.grid[1] ** 2 == preset.num_tokens

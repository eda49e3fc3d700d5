"""Tiles of scenes: what is read, what is masked, what is left out, and that a seed repeats it."""

import numpy as np
import pytest
import torch

from engine.errors import SceneError
from engine.raster.scene import open_scene
from engine.training.scene_tiles import SceneTiles
from engine.training.tile_survey import TileShape, valid_tokens
from tests.engine.conftest import BANDS, WAVELENGTH_NM
from tests.engine.raster.made_scenes import CancelAfter

HEIGHT, WIDTH, P = 30, 25, 6


def values(bands=BANDS, seed=0):
    return np.random.default_rng(seed).integers(100, 6000, (bands, HEIGHT, WIDTH)).astype(np.int16)


@pytest.fixture
def scene(make_raster):
    def make(name="a.tif", array=None, **options):
        array = values() if array is None else array
        return open_scene(make_raster(name, array=array, scale=1e-4, nodata=-99, **options).path)

    return make


def opened(*scenes, kept=2, feedback=None, bands=None, validation=0.2, seed=0, patch_px=2):
    return SceneTiles.open(
        scenes,
        scenes[0].require_bands() if bands is None else bands,
        TileShape(P, patch_px, kept),
        validation=validation,
        seed=seed,
        feedback=feedback or CancelAfter(),
    )


def test_held_out_tiles_are_the_scenes_reflectance(scene):
    tiles = opened(scene())
    (batch,) = tiles.held_out_batches(100)
    for tile, anchor in zip(batch.reflectance, tiles.plan.held_out, strict=True):
        rows, cols = tiles.plan.window(anchor).slices_in(tiles.plan.window(anchor))
        stored = values()[:, anchor.row_off :, anchor.col_off :][:, rows, cols]
        np.testing.assert_allclose(tile.numpy(), stored * 1e-4, rtol=1e-6)
    assert batch.pixel_size_m.tolist() == pytest.approx([600**0.5] * len(batch))


def test_every_training_step_is_a_full_batch(scene):
    tiles = opened(scene())
    assert [len(batch) for batch in tiles.training_batches(8, range(5))] == [8] * 5
    assert tiles.steps_per_epoch(1000) == 1


def test_an_epoch_visits_every_place_once(scene):
    tiles = opened(scene())
    count = len(tiles.plan.training)
    drawn = [anchor for anchor, _rng in tiles._draws(0, count)]
    assert sorted(drawn, key=str) == sorted(tiles.plan.training, key=str)


def test_a_step_does_not_depend_on_the_steps_before(scene):
    tiles = opened(scene())
    *_before, last = tiles.training_batches(4, range(7))
    (alone,) = tiles.training_batches(4, range(6, 7))
    assert torch.equal(last.reflectance, alone.reflectance)


def test_epochs_differ_and_seeds_differ(scene):
    tiles, other = opened(scene()), opened(scene(), seed=1)
    per_epoch = tiles.steps_per_epoch(4)
    first, again, another = (
        next(source.training_batches(4, range(step, step + 1))).reflectance
        for source, step in ((tiles, 0), (tiles, per_epoch), (other, 0))
    )
    assert not torch.equal(first, again)
    assert not torch.equal(first, another)


def test_processes_share_a_batch(scene):
    tiles = opened(scene())
    (whole,) = tiles.training_batches(4, range(1))
    halves = [next(tiles.training_batches(4, range(1), rank=i, ranks=2)) for i in (0, 1)]
    assert torch.equal(whole.reflectance, torch.cat([half.reflectance for half in halves]))


def test_tiles_are_turned_with_their_mask(scene):
    array = values()
    array[:, ::5, ::3] = -99
    tiles = opened(scene(array=array))
    for batch in tiles.training_batches(8, range(3)):
        assert torch.equal(batch.reflectance.ne(0).all(dim=1), batch.valid)
        assert not batch.valid.all()


def test_an_empty_band_is_masked_and_spoils_no_pixel(scene):
    array = values()
    array[3] = -99
    near = values(seed=1)
    tiles = opened(scene(), scene("b.tif", array=array, crs=None), scene("c.tif", array=near))
    for batch in tiles.training_batches(8, range(4)):
        other = batch.scene_index == 1
        assert batch.valid.all()
        assert not batch.reflectance[other, 3].any()
        assert torch.equal(batch.band_present[:, 3], ~other)
    assert tiles.present.tolist()[1] == [True] * 3 + [False] + [True] * (BANDS - 4)


def test_bands_that_no_scene_has_are_left_out(scene):
    array = values()
    array[3] = -99
    feedback = CancelAfter()
    tiles = opened(scene(array=array), feedback=feedback)
    assert len(tiles.bands) == BANDS - 1
    assert any("1 of 12 bands are empty in every scene" in text for text in feedback.warnings)


def test_a_sensor_with_fewer_bands_keeps_the_channel_count(scene, make_raster):
    few = make_raster(
        "few.tif", array=values(4, seed=2), wavelength_nm=WAVELENGTH_NM[2:6], scale=1e-4, crs=None
    )
    feedback = CancelAfter()
    tiles = opened(scene(), open_scene(few.path), feedback=feedback)
    assert tiles.present.sum(axis=1).tolist() == [BANDS, 4]
    assert any("few has no measurements for 8 of 12 bands" in text for text in feedback.warnings)


def test_missing_bands_and_pixels_do_not_reach_a_model(scene):
    array = values()
    array[3] = -99
    array[:, ::4, ::4] = -99
    tiles = opened(scene(), scene("b.tif", array=array, crs=None))
    for batch in tiles.training_batches(8, range(3)):
        x = batch.standardised(tiles.mean, tiles.std)
        known = batch.valid[:, None] & batch.band_present[:, :, None, None]
        expected = (batch.reflectance - tiles.mean[:, None, None]) / tiles.std[:, None, None]
        assert not x[~known].any()
        assert torch.equal(x[known], expected[known])
        assert not known.all()


def test_statistics_are_of_training_pixels_alone(scene):
    tiles = opened(scene(), validation=0.5)
    windows = [tiles.plan.window(anchor) for anchor in tiles.plan.training]
    pixels = np.concatenate(
        [
            values()[:, w.row_off : w.row_stop, w.col_off : w.col_stop].reshape(BANDS, -1)
            for w in windows
        ],
        axis=1,
    )
    np.testing.assert_allclose(tiles.mean.numpy(), pixels.mean(axis=1) * 1e-4, rtol=1e-5)
    np.testing.assert_allclose(tiles.std.numpy(), pixels.std(axis=1) * 1e-4, rtol=1e-5)


def test_tiles_mostly_without_data_are_left_out_and_counted(scene):
    array = values()
    array[:, :12, :12] = -99
    feedback = CancelAfter()
    tiles = opened(scene(array=array), feedback=feedback, validation=0.0)
    assert not [a for a in tiles.plan.training if a.row_off < 12 and a.col_off < 12]
    assert any("4 of 20 tiles of a are left out" in text for text in feedback.warnings)
    for batch in tiles.training_batches(8, range(10)):
        assert batch.valid.float().mean(dim=(1, 2)).min() >= 0.5


def test_a_scene_without_data_is_refused(scene):
    array = np.full((BANDS, HEIGHT, WIDTH), -99, np.int16)
    array[:, :2] = values()[:, :2]
    with pytest.raises(SceneError, match="None of the 16 tiles of 6 px to train on has enough"):
        opened(scene(array=array))


def test_large_scenes_are_read_in_windows(scene, monkeypatch):
    expected = next(opened(scene()).training_batches(8, range(1))).reflectance
    monkeypatch.setattr("engine.training.tile_reader.CACHE_BYTES", 0)
    tiles = opened(scene())
    assert tiles.stored.get(0) is None
    assert torch.equal(next(tiles.training_batches(8, range(1))).reflectance, expected)


def test_few_scenes_are_open_at_a_time(scene, monkeypatch):
    monkeypatch.setattr("engine.training.tile_reader.CACHE_BYTES", 0)
    monkeypatch.setattr("engine.training.tile_reader.MAX_OPEN_SCENES", 1)
    tiles = opened(scene(), scene("b.tif", array=values(seed=1), crs=None))
    batches = list(tiles.training_batches(8, range(3)))
    assert {int(i) for batch in batches for i in batch.scene_index} == {0, 1}


def test_an_error_of_the_reading_thread_arrives(scene, monkeypatch, tmp_path):
    monkeypatch.setattr("engine.training.tile_reader.CACHE_BYTES", 0)
    tiles = opened(scene())
    (tmp_path / "a.tif").unlink()
    with pytest.raises(SceneError, match=r"a\.tif"):
        next(tiles.training_batches(8, range(1)))


def test_nothing_held_out_is_said(scene, make_raster):
    feedback = CancelAfter()
    one = open_scene(make_raster("one.tif", array=values()[:, :7, :7], scale=1e-4).path)
    opened(one, feedback=feedback)
    assert any("No tile could be held out" in text for text in feedback.warnings)


def test_a_token_is_valid_when_half_of_it_is():
    valid = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)[None]
    assert valid_tokens(valid, 2).tolist() == [[True, False]]


def test_a_tile_must_be_made_of_tokens():
    with pytest.raises(ValueError, match="A tile of 6 px is no whole number of tokens of 4 px"):
        TileShape(6, 4)

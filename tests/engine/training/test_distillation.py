"""Distillation: teacher and student see the same ground, and only the student learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.errors import BandMatchError, CancelledError, TrainingError
from engine.feedback import SilentFeedback
from engine.models.mae import DecoderConfig, StudentPreset
from engine.models.prithvi import PrithviConfig, PrithviMAE
from engine.models.teacher import TeacherNetwork
from engine.packages.teachers import Teacher
from engine.raster.alignment import RangeBand
from engine.raster.scene import open_scene
from engine.training.distillation import (
    DistillationSettings,
    DistillationTask,
    distill,
    open_tiles,
)
from engine.training.distillation_loss import LossSettings
from engine.training.masking import MaskingSettings
from engine.training.run_checkpoint import RunCheckpoint
from tests.engine.training.made_tiles import StopAfter, cpu

BANDS, HEIGHT, WIDTH = 8, 26, 33
WAVELENGTH_NM = np.linspace(450, 800, BANDS)
TINY = StudentPreset("tiny", "Tiny", 8, 2, 16, 2, 2, DecoderConfig(16, 1, 2), 4)
SETTINGS = DistillationSettings(preset=TINY, epochs=3, learning_rate=1e-3)
BLUE, RED = RangeBand("blue", 440, 520, 480, 80), RangeBand("red", 640, 710, 675, 70)


def values(seed=0, bands=BANDS):
    rng = np.random.default_rng(seed)
    level = rng.uniform(0.6, 1.4, (1, HEIGHT, WIDTH))
    slope = np.linspace(2000, 4000, bands)[:, None, None]
    return (slope * level + rng.normal(0, 50, (bands, HEIGHT, WIDTH))).astype(np.int16)


@pytest.fixture
def scene(make_raster):
    def make(name="a.tif", array=None, wavelength_nm=WAVELENGTH_NM, **options):
        array = values() if array is None else array
        path = make_raster(
            name, array=array, wavelength_nm=wavelength_nm, scale=1e-4, nodata=-99, **options
        ).path
        return open_scene(path)

    return make


def tiles_of(*scenes, validation=0.25):
    return open_tiles(
        scenes, TINY, mask_ratio=0.75, validation=validation, feedback=SilentFeedback()
    )


@pytest.fixture
def tiles(scene):
    return tiles_of(scene())


class BrightnessTeacher(TeacherNetwork):
    """Tells the brightness of each token in its two bands; keeps what it was asked."""

    width, depth = 12, 3

    def __init__(self):
        super().__init__()
        self.projection = torch.nn.Linear(2, self.width)
        self.asked = []

    @torch.no_grad()
    def features(self, reflectance, *, rows, cols, ids_keep, pixel_size_m, taps):
        self.asked.append((reflectance.clone(), rows, cols, ids_keep, pixel_size_m, taps))
        means = torch.nn.functional.adaptive_avg_pool2d(reflectance, (rows, cols))
        tokens = means.flatten(2).transpose(1, 2)
        tokens = tokens.gather(1, ids_keep[..., None].expand(-1, -1, 2))
        return tuple(self.projection(tokens) for _tap in taps)


def made_teacher(bands=(BLUE, RED), network=None):
    torch.manual_seed(5)
    network = BrightnessTeacher() if network is None else network
    return Teacher("bright", network.requires_grad_(False).eval(), bands, "0" * 64, "MIT", "made")


def run(tiles, teacher=None, settings=SETTINGS, feedback=None, **options):
    if teacher is None:
        settings = replace(settings, loss=replace(settings.loss, features=0.0))
    return distill(
        tiles, teacher, settings, fabric=cpu(), feedback=feedback or SilentFeedback(), **options
    )


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_every_term_is_logged_and_held_out_tiles_are_scored(tiles):
    found = run(tiles, made_teacher())
    assert found.history.terms == ["loss", "mse", "ssim", "features"]
    assert 0 < found.scores.psnr_db < found.scores.psnr_db_whole
    assert len(found.held_out.pictures) == min(4, len(tiles.plan.held_out))


def test_reconstruction_gets_better(tiles):
    few, many = (run(tiles, settings=replace(SETTINGS, epochs=n)).scores for n in (1, 25))
    assert many.psnr_db > few.psnr_db + 1


def test_a_seed_repeats_a_distillation(tiles):
    first, again, other = (
        run(tiles, made_teacher(), replace(SETTINGS, seed=seed)).student for seed in (1, 1, 2)
    )
    assert same(first, again)
    assert not same(first, other)


def test_the_student_carries_the_statistics_of_the_training_tiles(tiles):
    encoder = run(tiles).encoder
    assert torch.equal(encoder.band_mean, tiles.mean)
    assert torch.equal(encoder.band_std, tiles.std)


def test_teacher_and_student_see_the_same_tokens(tiles):
    teacher = made_teacher()
    task = DistillationTask(tiles, teacher, SETTINGS)
    seen = []
    task.student.register_forward_hook(lambda _module, args, _output: seen.append(args[1]))
    batch = next(tiles.held_out_batches(4))
    task.losses(task.model, batch, torch.Generator().manual_seed(0))
    ((reflectance, rows, cols, ids_keep, pixel_size_m, taps),) = teacher.network.asked
    assert torch.equal(ids_keep, seen[0])
    assert (rows, cols, taps) == (4, 4, (3,))
    blue = batch.reflectance[:, :2].mean(dim=1)  # 450 and 500 nm lie in 440 to 520
    torch.testing.assert_close(reflectance[:, 0], blue)
    assert pixel_size_m.tolist() == pytest.approx([600**0.5] * len(batch))


def test_the_teacher_stays_as_it_was_and_the_projector_learns(tiles):
    teacher = made_teacher()
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    fresh = DistillationTask(tiles, teacher, SETTINGS).student
    student = run(tiles, teacher).student
    assert all(torch.equal(before[k], v) for k, v in teacher.network.state_dict().items())
    assert not same(fresh.projectors, student.projectors)
    assert not same(fresh.encoder.blocks, student.encoder.blocks)


def test_quarters_compare_four_pairs_of_blocks(tiles):
    teacher = made_teacher()
    task = DistillationTask(tiles, teacher, replace(SETTINGS, feature_layers="quarters"))
    task.losses(task.model, next(tiles.held_out_batches(1)), torch.Generator().manual_seed(0))
    assert teacher.network.asked[0][-1] == (1, 2, 3, 3)
    assert task.student.taps == (1, 1, 2, 2)


def test_a_teacher_without_weight_is_not_asked(tiles):
    teacher = made_teacher()
    settings = replace(SETTINGS, loss=LossSettings(features=0.0))
    with_teacher = run(tiles, teacher, settings)
    assert teacher.network.asked == []
    assert same(with_teacher.student, run(tiles).student)


def test_a_scene_that_lacks_a_range_of_the_teacher_is_named(scene):
    other = values(seed=3, bands=4)
    narrow = scene("narrow.tif", other, WAVELENGTH_NM[:4], crs=None)
    with pytest.raises(BandMatchError, match=r"narrow: .*red \(640 to 710 nm\)"):
        run(tiles_of(scene(), narrow), made_teacher())


def test_a_scene_of_another_sensor_takes_part_with_the_bands_it_has(scene):
    other = scene("few.tif", values(seed=3, bands=6), WAVELENGTH_NM[:6], crs=None)
    tiles = tiles_of(scene(), other)
    found = run(tiles, made_teacher())
    assert tiles.present.sum(axis=1).tolist() == [BANDS, 6]
    assert [len(item.weights[0]) for item in found.alignment] == [BANDS, BANDS]
    assert not found.alignment[1].weights[:, 6:].any()
    assert np.isfinite(found.history.rows[-1]["loss"])


@pytest.mark.parametrize("guided_share", [0.0, 1.0])
def test_the_mask_follows_the_image_as_far_as_it_should(tiles, guided_share):
    masking = MaskingSettings(guided_share=guided_share)
    task = DistillationTask(
        tiles, None, replace(SETTINGS, masking=masking, loss=LossSettings(features=0.0))
    )
    batch = next(tiles.held_out_batches(3))
    first, second = (
        task.draw(batch, masking, torch.Generator().manual_seed(seed)).ids_keep for seed in (0, 1)
    )
    assert torch.equal(first, second) == (guided_share == 1.0)
    assert first.shape == (len(batch), 4)


def test_a_cancelled_distillation_goes_on_to_the_same_student(tiles, tmp_path):
    checkpoint = RunCheckpoint(tmp_path / "run.safetensors", {})
    whole = run(tiles, made_teacher())
    with pytest.raises(CancelledError):
        run(tiles, made_teacher(), feedback=StopAfter(4), checkpoint=checkpoint)
    resumed = run(tiles, made_teacher(), resume=checkpoint.load())
    assert same(whole.student, resumed.student)
    assert whole.scores == resumed.scores


def test_blocks_of_a_teacher_of_the_same_width_are_copied(tiles):
    network = PrithviMAE(
        PrithviConfig(2, 8, 2, embed_dim=16, depth=3, num_heads=4, decoder_embed_dim=16,
                      decoder_depth=1, decoder_num_heads=2)
    )  # fmt: skip
    teacher = made_teacher(network=network)
    task = DistillationTask(tiles, teacher, replace(SETTINGS, copy_teacher=True))
    for ours, theirs in zip(task.student.encoder.blocks, network.encoder.blocks, strict=False):
        assert same(ours, theirs)
    assert task.student.encoder.config.num_heads == 4


def test_blocks_of_another_width_are_not_copied(tiles):
    network = PrithviMAE(
        PrithviConfig(2, 8, 2, embed_dim=32, depth=1, num_heads=4, decoder_embed_dim=16,
                      decoder_depth=1, decoder_num_heads=2)
    )  # fmt: skip
    with pytest.raises(TrainingError, match="The blocks of bright are 32 wide and do not fit"):
        run(tiles, made_teacher(network=network), replace(SETTINGS, copy_teacher=True))


def test_without_a_teacher_nothing_can_be_copied(tiles):
    with pytest.raises(TrainingError, match="There is no teacher to copy blocks from"):
        run(tiles, settings=replace(SETTINGS, copy_teacher=True))


def test_tiles_of_another_preset_are_refused(tiles):
    other = replace(TINY, tile_size_px=16)
    with pytest.raises(TrainingError, match=r"The tiles are of 8 px .* the preset tiny has 16"):
        run(tiles, settings=replace(SETTINGS, preset=other))

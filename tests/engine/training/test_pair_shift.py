"""Two images that do not lie on one another: by how much, and when that is too far."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import loadmat

from engine.errors import SceneError
from engine.models.fusion.method import ImagePair
from engine.raster.pair import open_pair
from engine.raster.pair_stream import sample_pair
from engine.training.pair_shift import estimate_shift
from tests.engine.training.made_ground import ground, take_pair, whole

SAMPLE = Path(__file__).parents[3] / "resources" / "sample"


@pytest.mark.parametrize("ratio", [2, 3, 4])
@pytest.mark.parametrize("shift_px", [(0, 0), (1, 0), (-2, 3), (5, -4)])
def test_a_shift_in_fine_pixels_is_found_in_coarse_ones(ratio, shift_px):
    pair = take_pair(ground(32 * ratio, 36 * ratio), ratio, shift_px=shift_px)
    shift = estimate_shift([pair], ratio)
    assert shift.reliable
    found = np.asarray([shift.x_px, shift.y_px])
    np.testing.assert_allclose(found, np.asarray(shift_px) / ratio, atol=0.03)


def test_the_agreement_says_what_the_shift_costs():
    shift = estimate_shift([take_pair(ground(96, 96), 3, shift_px=(3, 0))], 3)
    assert shift.agreement > 0.95
    assert shift.unshifted_agreement < 0.5


def test_the_length_is_that_of_both_directions():
    shift = estimate_shift([take_pair(ground(96, 96), 3, shift_px=(3, -3))], 3)
    assert shift.length_px == pytest.approx(2**0.5, abs=0.03)


def test_several_parts_of_an_image_tell_together():
    pair = take_pair(ground(120, 120), 3, shift_px=(2, -2))
    parts = [pair.crop(slice(0, 16), slice(None)), pair.crop(slice(16, 32), slice(None))]
    shift = estimate_shift(parts, 3)
    assert (shift.x_px, shift.y_px) == pytest.approx((2 / 3, -2 / 3), abs=0.03)


def test_clouds_in_either_image_do_not_count():
    pair = take_pair(ground(120, 120), 3, shift_px=(3, 0))
    pair.hsi[..., 4:12, 4:12] = 0
    pair.hsi_valid[..., 4:12, 4:12] = False
    pair.msi[..., 60:90, 60:80] = 0
    pair.msi_valid[..., 60:90, 60:80] = False
    shift = estimate_shift([pair], 3)
    assert (shift.x_px, shift.y_px) == pytest.approx((1, 0), abs=0.03)


def test_a_bad_band_of_noise_does_not_hide_the_rest():
    pair = take_pair(ground(96, 96), 3, shift_px=(3, 0))
    pair.hsi[:, 7] = 30 * torch.randn(pair.hsi.shape[-2:])
    assert estimate_shift([pair], 3).x_px == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    ("shift_px", "words"), [((12, 0), "4.0 px right"), ((0, -21), "7.0 px up")]
)
def test_a_shift_beyond_the_limit_is_refused_with_its_size(shift_px, words):
    pair = take_pair(ground(150, 150), 3, shift_px=shift_px)
    with pytest.raises(SceneError, match=f"{words}.*limit of 3 px"):
        estimate_shift([pair], 3)


def test_the_limit_may_be_wider():
    pair = take_pair(ground(120, 120), 3, shift_px=(12, 0))
    assert estimate_shift([pair], 3, limit_px=5).x_px == pytest.approx(4, abs=0.03)


def unrelated(size):
    generator = torch.Generator().manual_seed(1)
    hsi = torch.rand(1, 8, size, size, generator=generator)
    msi = torch.rand(1, 3, 3 * size, 3 * size, generator=generator)
    return ImagePair(hsi, msi, whole(hsi), whole(msi))


@pytest.mark.parametrize("size", [4, 12, 40])
def test_images_that_have_nothing_in_common_have_no_shift(size):
    shift = estimate_shift([unrelated(size)], 3)
    assert not shift.reliable
    assert (shift.x_px, shift.y_px) == (0, 0)


def test_images_without_any_detail_have_no_shift():
    hsi, msi = torch.full((1, 8, 30, 30), 0.2), torch.full((1, 3, 90, 90), 0.2)
    shift = estimate_shift([ImagePair(hsi, msi, whole(hsi), whole(msi))], 3)
    assert not shift.reliable


def test_images_without_a_valid_pixel_have_no_shift():
    pair = take_pair(ground(96, 96), 3)
    pair.hsi_valid[:] = False
    assert not estimate_shift([pair], 3).reliable


def test_a_shift_put_into_real_images_is_found():
    hyperspectral = SAMPLE / "EnMAP_BerlinUrbanGradient.bsq"
    multispectral = SAMPLE / "HighResolution_BerlinUrbanGradient.tif"
    pair = open_pair(str(hyperspectral), str(multispectral), ratio=3)
    own = estimate_shift(sample_pair(pair), 3)
    assert own.agreement > 0.9
    for x_px, y_px in ((1, 0), (-2, 1)):
        # What is corrected for once too often lies that much further left and up.
        moved = estimate_shift(sample_pair(pair.shifted(x_px, y_px)), 3)
        assert moved.x_px == pytest.approx(own.x_px - x_px, abs=0.02)
        assert moved.y_px == pytest.approx(own.y_px - y_px, abs=0.02)


@pytest.mark.parametrize("shift_px", [(4, 0), (-8, 4)])
def test_a_shift_put_into_an_airborne_scene_is_found(data_folder, shift_px):
    stored = loadmat(data_folder / "jasper_ridge" / "JasperRidge2_R198.mat")["Y"]
    cube = torch.from_numpy(stored.astype(np.float32) / 1e4).reshape(1, -1, 100, 100)
    pair = take_pair(cube, 4, shift_px=shift_px)
    shift = estimate_shift([pair], 4)
    assert (shift.x_px, shift.y_px) == pytest.approx(tuple(x / 4 for x in shift_px), abs=0.05)

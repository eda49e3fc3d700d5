"""Reading pairs: reflectance and valid on grids that nest."""

from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from engine.errors import SceneError
from engine.raster.pair import open_pair
from engine.raster.pair_reader import PairReader
from engine.raster.tiles import Window
from tests.engine.raster.made_pairs import (
    BANDS,
    COARSE,
    FINE_BANDS,
    HEIGHT,
    MSI_NM,
    RATIO,
    WIDTH,
    make_pair,
    numbers,
    smooth,
    whole,
    write_image,
)

FINE = COARSE @ Affine.scale(1 / RATIO)


def read(pair, window=None, **options):
    with PairReader(pair, **options) as reader:
        return reader.read(window or whole(pair))


def test_stored_numbers_become_reflectance(tmp_path):
    made = make_pair(tmp_path)
    arrays = read(made.open())
    assert arrays.hsi.dtype == arrays.msi.dtype == np.float32
    np.testing.assert_allclose(arrays.hsi, made.hsi * 1e-4, rtol=1e-6)
    np.testing.assert_allclose(arrays.msi, made.msi * 1e-4, rtol=1e-6)
    assert arrays.hsi_valid.all() and arrays.msi_valid.all()


def test_a_window_is_the_same_part_of_both(tmp_path):
    made = make_pair(tmp_path)
    arrays = read(made.open(), Window(5, 3, 4, 7))
    np.testing.assert_allclose(arrays.hsi, made.hsi[:, 5:9, 3:10] * 1e-4, rtol=1e-6)
    np.testing.assert_allclose(arrays.msi, made.msi[:, 15:27, 9:30] * 1e-4, rtol=1e-6)


def test_bands_come_in_the_order_asked_for(tmp_path):
    made = make_pair(tmp_path)
    arrays = read(made.open(), hsi_index=[4, 0], msi_index=[1])
    np.testing.assert_allclose(arrays.hsi, made.hsi[[4, 0]] * 1e-4, rtol=1e-6)
    np.testing.assert_allclose(arrays.msi, made.msi[[1]] * 1e-4, rtol=1e-6)


@pytest.mark.parametrize("image", ["hsi", "msi"])
def test_nodata_in_one_band_is_no_measurement(tmp_path, image):
    values = {
        "hsi": numbers(BANDS, HEIGHT, WIDTH),
        "msi": numbers(FINE_BANDS, HEIGHT * RATIO, WIDTH * RATIO, 1),
    }
    values[image][1, 2, 3] = -99
    made = make_pair(tmp_path, **values, **{f"{image}_options": {"nodata": -99}})
    arrays = read(made.open())._asdict()
    valid = arrays[f"{image}_valid"]
    assert not valid[2, 3] and valid.sum() == valid.size - 1
    assert (arrays[image][:, 2, 3] == 0).all()


def test_an_empty_band_is_zero_and_spoils_no_pixel(tmp_path):
    hsi = numbers(BANDS, HEIGHT, WIDTH)
    hsi[2] = -99
    arrays = read(make_pair(tmp_path, hsi=hsi, hsi_options={"nodata": -99}).open())
    assert arrays.hsi_valid.all()
    assert (arrays.hsi[2] == 0).all()
    np.testing.assert_allclose(arrays.hsi[3], hsi[3] * 1e-4, rtol=1e-6)


def test_outside_the_fine_image_nothing_is_valid(tmp_path):
    made = make_pair(tmp_path, msi_transform=FINE @ Affine.translation(15, 12))
    arrays = read(made.open())
    assert not arrays.msi_valid[:12].any() and not arrays.msi_valid[:, :15].any()
    assert arrays.msi_valid[12:, 15:].all()
    np.testing.assert_allclose(arrays.msi[:, 12:, 15:], made.msi[:, :60, :36] * 1e-4, rtol=1e-6)
    assert not read(made.open(), Window(0, 0, 3, 3)).msi_valid.any()


def mean_over(fine, ratio):
    c, h, w = fine.shape
    return fine.reshape(c, h // ratio, ratio, w // ratio, ratio).mean((2, 4))


def test_finer_pixels_are_averaged(tmp_path):
    made = make_pair(tmp_path, ratio=6)
    arrays = read(made.open(ratio=3))
    np.testing.assert_allclose(arrays.msi, mean_over(made.msi * 1e-4, 2), rtol=1e-5)


def test_a_ratio_that_is_no_integer_is_met_by_area(tmp_path):
    """8 1/3 fine pixels to a coarse one, as in the packaged Berlin pair, brought to 3."""
    step = 3 / 25
    fine = numbers(FINE_BANDS, HEIGHT * 25 // 3, WIDTH * 25 // 3)
    made = make_pair(tmp_path, msi=fine, msi_transform=COARSE @ Affine.scale(step))
    arrays = read(made.open(ratio=3))
    edges = np.arange(4) * (25 / 9)
    weights = np.clip(
        np.minimum(edges[1:, None], np.arange(25) + 1) - np.maximum(edges[:-1, None], range(25)),
        0, None,
    )  # fmt: skip
    expected = weights @ (fine[0, :25, :25] * 1e-4) @ weights.T / (25 / 9) ** 2
    np.testing.assert_allclose(arrays.msi[0, :3, :3], expected[:3, :3], rtol=1e-4)


def test_nodata_takes_no_part_in_the_mean(tmp_path):
    msi = np.full((FINE_BANDS, 48, 36), 2000, np.int16)
    msi[0, :2, :3] = -99  # a whole pixel of the fine grid, and half of the next one
    msi[:, -1, -1] = 5000  # an image of one value would count as empty
    made = make_pair(tmp_path, height=8, width=6, ratio=6, msi=msi, msi_options={"nodata": -99})
    arrays = read(made.open(ratio=3))
    assert not arrays.msi_valid[0, 0]
    assert arrays.msi_valid[0, 1:].all() and arrays.msi_valid[1:].all()
    np.testing.assert_allclose(arrays.msi[:, 0, 1:], 0.2, rtol=1e-6)


def test_nan_takes_no_part_in_the_mean(tmp_path):
    msi = np.full((FINE_BANDS, 48, 36), 0.2, np.float32)
    msi[0, :2, :3] = np.nan
    msi[:, -1, -1] = 0.5
    arrays = read(make_pair(tmp_path, height=8, width=6, ratio=6, msi=msi).open(ratio=3))
    assert not arrays.msi_valid[0, 0] and arrays.msi_valid[0, 1]
    np.testing.assert_allclose(arrays.msi[:, 0, 1:], 0.2, rtol=1e-6)


def test_a_fractional_shift_is_taken_back(tmp_path):
    moved = (0.55, -0.7)
    hsi = smooth(BANDS, HEIGHT, WIDTH)
    true = smooth(FINE_BANDS, HEIGHT * RATIO, WIDTH * RATIO, 1 / RATIO)
    msi = smooth(FINE_BANDS, HEIGHT * RATIO, WIDTH * RATIO, 1 / RATIO, moved)
    pair = make_pair(tmp_path, hsi=hsi, msi=msi).open()
    inner = slice(9, -9), slice(9, -9)
    apart = np.abs(read(pair).msi - true)[:, *inner].max()
    left = np.abs(read(pair.shifted(*moved)).msi - true)[:, *inner].max()
    assert apart > 0.05 and left < 5e-4


def test_a_shift_by_whole_fine_pixels_changes_no_number(tmp_path):
    made = make_pair(tmp_path)
    arrays = read(made.open(shift_px=(2 / 3, -1 / 3)))
    np.testing.assert_allclose(arrays.msi[:, 1:, :-2], made.msi[:, :-1, 2:] * 1e-4, rtol=1e-6)
    assert not arrays.msi_valid[0].any() and not arrays.msi_valid[:, -2:].any()


def test_windows_of_a_resampled_image_are_those_of_the_whole(tmp_path):
    made = make_pair(tmp_path, msi=numbers(FINE_BANDS, 200, 140),
                     msi_transform=COARSE @ Affine.scale(1 / 8.33))  # fmt: skip
    pair = made.open(shift_px=(0.3, 0.2))
    everything = read(pair)
    part = read(pair, Window(7, 2, 9, 11))
    np.testing.assert_array_equal(part.msi, everything.msi[:, 56:128, 16:104])


def test_another_crs_is_resampled_to_the_same_picture(tmp_path):
    from rasterio.warp import Resampling, calculate_default_transform, reproject

    made = make_pair(
        tmp_path,
        hsi=smooth(BANDS, HEIGHT, WIDTH),
        msi=smooth(FINE_BANDS, HEIGHT * RATIO, WIDTH * RATIO, 1 / RATIO),
    )
    bounds = (383_472.5, 5_818_310.0 - 24 * HEIGHT, 383_472.5 + 30 * WIDTH, 5_818_310.0)
    transform, width, height = calculate_default_transform(
        "EPSG:32633", "EPSG:25832", WIDTH * 3, HEIGHT * 3, *bounds, resolution=8.0
    )
    turned = np.empty((FINE_BANDS, height, width), np.float32)
    reproject(made.msi, turned, src_transform=FINE, src_crs="EPSG:32633", dst_transform=transform,
              dst_crs="EPSG:25832", resampling=Resampling.cubic, dst_nodata=np.nan)  # fmt: skip
    path = write_image(tmp_path / "other.tif", turned, transform, nm=MSI_NM, crs="EPSG:25832")
    arrays = read(open_pair(made.hsi_path, path, ratio=3))
    inner = slice(6, -6), slice(6, -6)
    assert arrays.msi_valid[inner].all()
    assert np.abs(arrays.msi - made.msi)[:, *inner].max() < 2e-3


def test_bands_of_several_files_are_one_fine_image(tmp_path):
    made = make_pair(tmp_path)
    fine = numbers(FINE_BANDS, HEIGHT * RATIO, WIDTH * RATIO, 1)
    paths = [
        write_image(tmp_path / f"b{band}.tif", fine[[band]], FINE, nm=MSI_NM[[band]])
        for band in range(FINE_BANDS)
    ]
    nested = open_pair(made.hsi_path, paths)
    np.testing.assert_allclose(read(nested).msi, fine * 1e-4, rtol=1e-6)
    warped = nested.shifted(0.5, 0.0)
    single = read(made.open(shift_px=(0.5, 0.0)))
    np.testing.assert_array_equal(read(warped).msi, single.msi)


def test_a_removed_fine_image_is_named(tmp_path):
    made = make_pair(tmp_path)
    pair = made.open(shift_px=(0.5, 0.0))
    with PairReader(pair) as reader:
        (tmp_path / "msi.tif").unlink()
        with pytest.raises(SceneError, match=r"msi\.tif was removed while it was read"):
            reader.read(whole(pair))


def test_the_packaged_images_of_berlin_lie_on_each_other():
    folder = Path(__file__).parents[3] / "resources" / "sample"
    pair = open_pair(
        str(folder / "EnMAP_BerlinUrbanGradient.bsq"),
        str(folder / "HighResolution_BerlinUrbanGradient.tif"),
        ratio=3,
    )
    assert pair.resampled == "averaged over 2.8 x 2.8 of its pixels"
    arrays = read(pair, pair.window)
    assert arrays.msi_valid.mean() > 0.98
    red = np.abs(pair.hsi_table.wavelength_nm - pair.msi_table.wavelength_nm[2]).argmin()
    seen = mean_over(arrays.msi, RATIO)[2][arrays.msi_valid[1::3, 1::3]]
    expected = arrays.hsi[red][arrays.msi_valid[1::3, 1::3]]
    assert np.corrcoef(seen, expected)[0, 1] > 0.93


def test_a_packed_fine_image_is_resampled_as_a_plain_one(tmp_path, make_raster):
    made = make_pair(tmp_path)
    options = {"array": made.msi, "transform": FINE, "wavelength_nm": MSI_NM, "fwhm_nm": [90, 90]}
    plain = make_raster("plain.tif", scale=1e-4, **options)
    packed = make_raster("packed.bsq", driver="ENVI", tags="envi", gzipped=True, **options)
    first, second = (
        read(open_pair(made.hsi_path, image.path, shift_px=(0.4, 0.2))) for image in (plain, packed)
    )
    np.testing.assert_array_equal(first.msi, second.msi)
    assert first.msi_valid.sum() == second.msi_valid.sum() > 3000


@pytest.mark.parametrize("right_m", [0.0, 3.0])
def test_where_the_alpha_band_is_not_opaque_nothing_is_measured(tmp_path, right_m):
    made = make_pair(tmp_path)
    height, width = HEIGHT * RATIO, WIDTH * RATIO
    values = np.full((4, height, width), 100, np.uint8)
    values[3] = 255
    values[:, :9, :12] = 0
    place = Affine.translation(right_m, 0) @ FINE
    path = write_image(tmp_path / "rgba.tif", values, place, photometric="RGB", alpha="YES")
    pair = open_pair(made.hsi_path, path)
    arrays = read(pair)
    assert pair.msi_index == (0, 1, 2)
    assert any("Band 4 of rgba is an alpha band" in note for note in pair.notes)
    assert arrays.msi.shape == (3, height, width)
    assert not arrays.msi_valid[:9, :12].any()
    assert arrays.msi_valid[12:, 15:].all()
    seen = arrays.msi[:, arrays.msi_valid]
    np.testing.assert_allclose(seen, seen.max(), rtol=1e-2)

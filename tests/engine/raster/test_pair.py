"""Two images of one place: ratio, overlap, bands, and what is said or refused."""

import numpy as np
import pytest
import rasterio
from affine import Affine

from engine.errors import RequestError, SceneError
from engine.raster.pair import open_pair
from engine.raster.tiles import Window
from tests.engine.raster.made_pairs import (
    BANDS,
    COARSE,
    FINE_BANDS,
    HEIGHT,
    HSI_NM,
    WIDTH,
    make_pair,
    numbers,
    write_image,
)

FINE = COARSE @ Affine.scale(1 / 3)


def test_grids_that_nest_are_used_as_stored(tmp_path):
    pair = make_pair(tmp_path).open()
    assert (pair.ratio, pair.resampled, pair.nested_offset) == (3, "", (0, 0))
    assert pair.window == Window(0, 0, HEIGHT, WIDTH)
    assert pair.notes == ()


def test_the_fine_grid_is_each_coarse_pixel_split(tmp_path):
    grid = make_pair(tmp_path).open().grid
    assert (grid.height, grid.width) == (3 * HEIGHT, 3 * WIDTH)
    assert grid.transform.almost_equals(COARSE @ Affine.scale(1 / 3))


@pytest.mark.parametrize(
    ("step", "ratio", "note"),
    [(1 / 3, 3, None), (1 / 8.33, 8, "resampled to a ratio of 8"), (1 / 1.8, 2, "ratio of 2")],
)
def test_the_ratio_is_found_from_the_pixels(tmp_path, step, ratio, note):
    fine = numbers(FINE_BANDS, round(HEIGHT / step), round(WIDTH / step))
    pair = make_pair(tmp_path, msi=fine, msi_transform=COARSE @ Affine.scale(step)).open()
    assert pair.ratio == ratio
    assert bool(note is None) == (pair.notes == ())
    assert note is None or note in pair.notes[0]


def test_a_given_ratio_goes_before_the_pixels(tmp_path):
    pair = make_pair(tmp_path, ratio=8).open(ratio=4)
    assert pair.ratio == 4
    assert "with 8 pixels along a coarse one, is resampled to the ratio of 4" in pair.notes[0]
    assert pair.resampled == "averaged over 2 x 2 of its pixels"


def test_a_ratio_finer_than_the_image_is_said(tmp_path):
    pair = make_pair(tmp_path).open(ratio=6)
    assert "the result is no finer than it" in pair.notes[0]
    assert pair.resampled == "interpolated (cubic convolution)"


def test_a_ratio_below_two_is_refused(tmp_path):
    fine = numbers(FINE_BANDS, 36, 26)
    made = make_pair(tmp_path, msi=fine, msi_transform=COARSE @ Affine.scale(1 / 1.5))
    with pytest.raises(SceneError, match=r"only 1\.5 times finer .* a ratio of 2 or more"):
        made.open()
    with pytest.raises(RequestError, match="ratio of 1 makes nothing finer"):
        made.open(ratio=1)


def test_images_the_wrong_way_round_are_told(tmp_path):
    made = make_pair(tmp_path)
    with pytest.raises(SceneError, match=r"3 times coarser than .* wrong way round"):
        open_pair(made.msi_path, made.hsi_path)


def test_an_image_chosen_twice_is_told_by_its_pixels(tmp_path):
    made = make_pair(tmp_path)
    with pytest.raises(SceneError, match="are as large as those of"):
        open_pair(made.hsi_path, made.hsi_path)


def test_a_given_ratio_makes_no_coarse_image_a_fine_one(tmp_path):
    made = make_pair(tmp_path)
    with pytest.raises(SceneError, match="wrong way round"):
        open_pair(made.msi_path, made.hsi_path, ratio=3)


def test_a_map_of_classes_is_no_panchromatic_image(tmp_path):
    made = make_pair(tmp_path)
    path = tmp_path / "classes.tif"
    write_image(path, np.ones((1, 3 * HEIGHT, 3 * WIDTH), "uint8"), FINE)
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {1: (255, 0, 0, 255)})
    with pytest.raises(SceneError, match="classes has a colour table"):
        open_pair(made.hsi_path, str(path))


def test_one_band_is_no_hyperspectral_image(tmp_path):
    made = make_pair(tmp_path)
    path = tmp_path / "one.tif"
    write_image(path, numbers(1, HEIGHT, WIDTH), COARSE)
    with pytest.raises(SceneError, match="one has one band, and no spectra"):
        open_pair(str(path), made.msi_path)


def test_a_ratio_beyond_use_has_to_be_given(tmp_path):
    made = make_pair(tmp_path, height=4, width=3, ratio=50)
    with pytest.raises(SceneError, match=r"50 times finer .* Give the ratio"):
        made.open()
    assert made.open(ratio=10).ratio == 10


def test_images_of_two_places_are_refused(tmp_path):
    away = Affine.translation(50_000, 0) @ FINE
    with pytest.raises(SceneError, match="do not overlap"):
        make_pair(tmp_path, msi_transform=away).open()


def test_a_partial_overlap_is_used_and_said(tmp_path):
    # The fine image begins 5 coarse pixels to the right and 4 below.
    pair = make_pair(tmp_path, msi_transform=FINE @ Affine.translation(15, 12)).open()
    assert pair.window == Window(4, 5, HEIGHT - 4, WIDTH - 5)
    assert pair.nested_offset == (12, 15)
    assert "overlap only in part: 59% of hsi, rows 5 to 24 and columns 6 to 17" in pair.notes[0]
    assert (pair.grid.row_off, pair.grid.col_off) == (12, 15)
    assert pair.grid.transform.almost_equals(FINE @ Affine.translation(15, 12))


def test_an_extent_is_a_part_of_the_overlap(tmp_path):
    made = make_pair(tmp_path)
    left, top = COARSE @ (3, 2)
    right, bottom = COARSE @ (7, 8)
    pair = made.open(extent=(left, bottom, right, top))
    assert pair.window == Window(2, 3, 6, 4)
    assert pair.overlap == Window(0, 0, HEIGHT, WIDTH)


def test_an_extent_beside_the_overlap_is_refused(tmp_path):
    made = make_pair(tmp_path, msi_transform=FINE @ Affine.translation(15, 12))
    left, top = COARSE @ (0, 0)
    right, bottom = COARSE @ (4, 4)
    with pytest.raises(SceneError, match="extent lies where hsi and msi do not overlap"):
        made.open(extent=(left, bottom, right, top))


def test_another_crs_is_brought_over(tmp_path):
    from rasterio.warp import calculate_default_transform

    made = make_pair(tmp_path)
    bounds = (383_472.5, 5_818_310.0 - 24 * HEIGHT, 383_472.5 + 30 * WIDTH, 5_818_310.0)
    transform, width, height = calculate_default_transform(
        "EPSG:32633", "EPSG:4326", WIDTH * 3, HEIGHT * 3, *bounds
    )
    fine = numbers(FINE_BANDS, height, width)
    path = write_image(tmp_path / "degrees.tif", fine, transform, nm=[560, 840], crs="EPSG:4326")
    pair = open_pair(made.hsi_path, path, ratio=3)
    assert pair.window.height >= HEIGHT - 1 and pair.window.width >= WIDTH - 1
    assert pair.nested_offset is None


def test_without_positions_sizes_that_fit_have_one_corner(tmp_path):
    pair = make_pair(tmp_path, msi_options={"crs": None}, msi_transform=Affine.identity()).open()
    assert (pair.ratio, pair.nested_offset) == (3, (0, 0))
    assert any("same upper left corner, at a ratio of 3" in note for note in pair.notes)


def test_the_position_of_the_fine_image_serves_both(tmp_path):
    made = make_pair(tmp_path)
    path = write_image(tmp_path / "bare.tif", made.hsi, Affine.identity(), nm=HSI_NM, crs=None)
    pair = open_pair(path, made.msi_path)
    assert pair.grid.crs.to_epsg() == 32633
    assert pair.grid.transform.almost_equals(FINE)


def test_without_positions_other_sizes_are_refused(tmp_path):
    made = make_pair(tmp_path)
    path = write_image(
        tmp_path / "bare.tif", made.msi[:, :-1], Affine.identity(), nm=[560, 840], crs=None
    )
    with pytest.raises(SceneError, match="Nothing says where"):
        open_pair(made.hsi_path, path)


def test_a_missing_crs_is_taken_to_be_the_other_one(tmp_path):
    pair = make_pair(tmp_path, msi_options={"crs": None}).open()
    assert pair.nested_offset == (0, 0)
    assert any("taken to be in the same one" in note for note in pair.notes)


def test_fine_bands_outside_the_range_are_left_out(tmp_path):
    made = make_pair(tmp_path)
    path = write_image(
        tmp_path / "six.tif", numbers(4, 72, 51), FINE, nm=[560, 11_000, 840, 2_200], fwhm_nm=60
    )
    pair = open_pair(made.hsi_path, path)
    assert pair.msi_index == (0, 2)
    assert "2 of 4 multispectral bands are left out" in pair.notes[0]
    assert "11000 nm, 2200 nm" in pair.notes[0]
    assert pair.msi_table.wavelength_nm.tolist() == [560, 840]


def test_a_fine_band_in_a_gap_is_left_out(tmp_path):
    hsi_nm = [450.0, 460.0, 470.0, 840.0, 850.0, 860.0]
    made = make_pair(tmp_path, hsi_options={"nm": hsi_nm, "fwhm_nm": 10.0})
    path = write_image(tmp_path / "gap.tif", numbers(2, 72, 51), FINE, nm=[460, 650], fwhm_nm=20)
    assert open_pair(made.hsi_path, path).msi_index == (0,)


def test_no_fine_band_inside_the_range_is_refused(tmp_path):
    made = make_pair(tmp_path)
    path = write_image(tmp_path / "hot.tif", numbers(1, 72, 51), FINE, nm=[11_000], fwhm_nm=900)
    with pytest.raises(SceneError, match=r"None of the 1 bands of hot \(11000 nm\)"):
        open_pair(made.hsi_path, path)


def test_one_band_without_a_wavelength_is_panchromatic(tmp_path):
    pair = make_pair(tmp_path, msi=numbers(1, 72, 51)).open()
    assert pair.msi_index == (0,) and pair.msi_table is None
    assert any("panchromatic" in note for note in pair.notes)


def test_an_empty_band_says_nothing_about_pixels(tmp_path):
    hsi = numbers(BANDS, HEIGHT, WIDTH)
    hsi[2] = -32768
    pair = make_pair(tmp_path, hsi=hsi, hsi_options={"nodata": -32768}).open()
    assert pair.hsi_index == tuple(range(BANDS))
    assert pair.usable_hsi_index == (0, 1, 3, 4, 5)
    assert "1 of 6 bands of hsi are empty." in pair.notes


def test_an_image_of_nothing_is_refused(tmp_path):
    made = make_pair(
        tmp_path, hsi=np.full((BANDS, 8, 6), 0, np.int16), msi=numbers(FINE_BANDS, 24, 18)
    )
    with pytest.raises(SceneError, match="None of the 6 bands of hsi measures anything"):
        made.open()


def test_a_shift_adds_to_the_one_before(tmp_path):
    pair = make_pair(tmp_path).open(shift_px=(1.0, 0.0))
    assert pair.shifted(0.5, -1.0).shift_px == (1.5, -1.0)


def test_a_shift_moves_the_overlap(tmp_path):
    pair = make_pair(tmp_path).open().shifted(2.0, -1.0)
    # What lies two pixels too far to the right begins two pixels left of the image.
    assert pair.window == Window(1, 0, HEIGHT - 1, WIDTH - 2)
    assert pair.nested_offset == (3, -6)


def test_a_shift_by_part_of_a_fine_pixel_has_to_be_interpolated(tmp_path):
    assert make_pair(tmp_path).open().shifted(0.5, 0.0).resampled == (
        "interpolated (cubic convolution)"
    )

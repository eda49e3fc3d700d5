"""Pictures and spectra of what a fusion did: which points are chosen, and what is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from engine.raster.spectra import BandTable
from engine.training.fusion_looks import (
    Look,
    looks_figure,
    response_figure,
    sample_points,
    spectra_figure,
)

RATIO, HEIGHT, WIDTH = 3, 7, 9
WAVELENGTH_NM = np.array([460.0, 560.0, 660.0, 860.0, 1650.0])
SOIL, WATER = np.array([0.1, 0.2, 0.3, 0.35, 0.4]), np.array([0.06, 0.05, 0.04, 0.01, 0.01])


def table(wavelength_nm):
    count = len(wavelength_nm)
    names = tuple(f"B{number}" for number in range(1, count + 1))
    return BandTable(names, np.array(wavelength_nm), np.full(count, 20.0), np.ones(count, bool))


BANDS, FINE_BANDS = table(WAVELENGTH_NM), table([490.0, 560.0, 665.0, 842.0])


def made_look(**changes):
    """Soil on two thirds of the place, water on the others, with a little noise."""
    noise = np.random.default_rng(0).normal(1.0, 0.01, (HEIGHT, WIDTH))
    hsi = np.where(np.arange(WIDTH) < 6, SOIL[:, None, None], WATER[:, None, None]) * noise
    hsi = hsi.astype(np.float32)
    fused = hsi.repeat(RATIO, 1).repeat(RATIO, 2)
    parts = {
        "hsi": hsi,
        "msi": fused[:4],
        "fused": fused,
        "hsi_valid": np.ones((HEIGHT, WIDTH), bool),
        "msi_valid": np.ones((HEIGHT * RATIO, WIDTH * RATIO), bool),
    }
    return Look("made", **(parts | changes))


def test_points_stand_for_the_groups_of_spectra_the_largest_first():
    (_, soil_column), (_, water_column) = sample_points(made_look(), count=2)
    assert soil_column < 6 <= water_column


def test_points_are_not_chosen_where_a_fine_pixel_is_missing():
    valid = np.zeros((HEIGHT * RATIO, WIDTH * RATIO), bool)
    valid[6:12, 3:9] = True  # the coarse rows 2 and 3, columns 1 and 2
    valid[11, 8] = False  # so that one coarse pixel is not whole
    points = sample_points(made_look(msi_valid=valid), count=4)
    assert set(points) == {(2, 1), (2, 2), (3, 1)}


def test_there_are_no_more_points_than_kinds_of_spectra():
    same = np.broadcast_to(SOIL[:, None, None], (5, HEIGHT, WIDTH)).astype(np.float32)
    assert len(sample_points(made_look(hsi=same), count=4)) == 1


def test_there_is_no_point_where_nothing_is_valid():
    assert sample_points(made_look(hsi_valid=np.zeros((HEIGHT, WIDTH), bool))) == []


def images(figure):
    return [axes.images[0].get_array() for axes in figure.axes]


def test_coarse_and_fused_have_one_stretch():
    coarse, _, fused = images(looks_figure(made_look(), BANDS, FINE_BANDS, []))
    np.testing.assert_allclose(coarse.repeat(RATIO, 0).repeat(RATIO, 1), fused)


def test_fine_bands_in_another_order_show_the_same_colours():
    look = made_look()
    backwards = made_look(msi=look.msi[::-1])
    _, fine, _ = images(looks_figure(look, BANDS, FINE_BANDS, []))
    reverse = table(FINE_BANDS.wavelength_nm[::-1])
    np.testing.assert_array_equal(images(looks_figure(backwards, BANDS, reverse, []))[1], fine)


def test_one_fine_band_is_grey():
    look = made_look(msi=made_look().msi[:1])
    _, fine, _ = images(looks_figure(look, BANDS, None, []))
    np.testing.assert_array_equal(fine[..., 0], fine[..., 2])


def test_what_is_not_valid_is_white_in_all_three():
    hsi_valid = np.ones((HEIGHT, WIDTH), bool)
    hsi_valid[0, 0] = False
    coarse, fine, fused = images(
        looks_figure(made_look(hsi_valid=hsi_valid), BANDS, FINE_BANDS, [])
    )
    assert (coarse[0, 0] == 1).all()
    assert (fused[:RATIO, :RATIO] == 1).all()
    assert not (fine[:RATIO, :RATIO] == 1).all()


def test_points_are_marked_in_each_picture():
    figure = looks_figure(made_look(), BANDS, FINE_BANDS, [(2, 1)])
    places = [axes.lines[0].get_xydata()[0].tolist() for axes in figure.axes]
    assert places == [[1.0, 2.0], [4.0, 7.0], [4.0, 7.0]]


def test_each_point_has_its_spectrum_before_and_those_of_its_fine_pixels_after():
    figure = spectra_figure(made_look(), BANDS, FINE_BANDS, [(2, 1), (3, 7)])
    lines = figure.axes[1].lines
    after, before, fine = lines[: RATIO**2], lines[RATIO**2], lines[RATIO**2 + 1]
    for line in (*after, before):
        np.testing.assert_allclose(line.get_ydata(), made_look().hsi[:, 3, 7])
    assert len(fine.get_xdata()) == 4 * RATIO**2


def test_bad_bands_are_left_out_of_spectra():
    good = np.array([True, True, False, True, True])
    bands = BandTable(BANDS.names, BANDS.wavelength_nm, BANDS.fwhm_nm, good)
    line = spectra_figure(made_look(), bands, None, [(0, 0)]).axes[0].lines[0]
    assert 660.0 not in line.get_xdata()


@pytest.mark.parametrize(("nominal", "lines"), [(None, 2), (np.eye(5)[:2], 4)])
def test_responses_are_drawn_beside_those_that_were_known(nominal, lines):
    figure = response_figure(np.eye(5)[:2], nominal, BANDS, ("green", "red"))
    assert len(figure.axes[0].lines) == lines

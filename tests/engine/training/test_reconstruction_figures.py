"""Figures of reconstructions: which bands become colours, where lines break, what is grey."""

import numpy as np
import pytest

from engine.raster.spectra import BandTable
from engine.training.held_out import TilePicture
from engine.training.masked_fit import FitHistory
from engine.training.reconstruction_figures import (
    MASK_GREY,
    _hidden_tokens,
    colour_composites,
    curves_figure,
    spectra_figure,
    tile_figure,
    with_gaps,
)
from engine.training.tile_plan import Anchor


def table_of(*wavelength_nm):
    count = len(wavelength_nm)
    return BandTable(
        tuple(f"b{i}" for i in range(count)),
        np.array(wavelength_nm, float),
        np.full(count, 10.0),
        np.ones(count, bool),
    )


def picture_of(bands=4, side=4, patch_px=2):
    reflectance = np.linspace(0.1, 0.6, bands * side * side, dtype=np.float32)
    reflectance = reflectance.reshape(bands, side, side)
    hidden = np.zeros((side, side), bool)
    hidden[:, :2] = True
    valid = np.ones((side, side), bool)
    valid[0, -1] = False
    return TilePicture(
        "scene", Anchor(0, 8, 16), reflectance, reflectance * 0.9, hidden, valid,
        np.ones(bands, bool), patch_px,
    )  # fmt: skip


def test_colours_are_the_nearest_bands():
    bands = table_of(2200, 480, 560, 655, 865, 1610)
    present = np.ones(6, bool)
    assert colour_composites(bands, present) == [
        ("true colour", [3, 2, 1]),
        ("near infrared", [4, 3, 2]),
    ]


def test_a_band_that_a_scene_has_not_shows_no_colour():
    bands = table_of(2200, 480, 560, 655, 865, 1610)
    present = np.array([True, False, True, True, True, True])
    names = [name for name, _bands in colour_composites(bands, present)]
    assert names == ["near infrared", "shortwave infrared"]


def test_without_colours_three_bands_stand_for_them():
    assert colour_composites(table_of(1000, 1100, 1200), np.ones(3, bool)) == [
        ("three of the bands", [2, 1, 0])
    ]


def test_what_was_not_shown_is_grey_and_what_was_not_measured_is_white():
    figure = tile_figure(picture_of(), table_of(480, 560, 655, 865))
    measured, shown, reconstructed = (axes.get_images()[0].get_array() for axes in figure.axes[:3])
    assert (np.asarray(shown)[:, :2] == MASK_GREY).all()
    np.testing.assert_array_equal(np.asarray(shown)[1:, 2:], np.asarray(measured)[1:, 2:])
    assert (np.asarray(reconstructed)[0, -1] == 1.0).all()


def test_spectra_are_those_of_hidden_tokens():
    tokens = _hidden_tokens(picture_of())
    assert [int(pixels.sum()) for _picture, pixels in tokens] == [4, 4]
    assert all(pixels[:, :2].sum() == 4 for _picture, pixels in tokens)
    lines = spectra_figure([picture_of()], table_of(480, 560, 655, 865)).axes[0].get_lines()
    assert len(lines) == 4  # two tokens, measured and reconstructed


def test_lines_break_where_nothing_was_measured():
    wavelength_nm = np.concatenate([np.arange(400, 700, 10.0), np.arange(900, 1000, 10.0)])[::-1]
    x, y = with_gaps(wavelength_nm, np.ones(40, np.float32), np.ones(40, bool))
    assert np.flatnonzero(np.isnan(x)).tolist() == np.flatnonzero(np.isnan(y)).tolist() == [30]
    assert np.nanmin(np.diff(x)) > 0


def test_every_term_has_its_curve():
    rows = [
        {"epoch": float(i), "loss": 2.0 / i, "mse": 1.0 / i, "ssim": 0.5, "held_out_mse": 1.5 / i,
         "learning_rate": 1e-3}
        for i in (1, 2, 3)
    ]  # fmt: skip
    loss, mse, ssim, unused = curves_figure(FitHistory(rows)).axes
    assert [len(axes.get_lines()) for axes in (loss, mse, ssim)] == [1, 2, 1]
    assert mse.get_lines()[1].get_ydata() == pytest.approx([1.5, 0.75, 0.5])
    assert not unused.get_visible()

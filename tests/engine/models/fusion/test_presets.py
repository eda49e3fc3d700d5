"""The presets of CSAKD."""

from __future__ import annotations

import pytest

from engine.models.fusion.dts import DTSNet, multiply_adds
from engine.models.fusion.presets import PRESETS, PUBLISHED


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("bands", [8, 177])
def test_teacher_and_student_have_maps_of_one_width(name, bands):
    preset = PRESETS[name]
    assert preset.teacher(bands, 4, 3).width == preset.student(bands, 4, 3).width


@pytest.mark.parametrize("name", set(PRESETS) - {PUBLISHED})
def test_a_basis_has_no_more_spectra_than_there_are_bands(name):
    assert PRESETS[name].student(7, 1, 2).hsi_channels == 7


def test_the_published_width_is_half_the_bands():
    config = PRESETS[PUBLISHED].student(172, 4, 4)
    assert (config.width, config.growth, config.h_groups) == (86, 43, 43)


def test_the_published_width_needs_four_bands():
    with pytest.raises(ValueError, match="3 are too few: it needs 4"):
        PRESETS[PUBLISHED].teacher(3, 1, 2)


@pytest.mark.parametrize("ratio", [3, 4])
def test_a_laptop_multiplies_little_for_a_pixel(ratio):
    assert multiply_adds(PRESETS["laptop"].student(177, 4, ratio), 1) <= 250_000


def test_any_number_of_bands_can_be_built():
    for bands in (1, 2, 5, 33):
        DTSNet(PRESETS["laptop"].student(bands, 1, 2))


def test_changes_are_taken():
    assert PRESETS["laptop"].student(16, 4, 3, fusion="none").fusion == "none"

from __future__ import annotations

import math

import pytest
import torch

from engine.models.spectralx.encodings import sincos, spatial_encoding, wavelength_encoding


def test_all_sines_come_before_all_cosines():
    [code] = sincos(4, torch.tensor([3.0]))
    expected = [math.sin(3), math.sin(0.03), math.cos(3), math.cos(0.03)]
    torch.testing.assert_close(code, torch.tensor(expected), atol=1e-6, rtol=0)


def test_a_code_is_float32_whatever_its_positions_are():
    positions = torch.tensor([2190.0], dtype=torch.float64)
    assert sincos(784, positions).dtype == torch.float32
    assert torch.equal(sincos(784, positions), sincos(784, positions.float()))


@pytest.mark.parametrize("width", [0, 7])
def test_a_code_of_odd_width_is_refused(width):
    with pytest.raises(ValueError, match=f"must be even, not {width}"):
        sincos(width, torch.zeros(1))


def test_the_first_half_of_a_place_is_its_column_and_the_second_its_row():
    places = spatial_encoding(3, 5, 16).reshape(3, 5, 16)
    assert torch.equal(places[0, :, :8], places[2, :, :8])
    assert torch.equal(places[:, 0, 8:], places[:, 4, 8:])
    assert torch.equal(places[0, :, :8], sincos(8, 10.0 * torch.arange(5)))
    assert torch.equal(places[:, 0, 8:], sincos(8, 10.0 * torch.arange(3)))


def test_the_step_stretches_the_grid():
    wide = spatial_encoding(2, 4, 16, step=2.0).reshape(2, 4, 16)
    narrow = spatial_encoding(2, 7, 16, step=1.0).reshape(2, 7, 16)
    assert torch.equal(wide[0], narrow[0, ::2])


def test_no_two_places_share_a_code():
    assert len(torch.unique(spatial_encoding(12, 12, 32), dim=0)) == 144


def test_places_need_a_width_for_two_axes():
    with pytest.raises(ValueError, match="divisible by 4, not 6"):
        spatial_encoding(2, 2, 6)


WAVELENGTH_NM = (443.0, 560.0, 2190.0)


def test_the_first_and_the_last_row_are_those_of_the_first_and_the_last_band():
    rows = wavelength_encoding(WAVELENGTH_NM, 32, 11)
    assert rows.shape == (11, 32)
    assert torch.equal(rows[[0, -1]], sincos(32, torch.tensor(WAVELENGTH_NM))[[0, -1]])


def test_rows_lie_between_bands_by_index_and_not_by_wavelength():
    rows = wavelength_encoding(WAVELENGTH_NM, 32, 5)
    first, second, third = sincos(32, torch.tensor(WAVELENGTH_NM))
    torch.testing.assert_close(rows[1], (first + second) / 2, atol=1e-6, rtol=0)
    assert torch.equal(rows[2], second)
    torch.testing.assert_close(rows[3], (second + third) / 2, atol=1e-6, rtol=0)


def test_the_order_of_the_bands_counts():
    rows = wavelength_encoding(WAVELENGTH_NM, 32, 5)
    turned = wavelength_encoding(WAVELENGTH_NM[::-1], 32, 5)
    assert torch.equal(turned, rows.flip(0))
    assert not torch.equal(turned, rows)


def test_as_many_rows_as_bands_are_the_bands_codes():
    rows = wavelength_encoding(WAVELENGTH_NM, 32, 3)
    assert torch.equal(rows, sincos(32, torch.tensor(WAVELENGTH_NM)))


def test_fewer_rows_than_bands_leave_bands_out():
    bands = torch.linspace(400.0, 2400.0, 9)
    rows = wavelength_encoding(bands.tolist(), 32, 3)
    assert torch.equal(rows, sincos(32, bands)[[0, 4, 8]])


@pytest.mark.parametrize("count", [1, 6])
def test_one_band_is_repeated(count):
    rows = wavelength_encoding([842.0], 32, count)
    assert torch.equal(rows, sincos(32, torch.tensor([842.0])).expand(count, 32))


def test_a_code_of_no_band_is_refused():
    with pytest.raises(ValueError, match="at least one band"):
        wavelength_encoding([], 32, 4)

"""Reflectance and validity: the CPU's way in its cache and the device's way give the same."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engine.raster.reflectance import LoadedPiece, Reflectance
from engine.raster.spectra import BandMatch

CPU = torch.device("cpu")
DTYPES = ["uint8", "int8", "int16", "uint16", "int32", "float32", "float64"]


def make(dtype, nodata, scale=1.0, offset=0.0, bands=3):
    scene = SimpleNamespace(
        dtype=np.dtype(dtype),
        nodata=tuple(nodata),
        scale=np.broadcast_to(np.asarray(scale, np.float64), bands),
        offset=np.broadcast_to(np.asarray(offset, np.float64), bands),
    )
    return Reflectance(scene, BandMatch(tuple(range(bands)), None, ()), CPU)


def whole(convert, stored):
    """(C, h, w) reflectance and (h, w) valid of all that is stored."""
    reflectance, valid = convert.batch(convert.load(stored), [(slice(None), slice(None))])
    return reflectance[0], valid[0]


def there(convert, stored):
    """The same as on a GPU, with torch's operations."""
    values = torch.from_numpy(stored)
    piece = LoadedPiece(values, convert._nodata.valid_on_device(values))
    reflectance, valid = torch.empty(1, *stored.shape), piece.valid[None]
    convert._convert_there(piece, [(slice(None), slice(None))], valid, reflectance)
    return reflectance[0], valid[0]


@st.composite
def stored_values(draw):
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = (3, draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    small = st.sampled_from([0, 1, 2, 100, 127])
    if dtype.kind == "f":
        small = st.sampled_from([0.0, 1.0, 100.0, np.nan, np.inf, -np.inf, -9999.0])
    elif dtype.kind == "i":
        small = st.sampled_from([0, 1, -1, np.iinfo(dtype).min, np.iinfo(dtype).max])
    else:
        small = st.sampled_from([0, 1, np.iinfo(dtype).max])
    numbers = st.sampled_from([None, 0.0, 1.0, -1.0, -9999.0, 255.0, 65535.0, np.nan, 1e30, 0.5])
    values = draw(hnp.arrays(dtype, shape, elements=small))
    return values, draw(st.tuples(numbers, numbers, numbers))


@given(stored_values())
def test_valid_means_finite_and_not_nodata_in_all_bands(drawn):
    values, nodata = drawn
    expected = np.ones(values.shape[1:], bool)
    for band, number in zip(values, nodata, strict=True):
        as_numbers = band.astype(np.float64)
        expected &= np.isfinite(as_numbers)
        if number is not None:
            expected &= as_numbers != number
    reflectance, valid = whole(make(values.dtype, nodata), values)
    np.testing.assert_array_equal(valid.numpy(), expected)
    assert (reflectance[:, ~valid] == 0).all()


@given(stored_values())
def test_device_and_cpu_agree(drawn):
    values, nodata = drawn
    convert = make(values.dtype, nodata, scale=[1e-4, 2e-4, 1], offset=[0, 0.5, -1])
    here, valid_here = whole(convert, values)
    here, valid_here = here.clone(), valid_here.clone()
    other, valid_there = there(convert, values)
    np.testing.assert_array_equal(valid_here, valid_there)
    np.testing.assert_allclose(here, other, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_band_has_its_own_scale_and_offset(dtype):
    values = np.full((3, 2, 2), 100, dtype)
    convert = make(dtype, [None] * 3, scale=[1, 0.5, 0.01], offset=[0, 1, 0])
    reflectance, _ = whole(convert, values)
    np.testing.assert_allclose(reflectance[:, 0, 0], [100, 51, 1], rtol=1e-6)


def test_values_above_one_are_not_clipped():
    values = np.full((3, 1, 1), 12_000, np.int16)
    reflectance, _ = whole(make("int16", [None] * 3, scale=1e-4), values)
    np.testing.assert_allclose(reflectance, 1.2, rtol=1e-6)


def test_a_large_piece_is_converted_in_parts_without_gaps():
    values = np.random.default_rng(0).integers(0, 9999, (70, 40, 50)).astype(np.uint16)
    convert = make("uint16", [None] * 70, scale=1e-4, bands=70)
    np.testing.assert_allclose(whole(convert, values)[0], values * np.float32(1e-4), rtol=1e-6)


def test_the_stored_values_are_left_alone():
    values = np.array([[[np.nan, 1.0]]] * 3, np.float32)
    before = values.copy()
    whole(make("float32", [None] * 3, scale=2), values)
    np.testing.assert_array_equal(values, before)


def test_tiles_of_a_piece_are_converted_into_one_batch():
    values = np.arange(3 * 6 * 8, dtype=np.int16).reshape(3, 6, 8)
    convert = make("int16", [0, None, None])
    tiles = [(slice(0, 3), slice(0, 4)), (slice(2, 5), slice(3, 7))]
    reflectance, valid = convert.batch(convert.load(values), tiles)
    assert reflectance.shape == (2, 3, 3, 4) and valid.shape == (2, 3, 4)
    np.testing.assert_array_equal(reflectance[1], values[:, 2:5, 3:7])
    assert not valid[0, 0, 0] and (reflectance[0, :, 0, 0] == 0).all()

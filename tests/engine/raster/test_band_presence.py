"""Which bands of a model a scene has: missing ones, empty ones, and those made of neighbours."""

import numpy as np
import pytest

from engine.errors import BandMatchError, BandTableError
from engine.raster.band_presence import (
    _chunks,
    find_empty_bands,
    match_present_bands,
    parse_ranges,
    student_bands,
)
from engine.raster.scene import open_scene
from engine.raster.spectra import BandTable
from tests.engine.conftest import BANDS, WAVELENGTH_NM, ramp


def table_of(wavelength_nm, fwhm_nm=10.0, good=True):
    wavelength_nm = np.asarray(wavelength_nm, float)
    count = len(wavelength_nm)
    return BandTable(
        tuple(f"b{i}" for i in range(count)),
        wavelength_nm,
        np.full(count, fwhm_nm),
        np.broadcast_to(good, count).copy(),
    )


@pytest.fixture
def scene_with(make_raster):
    def make(name="scene.tif", **changes):
        array = ramp()
        for band, value in changes.pop("filled", {}).items():
            array[band] = value
        return open_scene(make_raster(name, array=array, scale=1e-4, **changes).path)

    return make


def test_a_band_of_nodata_and_a_band_of_one_value_are_empty(scene_with):
    scene = scene_with(filled={2: -99, 7: 1234}, nodata=-99)
    assert np.flatnonzero(find_empty_bands(scene, range(BANDS))).tolist() == [2, 7]


def test_a_band_that_differs_in_its_last_row_alone_is_not_empty(make_raster, monkeypatch):
    monkeypatch.setattr("engine.raster.band_presence._CHUNK_BYTES", 1)
    array = np.full((2, 24, 17), 500, np.int16)
    array[1, -1, -1] = 501
    scene = open_scene(make_raster(array=array, scale=1e-4).path)
    assert find_empty_bands(scene, [0, 1]).tolist() == [True, False]


@pytest.mark.parametrize("block", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 16}])
@pytest.mark.parametrize("chunk_bytes", [1, 200, 3000, 2**20])
def test_chunks_cover_the_scene_once_whatever_its_blocks(
    make_raster, monkeypatch, block, chunk_bytes
):
    monkeypatch.setattr("engine.raster.band_presence._CHUNK_BYTES", chunk_bytes)
    scene = open_scene(make_raster(scale=1e-4, **block).path)
    seen = np.zeros((scene.height, scene.width), int)
    for window in _chunks(scene, BANDS):
        assert window.height * window.width * BANDS * 2 <= max(chunk_bytes, 17 * BANDS * 2)  # a row
        seen[window.row_off : window.row_stop, window.col_off : window.col_stop] += 1
    assert (seen == 1).all()


def test_empty_bands_are_masked_and_not_made_of_their_neighbours(scene_with):
    scene = scene_with(filled={4: -99}, nodata=-99)
    found = match_present_bands(scene.require_bands(), scene)
    assert np.flatnonzero(~found.present).tolist() == [4]
    assert found.match.scene_band_index == (0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11)
    assert "no measurements for 1 of 12 bands (650 nm)" in found.notes[0]


def test_bands_beyond_the_sensor_are_masked(scene_with):
    model = table_of([*WAVELENGTH_NM, 1600.0, 2200.0])
    found = match_present_bands(model, scene_with())
    assert found.present.tolist() == [True] * BANDS + [False, False]


def test_a_broader_model_band_does_without_an_empty_scene_band(make_raster):
    wavelength_nm = np.arange(500, 620, 10.0)
    array = ramp(len(wavelength_nm))
    array[5] = -99
    path = make_raster(array=array, wavelength_nm=wavelength_nm, nodata=-99, scale=1e-4).path
    found = match_present_bands(table_of([550.0, 560.0], fwhm_nm=60.0), open_scene(path))
    assert found.present.all()
    assert 5 not in found.match.scene_band_index
    assert found.match.weights.sum(axis=1) == pytest.approx([1, 1])


def test_a_scene_of_another_range_is_refused(scene_with):
    with pytest.raises(BandMatchError, match="scene has none of the 2 bands, 1600 to 2200 nm"):
        match_present_bands(table_of([1600.0, 2200.0]), scene_with())


def test_a_scene_whose_bands_are_all_empty_is_refused(scene_with):
    scene = scene_with(filled=dict.fromkeys(range(BANDS), 7))
    with pytest.raises(BandMatchError, match="All bands of scene that the model reads are empty"):
        match_present_bands(scene.require_bands(), scene)


def test_the_student_has_the_good_bands_outside_the_ranges():
    good = np.array([True, False, True, True, True])
    bands = student_bands(table_of([500, 600, 1358, 1400, 1500], good=good), ((1358.0, 1453.0),))
    assert bands.wavelength_nm.tolist() == [500, 1500]


def test_dropping_all_bands_is_refused():
    with pytest.raises(BandTableError, match="None of the first scene's 2 bands is left"):
        student_bands(table_of([500, 600]), ((400.0, 700.0),))


def test_ranges_are_read_from_text():
    assert parse_ranges("1358-1453, 1814 - 1961.5") == ((1358.0, 1453.0), (1814.0, 1961.5))
    assert parse_ranges(" ") == parse_ranges("None") == ()


@pytest.mark.parametrize("text", ["1358", "1453-1358", "a-b", "1358-1453; 1814-1961"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(BandTableError, match="is not a range of wavelengths"):
        parse_ranges(text)

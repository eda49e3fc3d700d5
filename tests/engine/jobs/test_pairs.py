"""Two images brought together: shift, point spread, response, and what is said about them."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from affine import Affine

from engine.errors import BandMatchError, BandTableError, RequestError, SceneError
from engine.feedback import SilentFeedback
from engine.jobs.shared.pairs import PairSettings, given_shift, prepare_pair
from tests.engine.conftest import write_raster
from tests.engine.jobs.brightest import Listener
from tests.engine.jobs.fusing import BERLIN_HSI, BERLIN_MSI
from tests.engine.jobs.made_pairs import HSI_NM, MSI_FWHM_NM, MSI_NM, RATIO, write_pair


def prepare(pair, feedback=None, **settings):
    return prepare_pair(pair.hsi, pair.msi, PairSettings(**settings), feedback or SilentFeedback())


@pytest.mark.parametrize("shift", [(1, 0), (-1, 2), (0, -2)])
def test_a_shift_is_found_and_corrected(tmp_path, shift):
    pair = write_pair(tmp_path, shift_coarse_px=shift)
    ready = prepare(pair)
    np.testing.assert_allclose(ready.pair.shift_px, shift, atol=0.2)
    assert ready.shift_text == "estimated and corrected"
    assert not any("lies" in text for text in ready.warnings)


def moved_berlin(folder, right_m, down_m):
    """The packaged fine image, georeferenced elsewhere."""
    with rasterio.open(BERLIN_MSI) as dataset:
        values, names = dataset.read(), dataset.descriptions
        place, crs, nodata = dataset.transform, dataset.crs, dataset.nodata
    path = folder / "moved.tif"
    transform = Affine.translation(right_m, -down_m) @ place
    write_raster(
        path, array=values, wavelength_nm=None, transform=transform, crs=crs, nodata=nodata
    )
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = names
    return str(path)


@pytest.mark.parametrize(("right_px", "down_px"), [(1, 0), (-1, 1)])
def test_a_coarse_pixel_put_into_the_packaged_pair_is_found(tmp_path, right_px, down_px):
    settings = PairSettings(ratio=3)
    before = prepare_pair(BERLIN_HSI, BERLIN_MSI, settings, SilentFeedback())
    moved = moved_berlin(tmp_path, 30.0 * right_px, 30.0 * down_px)
    ready = prepare_pair(BERLIN_HSI, moved, settings, SilentFeedback())
    put_in = np.subtract(ready.pair.shift_px, before.pair.shift_px)
    np.testing.assert_allclose(put_in, (right_px, down_px), atol=0.2)
    # Corrected, the images explain each other as well as they did.
    assert ready.physics.response_error.mean() < 1.1 * before.physics.response_error.mean()


def test_a_shift_that_was_given_wrongly_is_warned_about(tmp_path):
    listener = Listener()
    moved = moved_berlin(tmp_path, 30.0, 0.0)
    settings = PairSettings(ratio=3, shift="0,0")
    ready = prepare_pair(BERLIN_HSI, moved, settings, listener)
    assert ready.pair.shift_px == (0.0, 0.0)
    found = [text for text in ready.warnings if "let the shift be estimated" in text]
    assert len(found) == 1
    assert "0.9" in found[0] and "too far right" in found[0]
    assert found[0] in listener.warnings


def test_a_shift_that_was_given_rightly_is_no_warning(tmp_path):
    ready = prepare(write_pair(tmp_path, shift_coarse_px=(2, 0)), shift="2,0")
    assert ready.pair.shift_px == (2.0, 0.0)
    assert not any("shift" in text for text in ready.warnings)


def test_images_that_fit_are_not_moved(tmp_path):
    ready = prepare(write_pair(tmp_path))
    assert ready.pair.shift_px == (0.0, 0.0)
    assert ready.pair.resampled == ""


def test_a_shift_beyond_the_limit_is_refused(tmp_path):
    with pytest.raises(SceneError, match=r"further than the limit of 1 px"):
        prepare(write_pair(tmp_path, shift_coarse_px=(3, 0)), max_shift=1.0)


def test_an_image_that_shows_nothing_has_no_shift(tmp_path):
    pair = write_pair(tmp_path)
    with rasterio.open(pair.msi, "r+") as dataset:
        noise = np.random.default_rng(99).normal(2000, 50, (dataset.count, *dataset.shape))
        dataset.write(noise.astype(np.int16))
    ready = prepare(pair)
    assert ready.shift_text == "not found"
    assert any("No shift between the images stands out" in text for text in ready.warnings)


def test_an_image_of_another_place_is_warned_about(tmp_path):
    pair, other = write_pair(tmp_path, "here"), write_pair(tmp_path, "there", seed=9)
    listener = Listener()
    prepare_pair(pair.hsi, other.msi, PairSettings(), listener)
    assert any("explain" in text and "differ in date" in text for text in listener.warnings)


@pytest.mark.parametrize("text", ["left", "1", "1,2,3", "1;2", "nan,0"])
def test_a_shift_has_two_numbers(text):
    with pytest.raises(RequestError, match="is no shift"):
        PairSettings.parse({"shift": text})


def test_a_shift_is_read_to_the_right_and_down():
    assert given_shift("0.5, -1") == (0.5, -1.0)
    assert given_shift("estimate") is None


@pytest.mark.parametrize("ratio", [0, 1])
def test_a_ratio_below_two_is_refused(ratio):
    with pytest.raises(RequestError, match="ratio: Input should be greater than or equal to 2"):
        PairSettings.parse({"ratio": ratio})


def test_point_spread_and_response_are_those_of_the_sensors(tmp_path):
    physics = prepare(write_pair(tmp_path)).physics
    assert physics.spread.fwhm_px == pytest.approx(RATIO, abs=0.3)
    assert physics.response_error.max() < 0.03
    centre_nm = (physics.response.weights.numpy() @ HSI_NM) / physics.response.weights.sum(
        1
    ).numpy()
    np.testing.assert_allclose(centre_nm, MSI_NM, atol=25)


def test_bad_bands_are_in_the_pair_but_not_in_the_sample(tmp_path):
    pair = write_pair(tmp_path)
    with rasterio.open(pair.hsi, "r+") as dataset:
        for number in dataset.indexes:
            dataset.update_tags(number, bbl=str(int(number not in (3, 4))))
    ready = prepare(pair)
    assert len(ready.pair.hsi_index) == len(HSI_NM)
    assert ready.sample[0].hsi.shape[1] == len(HSI_NM) - 2
    assert len(ready.hsi_bands) == len(HSI_NM) - 2


@pytest.fixture
def table(tmp_path):
    """Response functions of the made sensor, as a CSV."""
    nm = np.arange(400, 1000, 5.0)
    curves = np.exp(-0.5 * ((nm[:, None] - MSI_NM) / (MSI_FWHM_NM / 2.355)) ** 2)
    lines = ["wavelength_nm,B2,B3,B4,B8"]
    lines += [f"{x:g}," + ",".join(f"{v:.5f}" for v in row) for x, row in zip(nm, curves)]  # noqa: B905
    path = tmp_path / "responses.csv"
    path.write_text("\n".join(lines))
    return str(path)


def test_response_functions_of_a_table_are_taken_as_they_are(tmp_path, table):
    physics = prepare(write_pair(tmp_path), response=table).physics
    np.testing.assert_allclose(physics.response.weights.sum(1).numpy(), 1.0, atol=1e-5)
    assert not physics.response.offset.any()
    assert physics.response_error.max() < 0.05


def test_response_functions_need_wavelengths(tmp_path, table):
    with pytest.raises(RequestError, match="need the wavelengths"):
        prepare(write_pair(tmp_path, hsi_nm=None), response=table)


def test_a_response_that_is_neither_word_nor_file_is_refused(tmp_path):
    with pytest.raises((BandTableError, BandMatchError), match="guess"):
        prepare(write_pair(tmp_path), response="guess")


def test_without_wavelengths_the_response_is_estimated_all_the_same(tmp_path):
    ready = prepare(write_pair(tmp_path, hsi_nm=None, msi_nm=None))
    assert ready.hsi_bands is None
    assert ready.msi_names == ("band 1", "band 2", "band 3", "band 4")
    assert ready.physics.response_error.max() < 0.03

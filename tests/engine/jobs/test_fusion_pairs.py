"""Several pairs brought to the bands and the ratio of the first."""

from __future__ import annotations

import numpy as np
import pytest

from engine.errors import BandMatchError, BandTableError, RequestError
from engine.feedback import SilentFeedback
from engine.jobs.shared.fusion_pairs import bands_of_response, prepare_pairs
from engine.jobs.shared.pairs import PairSettings
from engine.raster.spectra import BandTable
from tests.engine.jobs.made_pairs import HSI_NM, MSI_NM, RATIO, write_pair


def prepare(*pairs, **settings):
    sources = [pair.hsi for pair in pairs], [pair.msi for pair in pairs]
    return prepare_pairs(*sources, PairSettings(**settings), SilentFeedback())


@pytest.fixture
def first(tmp_path):
    return write_pair(tmp_path, "first")


def test_one_pair_keeps_its_own_physics(first):
    found = prepare(first)
    assert found.physics is found.pairs[0].physics
    assert found.ratio == RATIO


def test_the_point_spread_of_several_pairs_is_that_of_their_sensors(first, tmp_path):
    found = prepare(first, write_pair(tmp_path, "second", seed=1))
    assert found.physics.spread.fwhm_px == pytest.approx(RATIO, abs=0.5)
    assert found.physics is not found.pairs[0].physics


def test_bands_in_another_order_come_in_that_of_the_first(first, tmp_path):
    backwards = write_pair(tmp_path, "second", hsi_order=range(12, -1, -1), msi_order=(3, 1, 0, 2))
    one, other = prepare(first, backwards).samples
    np.testing.assert_allclose(other[0].hsi, one[0].hsi, atol=1e-4)
    np.testing.assert_allclose(other[0].msi, one[0].msi, atol=1e-4)


def test_a_pair_without_a_band_of_the_first_is_refused(first, tmp_path):
    without_nir = write_pair(tmp_path, "second", hsi_order=range(9))
    with pytest.raises(BandMatchError, match="second_hsi does not have the bands of the first"):
        prepare(first, without_nir)


def test_a_pair_whose_bands_would_have_to_be_resampled_is_refused(first, tmp_path):
    moved = write_pair(tmp_path, "second", hsi_nm=HSI_NM + 12.0)
    with pytest.raises(BandMatchError, match="second_hsi"):
        prepare(first, moved)


def test_other_fine_bands_than_the_first_are_refused(first, tmp_path):
    fewer = write_pair(tmp_path, "second", msi_order=(0, 1, 2))
    with pytest.raises(BandMatchError, match="second_msi"):
        prepare(first, fewer)


def test_another_number_of_fine_bands_without_wavelengths_is_refused(tmp_path):
    first = write_pair(tmp_path, "first", msi_nm=None)
    fewer = write_pair(tmp_path, "second", msi_nm=None, msi_order=(0, 1, 2))
    with pytest.raises(BandMatchError, match="second_msi has 3 bands without wavelengths"):
        prepare(first, fewer)


def test_the_ratio_of_the_first_pair_holds_for_all(first, tmp_path):
    finer = write_pair(tmp_path, "second", split=2)
    assert [ready.pair.ratio for ready in prepare(first, finer).pairs] == [RATIO, RATIO]


def test_as_many_images_of_both_kinds_are_needed(first):
    with pytest.raises(RequestError, match="1 hyperspectral and 2 multispectral"):
        prepare_pairs([first.hsi], [first.msi] * 2, PairSettings(), SilentFeedback())


def test_a_hyperspectral_image_without_wavelengths_is_refused(tmp_path):
    with pytest.raises(BandTableError, match="first_hsi"):
        prepare(write_pair(tmp_path, "first", hsi_nm=None))


def test_fine_bands_without_wavelengths_are_placed_by_their_response(tmp_path):
    found = prepare(write_pair(tmp_path, "first", msi_nm=None)).msi_bands
    assert found.origin == "estimated from the images"
    np.testing.assert_allclose(found.wavelength_nm, MSI_NM, atol=60)


def test_a_response_gives_centre_and_width():
    nm = np.arange(400.0, 1000.0, 5.0)
    hsi = BandTable(tuple(map(str, nm)), nm, np.full(len(nm), 5.0), np.ones(len(nm), bool))
    weights = np.exp(-0.5 * ((nm - 650.0) / 30.0) ** 2)[None]
    found = bands_of_response(weights, hsi)
    assert found.names == ("panchromatic",)
    assert found.wavelength_nm[0] == pytest.approx(650.0, abs=0.1)
    assert found.fwhm_nm[0] == pytest.approx(30.0 * 2.355, rel=0.01)


def test_a_response_of_one_band_has_a_width_all_the_same():
    hsi = BandTable(("a", "b"), np.array([500.0, 600.0]), np.full(2, 5.0), np.ones(2, bool))
    assert bands_of_response(np.array([[0.0, 1.0]]), hsi).fwhm_nm[0] > 0

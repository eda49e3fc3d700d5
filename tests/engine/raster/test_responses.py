"""What a multispectral band takes in of the hyperspectral ones."""

import json

import numpy as np
import pytest

from engine.errors import BandMatchError, BandTableError
from engine.raster.band_tables import read_rows, table_facts
from engine.raster.responses import find_response, flat_topped, nominal_response
from engine.raster.sensors import SENSOR_FOLDER
from engine.raster.spectra import BandTable

HSI_NM = np.arange(420.0, 1000.0, 6.5)


def table(wavelength_nm, fwhm_nm=8.0, good=None, names=None) -> BandTable:
    wavelength_nm = np.asarray(wavelength_nm, float)
    count = len(wavelength_nm)
    return BandTable(
        names or tuple(f"{nm:.1f}" for nm in wavelength_nm),
        wavelength_nm,
        np.broadcast_to(np.asarray(fwhm_nm, float), count).copy(),
        np.ones(count, bool) if good is None else good,
    )


MSI = table([490.0, 560.0, 665.0, 842.0], [65, 35, 30, 115], names=("B2", "B3", "B4", "B8"))


def test_rows_sum_to_one():
    np.testing.assert_allclose(nominal_response(table(HSI_NM), MSI).sum(axis=1), 1)


def test_a_straight_spectrum_comes_out_at_the_bands_centres():
    weights = nominal_response(table(HSI_NM), MSI)
    np.testing.assert_allclose(weights @ HSI_NM, MSI.wavelength_nm, atol=0.3)


def test_the_order_of_the_bands_decides_nothing():
    order = np.random.default_rng(0).permutation(len(HSI_NM))
    weights = nominal_response(table(HSI_NM[order]), MSI)
    np.testing.assert_allclose(weights, nominal_response(table(HSI_NM), MSI)[:, order])


def test_bands_at_one_place_share_what_belongs_to_it():
    doubled = table(np.append(HSI_NM, HSI_NM[40]))
    single = nominal_response(table(HSI_NM), MSI)
    weights = nominal_response(doubled, MSI)
    np.testing.assert_allclose(weights[:, -1], single[:, 40] / 2)
    np.testing.assert_allclose(weights[:, 40], single[:, 40] / 2)


def test_bad_bands_have_no_weight():
    good = np.abs(HSI_NM - 560) > 5
    weights = nominal_response(table(HSI_NM, good=good), MSI)
    assert not weights[:, ~good].any()
    np.testing.assert_allclose(weights.sum(axis=1), 1)


def test_no_good_band_leaves_all_outside():
    found = find_response(table(HSI_NM, good=np.zeros(len(HSI_NM), bool)), MSI)
    assert not found.inside.any()
    assert not found.weights.any()


def test_a_band_with_less_than_half_in_the_range_is_outside_and_said():
    found = find_response(table(HSI_NM[HSI_NM < 830]), MSI)
    assert found.inside.tolist() == [True, True, True, False]
    assert "left out: B8 (842 nm)" in found.notes[-1]


def test_a_gap_in_the_range_covers_nothing():
    found = find_response(table(HSI_NM[np.abs(HSI_NM - 560) > 25]), MSI)
    assert found.share[1] < 0.1
    assert found.share[[0, 2, 3]].min() > 0.99


def test_the_share_is_the_part_of_the_response_within():
    # Bands end, with half of their width, at the middle of a symmetric response.
    found = find_response(table(np.arange(500.0, 596.1, 8.0)), table([600.0], [60.0]))
    assert found.share[0] == pytest.approx(0.5, abs=0.01)


def test_a_flat_top_has_the_width_that_was_asked_for():
    wavelength_nm, seen = flat_topped(600.0, 40.0)
    inside = wavelength_nm[seen >= 0.5]
    assert inside[0] == pytest.approx(580, abs=0.5)
    assert inside[-1] == pytest.approx(620, abs=0.5)


@pytest.mark.parametrize("bands", [None, table([600.0], [np.nan])])
def test_one_band_of_which_nothing_is_known_is_panchromatic(bands):
    found = find_response(table(HSI_NM), bands)
    seen_nm = HSI_NM[found.weights[0] > 0]
    assert seen_nm.min() == pytest.approx(450, abs=7)
    assert seen_nm.max() == pytest.approx(850, abs=7)
    assert "panchromatic, 450 to 850 nm" in found.notes[0]


def test_widths_that_nobody_states_are_estimated_and_said():
    found = find_response(table(HSI_NM), table([490, 560, 665], np.nan, names=("b", "g", "r")))
    assert "width of b, g, r is not stated" in found.notes[0]
    np.testing.assert_allclose(found.weights.sum(axis=1), 1)


CURVES = "wavelength_nm,{}\n480,0,0\n500,1,0\n520,0,0\n600,0,0\n650,0,1\n700,0,0\n"


@pytest.fixture
def curves(tmp_path):
    def write(names="blue,red"):
        path = tmp_path / "curves.csv"
        path.write_text(CURVES.format(names))
        return str(path)

    return write


@pytest.mark.parametrize("names", [("red", "blue"), ("RED", "Blue")])
def test_a_table_of_curves_is_taken_by_the_bands_names(curves, names):
    msi = table([650, 500], 30, names=names)
    weights = nominal_response(table(HSI_NM), msi, curves())
    np.testing.assert_allclose(weights @ HSI_NM, [650, 500], atol=0.5)


def test_a_table_with_other_names_is_taken_in_the_bands_order(curves):
    msi = table([500, 650], 30, names=("B1", "B2"))
    weights = nominal_response(table(HSI_NM), msi, curves())
    np.testing.assert_allclose(weights @ HSI_NM, [500, 650], atol=0.5)


def test_a_table_of_other_bands_is_refused(curves):
    with pytest.raises(BandMatchError, match="are of blue, red; the multispectral image has B2"):
        nominal_response(table(HSI_NM), MSI, curves())


def test_a_table_that_is_not_there_is_refused():
    with pytest.raises(BandTableError, match="cannot be read"):
        nominal_response(table(HSI_NM), MSI, "no such.csv")


def real_curves(folder):
    """(name, wavelengths in nm, responses) of the bands of real sensors."""
    for name in ("sentinel2a_msi", "landsat_oli", "landsat_tm"):
        for band in json.loads((folder / "srf" / f"{name}.geojson").read_text())["features"]:
            response = band["properties"]["response"]
            in_nm = 1.0 if response["xUnit"].lower().startswith("nano") else 1e3
            yield np.asarray(response["x"], float) * in_nm, np.asarray(response["y"], float)


def test_a_flat_top_stands_for_real_curves_and_a_gaussian_does_not(data_folder):
    flat, gaussian = [], []
    for wavelength_nm, seen in real_curves(data_folder):
        half = wavelength_nm[seen >= seen.max() / 2]
        centre_nm, fwhm_nm = half[[0, -1]].mean(), np.ptp(half)
        grid_nm = np.arange(wavelength_nm[0] - 50, wavelength_nm[-1] + 50)
        real = np.interp(grid_nm, wavelength_nm, seen, left=0, right=0)
        bell = np.exp2(-((2 * (grid_nm - centre_nm) / fwhm_nm) ** 2))
        top = np.interp(grid_nm, *flat_topped(centre_nm, fwhm_nm), left=0, right=0)
        for errors, curve in ((flat, top), (gaussian, bell)):
            errors.append(np.abs(curve / curve.sum() - real / real.sum()).sum() / 2)
    assert len(flat) > 20
    assert np.mean(flat) < 0.06
    assert np.mean(flat) < np.mean(gaussian) / 2


def test_sentinel_2_on_enmap_is_seen_whole():
    def sensor(name):
        facts = table_facts(read_rows(SENSOR_FOLDER / f"{name}.csv"), "table", name)
        return table(facts.wavelength_nm, facts.fwhm_nm, names=facts.names)

    found = find_response(sensor("enmap"), sensor("sentinel2a"))
    # B10, cirrus, lies in the gap that EnMAP leaves to water vapour.
    inside = [i for i, name in enumerate(sensor("sentinel2a").names) if name != "B10"]
    assert found.share[inside].min() > 0.95

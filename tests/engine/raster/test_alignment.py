"""Alignment: a teacher's broad ranges out of a student's narrow bands, by wavelength alone."""

from __future__ import annotations

import numpy as np
import pytest

from engine.errors import BandMatchError, BandTableError
from engine.raster.alignment import RangeBand, align_bands, read_responses
from engine.raster.band_tables import read_rows, table_facts
from engine.raster.sensors import SENSOR_FOLDER
from engine.raster.spectra import BandTable

HOW = ("mean", "response", "nearest")
TEACHER = (
    RangeBand("B02", 450, 510, 482.6, 60),
    RangeBand("B04", 640, 670, 654.6, 37),
    RangeBand("B06", 1570, 1650, 1609.1, 84),
)
# Two detectors that overlap, stored one after the other: not sorted, with bands at equal places.
WAVELENGTH_NM = np.concatenate([np.arange(420, 1000, 6.5), np.arange(901, 2450, 10.0), [1601.0]])


def student(wavelength_nm=WAVELENGTH_NM, fwhm_nm=8.0, good=None) -> BandTable:
    count = len(wavelength_nm)
    return BandTable(
        tuple(f"{nm:.1f}" for nm in wavelength_nm),
        np.asarray(wavelength_nm, float),
        np.broadcast_to(np.asarray(fwhm_nm, float), count).copy(),
        np.ones(count, bool) if good is None else good,
    )


@pytest.mark.parametrize("how", HOW)
def test_a_constant_spectrum_stays_the_constant(how):
    weights = align_bands(student(), TEACHER, how).weights
    assert weights.dtype == np.float32
    assert weights.shape == (3, len(WAVELENGTH_NM))
    np.testing.assert_allclose(weights @ np.full(len(WAVELENGTH_NM), 0.3, np.float32), 0.3, 1e-6)


def test_the_mean_of_the_wavelengths_is_the_mean_centre_of_each_range():
    weights = align_bands(student(), TEACHER).weights.astype(float)
    for row, band in zip(weights, TEACHER, strict=True):
        inside = (WAVELENGTH_NM >= band.low_nm) & (WAVELENGTH_NM <= band.high_nm)
        assert row @ WAVELENGTH_NM == pytest.approx(WAVELENGTH_NM[inside].mean(), abs=1e-3)
        assert np.flatnonzero(row).tolist() == np.flatnonzero(inside).tolist()


@pytest.mark.parametrize("how", HOW)
def test_the_order_of_the_bands_decides_nothing(how):
    order = np.random.default_rng(0).permutation(len(WAVELENGTH_NM))
    sorted_weights = align_bands(student(), TEACHER, how).weights
    shuffled = align_bands(student(WAVELENGTH_NM[order]), TEACHER, how).weights
    np.testing.assert_allclose(shuffled, sorted_weights[:, order], atol=1e-7)


def test_every_range_without_a_band_is_listed_with_its_limits():
    vnir = student(WAVELENGTH_NM[(WAVELENGTH_NM > 520) & (WAVELENGTH_NM < 1000)])
    with pytest.raises(
        BandMatchError,
        match=r"not cover 2 of the teacher's 3 ranges: B02 \(450 to 510 nm\), B06 \(1570 to 1650",
    ) as refusal:
        align_bands(vnir, TEACHER)
    assert [band.name for band in refusal.value.rows] == ["B02", "B06"]
    assert "usable bands from 524 to 99" in refusal.value.remedy


@pytest.mark.parametrize("how", HOW)
def test_bad_and_absent_bands_are_not_used(how):
    red = (WAVELENGTH_NM > 640) & (WAVELENGTH_NM < 656)
    bad = align_bands(student(good=~red), TEACHER, how).weights
    absent = align_bands(student(), TEACHER, how, present=~red).weights
    assert not bad[:, red].any()
    np.testing.assert_array_equal(bad, absent)


def test_a_range_whose_bands_are_all_absent_is_refused():
    red = (WAVELENGTH_NM >= 640) & (WAVELENGTH_NM <= 670)
    with pytest.raises(BandMatchError, match=r"1 of the teacher's 3 ranges: B04 \(640"):
        align_bands(student(), TEACHER, present=~red)


def test_nearest_takes_one_band_a_range():
    weights = align_bands(student(), TEACHER, "nearest").weights
    assert (weights > 0).sum(axis=1).tolist() == [1, 1, 1]
    distance_nm = np.abs(weights.astype(float) @ WAVELENGTH_NM - [482.6, 654.6, 1609.1])
    assert (distance_nm <= [3.25, 3.25, 5.0]).all()


def test_nearest_reaches_half_a_width_from_the_centre_and_no_further():
    band = RangeBand("B", 600, 640, 610, 40)
    assert align_bands(student([591.0]), [band], "nearest").weights.tolist() == [[1.0]]
    with pytest.raises(BandMatchError, match="1 of the teacher's 1 ranges"):
        align_bands(student([589.0]), [band], "nearest")


def test_a_gaussian_response_has_its_half_maximum_where_the_width_says():
    band = RangeBand.from_centre("B", 600, 40)
    weights = align_bands(student(np.arange(500, 701, 5.0)), [band], "response").weights[0]
    assert weights[16] / weights[20] == pytest.approx(0.5, rel=1e-5)
    assert weights[24] / weights[20] == pytest.approx(0.5, rel=1e-5)


def test_a_response_weighs_bands_by_their_part_of_the_axis():
    # Five bands at one place count for as much as one band there would.
    wavelength_nm = np.asarray([590, 595, 600, 600, 600, 600, 600, 605, 610.0])
    flat = {"b": (np.asarray([580.0, 620.0]), np.asarray([3.0, 3.0]))}
    band = RangeBand.from_centre("B", 600, 40)
    aligned = align_bands(student(wavelength_nm), [band], "response", responses=flat)
    assert aligned.weights[0, 2:7].sum() == pytest.approx(aligned.weights[0, 1], rel=1e-5)


def test_a_tabulated_response_is_used_by_the_name_of_its_band():
    edge = {"B04": (np.asarray([660.0, 661.0, 669.0, 670.0]), np.asarray([0, 1.0, 1.0, 0]))}
    aligned = align_bands(student(), TEACHER, "response", responses=edge)
    used = WAVELENGTH_NM[aligned.weights[1] > 0]
    assert used.min() > 660
    assert used.max() < 670
    assert "No response was given for B02, B06: a Gaussian" in aligned.notes[0]


def test_a_response_between_two_bands_sees_nothing():
    narrow = RangeBand("B", 500.5, 502.5, 501.5, 2.0)
    with pytest.raises(BandMatchError, match="1 of the teacher's 1 ranges"):
        align_bands(student([498.0, 505.0]), [narrow], "response")


def test_responses_of_another_sensor_are_refused():
    other = {"red": (np.asarray([600.0, 700.0]), np.ones(2))}
    with pytest.raises(BandMatchError, match=r"None of the responses \(red\).*\(B02, B04, B06\)"):
        align_bands(student(), TEACHER, "response", responses=other)


def test_the_table_names_ranges_bands_and_doubts():
    partly = student(np.arange(640, 646, 1.0))
    aligned = align_bands(partly, TEACHER[1:2])
    assert "B04" in aligned.table()
    assert "640.0 … 645.0" in aligned.table()
    assert "around 642 nm, 12 nm off its centre" in aligned.table()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((510, 450, 480, 10), "does not hold its centre"),
        ((450, 510, 530, 10), "does not hold its centre"),
        ((450, 450, 450, 10), "a range and a width above 0"),
        ((450, 510, 480, 0), "a range and a width above 0"),
    ],
)
def test_an_impossible_range_is_refused(values, message):
    with pytest.raises(BandTableError, match=message):
        RangeBand("B", *values)


def test_responses_are_read_in_any_order_of_rows(tmp_path):
    path = tmp_path / "srf.csv"
    path.write_text("# OLI\nwavelength_nm;B02;B04\n650;;0.9\n480;1;\n490;0,5\n", encoding="utf-8")
    responses = read_responses(str(path))
    assert responses["B02"][0].tolist() == [480, 490, 650]
    assert responses["B02"][1].tolist() == [1, 0.5, 0]
    assert responses["B04"][1].tolist() == [0, 0, 0.9]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "need a first column wavelength_nm"),
        ("wavelength,B02\n480,1\n490,1\n", "need a first column wavelength_nm"),
        ("wavelength_nm\n480\n490\n", "need a first column wavelength_nm"),
        ("wavelength_nm,B02\n480,1\n", "two rows or more"),
        ("wavelength_nm,B02\n480,high\n490,1\n", "no number.*high"),
        ("wavelength_nm,B02\n480,-1\n490,1\n", "negative or missing"),
        ("wavelength_nm,B02\n480,nan\n490,1\n", "negative or missing"),
        ("wavelength_nm,B02\n,1\n490,1\n", "negative or missing"),
        ("wavelength_nm,B02\n480,1\n480,1\n", "a wavelength twice"),
        ("wavelength_nm,B02,B04\n480,1,0\n490,1,0\n", "B04 is 0 everywhere"),
    ],
)
def test_a_damaged_table_of_responses_is_refused(tmp_path, text, message):
    path = tmp_path / "srf.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BandTableError, match=message):
        read_responses(str(path))


def test_a_missing_table_of_responses_is_named(tmp_path):
    with pytest.raises(BandTableError, match=r"nowhere\.csv cannot be read"):
        read_responses(str(tmp_path / "nowhere.csv"))


# HLS: rectangular ranges of Landsat 8 OLI with the centroids of its responses (hyperkd.md, 3).
HLS = (
    RangeBand("B02", 450, 510, 482.6, 59),
    RangeBand("B03", 530, 590, 561.3, 57),
    RangeBand("B04", 640, 670, 654.6, 37),
    RangeBand("B05", 850, 880, 864.6, 27),
    RangeBand("B06", 1570, 1650, 1609.1, 84),
    RangeBand("B07", 2110, 2290, 2201.3, 186),
)
WATER_NM = ((1358, 1453), (1814, 1961))  # left out by EnPT, which leaves 218 bands of EnMAP


def sensor(name: str) -> BandTable:
    facts = table_facts(read_rows(SENSOR_FOLDER / f"{name}.csv"), name, name)
    wet = np.any([(facts.wavelength_nm >= a) & (facts.wavelength_nm <= b) for a, b in WATER_NM], 0)
    return student(facts.wavelength_nm[~wet], facts.fwhm_nm[~wet])


def test_enmap_gives_each_hls_range_the_bands_it_should():
    enmap = sensor("enmap")
    assert len(enmap) == 218
    weights = align_bands(enmap, HLS).weights
    assert (weights > 0).sum(axis=1).tolist() == [12, 12, 5, 4, 7, 21]
    by_wavelength = weights[:, np.argsort(enmap.wavelength_nm)] > 0
    first_and_last = [(int(np.flatnonzero(row)[0]), int(np.flatnonzero(row)[-1]))
                      for row in by_wavelength]  # fmt: skip
    assert first_and_last == [(7, 18), (23, 34), (43, 47), (73, 76), (142, 148), (176, 196)]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["enmap", "prisma", "emit"])
def test_hyperspectral_sensors_cover_hls_near_its_centres(name, how):
    table = sensor(name)
    aligned = align_bands(table, HLS, how)
    centre_nm = aligned.weights.astype(float) @ table.wavelength_nm
    off_nm = np.abs(centre_nm - [band.centre_nm for band in HLS])
    assert (off_nm < 6).all()
    assert aligned.notes == ()


def test_a_sensor_without_shortwave_infrared_is_refused():
    with pytest.raises(BandMatchError, match=r"2 of the teacher's 6 ranges: B06 .*, B07 "):
        align_bands(sensor("desis"), HLS)

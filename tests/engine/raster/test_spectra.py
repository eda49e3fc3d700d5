"""Matching: by wavelength alone, exact where it can be, refused where it cannot."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import BandMatchError, BandTableError
from engine.raster.spectra import BandTable, filled_fwhm_nm, match_bands

FLOAT32_TOLERANCE = 2e-5


def table(wavelength_nm, fwhm_nm=None, good=None, names=None) -> BandTable:
    wavelength_nm = np.asarray(wavelength_nm, float)
    count = len(wavelength_nm)
    fwhm_nm = np.nan if fwhm_nm is None else fwhm_nm
    return BandTable(
        tuple(names or (f"b{i}" for i in range(count))),
        wavelength_nm,
        np.broadcast_to(np.asarray(fwhm_nm, float), count).copy(),
        np.ones(count, bool) if good is None else np.asarray(good, bool),
    )


def apply(match, spectrum):
    """Model bands (M,) from scene bands (C,)."""
    read = np.asarray(spectrum)[list(match.scene_band_index)]
    return read if match.weights is None else match.weights @ read


SPACING_NM = st.floats(1.0, 12.0)
WIDTH_NM = st.floats(2.0, 25.0)


@st.composite
def scene_tables(draw):
    """Irregular sampling without gaps, in no order, with neighbours that may coincide."""
    spacing = draw(st.lists(st.floats(0.0, 14.0), min_size=20, max_size=60))
    wavelength_nm = 400.0 + np.cumsum(spacing)
    fwhm_nm = draw(st.lists(WIDTH_NM, min_size=len(spacing), max_size=len(spacing)))
    order = draw(st.permutations(range(len(spacing))))
    return table(wavelength_nm[order], np.asarray(fwhm_nm)[order])


@st.composite
def model_inside(draw, scene):
    """Model bands well inside a scene's range."""
    low, high = scene.wavelength_nm.min() + 1, scene.wavelength_nm.max() - 1
    if high <= low:
        return table([(low + high) / 2], draw(WIDTH_NM))
    wavelength_nm = draw(st.lists(st.floats(low, high), min_size=1, max_size=12))
    return table(wavelength_nm, draw(WIDTH_NM))


def matched(scene, model):
    try:
        return match_bands(model, scene)
    except BandMatchError:
        return None


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_constant_spectrum_stays_constant(data):
    scene = data.draw(scene_tables())
    match = matched(scene, data.draw(model_inside(scene)))
    if match is not None:
        assert apply(match, np.full(len(scene), 0.25)) == pytest.approx(0.25, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_linear_spectrum_is_reproduced_where_bands_are_resampled(data):
    scene = data.draw(scene_tables())
    model = data.draw(model_inside(scene))
    match = matched(scene, model)
    if match is None:
        return
    made = apply(match, scene.wavelength_nm / 1000.0)
    resampled = np.asarray([row.action == "resampled" for row in match.rows])
    assert made[resampled] == pytest.approx(
        model.wavelength_nm[resampled] / 1000.0, abs=FLOAT32_TOLERANCE
    )


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_order_of_the_scene_decides_nothing(data):
    scene = data.draw(scene_tables())
    model = data.draw(model_inside(scene))
    order = np.asarray(data.draw(st.permutations(range(len(scene)))))
    shuffled = BandTable(
        tuple(scene.names[i] for i in order),
        scene.wavelength_nm[order],
        scene.fwhm_nm[order],
        scene.good[order],
    )
    spectrum = np.sin(np.arange(len(scene)))
    one, other = matched(scene, model), matched(shuffled, model)
    assert (one is None) == (other is None)
    if one is not None:
        assert apply(one, spectrum) == pytest.approx(apply(other, spectrum[order]), abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_rows_of_weights_sum_to_one_and_indices_ascend(data):
    scene = data.draw(scene_tables())
    match = matched(scene, data.draw(model_inside(scene)))
    if match is not None and match.weights is not None:
        assert match.weights.sum(axis=1) == pytest.approx(1.0, abs=1e-6)
        assert list(match.scene_band_index) == sorted(set(match.scene_band_index))
        assert match.weights.shape == (len(match.rows), len(match.scene_band_index))


def test_the_same_bands_in_another_order_are_selected_without_weights():
    scene = table([700, 500, 600], 10, names=["r", "b", "g"])
    match = match_bands(table([500, 600, 700], 10), scene)
    assert match.scene_band_index == (1, 2, 0)
    assert match.weights is None
    assert [row.scene_bands for row in match.rows] == [("b",), ("g",), ("r",)]


def test_a_band_count_that_fits_does_not_make_a_match():
    scene, model = table([1500, 1600, 1700], 10), table([500, 600, 700], 10)
    with pytest.raises(BandMatchError, match=r"3 of the 3 bands.*500 and 700 nm"):
        match_bands(model, scene)


@pytest.mark.parametrize(("shift_nm", "action"), [(1.9, "same"), (2.1, "resampled")])
def test_a_band_is_the_same_within_two_nanometres(shift_nm, action):
    scene = table(np.arange(400, 800, 10.0), 10)
    match = match_bands(table([500 + shift_nm], 10), scene)
    assert match.rows[0].action == action
    assert match.rows[0].distance_nm == pytest.approx(shift_nm)


def test_a_narrow_band_is_the_same_only_within_a_quarter_of_its_width():
    match = match_bands(table([500.9], 3), table(np.arange(400, 800, 3.0), 3))
    assert match.rows[0].action == "resampled"  # 1.1 nm away, and 0.75 nm is allowed


def test_a_much_narrower_band_at_the_same_place_is_not_the_same():
    scene = table(np.arange(400, 800, 5.0), 5)
    match = match_bands(table([560], 40), scene)
    assert match.rows[0].action == "resampled"
    assert len(match.rows[0].scene_bands) > 5


def test_resampling_gives_the_response_of_the_model_band():
    """Mean and variance of the weights, with the scene bands' own variance, are the model's."""
    scene = table(np.arange(400, 1000, 2.0), 6)
    match = match_bands(table([700.7], 30), scene)
    centre = scene.wavelength_nm[list(match.scene_band_index)]
    weight = match.weights[0].astype(float)
    own_variance = (6 / 2.3548) ** 2
    variance = np.sum(weight * (centre - 700.7) ** 2) + own_variance
    assert np.sum(weight * centre) == pytest.approx(700.7, abs=1e-3)
    assert np.sqrt(variance) * 2.3548 == pytest.approx(30, rel=0.02)


def test_a_coarser_scene_is_interpolated_between_two_neighbours():
    match = match_bands(table([503.0], 4), table([490, 500, 510, 520], 12))
    assert match.rows[0].scene_bands == ("b1", "b2")
    assert match.weights[0] == pytest.approx([0.7, 0.3])


def test_a_gap_of_one_bad_band_is_bridged():
    scene = table([480, 490, 500, 510, 520], 10, good=[1, 1, 0, 1, 1])
    match = match_bands(table([500], 10), scene)
    assert match.rows[0].action == "resampled"
    assert 2 not in match.scene_band_index


def test_a_wide_gap_is_refused_with_the_table():
    scene = table([*np.arange(400, 1340, 10.0), *np.arange(1460, 1800, 10.0)], 10)
    model = table([550, 1400, 1600], 10, names=["green", "steam", "swir"])
    with pytest.raises(BandMatchError, match="1 of the 3 bands") as caught:
        match_bands(model, scene)
    lines = str(caught.value).splitlines()
    assert next(line for line in lines if line.startswith("steam")).endswith("too far")
    assert next(line for line in lines if line.startswith("green")).endswith("same")


def test_four_bands_do_not_make_177():
    scene = table([484, 558, 647, 805], 15)
    with pytest.raises(BandMatchError, match="of the 177 bands"):
        match_bands(table(np.linspace(460, 2409, 177), 8), scene)


def test_nothing_is_extrapolated_beyond_the_ends():
    scene = table(np.arange(500, 600, 10.0), 10)
    for wavelength_nm in (490, 600):
        with pytest.raises(BandMatchError, match="too far"):
            match_bands(table([wavelength_nm], 10), scene)


def test_a_scene_with_bad_bands_only_is_refused():
    scene = table([500, 510], 10, good=[0, 0])
    with pytest.raises(BandMatchError, match="1 of the 1 bands"):
        match_bands(table([500], 10), scene)


def test_in_a_detector_overlap_the_width_decides_between_equal_wavelengths():
    scene = table([900, 900, 910], [12, 7, 10], names=["vnir", "swir", "next"])
    match = match_bands(table([900], 7.2), scene)
    assert match.rows[0].scene_bands == ("swir",)


def test_in_a_detector_overlap_of_one_sensor_the_name_decides():
    bands = table([900, 900, 910], [8, 8, 8], names=["B91", "B92", "B93"])
    assert match_bands(bands, bands).scene_band_index == (0, 1, 2)


def test_two_wide_bands_at_one_place_share_a_narrow_one():
    match = match_bands(table([500], 4), table([480, 500, 500, 520], [20, 20, 22, 20]))
    assert match.scene_band_index == (1, 2)
    assert match.weights[0].tolist() == [0.5, 0.5]


def test_neighbouring_satellites_of_one_family_match():
    sentinel_2a = table([492.4, 664.6, 782.8, 2202.4], [66, 31, 20, 175])
    sentinel_2b = table([492.1, 664.9, 779.7, 2185.7], [66, 31, 20, 185])
    match = match_bands(sentinel_2a, sentinel_2b)
    assert match.scene_band_index == (0, 1, 2, 3)


def test_missing_widths_are_estimated_with_a_note():
    scene = table(np.arange(400, 500, 7.0))
    match = match_bands(table([435.0], 7), scene)
    assert "15 of the scene's bands" in match.table()


def test_estimated_widths_follow_the_spacing_and_not_an_overlap_or_a_gap():
    wavelength_nm = [*np.arange(800, 900, 8.0), 896.5, *np.arange(1500, 1600, 12.0)]
    fwhm_nm, estimated = filled_fwhm_nm(table(wavelength_nm))
    assert estimated.all()
    assert fwhm_nm[:12] == pytest.approx(8.0)
    assert fwhm_nm[-3:] == pytest.approx(12.0)


def test_known_widths_are_kept():
    fwhm_nm, estimated = filled_fwhm_nm(table([500, 510, 520], [9, np.nan, 0]))
    assert fwhm_nm.tolist() == [9, 10, 10]
    assert estimated.tolist() == [False, True, True]


def test_the_table_is_aligned_and_complete():
    scene = table(np.arange(400, 800, 5.0), 5)
    text = match_bands(table([500, 560], [5, 40], names=["cyan", "b"]), scene).table()
    header, first, second = text.splitlines()
    assert header.index("action") == first.index("same") == second.index("resampled")
    assert "…" in second


@pytest.mark.parametrize("bad", [0.0, -5.0, np.nan, np.inf])
def test_a_table_needs_positive_wavelengths(bad):
    with pytest.raises(BandTableError, match="positive wavelength"):
        table([500, bad])


def test_a_table_needs_columns_of_one_length():
    with pytest.raises(BandTableError, match=r"names \(1\).*wavelengths \(2\)"):
        BandTable(("a",), np.ones(2), np.ones(2), np.ones(2, bool))

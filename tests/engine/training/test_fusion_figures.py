from __future__ import annotations

import numpy as np
import pytest

from engine.raster.spectra import BandTable
from engine.report import figure_to_data_uri
from engine.training.fusion_figures import (
    band_errors_figure,
    consistency_figure,
    difference_figure,
    quality_figure,
)
from engine.training.fusion_metrics import score_fusion

NM = np.array([500.0, 510, 520, 530, 540, 700, 710, 720])  # with a gap


@pytest.fixture
def scores():
    random = np.random.default_rng(0)
    reference = random.uniform(0.1, 0.5, (len(NM), 20, 20))
    noise = random.normal(0, 0.01, reference.shape)
    return {name: score_fusion(reference + k * noise, reference, None, 3) for k, name in
            ((1, "this"), (2, "other"))}  # fmt: skip


@pytest.fixture
def bands():
    names = tuple(f"b{i}" for i in range(len(NM)))
    return BandTable(names, NM, np.full(len(NM), 10.0), np.ones(len(NM), bool))


def test_each_method_has_a_line_of_its_errors(scores, bands):
    axes = band_errors_figure(scores, bands, "this").axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert set(lines) == {"this", "other"}
    drawn = lines["this"].get_ydata()
    np.testing.assert_allclose(drawn[np.isfinite(drawn)], scores["this"].rmse_band, rtol=1e-5)


def test_without_wavelengths_bands_are_counted(scores):
    axes = band_errors_figure(scores, None, "this").axes[0]
    assert axes.get_xlabel() == "band"
    assert axes.get_lines()[0].get_xdata().tolist() == list(range(1, len(NM) + 1))


def test_quality_shows_both_scores_of_each_band(scores, bands):
    left, right = quality_figure(scores["this"], bands).axes
    drawn = [line.get_ydata() for axes in (left, right) for line in axes.get_lines()]
    expected = scores["this"].psnr_band, scores["this"].uiqi_band
    for found, wanted in zip(drawn, expected, strict=True):
        np.testing.assert_allclose(found[np.isfinite(found)], wanted, rtol=1e-5)


def test_maps_are_in_per_cent_and_have_colours_of_their_own():
    maps = np.stack([np.full((8, 9), 0.01), np.full((8, 9), 0.3)]).astype(np.float32)
    maps[:, 2, 3] = np.nan
    figure = consistency_figure(maps)
    shown = [axes.images[0] for axes in figure.axes if axes.images]
    assert [round(float(np.nanmax(image.get_array())), 3) for image in shown] == [1.0, 30.0]
    assert shown[0].get_clim() == (0, 2.0)  # no noise is blown up
    assert shown[1].get_clim() == pytest.approx((0, 30.0))


def test_maps_of_nothing_are_drawn():
    nothing = np.full((8, 9), np.nan, np.float32)
    assert figure_to_data_uri(difference_figure(nothing)).startswith("data:image/png")

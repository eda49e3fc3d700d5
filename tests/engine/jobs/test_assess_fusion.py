"""assess_fusion: scores beside a reference, and beside what a result was made of."""

from __future__ import annotations

import math

import numpy as np
import pytest
import rasterio

from engine.errors import BandMatchError, OutputError, RequestError, SceneError
from engine.feedback import SilentFeedback
from engine.jobs.assess_fusion import Request, assess_fusion
from engine.jobs.fuse import fuse
from engine.training.fusion_metrics import score_fusion
from tests.engine.conftest import write_raster
from tests.engine.jobs.brightest import Listener
from tests.engine.jobs.fusing import read, request_for, spoil, write_truth
from tests.engine.jobs.made_pairs import HSI_NM, RATIO, write_pair


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A pair, what was fused of it, and the truth."""
    folder = tmp_path_factory.mktemp("made")
    pair = write_pair(folder)
    fused = fuse(request_for(pair, folder, consistency=str(folder / "c.tif")), SilentFeedback())
    return pair, fused, write_truth(folder)


def assess(feedback=None, **parameters):
    return assess_fusion(Request.parse(parameters), feedback or SilentFeedback())


def test_scores_are_those_of_both_images(made):
    _pair, fused, truth = made
    result = assess(input=fused["output"], reference=truth, ratio=RATIO)
    expected = score_fusion(read(fused["output"]), read(truth), None, RATIO)
    for name, value in expected.summary().items():
        assert result[name] == pytest.approx(value, rel=1e-3), name
    assert result["pixels"] == expected.pixels


def test_the_truth_is_perfect(made, tmp_path):
    _pair, _fused, truth = made
    result = assess(input=truth, reference=truth, ratio=RATIO)
    assert (result["rmse"], result["psnr_db"], result["q2n"]) == (0.0, math.inf, pytest.approx(1))


def test_the_ratio_of_ergas_is_what_the_result_states(made):
    _pair, fused, truth = made
    stated = assess(input=fused["output"], reference=truth)
    given = assess(input=fused["output"], reference=truth, ratio=RATIO)
    assert stated["ergas"] == given["ergas"]


def test_without_a_ratio_there_is_no_ergas_and_that_is_said(made):
    _pair, _fused, truth = made
    listener = Listener()
    result = assess(listener, input=truth, reference=truth)
    assert math.isnan(result["ergas"])
    assert any("no ERGAS" in text for text in listener.warnings)


def test_only_pixels_that_both_have_are_compared(made, tmp_path):
    _pair, fused, _truth = made
    truth = write_truth(tmp_path)
    spoil(truth, slice(0, 10), slice(0, 20), -32768, band_number=3)
    result = assess(input=fused["output"], reference=truth, ratio=RATIO)
    expected = score_fusion(
        read(fused["output"]), read(truth), np.isfinite(read(truth)).all(axis=0), RATIO
    )
    assert result["pixels"] == expected.pixels
    assert result["psnr_db"] == pytest.approx(expected.psnr_db, rel=1e-4)


def test_a_reference_of_a_part_is_compared_there(made, tmp_path):
    _pair, fused, truth = made
    with rasterio.open(truth) as dataset:
        part, place = dataset.read()[:, 20:60, 10:50], dataset.transform
    path = tmp_path / "part.tif"
    write_raster(
        path, array=part, wavelength_nm=HSI_NM, fwhm_nm=np.full(13, 40.0), nodata=-32768,
        transform=place @ place.translation(10, 20), scale=1e-4,
    )  # fmt: skip
    result = assess(input=fused["output"], reference=str(path), ratio=RATIO)
    assert result["pixels"] == 40 * 40


def test_bands_are_matched_by_wavelength(made, tmp_path):
    _pair, fused, truth = made
    with rasterio.open(truth) as dataset:
        values, place = dataset.read()[::-1], dataset.transform
    path = tmp_path / "backwards.tif"
    write_raster(
        path, array=values, wavelength_nm=HSI_NM[::-1], fwhm_nm=np.full(13, 40.0),
        transform=place, nodata=-32768, scale=1e-4,
    )  # fmt: skip
    one = assess(input=fused["output"], reference=truth, ratio=RATIO)
    other = assess(input=fused["output"], reference=str(path), ratio=RATIO)
    # Q2n is of numbers with parts in an order; the other scores know no order.
    assert {**one, "q2n": 0} == pytest.approx({**other, "q2n": 0})


def test_other_bands_are_refused_with_the_table(made, tmp_path):
    _pair, fused, truth = made
    with rasterio.open(truth) as dataset:
        values, place = dataset.read(), dataset.transform
    path = tmp_path / "swir.tif"
    write_raster(path, array=values, wavelength_nm=HSI_NM + 1000, transform=place, scale=1e-4)
    with pytest.raises(BandMatchError, match="fused has other bands than swir") as caught:
        assess(input=fused["output"], reference=str(path), ratio=RATIO)
    assert "too far" in caught.value.remedy


def test_the_coarse_image_is_no_reference(made):
    pair, fused, _truth = made
    with pytest.raises(SceneError, match=r"3 times as large as those of .* same resolution"):
        assess(input=fused["output"], reference=pair.hsi, ratio=RATIO)


def test_another_place_is_refused(made, tmp_path):
    _pair, fused, truth = made
    with rasterio.open(truth) as dataset:
        values, place = dataset.read(), dataset.transform
    path = tmp_path / "far.tif"
    far = place.translation(1e5, 0) @ place
    widths_nm = np.full(13, 40.0)
    write_raster(
        path, array=values, wavelength_nm=HSI_NM, fwhm_nm=widths_nm, transform=far, scale=1e-4
    )
    with pytest.raises(SceneError, match="do not overlap"):
        assess(input=fused["output"], reference=str(path), ratio=RATIO)


def test_consistency_is_what_fusing_said(made):
    pair, fused, _truth = made
    result = assess(
        input=fused["output"], hyperspectral=pair.hsi, multispectral=pair.msi, shift="0,0"
    )
    for name in ("consistency_hsi", "consistency_msi"):
        assert result[name] == pytest.approx(fused[name], abs=1e-5)  # of integers
    assert "psnr_db" not in result


def test_a_result_that_was_spoilt_is_less_consistent(made, tmp_path):
    pair, fused, _truth = made
    with rasterio.open(fused["output"]) as dataset:
        values, profile = dataset.read(), dataset.profile
        tags = [dataset.tags(number) for number in dataset.indexes]
    path = tmp_path / "spoilt.tif"
    profile |= {"driver": "GTiff", "compress": None}
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write((values * 0.8).astype(np.int16))
        dataset.scales = [1e-4] * dataset.count
        for number, own in enumerate(tags, start=1):
            dataset.update_tags(number, **own)
    result = assess(input=str(path), hyperspectral=pair.hsi, multispectral=pair.msi, shift="0,0")
    assert result["consistency_hsi"] == pytest.approx(0.2, abs=0.02)


def test_all_three_may_be_given_and_the_report_shows_them(made, tmp_path):
    pair, fused, truth = made
    report = tmp_path / "r.html"
    result = assess(
        input=fused["output"],
        reference=truth,
        hyperspectral=pair.hsi,
        multispectral=pair.msi,
        report=str(report),
    )
    assert {"psnr_db", "ergas", "consistency_hsi", "report"} <= set(result)
    assert np.isfinite(result["ergas"])
    text = report.read_text()
    for words in ("Beside the reference", "Beside what it was made of", "Band by band", "Q2n"):
        assert words in text
    assert text.count("data:image/png") == 4


def test_there_has_to_be_something_to_compare_with(made):
    _pair, fused, _truth = made
    with pytest.raises(RequestError, match="nothing to compare with"):
        assess(input=fused["output"])


@pytest.mark.parametrize("one", ["hyperspectral", "multispectral"])
def test_both_inputs_are_needed(made, one):
    pair, fused, _truth = made
    missing = {"hyperspectral": "multispectral", "multispectral": "hyperspectral"}[one]
    with pytest.raises(RequestError, match=f"The {missing} image is missing"):
        assess(input=fused["output"], **{one: pair.hsi})


def test_a_report_over_the_result_is_refused(made):
    _pair, fused, truth = made
    with pytest.raises(OutputError, match="html"):
        assess(input=fused["output"], reference=truth, report=fused["output"])

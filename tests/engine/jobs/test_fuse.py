"""fuse: what is written, how it fits its inputs, and what is said of it."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio

from engine.errors import CancelledError, OutputError, RequestError, SceneError
from engine.feedback import SilentFeedback
from engine.jobs.fuse import Request, fuse
from engine.models.fusion.degradation import PointSpread
from engine.raster.scene import open_scene
from engine.training.fusion_metrics import score_fusion
from tests.engine.jobs.brightest import Listener, left_in
from tests.engine.jobs.fusing import read, request_for, spoil
from tests.engine.jobs.made_pairs import HEIGHT, HSI_NM, RATIO, WIDTH, fine_scene, write_pair

CLASSICAL = ["bicubic", "gsa", "glphs", "cnmf"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def run(pair, tmp_path):
    """``run(**parameters)`` fuses the pair: (result, reflectance)."""

    def go(feedback=None, of=pair, **parameters):
        result = fuse(request_for(of, tmp_path, **parameters), feedback or SilentFeedback())
        return result, read(result["output"])

    return go


def test_all_bands_come_back_with_what_was_known_of_them(run, pair):
    result, _values = run()
    made, hsi = open_scene(result["output"]), open_scene(pair.hsi)
    assert made.bands.names == hsi.bands.names
    np.testing.assert_array_equal(made.bands.wavelength_nm, hsi.bands.wavelength_nm)
    np.testing.assert_array_equal(made.bands.fwhm_nm, hsi.bands.fwhm_nm)
    np.testing.assert_array_equal(made.bands.good, hsi.bands.good)


def test_each_coarse_pixel_is_split_in_place(run, pair):
    result, _values = run()
    made, hsi = open_scene(result["output"]), open_scene(pair.hsi)
    assert (made.height, made.width) == (HEIGHT * RATIO, WIDTH * RATIO)
    assert made.transform.almost_equals(hsi.transform @ hsi.transform.scale(1 / RATIO))
    assert made.crs == hsi.crs


@pytest.mark.parametrize("method", CLASSICAL[1:])
def test_methods_come_nearer_to_the_truth_than_interpolation(run, method):
    truth = fine_scene()
    psnr = [
        score_fusion(run(method=name)[1], truth, None, RATIO).psnr_db
        for name in ("bicubic", method)
    ]
    assert psnr[1] > psnr[0] + 3


def test_integers_are_reflectance_to_half_of_the_last_digit(run):
    _result, integers = run(method="gsa")
    result, floats = run(method="gsa", data_type="float32")
    np.testing.assert_allclose(integers, floats, atol=0.51e-4)
    with rasterio.open(result["output"]) as dataset:
        assert dataset.dtypes[0] == "float32"


@pytest.mark.parametrize("image", ["hsi", "msi"])
@pytest.mark.parametrize("data_type", ["int16", "float32"])
def test_what_one_image_does_not_know_is_nodata(run, tmp_path, image, data_type):
    clouded = write_pair(tmp_path, "clouded")
    rows, cols = (slice(4, 7), slice(10, 12)) if image == "hsi" else (slice(12, 21), slice(30, 36))
    spoil(getattr(clouded, image), rows, cols, -32768, band_number=2)
    result, values = run(of=clouded, data_type=data_type, consistency=str(tmp_path / "c.tif"))
    missing = np.zeros(values.shape[1:], bool)
    missing[12:21, 30:36] = True
    np.testing.assert_array_equal(np.isnan(values), np.broadcast_to(missing, values.shape))
    assert result["valid_pixels"] == missing.size - missing.sum()
    assert np.isnan(read(result["consistency"])[:, missing]).all()


def test_clouds_do_not_change_what_lies_further_away(run, tmp_path):
    _result, clear = run(method="bicubic")
    clouded = write_pair(tmp_path, "clouded")
    spoil(clouded.hsi, slice(4, 7), slice(10, 12), -32768)
    _result, values = run(of=clouded, method="bicubic")
    far = np.s_[:, 40:]
    np.testing.assert_allclose(values[far], clear[far], atol=2e-4)


@pytest.mark.parametrize("method", CLASSICAL)
def test_tiles_do_not_change_the_result(run, method):
    _result, whole = run(method=method, data_type="float32", tile_size=4096)
    _result, tiled = run(method=method, data_type="float32", tile_size=8)
    assert np.abs(tiled - whole).max() < 1e-4 * np.ptp(whole)


def test_an_extent_is_the_same_part_of_the_whole(run, pair):
    _result, whole = run(data_type="float32")
    hsi = open_scene(pair.hsi)
    left, top = hsi.transform @ (5, 7)
    right, bottom = hsi.transform @ (16, 19)
    result, part = run(data_type="float32", extent=[left, bottom, right, top])
    np.testing.assert_allclose(part, whole[:, 21:57, 15:48], atol=1e-6)
    made = open_scene(result["output"])
    assert (made.transform.c, made.transform.f) == pytest.approx((left, top))


def test_an_extent_elsewhere_is_refused(run):
    with pytest.raises(RequestError, match="lies outside"):
        run(extent=[0, 0, 10, 10])


def test_a_partial_overlap_is_used_and_said(run, tmp_path):
    part = write_pair(tmp_path, "part")
    with rasterio.open(part.msi) as dataset:
        values, profile = dataset.read()[:, :, 30:], dataset.profile
        tags = [dataset.tags(number) for number in dataset.indexes]
        profile |= {"transform": dataset.transform @ dataset.transform.translation(30, 0)}
    profile["width"] = values.shape[2]
    with rasterio.open(part.msi, "w", **profile) as dataset:
        dataset.write(values)
        dataset.scales = [1e-4] * dataset.count
        for number, own in enumerate(tags, start=1):
            dataset.update_tags(number, **own)
    listener = Listener()
    _result, values = run(listener, of=part)
    assert values.shape[1:] == (HEIGHT * RATIO, WIDTH * RATIO - 30)
    assert any("overlap only in part" in text for text in listener.warnings)


def test_images_of_two_places_are_refused(run, tmp_path):
    pair = write_pair(tmp_path, "far", shift_coarse_px=(500, 0))
    with pytest.raises(SceneError, match="do not overlap"):
        run(of=pair)


def test_consistency_is_small_and_is_what_the_map_shows(run, tmp_path):
    result, _values = run(consistency=str(tmp_path / "c.tif"))
    hsi, msi = read(result["consistency"])
    assert 0 < result["consistency_hsi"] < 0.05
    assert 0 < result["consistency_msi"] < 0.05
    assert np.median(hsi) == pytest.approx(result["consistency_hsi"], rel=0.6)
    assert np.median(msi) == pytest.approx(result["consistency_msi"], rel=0.6)
    with rasterio.open(result["consistency"]) as dataset:
        kinds = ("hyperspectral", "multispectral")
        assert dataset.descriptions == tuple(f"difference from the {kind} image" for kind in kinds)


def test_interpolation_does_not_give_back_the_multispectral_image(run):
    plain, _values = run(method="bicubic")
    sharp, _values = run(method="glphs")
    assert plain["consistency_msi"] > 2 * sharp["consistency_msi"]


def test_back_projection_gives_back_the_hyperspectral_image(run, pair):
    before, _values = run(data_type="float32")
    after, values = run(data_type="float32", back_projection=True)
    assert after["consistency_hsi"] < 0.1 * before["consistency_hsi"]
    spread = PointSpread.gaussian(RATIO)
    low = spread.degrade(torch_of(values))[0].numpy()
    np.testing.assert_allclose(low, read(pair.hsi), atol=0.01)


def torch_of(values):
    import torch

    return torch.from_numpy(values)[None]


def test_bad_bands_are_interpolated_and_stay_bad(run, tmp_path):
    bad = write_pair(tmp_path, "bad")
    spoil(bad.hsi, slice(None), slice(0, 6), -32768, band_number=4)
    with rasterio.open(bad.hsi, "r+") as dataset:
        for number in dataset.indexes:
            dataset.update_tags(number, bbl=str(int(number != 4)))
    result, values = run(of=bad)
    assert not open_scene(result["output"]).bands.good[3]
    others = np.delete(values, 3, axis=0)
    assert np.isfinite(others).all()  # a bad band says nothing about a pixel
    assert np.isnan(values[3, :, : 6 * RATIO]).all()
    hsi = read(bad.hsi)[3, :, 8:]
    blocks = values[3, :, 8 * RATIO :].reshape(HEIGHT, RATIO, -1, RATIO).mean(axis=(1, 3))
    np.testing.assert_allclose(blocks, hsi, atol=0.05)


def test_a_panchromatic_image_will_do(run, tmp_path):
    pan = write_pair(tmp_path, "pan", msi_order=(1,), msi_nm=None)
    result, values = run(of=pan, method="gsa")
    truth = fine_scene()
    interpolated = run(of=pan, method="bicubic")[1]
    psnr = [score_fusion(v, truth, None, RATIO).psnr_db for v in (interpolated, values)]
    assert psnr[1] > psnr[0] + 0.5
    assert result["method"] == "gsa"


def test_a_ratio_that_is_no_integer_is_met_by_resampling(run, tmp_path):
    fine = write_pair(tmp_path, "fine", split=2)  # 6 fine pixels along a coarse one
    listener = Listener()
    _result, values = run(listener, of=fine, ratio=4)
    assert values.shape[1:] == (HEIGHT * 4, WIDTH * 4)
    assert any("resampled to the ratio of 4" in text for text in listener.warnings)
    assert np.isfinite(values).all()


def test_values_beyond_the_range_are_cut_counted_and_said(run, tmp_path):
    bright = write_pair(tmp_path, "bright")
    with rasterio.open(bright.hsi, "r+") as dataset:
        dataset.scales = [1e-3] * dataset.count
    listener = Listener()
    _result, values = run(listener, of=bright, method="bicubic", shift="0,0")
    assert np.nanmax(values) == pytest.approx(3.2767)
    assert any("beyond what int16 holds" in text for text in listener.warnings)


def test_the_shift_that_was_corrected_is_told(run, tmp_path):
    result, _values = run(of=write_pair(tmp_path, "moved", shift_coarse_px=(1, -1)))
    assert result["shift_x"] == pytest.approx(1, abs=0.2)
    assert result["shift_y"] == pytest.approx(-1, abs=0.2)


def test_a_shift_that_is_not_corrected_is_warned_about_in_the_report(run, tmp_path):
    moved = write_pair(tmp_path, "moved", shift_coarse_px=(1, 0))
    listener = Listener()
    report = tmp_path / "report.html"
    run(listener, of=moved, shift="0,0", report=str(report))
    assert any("let the shift be estimated" in text for text in listener.warnings)
    assert "let the shift be estimated" in report.read_text()


def test_the_report_compares_all_methods_and_shows_the_fit(run, tmp_path):
    report = tmp_path / "report.html"
    run(report=str(report), method="cnmf", back_projection=True)
    text = report.read_text()
    for words in ("CNMF, back-projected", "MTF-GLP-HS", "GSA", "Bicubic", "PSNR", "point spread"):
        assert words in text
    assert text.count("data:image/png") >= 5


def test_a_report_without_wavelengths_leaves_out_what_needs_them(run, tmp_path):
    bare = write_pair(tmp_path, "bare", hsi_nm=None, msi_nm=None)
    report = tmp_path / "report.html"
    run(of=bare, report=str(report))
    assert "At the lower scale" in report.read_text()


def test_the_file_says_how_it_was_made(run):
    result, _values = run()
    with rasterio.open(result["output"]) as dataset:
        tags = dataset.tags()
    assert tags["FUSION_METHOD"] == "glphs"
    assert tags["FUSION_RATIO"] == str(RATIO)
    assert '"method": "glphs"' in tags["PARAMETERS"]


def test_an_output_over_an_input_is_refused_before_anything_is_estimated(run, pair):
    listener = Listener()
    with pytest.raises(OutputError, match="also an input"):
        run(feedback=listener, output=pair.msi)
    assert not any("coarse pixels" in message for message in listener.infos)


@pytest.mark.parametrize("cancel_at", [0.05, 0.12, 0.3, 0.85])
def test_a_cancelled_run_leaves_nothing(pair, tmp_path, cancel_at):
    out = tmp_path / "out"
    out.mkdir()
    request = request_for(pair, out, consistency=str(out / "c.tif"), tile_size=8)
    with pytest.raises(CancelledError):
        fuse(request, Listener(cancel_at=cancel_at))
    assert left_in(out) == []


def test_nothing_valid_is_refused(run, tmp_path):
    empty = write_pair(tmp_path, "empty")
    spoil(empty.hsi, slice(0, HEIGHT // 2), slice(None), -32768)
    spoil(empty.msi, slice(HEIGHT * RATIO // 2, None), slice(None), -32768)
    with pytest.raises(SceneError, match="in both images"):
        run(of=empty)


def test_progress_only_goes_forward_and_ends(pair, tmp_path):
    listener = Listener()
    fuse(request_for(pair, tmp_path), listener)
    assert listener.fractions == sorted(listener.fractions)
    assert listener.fractions[-1] == 1.0


def test_unknown_methods_are_refused(pair, tmp_path):
    with pytest.raises(RequestError, match="method: Input should be"):
        request_for(pair, tmp_path, method="magic")


def test_defaults_are_those_of_the_toolbox():
    request = Request.parse({"hyperspectral": "a", "multispectral": "b", "output": "c.tif"})
    assert (request.model, request.method, request.shift) == ("auto", "csakd", "estimate")
    assert (request.data_type, request.response) == ("int16", "estimate")
    assert HSI_NM.size

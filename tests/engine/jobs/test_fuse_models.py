"""fuse with a package: which one is taken, which is refused, and how its bands are found."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio

from engine.errors import PackageError, RequestError
from engine.feedback import SilentFeedback
from engine.jobs.fuse import fuse
from engine.packages.installed import USER_FOLDER_VARIABLE
from engine.packages.package import save_package
from tests.engine.jobs.brightest import Listener, info_of, model_of
from tests.engine.jobs.fusing import read, request_for, save_fuser
from tests.engine.jobs.made_pairs import HSI_NM, MSI_NM, RATIO, write_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_fuser(tmp_path_factory.mktemp("models"))


@pytest.fixture
def run(pair, tmp_path):
    """``run(**parameters)`` fuses the pair: (result, reflectance)."""

    def go(feedback=None, of=pair, **parameters):
        parameters = {"method": "csakd", "data_type": "float32"} | parameters
        result = fuse(request_for(of, tmp_path, **parameters), feedback or SilentFeedback())
        return result, read(result["output"])

    return go


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """A folder whose packages are installed, and no others."""
    folder = tmp_path / "installed"
    folder.mkdir()
    monkeypatch.setenv(USER_FOLDER_VARIABLE, str(folder))
    monkeypatch.setattr("engine.packages.installed.plugin_models_folder", lambda: tmp_path / "no")
    return folder


def test_a_package_fuses_and_is_named_in_the_file(run, model):
    result, values = run(model=model)
    assert result["method"] == "csakd"
    assert values.shape[0] == len(HSI_NM)
    assert np.isfinite(values).all()
    with rasterio.open(result["output"]) as dataset:
        assert dataset.tags()["MODEL"] == "tiny-fuser"


def test_tiles_do_not_change_what_a_network_makes(run, model):
    _result, whole = run(model=model, tile_size=4096)
    _result, tiled = run(model=model, tile_size=8)
    assert np.abs(tiled - whole).max() < 1e-4 * np.ptp(whole)


def test_bands_in_another_order_are_put_in_order(run, model, tmp_path):
    _result, expected = run(model=model)
    hsi_order, msi_order = list(range(len(HSI_NM)))[::-1], [3, 0, 2, 1]
    other = write_pair(tmp_path, "other", hsi_order=hsi_order, msi_order=msi_order)
    _result, values = run(of=other, model=model)
    np.testing.assert_allclose(values[::-1], expected, atol=1e-5)


def test_fine_bands_that_the_model_does_not_know_are_left_aside(run, pair, tmp_path):
    fewer = save_fuser(tmp_path, msi_nm=MSI_NM[[1, 3]], name="fewer")
    _result, values = run(model=fewer)
    assert np.isfinite(values).all()


def test_bands_that_the_model_does_not_know_are_interpolated(run, tmp_path):
    most = save_fuser(tmp_path, hsi_nm=HSI_NM[:-2], name="most")
    listener = Listener()
    _result, values = run(listener, model=most)
    assert any("2 of 13 bands" in text for text in listener.infos)
    _result, plain = run(method="bicubic", model="auto")
    assert np.abs(values[-2:] - plain[-2:]).max() < 0.02
    assert np.abs(values[:-2] - plain[:-2]).max() > 0.05


def test_half_precision_is_for_the_network_alone(run, model, tmp_path):
    closed = save_fuser(tmp_path, name="closed", gate=0.0)
    options = {"back_projection": True}
    exact, expected = run(model=closed, **options)
    half, values = run(model=closed, precision="bfloat16", **options)
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert half["consistency_msi"] == pytest.approx(exact["consistency_msi"], rel=1e-4)
    _result, opened = run(model=model, precision="bfloat16", **options)
    assert np.abs(opened - expected).max() > 1e-3


def test_a_package_without_its_ratio_asked_for_brings_the_image_to_it(run, model, tmp_path):
    finer = write_pair(tmp_path, "finer", split=2)
    _result, values = run(of=finer, model=model)
    _result, expected = run(model=model)
    assert values.shape == expected.shape
    np.testing.assert_allclose(values, expected, atol=2e-3)


def test_a_package_for_another_ratio_is_refused(run, model):
    with pytest.raises(PackageError, match=r"made for a ratio of 3, not of 4"):
        run(model=model, ratio=4)


def test_a_package_for_other_bands_is_refused_with_the_table(run, tmp_path):
    swir = save_fuser(tmp_path, hsi_nm=np.linspace(1500, 2400, 13), name="swir")
    with pytest.raises(
        PackageError, match=r"'swir' is made for other bands than those of pair_hsi"
    ) as caught:
        run(model=swir)
    assert "too far" in caught.value.remedy


def test_a_package_for_other_fine_bands_is_refused_with_the_table(run, tmp_path):
    red_edge = save_fuser(tmp_path, msi_nm=[705.0, 740.0, 783.0, 860.0], name="edges")
    with pytest.raises(PackageError, match=r"'edges'.*pair_msi") as caught:
        run(model=red_edge)
    assert "705" in caught.value.remedy


def test_a_package_that_knows_too_few_of_the_bands_is_refused(run, tmp_path):
    few = save_fuser(tmp_path, hsi_nm=HSI_NM[:8], name="few")
    with pytest.raises(PackageError, match=r"sharpens 62% of the 13 usable bands"):
        run(model=few)


def test_without_wavelengths_the_number_of_bands_has_to_fit(run, model, tmp_path):
    bare = write_pair(tmp_path, "bare", hsi_nm=None, msi_nm=None)
    _result, values = run(of=bare, model=model)
    assert np.isfinite(values).all()
    fewer = write_pair(tmp_path, "fewer", hsi_nm=None, hsi_order=range(12))
    with pytest.raises(PackageError, match="reads 13 bands; fewer_hsi has 12, without wavelengths"):
        run(of=fewer, model=model)


def test_a_package_with_a_classical_method_is_refused(run, model):
    with pytest.raises(RequestError, match="'gsa' needs no model"):
        run(model=model, method="gsa")


def test_a_classifier_is_refused(run, tmp_path):
    network = model_of()
    classifier = save_package(str(tmp_path / "classifier"), info_of(network), network.state_dict())
    with pytest.raises(PackageError, match="does not fuse two images"):
        run(model=str(classifier))


def test_auto_takes_the_installed_package_that_fits(run, installed):
    save_fuser(installed, name="a-other-ratio", ratio=2)
    save_fuser(installed, name="b-other-bands", hsi_nm=np.linspace(1500, 2400, 13))
    save_fuser(installed, name="c-fits")
    result, _values = run(model="auto")
    with rasterio.open(result["output"]) as dataset:
        assert dataset.tags()["MODEL"] == "c-fits"


def test_auto_without_a_package_is_classical_and_says_so(run, installed, tmp_path):
    listener = Listener()
    report = tmp_path / "r.html"
    result, _values = run(listener, model="auto", report=str(report))
    assert result["method"] == "glphs"
    told = [text for text in listener.warnings if "No installed model" in text]
    assert len(told) == 1
    assert f"ratio of {RATIO}" in told[0]
    assert "No installed model" in report.read_text()


def test_the_report_of_a_package_names_it_and_its_licence(run, model, tmp_path):
    report = tmp_path / "r.html"
    run(model=model, report=str(report), back_projection=True)
    text = report.read_text()
    for words in (
        "CSAKD, back-projected",
        "Tiny test model",
        "CC-BY-SA-4.0",
        "If the model was trained",
    ):
        assert words in text

from __future__ import annotations

import re
from dataclasses import asdict
from html import unescape

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

from engine.errors import OutputError, PackageError, RequestError, SceneError
from engine.feedback import SilentFeedback
from engine.jobs.describe_model import Request, describe_model
from engine.models.backbone import BackboneConfig, HyperKDBackbone
from engine.packages.metadata import Normalisation, Quantity
from engine.packages.package import save_package
from engine.packages.parts import ModelParts
from engine.training.support_fit import fit_support
from tests.engine.packages.factory import (
    fusion_facts,
    tiny_bands,
    tiny_info,
    tiny_state,
)

HEIGHT, WIDTH = 17, 24


class Listener(SilentFeedback):
    def __init__(self):
        self.warnings, self.infos = [], []

    def warning(self, message):
        self.warnings.append(message)

    def info(self, message):
        self.infos.append(message)


@pytest.fixture
def model(tmp_path):
    return str(save_package(str(tmp_path / "tiny"), tiny_info(), tiny_state()))


@pytest.fixture
def write_scene(tmp_path):
    """A scene of int16 reflectance with non-square pixels; wavelengths in its bands' tags."""

    def write(wavelength_nm, fwhm_nm=6.5):
        path = tmp_path / "scene.tif"
        profile = {
            "driver": "GTiff",
            "height": HEIGHT,
            "width": WIDTH,
            "count": len(wavelength_nm),
            "dtype": "int16",
            "nodata": -32768,
            "crs": "EPSG:32633",
            "transform": Affine(30, 0, 389000, 0, -20, 5820000),
        }
        with rasterio.open(path, "w", **profile) as dataset:
            dataset.write(np.full((len(wavelength_nm), HEIGHT, WIDTH), 1200, dtype=np.int16))
            for band_number, wavelength in enumerate(wavelength_nm, start=1):
                dataset.set_band_description(band_number, f"scene band {band_number}")
                if np.isfinite(wavelength):
                    dataset.update_tags(
                        band_number,
                        wavelength=str(wavelength),
                        wavelength_units="Nanometers",
                        fwhm=str(fwhm_nm),
                    )
        return str(path)

    return write


@pytest.fixture
def describe(tmp_path):
    """Run the job; give its result, the page as text without tags, and what was said."""

    def run(**parameters):
        feedback = Listener()
        request = Request.parse({"report": str(tmp_path / "report.html"), **parameters})
        result = describe_model(request, feedback)
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        text = re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", page)))
        return result, page, text, feedback

    return run


def test_the_result_has_the_numbers(describe, model, tmp_path):
    result, *_ = describe(model=model)
    assert result | {"sha256": ""} == {
        "report": str(tmp_path / "report.html"),
        "name": "tiny-test",
        "classes": 3,
        "bands": 12,
        "sha256": "",
    }
    assert re.fullmatch("[0-9a-f]{64}", result["sha256"])


def test_the_page_says_what_the_model_is(describe, model):
    result, page, text, _ = describe(model=model)
    for expected in (
        "Tiny test model",
        "Three classes from twelve bands.",
        "CC-BY-SA-4.0",
        "Somebody, 2009",
        "13.200° E to 13.500° E, 52.400° N to 52.600° N",
        "20 August 2009 to 21 August 2009",
        "hyperkd-tiny, 39 parameters",
        "balanced accuracy 0.870",
        "nested.blocks 5",
        "Wasser/Water ö",
        result["sha256"],
    ):
        assert expected in text
    assert "background-color: #8fce5a" in page
    assert page.count("data:image/png;base64,") == 1


def test_the_page_says_what_is_known_of_confidence_and_support(describe, tmp_path):
    spectra = torch.rand(30, 12, generator=torch.Generator().manual_seed(0))
    support = fit_support(spectra, torch.arange(30) % 3, spectra)
    state = tiny_state() | ModelParts(support, 0.557).state()
    path = str(save_package(str(tmp_path / "told"), tiny_info(), state))
    _result, _page, text, _feedback = describe(model=path)
    assert "Confidence calibrated by a temperature of 0.56" in text
    assert "Support can be mapped" in text


def test_a_page_without_a_scene_matches_nothing(describe, model):
    *_, text, feedback = describe(model=model)
    assert "resampled" not in text
    assert feedback.warnings == []


def test_the_same_bands_are_shown_as_taken(describe, model, write_scene):
    _, page, text, feedback = describe(model=model, input=write_scene(tiny_bands().wavelength_nm))
    assert "12 bands are taken as they are, 0 are resampled" in text
    assert page.count(">same</td>") == 12
    assert "cannot be used" not in text
    assert "scene band 12" in feedback.infos[0]


def test_bands_are_matched_by_wavelength_and_not_by_order(describe, model, write_scene):
    *_, text, _ = describe(model=model, input=write_scene(tiny_bands().wavelength_nm[::-1]))
    assert re.search(r"band 1 423\.0 scene band 12 0\.0 same", text)


def test_finer_bands_are_shown_as_resampled(describe, model, write_scene):
    wavelength_nm = np.arange(400.0, 2460.0, 3.1)
    _, page, text, _ = describe(model=model, input=write_scene(wavelength_nm, fwhm_nm=3.0))
    resampled = page.count(">resampled</td>")
    assert resampled > 0
    assert f"{resampled} are resampled" in text


def test_a_gap_is_shown_with_the_reason(describe, model, write_scene):
    scene = write_scene(tiny_bands().wavelength_nm[:8])
    result, page, text, feedback = describe(model=model, input=scene)
    assert page.count(">too far</td>") == 4
    assert page.count(">same</td>") == 8
    assert "This model cannot be used on this scene. The scene has no bands near 4 of" in text
    assert any("no bands near 4 of the 12 bands" in warning for warning in feedback.warnings)
    assert result["bands"] == 12


def test_a_scene_without_wavelengths_is_shown_with_the_remedy(describe, model, write_scene):
    _, page, text, _ = describe(model=model, input=write_scene(np.full(12, np.nan)))
    assert "This model cannot be used on this scene." in text
    assert "has no wavelengths" in text
    assert "Give a band table" in text
    assert ">same</td>" not in page


def test_a_band_table_of_the_user_is_used(describe, model, write_scene, tmp_path):
    table = tmp_path / "bands.csv"
    rows = [f"{wavelength},6.5" for wavelength in tiny_bands().wavelength_nm]
    table.write_text("\n".join(["wavelength,fwhm", *rows]))
    scene = write_scene(np.full(12, np.nan))
    *_, text, _ = describe(model=model, input=scene, bands=str(table))
    assert "12 bands are taken as they are" in text


def test_names_from_a_package_cannot_inject_markup(describe, tmp_path):
    info = tiny_info(title="<script>alert(1)</script>", attribution="<img src=x>")
    model = str(save_package(str(tmp_path / "evil.zip"), info, tiny_state()))
    _, page, _, _ = describe(model=model)
    assert "<script" not in page
    assert "<img src=x>" not in page


def test_a_model_without_classes_scores_or_origin_is_described(describe, tmp_path):
    info = tiny_info(
        classes=(),
        task="generative",
        scores={},
        training={},
        training_area=None,
        training_period=None,
        attribution="",
    )
    model = str(save_package(str(tmp_path / "encoder"), info, tiny_state()))
    result, _, text, _ = describe(model=model)
    assert result["classes"] == 0
    assert "Scores" not in text
    assert "Training area" not in text


def test_a_model_of_a_quantity_says_what_it_estimates_and_in_which_range(describe, tmp_path):
    info = tiny_info(
        classes=(),
        task="regression",
        quantity=Quantity("clay", "%", 4.0, 61.25),
        scores={"rmse": 0.00123, "r2": 0.8},
    )
    model = str(save_package(str(tmp_path / "clay"), info, tiny_state()))
    _, _, text, _ = describe(model=model)
    assert "Estimates clay (%)" in text
    assert "Trained on values 4.000 to 61.25 %" in text
    assert "0.001230" in text  # a small unit needs more than three decimals


def test_a_fusion_says_which_two_images_it_needs(describe, tmp_path):
    info = tiny_info(**fusion_facts(), scores={"psnr_db": 31.25})
    path = str(save_package(str(tmp_path / "fuser"), info, tiny_state()))
    _, _, text, _ = describe(model=path)
    assert "Fuses an image of 12 bands with one of 2 whose pixels are 3 times finer" in text
    assert "64 px of the coarse image" in text
    assert "1 band 1 560.0 36.0 2 near infrared 842.0 \u2013" in text
    assert "31.25" in text


def test_a_backbone_says_what_its_encoder_is(describe, tmp_path):
    model = HyperKDBackbone(BackboneConfig(12, embed_dim=8, depth=1, num_heads=2, tile_size_px=8))
    info = tiny_info(
        classes=(), task="generative", architecture="hyperkd-backbone", config=asdict(model.config)
    )
    path = str(save_package(str(tmp_path / "backbone"), info, model.state_dict()))
    _, _, text, _ = describe(model=path)
    assert "1 blocks of width 8, tokens of 2 px, trained on tiles of 8 px" in text


def test_a_model_on_a_foundation_says_on_which_and_where_it_is(describe, tmp_path):
    foundation = {
        "name": "vit-large", "sha256": "ab" * 32, "kind": "scalemae", "licence": "CC-BY-NC-4.0",
        "source": "the authors' page",
    }  # fmt: skip
    info = tiny_info(architecture="spectralx-segmenter", config={"foundation": foundation})
    _, _, text, _ = describe(model=str(save_package(str(tmp_path / "seg"), info, tiny_state())))
    assert "Backbone vit-large (scalemae), which is not in the package" in text
    assert "Backbone's licence CC-BY-NC-4.0 Backbone from the authors' page" in text
    assert f"Backbone's SHA-256 {foundation['sha256']}" in text


def test_a_model_that_holds_all_of_itself_names_no_backbone(describe, model):
    _, _, text, _ = describe(model=model)
    assert "not in the package" not in text


def test_one_band_is_described(describe, tmp_path):
    bands = tiny_bands()
    one = type(bands)(
        bands.names[:1], bands.wavelength_nm[:1], bands.fwhm_nm[:1], bands.good[:1], "test"
    )
    info = tiny_info(bands=one, normalisation=Normalisation.of([0.1], [0.2]))
    model = str(save_package(str(tmp_path / "one"), info, tiny_state()))
    assert describe(model=model)[0]["bands"] == 1


def test_an_unknown_model_is_an_error(describe):
    with pytest.raises(PackageError, match="no model package 'nowhere'"):
        describe(model="nowhere")


def test_a_scene_that_is_not_there_is_an_error(describe, model, tmp_path):
    with pytest.raises(SceneError, match=r"gone\.tif"):
        describe(model=model, input=str(tmp_path / "gone.tif"))
    assert not (tmp_path / "report.html").exists()


def test_a_folder_that_is_not_there_is_an_error(describe, model, tmp_path):
    with pytest.raises(OutputError, match=r"report\.html cannot be written"):
        describe(model=model, report=str(tmp_path / "no folder" / "report.html"))


def test_a_request_without_a_report_is_refused():
    with pytest.raises(RequestError, match="report: Field required"):
        Request.parse({"model": "berlin"})

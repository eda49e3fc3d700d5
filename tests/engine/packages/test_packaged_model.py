"""The models that come with the plugin, and the real sensors that people have."""

from pathlib import Path

import pytest
import torch

from engine.models.fusion.method import ImagePair
from engine.packages import installed
from engine.packages.cache import load_model
from engine.packages.package import load_package
from engine.raster.sensors import sensor_table
from engine.raster.spectra import BandTable, match_bands

MODELS = Path(__file__).parents[3] / "resources" / "models"
TRAINED = ["berlin-enmap-landcover", "berlin-enmap-segmentation", "berlin-image-segmentation"]
SEGMENTERS = TRAINED[1:]
FUSION = "berlin-enmap-fusion"


@pytest.fixture(autouse=True)
def model_folders(monkeypatch, tmp_path):
    """Those of an installed plugin, not the empty ones of the other tests."""
    monkeypatch.setattr(installed, "plugin_models_folder", lambda: MODELS)
    monkeypatch.setenv(installed.USER_FOLDER_VARIABLE, str(tmp_path))


@pytest.mark.parametrize("name", ["berlin-enmap-landcover", "berlin-enmap-segmentation", FUSION])
@pytest.mark.parametrize("sensor", ["enmap", "prisma", "emit"])
def test_hyperspectral_models_fit_the_sensors_that_measure_their_range(name, sensor):
    model = load_package(str(MODELS / name)).info.bands
    table = sensor_table(sensor)
    scene = BandTable(table.names, table.wavelength_nm, table.fwhm_nm, table.good)
    match = match_bands(model, scene)
    assert len(match.rows) == len(model)
    assert max(row.distance_nm for row in match.rows) < 10


@pytest.mark.parametrize("name", [*TRAINED, FUSION])
def test_packages_name_no_folder_of_the_machine_they_were_trained_on(name):
    request = load_package(str(MODELS / name)).info.training["request"]
    keys = ("training", "output", "bands", "adapted")
    images = ("input", "hyperspectral", "multispectral")
    paths = [path for key in images for path in request.get(key, [])]
    paths += [request[key] for key in keys if key in request]
    assert not any(Path(path).is_absolute() for path in paths)


@pytest.mark.parametrize("name", TRAINED)
def test_packages_know_what_is_familiar_to_them_and_how_sure_they_may_be(name):
    loaded = load_model(str(MODELS / name), torch.device("cpu"))
    assert loaded.support is not None
    assert 0.2 < loaded.temperature < 5
    assert loaded.package.info.scores["iou_macro"] > 0.45


@pytest.mark.parametrize("name", SEGMENTERS)
def test_segmenters_hold_what_differs_from_the_packaged_backbone(name):
    package = load_package(str(MODELS / name))
    backbone = load_package("galileo-nano")
    assert package.info.config["foundation"]["sha256"] == backbone.sha256
    frozen = {f"adapted.vit.{key}" for key in backbone.state if "attn" in key}
    assert not frozen & set(package.state)


def test_the_network_of_the_image_segmenter_answers():
    package = load_package(str(MODELS / "berlin-image-segmentation"))
    assert package.info.training["network_weight"] == 1
    assert package.info.tiling.blend


def test_the_fusion_is_small_enough_to_come_with_the_plugin():
    files = (MODELS / FUSION).iterdir()
    assert sum(path.stat().st_size for path in files) < 3_000_000


def test_the_fusion_is_better_than_every_classical_method_where_it_was_not_trained():
    info = load_package(str(MODELS / FUSION)).info
    others = info.training["scores_of_others"]
    for name in ("bicubic", "gsa", "glphs", "cnmf"):
        assert info.scores["psnr_db"] > others[name]["psnr_db"]
        assert info.scores["sam_deg"] < others[name]["sam_deg"]


def test_the_fusion_answers_for_a_pair():
    loaded = load_model(str(MODELS / FUSION), torch.device("cpu"))
    info = loaded.package.info
    pair = ImagePair(
        torch.full((1, len(info.bands), 4, 5), 0.2),
        torch.full((1, len(info.fine_bands), 4 * info.ratio, 5 * info.ratio), 0.2),
        torch.ones(1, 4, 5, dtype=torch.bool),
        torch.ones(1, 4 * info.ratio, 5 * info.ratio, dtype=torch.bool),
    )
    fused = loaded.module(pair)
    assert fused.shape == (1, len(info.bands), 4 * info.ratio, 5 * info.ratio)
    assert -0.1 < float(fused.min()) < float(fused.max()) < 0.6

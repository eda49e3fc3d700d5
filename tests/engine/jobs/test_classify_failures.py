from pathlib import Path

import pytest

from engine.errors import (
    CancelledError,
    OutputError,
    PackageError,
    RequestError,
    SceneError,
)
from engine.feedback import SilentFeedback
from engine.jobs.classify import classify
from engine.packages.metadata import Quantity
from engine.raster.writer import RasterWriter
from tests.engine.jobs.brightest import NODATA, Listener, brightest_scene, left_in


@pytest.mark.parametrize("cancel_at", [0.0, 0.02, 0.95])
def test_cancelled_run_leaves_nothing(request_of, tmp_path, cancel_at):
    folder = tmp_path / "out"
    request = request_of(
        confidence=str(folder / "confidence.tif"), probabilities=str(folder / "shares.tif")
    )
    with pytest.raises(CancelledError):
        classify(request, Listener(cancel_at=cancel_at))
    assert left_in(folder) == []


def test_map_that_cannot_be_finished_takes_the_others_with_it(request_of, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    finish = RasterWriter.finish

    def finish_all_but_the_map(writer):
        if writer._path.name == "map.tif":
            raise OutputError("The disk is full.")
        finish(writer)

    monkeypatch.setattr(RasterWriter, "finish", finish_all_but_the_map)
    with pytest.raises(OutputError, match="The disk is full"):
        classify(request_of(confidence=str(folder / "confidence.tif")), SilentFeedback())
    assert left_in(folder) == []


def test_failed_run_keeps_the_older_map(request_of, make_raster, tmp_path):
    request = request_of()
    classify(request, SilentFeedback())
    before = Path(request.output).read_bytes()
    broken = make_raster("broken.tif", array=brightest_scene()[0], scale=1e-4, nodata=NODATA)
    content = Path(broken.path).read_bytes()
    Path(broken.path).write_bytes(content[: len(content) // 2])
    with pytest.raises(SceneError, match=r"broken\.tif"):
        classify(request_of(input=broken.path), SilentFeedback())
    assert Path(request.output).read_bytes() == before
    assert left_in(tmp_path / "out") == ["map.qml", "map.tif", "map.tif.aux.xml"]


@pytest.mark.parametrize("name", ["output", "confidence", "probabilities"])
def test_scene_cannot_be_an_output(request_of, scene, name):
    before = Path(scene).read_bytes()
    with pytest.raises(OutputError, match="is also an input"):
        classify(request_of(**{name: scene}), SilentFeedback())
    assert Path(scene).read_bytes() == before


def test_missing_output_folder_is_named(request_of, tmp_path):
    with pytest.raises(OutputError, match=r"missing of the output map\.tif does not exist"):
        classify(request_of(output=str(tmp_path / "missing" / "map.tif")), SilentFeedback())


def test_encoder_is_refused(request_of, save_model):
    with pytest.raises(PackageError, match="is for pre-training, not for classification"):
        classify(request_of(model=save_model(task="generative")), SilentFeedback())


def test_model_of_a_quantity_is_refused_and_its_algorithm_named(request_of, save_model):
    quantity = Quantity("clay", "%", 0.0, 60.0)
    model = save_model(task="regression", classes=(), quantity=quantity)
    with pytest.raises(PackageError, match="is for estimates of a quantity") as refusal:
        classify(request_of(model=model), SilentFeedback())
    assert "'Estimate a quantity' takes this one" in refusal.value.remedy


def test_fusion_is_refused_and_its_algorithm_named(request_of):
    with pytest.raises(PackageError, match="is for fusing two images, not for") as refusal:
        classify(request_of(model="berlin-enmap-fusion"), SilentFeedback())
    assert "'Fuse a hyperspectral and a multispectral image' takes this" in refusal.value.remedy


def test_unknown_model_is_refused(request_of):
    with pytest.raises(PackageError, match="There is no model package 'nothing'"):
        classify(request_of(model="nothing"), SilentFeedback())


@pytest.mark.parametrize("tile_size", [15, 4097, "large"])
def test_tile_size_out_of_range_is_refused(request_of, tile_size):
    with pytest.raises(RequestError, match="tile_size"):
        request_of(tile_size=tile_size)

"""Calibrated confidence and support, as classify writes them."""

import numpy as np
import pytest
import rasterio
import torch

from engine.errors import OutputError, PackageError
from engine.feedback import SilentFeedback
from engine.jobs.classify import classify
from engine.packages.parts import ModelParts
from engine.training.support_fit import fit_support
from tests.engine.conftest import BANDS, HEIGHT, WIDTH
from tests.engine.jobs.brightest import Listener, brightest_scene, left_in, read


def spectra_of(array):
    return torch.from_numpy(array.reshape(BANDS, -1).T.astype(np.float32) * 1e-4)


@pytest.fixture
def parts():
    """What a model knows that was trained on this kind of scene, with a temperature of 4."""
    spectra = spectra_of(brightest_scene(seed=1)[0])
    label = spectra[:, :3].argmax(dim=1)
    return ModelParts(fit_support(spectra, label, spectra_of(brightest_scene(seed=2)[0])), 4.0)


@pytest.fixture
def map_of(request_of, save_model, tmp_path):
    """Classify with some outputs; their values by name."""

    def make(parts=None, feedback=None, names=("confidence", "probabilities"), **parameters):
        paths = {name: str(tmp_path / "out" / f"{name}.tif") for name in names}
        request = request_of(model=save_model(parts=parts), **paths, **parameters)
        result = classify(request, feedback or SilentFeedback())
        assert {name: result[name] for name in paths} == paths
        return {name: read(result[name]) for name in ("output", *names)}

    return make


def test_the_temperature_changes_no_class_and_makes_confidence_lower(map_of):
    sharp, soft = map_of(ModelParts(temperature=40.0)), map_of(ModelParts(temperature=80.0))
    np.testing.assert_array_equal(sharp["output"], soft["output"])
    there = sharp["output"][0] > 0
    expected = torch.from_numpy(sharp["probabilities"][:, there]).log().div(2).softmax(dim=0)
    np.testing.assert_allclose(soft["probabilities"][:, there], expected.numpy(), rtol=1e-4)
    assert soft["confidence"][0][there].max() < sharp["confidence"][0][there].min()


def test_a_package_of_before_is_as_sure_as_it_was(map_of):
    before, after = map_of(), map_of(ModelParts(temperature=1.0))
    np.testing.assert_array_equal(before["probabilities"], after["probabilities"])


def test_a_scene_like_the_training_reads_as_familiar(map_of, parts):
    made = map_of(parts, names=("support",))
    there = made["output"][0] > 0
    support = made["support"][0]
    assert np.isnan(support[~there]).all()
    assert (support[there] >= 0.5).mean() > 0.85
    assert support[there].max() <= 1


def test_what_training_had_not_does_not(map_of, make_raster, parts):
    array, _classes = brightest_scene()
    array[:, 10:14, 5:9] = 9000  # bright in all bands: nothing like that was there
    scene = make_raster("strange.tif", array=array, scale=1e-4).path
    support = map_of(parts, names=("support",), input=scene)["support"][0]
    assert support[10:14, 5:9].max() < 0.05
    assert np.median(support) > 0.5


def test_support_is_a_band_of_its_own_beside_the_probabilities(map_of, parts):
    names = ("support", "probabilities", "confidence")
    made = map_of(parts, names=names)
    there = made["output"][0] > 0
    np.testing.assert_allclose(made["probabilities"][:, there].sum(axis=0), 1, rtol=1e-5)
    np.testing.assert_array_equal(
        made["confidence"][0][there], made["probabilities"][:, there].max(axis=0)
    )


def test_support_of_a_blended_model_is_that_of_each_pixel(request_of, save_model, tmp_path, parts):
    made = []
    for name, gate in (("alone", 0.0), ("blended", 1.0)):
        path = str(tmp_path / f"{name}.tif")
        classify(request_of(model=save_model(gate, parts), support=path), SilentFeedback())
        made.append(read(path))
    np.testing.assert_allclose(made[0], made[1], rtol=1e-4, atol=1e-6)


def test_support_has_the_grid_and_look_of_the_other_numbers(
    request_of, save_model, tmp_path, parts
):
    path = tmp_path / "support.tif"
    classify(request_of(model=save_model(parts=parts), support=str(path)), SilentFeedback())
    with rasterio.open(path) as dataset:
        assert (dataset.dtypes, dataset.descriptions) == (("float32",), ("support",))
        assert dataset.shape == (HEIGHT, WIDTH) and np.isnan(dataset.nodata)
    assert "singlebandpseudocolor" in path.with_suffix(".qml").read_text("utf-8")


def test_a_map_far_from_the_training_is_warned_about(map_of, make_raster, parts):
    far = make_raster("far.tif", array=brightest_scene()[0] // 5 + 4000, scale=1e-4).path
    listener = Listener()
    map_of(parts, listener, ("support",), input=far)
    assert any("100.0% of the pixels have a support below 0.5" in w for w in listener.warnings)


def test_a_map_of_familiar_ground_is_not(map_of, parts):
    listener = Listener()
    map_of(parts, listener, ("support",))
    assert listener.warnings == []
    assert any("of the pixels have a support below 0.5" in info for info in listener.infos)


def test_a_package_without_statistics_says_so_before_it_works(request_of, tmp_path):
    with pytest.raises(PackageError, match="'brightest' cannot say what is familiar to it"):
        classify(request_of(support=str(tmp_path / "out" / "s.tif")), SilentFeedback())
    assert left_in(tmp_path / "out") == []


def test_the_scene_cannot_be_the_support(request_of, save_model, scene, parts):
    with pytest.raises(OutputError, match="is also an input"):
        classify(request_of(model=save_model(parts=parts), support=scene), SilentFeedback())

"""From a request file to a map: ``python -m engine run`` as a process of its own, on real files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

from engine.models.classifier import ClassifierConfig, HyperKDClassifier
from engine.packages.package import save_package
from tests.engine.packages.factory import BAND_COUNT, tiny_bands, tiny_info

ROOT = Path(__file__).resolve().parents[3]
DATA = Path(os.environ.get("HYPERKD_DATA", ROOT.parent / "shared" / "data"))
HEIGHT, WIDTH = 17, 24
NODATA = -32768
TRANSFORM = Affine(30, 0, 389000, 0, -20, 5820000)  # pixels are not square
CLASS_VALUES = (1, 4, 200)


def run(folder, command, **parameters):
    """Run one job as a script would; give the exit code and the events on standard output."""
    request = folder / "request.json"
    request.write_text(json.dumps({"command": command, "parameters": parameters}))
    process = subprocess.run(
        [sys.executable, "-m", "engine", "run", str(request)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert process.stdout.strip(), process.stderr
    return process.returncode, [json.loads(line) for line in process.stdout.splitlines()]


def failure(folder, command, **parameters):
    """Run a job that must fail; give its error, and what it said before."""
    code, events = run(folder, command, **parameters)
    assert code != 0
    assert [event["event"] for event in events].count("result") == 0
    assert events[-1]["event"] == "error"
    return events[-1], events[:-1]


def make_digital_numbers():
    """(C, h, w) int16, reflectance x 10,000, with a corner of nodata and one pixel half empty."""
    generator = np.random.default_rng(3)
    dn = generator.integers(200, 6000, (BAND_COUNT, HEIGHT, WIDTH)).astype(np.int16)
    dn[:, :5, :7] = NODATA
    dn[3, 10, 11] = NODATA
    return dn


def write_scene(path, dn, wavelength_nm, names=None):
    profile = {
        "driver": "GTiff",
        "height": HEIGHT,
        "width": WIDTH,
        "count": len(dn),
        "dtype": "int16",
        "nodata": NODATA,
        "crs": "EPSG:32633",
        "transform": TRANSFORM,
    }
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(dn)
        for band_number, wavelength in enumerate(wavelength_nm, start=1):
            dataset.update_tags(
                band_number,
                wavelength=str(wavelength),
                wavelength_units="Nanometers",
                fwhm="6.5",
            )
    return str(path)


def make_model():
    torch.manual_seed(5)
    model = HyperKDClassifier(ClassifierConfig(in_channels=BAND_COUNT, num_classes=3)).eval()
    with torch.no_grad():
        for name, tensor in model.spectral.named_parameters():
            tensor.copy_(torch.randn(tensor.shape) * (1.0 if name == "weight" else 0.1))
    return model


def expected_probabilities(dn):
    """The model on the whole image at once: what the streamed map must be."""
    valid = (dn != NODATA).all(axis=0)
    reflectance = torch.from_numpy(np.where(valid, dn, 0).astype(np.float32) * np.float32(1e-4))
    with torch.no_grad():
        logits = make_model()(reflectance[None], torch.from_numpy(valid)[None])
    return logits.softmax(dim=1)[0].numpy(), valid


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model package and a scene that it was made for."""
    folder = tmp_path_factory.mktemp("end to end")
    model = make_model()
    info = tiny_info(
        architecture="hyperkd-classifier",
        config={"in_channels": BAND_COUNT, "num_classes": 3},
        tiling=type(tiny_info().tiling)(model.tile_size_px, model.halo_px, model.blend),
    )
    save_package(str(folder / "model.zip"), info, model.state_dict())
    write_scene(folder / "scene.tif", make_digital_numbers(), tiny_bands().wavelength_nm)
    return folder


@pytest.fixture(scope="module")
def classified(place):
    """One whole run: exit code, events, and the folder with its three rasters."""
    code, events = run(
        place,
        "classify",
        input=str(place / "scene.tif"),
        model=str(place / "model.zip"),
        output=str(place / "map.tif"),
        confidence=str(place / "confidence.tif"),
        probabilities=str(place / "probabilities.tif"),
        device="cpu",
        precision="float32",
    )
    assert code == 0, events[-1]
    return events, place


def test_the_last_line_is_the_result(classified):
    events, place = classified
    assert [event["event"] for event in events].count("result") == 1
    assert events[-1]["event"] == "result"
    result = events[-1]["result"]
    assert result["output"] == str(place / "map.tif")
    assert result["confidence"] == str(place / "confidence.tif")
    assert result["probabilities"] == str(place / "probabilities.tif")
    assert result["valid_pixels"] == HEIGHT * WIDTH - 5 * 7 - 1
    assert result["seconds"] > 0
    assert result["device"] == "cpu"


def test_progress_moves_forward_to_the_end(classified):
    fractions = [event["fraction"] for event in classified[0] if event["event"] == "progress"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1


def test_the_log_shows_the_match_of_the_bands(classified):
    messages = "\n".join(event["message"] for event in classified[0] if event["event"] == "info")
    assert messages.count("same") >= BAND_COUNT
    assert "band 12" in messages


def test_the_request_that_repeats_the_run_is_logged(classified):
    messages = [event["message"] for event in classified[0] if event["event"] == "info"]
    assert any('"command": "classify"' in message for message in messages)


def test_the_map_is_what_the_model_says_of_the_whole_image(classified):
    probabilities, valid = expected_probabilities(make_digital_numbers())
    expected = np.array(CLASS_VALUES)[probabilities.argmax(axis=0)]
    with rasterio.open(classified[1] / "map.tif") as dataset:
        classes = dataset.read(1)
    assert len(np.unique(expected[valid])) > 1  # else the comparison would prove little
    np.testing.assert_array_equal(classes, np.where(valid, expected, 0))


def test_confidence_is_the_largest_probability(classified):
    probabilities, valid = expected_probabilities(make_digital_numbers())
    with rasterio.open(classified[1] / "confidence.tif") as dataset:
        confidence = dataset.read(1)
    np.testing.assert_allclose(confidence[valid], probabilities.max(axis=0)[valid], atol=1e-6)
    assert np.isnan(confidence[~valid]).all()


def test_probabilities_are_those_of_the_model(classified):
    expected, valid = expected_probabilities(make_digital_numbers())
    with rasterio.open(classified[1] / "probabilities.tif") as dataset:
        probabilities = dataset.read()
        assert dataset.descriptions == ("Low vegetation", "Wasser/Water ö", "Roof")
    np.testing.assert_allclose(probabilities[:, valid], expected[:, valid], atol=1e-6)


@pytest.mark.parametrize("name", ["map.tif", "confidence.tif", "probabilities.tif"])
def test_outputs_have_exactly_the_grid_of_the_scene(classified, name):
    with rasterio.open(classified[1] / name) as dataset:
        assert (dataset.height, dataset.width) == (HEIGHT, WIDTH)
        assert dataset.transform == TRANSFORM
        assert dataset.crs.to_epsg() == 32633


def test_nothing_half_written_is_left(classified):
    names = {path.name for path in classified[1].iterdir()}
    assert not [name for name in names if "part" in name or "tmp" in name or name.startswith(".")]


def test_shuffled_bands_give_the_same_map(classified):
    folder = classified[1]
    order = np.random.default_rng(1).permutation(BAND_COUNT)
    scene = write_scene(
        folder / "shuffled.tif",
        make_digital_numbers()[order],
        tiny_bands().wavelength_nm[order],
    )
    code, events = run(
        folder,
        "classify",
        input=scene,
        model=str(folder / "model.zip"),
        output=str(folder / "shuffled map.tif"),
        device="cpu",
        precision="float32",
    )
    assert code == 0, events[-1]
    with (
        rasterio.open(folder / "map.tif") as first,
        rasterio.open(folder / "shuffled map.tif") as second,
    ):
        np.testing.assert_array_equal(first.read(), second.read())


def test_wrong_bands_are_refused_with_the_table(place):
    scene = write_scene(
        place / "visible.tif", make_digital_numbers(), np.linspace(423.03, 900.0, BAND_COUNT)
    )
    error, _ = failure(
        place,
        "classify",
        input=scene,
        model=str(place / "model.zip"),
        output=str(place / "refused.tif"),
        device="cpu",
    )
    assert error["error"] == "BandMatchError"
    assert "The scene has no bands near" in error["message"]
    rows = [line for line in error["remedy"].splitlines() if line.endswith("too far")]
    assert any(line.startswith("band 12 ") and "2438.6" in line for line in rows)
    assert not (place / "refused.tif").exists()


def test_a_damaged_package_is_refused_before_work_begins(place):
    damaged = place / "damaged.zip"
    damaged.write_bytes((place / "model.zip").read_bytes()[:-100])
    error, before = failure(
        place,
        "classify",
        input=str(place / "scene.tif"),
        model=str(damaged),
        output=str(place / "never.tif"),
        device="cpu",
    )
    assert error["error"] == "PackageError"
    assert "is not a whole zip file" in error["message"]
    assert error["remedy"] == "Copy or download the package again."
    assert all(event.get("fraction", 0) == 0 for event in before)
    assert not (place / "never.tif").exists()


def test_describe_model_answers_the_same_way(place):
    code, events = run(
        place,
        "describe_model",
        model=str(place / "model.zip"),
        input=str(place / "scene.tif"),
        report=str(place / "report.html"),
    )
    assert code == 0, events[-1]
    result = events[-1]["result"]
    assert (result["name"], result["classes"], result["bands"]) == ("tiny-test", 3, BAND_COUNT)
    assert "12 bands are taken as they are" in Path(result["report"]).read_text(encoding="utf-8")


def real_scene():
    """The packaged Berlin scene, or the data folder's; a skip says when neither is there."""
    found = [
        path
        for folder in (ROOT / "resources" / "sample", DATA / "berlin")
        for path in sorted(folder.glob("*"))
        if "enmap" in path.name.lower() and path.suffix in (".tif", ".bsq")
    ]
    if not found:
        pytest.skip("no EnMAP scene in resources/sample, and HYPERKD_DATA has no berlin folder")
    return found[0]


def packaged_model():
    """The folder of the classifier that the plugin brings."""
    return ROOT / "resources" / "models" / "berlin-enmap-landcover"


def test_the_packaged_model_classifies_the_real_scene(tmp_path):
    model, scene = packaged_model(), real_scene()
    code, events = run(
        tmp_path,
        "classify",
        input=str(scene),
        model=model.name,
        output=str(tmp_path / "berlin.tif"),
        device="cpu",
    )
    assert code == 0, events[-1]
    classes = json.loads((model / "model.json").read_text(encoding="utf-8"))["properties"][
        "mlm:output"
    ][0]["classification:classes"]
    with rasterio.open(scene) as source, rasterio.open(tmp_path / "berlin.tif") as result:
        assert (result.height, result.width) == (source.height, source.width)
        assert result.transform == source.transform
        found = set(np.unique(result.read(1))) - {0}
    assert found <= {part["value"] for part in classes}
    assert len(found) >= 4

"""A training that is killed in the middle goes on to the same weights as one that was not."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.packages.package import load_package
from tests.engine.jobs.made_landscape import FWHM_NM, WAVELENGTH_NM, landscape
from tests.engine.jobs.made_pairs import write_pair

ROOT = Path(__file__).resolve().parents[3]

# Three processes, each of which imports torch and trains for some seconds.
pytestmark = pytest.mark.slow


@pytest.fixture
def scene(make_raster):
    return make_raster(
        "scene.tif", array=landscape(), wavelength_nm=WAVELENGTH_NM, fwhm_nm=FWHM_NM, scale=1e-4
    ).path


@pytest.fixture
def distillation(scene):
    return "distill_backbone", {"input": scene, "epochs": 40, "batch_size": 4}


@pytest.fixture
def fusion(tmp_path):
    pair = write_pair(tmp_path, height=36, width=30)
    images = {"hyperspectral": pair.hsi, "multispectral": pair.msi}
    return "train_fusion", images | {"epochs": 12}


@pytest.fixture
def start(tmp_path):
    def run(command, output, **parameters):
        name, given = command
        request = tmp_path / f"{output}.json"
        fixed = {"device": "cpu", "seed": 5, "output": str(tmp_path / output)}
        request.write_text(json.dumps({"command": name, "parameters": given | fixed | parameters}))
        return subprocess.Popen(
            [sys.executable, "-m", "engine", "run", str(request)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    return run


def events_of(process):
    out, _err = process.communicate(timeout=300)
    assert process.returncode == 0, out[-2000:]
    return [json.loads(line) for line in out.splitlines()]


def wait_for(path, process, timeout_s=120):
    end_s = time.monotonic() + timeout_s
    while not path.exists():
        assert process.poll() is None, "the run ended before its first checkpoint"
        assert time.monotonic() < end_s, "no checkpoint was written"
        time.sleep(0.02)


@pytest.mark.parametrize("kind", ["distillation", "fusion"])
def test_a_killed_run_goes_on_to_the_same_weights(kind, start, tmp_path, request):
    command = request.getfixturevalue(kind)
    events_of(start(command, "whole.zip"))
    killed = start(command, "killed.zip")
    checkpoint = tmp_path / "killed.zip.checkpoint.safetensors"
    wait_for(checkpoint, killed)
    time.sleep(0.5)  # into the epochs after the checkpoint
    assert killed.poll() is None
    killed.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    killed.communicate()
    assert not (tmp_path / "killed.zip").exists()
    events = events_of(start(command, "killed.zip", resume=True))
    texts = [event["message"] for event in events if event["event"] == "info"]
    assert any(text.startswith("Going on after step") for text in texts)
    whole, resumed = (load_package(str(tmp_path / f"{n}.zip")) for n in ("whole", "killed"))
    assert resumed.sha256 == whole.sha256
    assert resumed.info.scores == whole.info.scores
    assert not checkpoint.exists()

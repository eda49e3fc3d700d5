"""What the tests of classify share: a scene and a model whose right answer is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.jobs.classify import Request
from engine.packages.package import save_package
from tests.engine.jobs.brightest import NODATA, brightest_scene, info_of, model_of


@pytest.fixture
def save_model(tmp_path):
    def save(gate=0.0, parts=None, **changes):
        model = model_of(gate=gate)
        path = tmp_path / "models" / "brightest"
        path.parent.mkdir(exist_ok=True)
        state = model.state_dict() | ({} if parts is None else parts.state())
        return str(save_package(str(path), info_of(model, **changes), state))

    return save


@pytest.fixture
def scene(make_raster):
    array, _expected = brightest_scene()
    return make_raster(array=array, scale=1e-4, nodata=NODATA, nodata_corner=True).path


@pytest.fixture
def expected():
    _array, classes = brightest_scene()
    classes[:4, :5] = 0
    return classes


@pytest.fixture
def request_of(tmp_path, scene, save_model):
    model = save_model()

    def make(**parameters):
        output = str(tmp_path / "out" / "map.tif")
        Path(output).parent.mkdir(exist_ok=True)
        return Request.parse({"input": scene, "model": model, "output": output} | parameters)

    return make

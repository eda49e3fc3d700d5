import builtins
import importlib
import shutil
from collections import namedtuple

import pytest

from engine.errors import CancelledError, DeviceError, OutputError
from engine.feedback import SilentFeedback
from engine.jobs import check_engine as module
from engine.jobs.check_engine import Request, available_memory_bytes, check_engine
from engine.version import engine_version


@pytest.fixture(autouse=True)
def no_models(monkeypatch, tmp_path):
    """What is installed on the developer's machine is not the test's business."""
    from engine.packages import installed

    monkeypatch.setattr(installed, "plugin_models_folder", lambda: tmp_path / "none")
    monkeypatch.setenv(installed.USER_FOLDER_VARIABLE, str(tmp_path / "models"))
    return tmp_path / "models"


def check():
    return check_engine(Request(), SilentFeedback())


def test_engine_that_works_is_ready():
    result = check()
    assert result["ok"], result["text"]
    assert f"The engine of HyperKD {engine_version()} is ready." in result["text"]
    assert "every pixel is right" in result["text"]
    assert 0 < result["seconds"] < 60
    assert "What to do" not in result["text"]


def test_report_is_the_text(tmp_path):
    path = tmp_path / "report.txt"
    result = check_engine(Request(report=str(path)), SilentFeedback())
    assert result["report"] == str(path)
    assert path.read_text("utf-8") == result["text"]


def test_report_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        check_engine(Request(report=str(tmp_path / "missing" / "r.txt")), SilentFeedback())


@pytest.mark.parametrize("name", ["torch", "rasterio", "scikit-learn", "GDAL", "Python"])
def test_versions_are_listed(name):
    assert f"  {name} " in check()["text"]


def test_missing_library_is_named_with_the_remedy(monkeypatch):
    real = importlib.import_module

    def import_module(name, *rest):
        if name == "einops":
            raise ImportError("No module named 'einops'")
        return real(name, *rest)

    monkeypatch.setattr(module, "import_module", import_module)
    result = check()
    assert not result["ok"]
    assert "has something missing" in result["text"]
    assert "einops: Set the engine up again" in result["text"]


def test_engine_without_rasterio_still_reports(monkeypatch):
    real = builtins.__import__

    def import_without(name, *rest, **keywords):
        if name.startswith("engine.raster"):
            raise ModuleNotFoundError("No module named 'rasterio'")
        return real(name, *rest, **keywords)

    monkeypatch.setattr(builtins, "__import__", import_without)
    result = check()
    assert not result["ok"]
    assert "No module named 'rasterio'" in result["text"]


def test_error_of_a_section_is_a_finding(monkeypatch):
    def fail():
        raise DeviceError("The GPU is on holiday.", "Wait for it.")

    monkeypatch.setattr(module, "find_device", fail)
    result = check()
    assert "The GPU is on holiday." in result["text"]
    assert "Device: Wait for it." in result["text"]


def test_wrong_result_of_the_pipeline_is_found(monkeypatch):
    identity = module._Identity.__call__

    def off_by_one(model, reflectance, valid):
        values = identity(model, reflectance, valid).clone()
        values[..., 0] += 1e-4
        return values

    monkeypatch.setattr(module._Identity, "__call__", off_by_one)
    result = check()
    assert not result["ok"]
    assert "values are wrong" in result["text"]


def test_full_disk_is_found(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: usage(10**9, 10**9, 10**6))
    assert "Free some space" in check()["text"]


def test_scarce_memory_is_found(monkeypatch):
    monkeypatch.setattr(module, "available_memory_bytes", lambda: 10**8)
    assert "Close other programs." in check()["text"]


def test_memory_of_this_machine_is_known():
    assert 10**7 < available_memory_bytes() < 10**14


def test_damaged_model_is_named(no_models):
    folder = no_models / "broken-model"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text("{}")
    (folder / "weights.safetensors").write_bytes(b"")
    result = check()
    assert not result["ok"]
    assert "broken-model" in result["text"]


def test_cancel_is_heard():
    class Cancelled(SilentFeedback):
        def raise_if_cancelled(self):
            raise CancelledError

    with pytest.raises(CancelledError):
        check_engine(Request(), Cancelled())

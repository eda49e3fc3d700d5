"""Trainings on several devices through what the jobs share: on two CPUs, for want of GPUs."""

import numpy as np
import pytest
import torch

from engine.device import choose_device
from engine.errors import DeviceError, RequestError
from engine.feedback import SilentFeedback
from engine.jobs.distill_backbone import Request
from engine.jobs.shared.masked_training import Devices, choose_devices, train
from engine.models.mae import PRESETS
from engine.packages.teachers import load_teacher
from engine.raster.scene import open_scene
from engine.training.distillation import DistillationSettings, DistillationTask, open_tiles
from engine.training.run_checkpoint import RunCheckpoint
from tests.engine.jobs.made_landscape import FWHM_NM, WAVELENGTH_NM, landscape


def request(**parameters):
    return Request.parse({"input": "scene.tif", "output": "backbone.zip"} | parameters)


@pytest.mark.slow
def test_two_processes_train_one_student(make_raster, tmp_path):
    """Slow: two processes import torch."""
    path = make_raster(
        array=landscape(), wavelength_nm=WAVELENGTH_NM, fwhm_nm=FWHM_NM, scale=1e-4
    ).path
    tiles = open_tiles([open_scene(path)], PRESETS["laptop"], feedback=SilentFeedback())
    settings = DistillationSettings(epochs=3, batch_tiles=4)
    task = DistillationTask(tiles, load_teacher("galileo-nano"), settings)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    devices = Devices(choose_device("cpu"), 2, "32-true")
    checkpoint = RunCheckpoint(tmp_path / "run.safetensors", {})
    trained, run = train(task, tiles, settings.fit, devices, checkpoint, None, SilentFeedback())
    kept = checkpoint.load().tensors
    for name, value in trained.student.state_dict().items():
        assert torch.equal(value, kept[f"model.{name}"])
    assert not torch.equal(
        before["encoder.cls_token"], trained.student.state_dict()["encoder.cls_token"]
    )
    assert [row["epoch"] for row in trained.history.rows] == [1, 2, 3]
    assert np.isfinite(trained.scores.psnr_db)
    assert run.tiles_per_second > 0


def test_a_cpu_computes_in_float32_unless_told_otherwise():
    assert choose_devices(request(device="cpu"), SilentFeedback()).precision == "32-true"
    told = choose_devices(request(device="cpu", precision="bfloat16"), SilentFeedback())
    assert told.precision == "bf16-mixed"


def test_more_gpus_than_there_are_cannot_be_had(monkeypatch):
    with pytest.raises(DeviceError, match="3 GPUs were asked for, and none can be used"):
        choose_devices(request(device="cpu", gpus=3), SilentFeedback())


def test_a_batch_must_be_shared_evenly(monkeypatch):
    choice = choose_device("cpu")
    cuda = type(choice)(torch.device("cuda", 0), "made up", "bfloat16")
    monkeypatch.setattr("engine.jobs.shared.masked_training.choose_device", lambda *_: cuda)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    with pytest.raises(RequestError, match="A step of 6 tiles cannot be shared by 4 GPUs"):
        choose_devices(request(gpus=4, batch_size=6), SilentFeedback())
    devices = choose_devices(request(gpus=4, batch_size=8), SilentFeedback())
    assert (devices.count, devices.precision) == (4, "bf16-mixed")
    assert devices.text == "4 GPUs, the first: cuda:0 (made up), bfloat16"

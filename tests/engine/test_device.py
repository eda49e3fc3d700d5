import pytest
import torch

from engine import device as device_module
from engine.device import choose_device
from engine.errors import DeviceError

NO_GPU = ("", "CUDA is not available: torch 2.13.0+cpu is a CPU build")
GPU = ("NVIDIA H200, 139 GiB", "")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(device_module, "_probe_cuda", lambda: NO_GPU)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(device_module, "_probe_cuda", lambda: GPU)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)


def make_cpu(monkeypatch, *, native, speedup):
    monkeypatch.setattr(device_module, "has_native_bfloat16", lambda: native)
    monkeypatch.setattr(device_module, "bfloat16_speedup", lambda: speedup)


@pytest.mark.parametrize("wish", ["auto", "cuda"])
def test_cpu_comes_with_the_reason(no_gpu, wish):
    choice = choose_device(wish)
    assert choice.device == torch.device("cpu")
    assert choice.reason.startswith(NO_GPU[1] + "; using the CPU with ")


@pytest.mark.parametrize("wish", ["auto", "cuda"])
def test_required_gpu_makes_the_cpu_an_error(no_gpu, wish):
    with pytest.raises(DeviceError, match=r"A GPU is required and cannot be used: CUDA is not"):
        choose_device(wish, require_gpu=True)


def test_required_gpu_contradicts_the_cpu(gpu):
    with pytest.raises(DeviceError, match="but the CPU was chosen"):
        choose_device("cpu", require_gpu=True)


def test_cpu_is_not_replaced_by_a_gpu(gpu):
    choice = choose_device("cpu")
    assert choice.device.type == "cpu"
    assert choice.reason.startswith("The CPU was asked for")


def test_gpu_that_works_is_used(gpu):
    choice = choose_device()
    assert (choice.device.type, choice.reason) == ("cuda", GPU[0])


def test_gpu_that_only_emulates_bfloat16_runs_in_float32(gpu):
    assert choose_device().precision == "float32"


@pytest.mark.parametrize(
    ("native", "speedup", "precision"),
    [(True, 4.3, "bfloat16"), (True, 1.0, "float32"), (False, 4.3, "float32")],
)
def test_cpu_uses_bfloat16_when_native_and_faster(monkeypatch, native, speedup, precision):
    make_cpu(monkeypatch, native=native, speedup=speedup)
    assert choose_device("cpu").precision == precision


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_that_was_asked_for_is_kept(monkeypatch, precision):
    make_cpu(monkeypatch, native=precision == "float32", speedup=1.0)
    assert choose_device("cpu", precision=precision).precision == precision


def test_speedup_is_a_measurement():
    assert 0.001 < device_module.bfloat16_speedup() < 1000


class FakeGpu:
    """Stands for torch.cuda on a machine with a GPU in a certain state."""

    def __init__(self, monkeypatch, *, available=True, free_gib=8.0, fault=None, scale=1.0):
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA MX450")
        memory = (int(free_gib * 1024**3), 2 * 1024**3)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: memory)

        def move(tensor):
            if fault:
                raise RuntimeError(fault)
            return tensor * scale

        monkeypatch.setattr(torch.Tensor, "cuda", move)


def test_kernel_that_runs_and_is_right_is_accepted(monkeypatch):
    FakeGpu(monkeypatch)
    assert device_module._probe_cuda() == ("NVIDIA MX450, 2 GiB", "")


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"available": False}, "CUDA is not available: no GPU with a driver found"),
        ({"free_gib": 0.1}, "has 0.1 GiB of free memory, 0.5 are needed"),
        ({"scale": 1.5}, "NVIDIA MX450 computes wrongly"),
        (
            {"fault": "CUDA error: no kernel image is available\nfor this device"},
            "NVIDIA MX450 does not work: CUDA error: no kernel image is available",
        ),
    ],
)
def test_gpu_in_a_bad_state_is_refused_with_the_reason(monkeypatch, state, reason):
    FakeGpu(monkeypatch, **state)
    name, problem = device_module._probe_cuda()
    assert name == ""
    assert problem.endswith(reason)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this is no CPU build of torch")
def test_cpu_build_is_named():
    _name, problem = device_module._probe_cuda()
    assert problem == f"CUDA is not available: torch {torch.__version__} is a CPU build"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_real_gpu_is_chosen():
    choice = choose_device(require_gpu=True)
    assert choice.device.type == "cuda"
    assert torch.cuda.get_device_name() in choice.reason

"""Where a model runs and how precisely, always with the reason."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

from engine.errors import DeviceError

Precision = Literal["float32", "bfloat16"]

GIB = 1024**3
MIN_FREE_GPU_BYTES = GIB // 2  # weights, one batch and cuDNN's workspace; less runs out at once
MIN_BFLOAT16_SPEEDUP = 1.2  # below it the gain is within the noise, and float32 is exact
PROBE_SIDE_PX = 512  # a product of this size takes about a millisecond on one core


@dataclass(frozen=True)
class DeviceChoice:
    """A device, why it was chosen, and the fastest precision that it has in hardware."""

    device: torch.device
    reason: str
    precision: Precision


def choose_device(
    device: Literal["auto", "cpu", "cuda"] = "auto",
    require_gpu: bool = False,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
) -> DeviceChoice:
    """Choose CUDA when a small kernel really runs on it, otherwise the CPU.

    Args:
        device: "cuda" is a wish; only ``require_gpu`` makes it a condition.
        require_gpu: make the CPU an error.
        precision: "auto" is bfloat16 where the hardware has it and is faster with it.

    Raises:
        DeviceError: a GPU is required and cannot be used, or the CPU was asked for.
    """
    if device == "cpu":
        if require_gpu:
            raise DeviceError(
                "A GPU is required, but the CPU was chosen as the device.",
                'Choose "auto" or "cuda", or do not require a GPU.',
            )
        return _choose_cpu("The CPU was asked for", precision)
    name, problem = _probe_cuda()
    if not problem:
        chosen = _cuda_precision() if precision == "auto" else precision
        return DeviceChoice(torch.device("cuda", torch.cuda.current_device()), name, chosen)
    if require_gpu:
        raise DeviceError(
            f"A GPU is required and cannot be used: {problem}.",
            "Check engine says what is missing; or do not require a GPU.",
        )
    return _choose_cpu(problem, precision)


def describe_cuda() -> str:
    """Name the GPU, or say why there is none that works."""
    name, problem = _probe_cuda()
    return name or problem


def has_native_bfloat16() -> bool:
    """Say whether the CPU has bfloat16 products as instructions (AVX-512 BF16, AMX or Arm's)."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@cache
def bfloat16_speedup() -> float:
    """Measure once how many times faster this CPU multiplies in bfloat16 than in float32."""
    return _product_time_s(torch.float32) / _product_time_s(torch.bfloat16)


def _choose_cpu(why: str, precision: Literal["auto", "float32", "bfloat16"]) -> DeviceChoice:
    threads = torch.get_num_threads()
    reason = f"{why}; using the CPU with {threads} thread{'s' if threads > 1 else ''}"
    chosen = _cpu_precision() if precision == "auto" else precision
    return DeviceChoice(torch.device("cpu"), reason, chosen)


def _cuda_precision() -> Precision:
    # The emulation on older GPUs is slower than float32.
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


def _cpu_precision() -> Precision:
    worthwhile = has_native_bfloat16() and bfloat16_speedup() >= MIN_BFLOAT16_SPEEDUP
    return "bfloat16" if worthwhile else "float32"


def _probe_cuda() -> tuple[str, str]:
    """Try the GPU.

    Returns:
        its name with its memory, and what is wrong; exactly one of them is empty.
    """
    if torch.version.cuda is None and torch.version.hip is None:
        return "", f"CUDA is not available: torch {torch.__version__} is a CPU build"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        hints = [str(warning.message).splitlines()[0] for warning in caught]
        return "", f"CUDA is not available: {hints[0] if hints else 'no GPU with a driver found'}"
    name = torch.cuda.get_device_name()
    try:
        return _try_gpu(name)
    except (RuntimeError, AssertionError) as error:  # torch raises both
        return "", f"{name} does not work: {str(error).splitlines()[0]}"


def _try_gpu(name: str) -> tuple[str, str]:
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    if free_bytes < MIN_FREE_GPU_BYTES:
        free_gib, needed_gib = free_bytes / GIB, MIN_FREE_GPU_BYTES / GIB
        return "", f"{name} has {free_gib:.1f} GiB of free memory, {needed_gib:.1f} are needed"
    # Small whole numbers are exact in every precision that a GPU may choose.
    left = torch.arange(64 * 64, dtype=torch.float32).reshape(64, 64).remainder(7)
    product = (left.cuda() @ left.cuda().T).cpu()
    if not torch.equal(product, left @ left.T):
        return "", f"{name} computes wrongly"
    return f"{name}, {total_bytes / GIB:.0f} GiB", ""


def _product_time_s(dtype: torch.dtype) -> float:
    """Time a matrix product; the fastest of some, since other programs run as well."""
    matrix = torch.ones(PROBE_SIDE_PX, PROBE_SIDE_PX, dtype=dtype)
    times_s = []
    for _attempt in range(5):
        start_s = time.perf_counter()
        torch.mm(matrix, matrix)
        times_s.append(time.perf_counter() - start_s)
    return min(times_s)

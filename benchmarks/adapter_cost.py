"""What SpectralX's parts cost beside the bare backbone: time and memory, one step of each.

The bare backbone is the same ViT with a plain patch embedding; in training it stays frozen but for
that, or is trained whole, which is what adapters stand in for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.memory import peak_bytes
from benchmarks.random_backbone import VIT_L_FILE, write_random_vit
from benchmarks.segmentation_speed import NANO
from benchmarks.speed import DeviceName, paired
from engine.__main__ import prepare_process
from engine.device import choose_device
from engine.models.spectralx.adapted import AdaptedViT
from engine.models.spectralx.presets import PRESETS
from engine.models.spectralx.refine import RefiningAdapter
from engine.packages.foundations import load_foundation

Network = Literal["adapters", "frozen", "full"]
Mode = Literal["forward", "training"]
# (what is done, what the adapters are compared with); in a forward pass all ViTs are alike.
COMPARISONS: tuple[tuple[Mode, Network], ...] = (
    ("forward", "frozen"),
    ("training", "frozen"),
    ("training", "full"),
)
SLOW_PAIRS = 2  # of a ViT-L on a CPU


@dataclass(frozen=True)
class Load:
    """What is measured.

    Args:
        preset: name of the preset.
        backbone: name or path of the foundation.
        bands: of the chips.
        batch_chips: at a time.
        device: as torch names it; on "cuda" in bfloat16 where autocast says so.
    """

    preset: str
    backbone: str
    bands: int
    batch_chips: int
    device: str


def measure_adapters(
    folder: Path, bands: int, pairs: int, device: DeviceName
) -> list[dict[str, Any]]:
    """Measure the laptop preset on Galileo nano, and the large one on a ViT-L of random weights."""
    choice = choose_device(device)
    kind = choice.device.type
    on_gpu = kind == "cuda"
    vit_l = write_random_vit(folder / VIT_L_FILE)
    loads = (
        (Load("laptop", NANO, bands, PRESETS["laptop"].batch_chips, kind), pairs),
        (Load("large", vit_l, bands, 16 if on_gpu else 1, kind), pairs if on_gpu else SLOW_PAIRS),
    )
    try:
        results = [each for load, count in loads for each in measure_load(load, min(count, pairs))]
    finally:
        Path(vit_l).unlink()
    return [result | {"device": f"{choice.device} ({choice.reason})"} for result in results]


def measure_load(load: Load, pairs: int) -> list[dict[str, Any]]:
    """Time in turn in this process, and the peak of memory in one process for each network."""
    needed = {(mode, network) for mode, other in COMPARISONS for network in ("adapters", other)}
    peaks_mb = {each: _peak_in_child(load, *each) for each in sorted(needed)}
    results = []
    for mode, other in COMPARISONS:
        bare, ours = make_work(load, mode, other), make_work(load, mode, "adapters")
        bare_s, ours_s = paired(bare, ours, pairs)
        ratios = [mine / theirs for theirs, mine in zip(bare_s, ours_s, strict=True)]
        bare_mb, ours_mb = peaks_mb[mode, other], peaks_mb[mode, "adapters"]
        results.append(
            {
                **asdict(load),
                "backbone": Path(load.backbone).stem,
                "mode": mode,
                "against": other,
                "chips_s": load.batch_chips / statistics.median(ours_s),
                "bare_chips_s": load.batch_chips / statistics.median(bare_s),
                "time_ratio": statistics.median(ratios),
                "time_ratios": ratios,
                "peak_mb": ours_mb,
                "bare_peak_mb": bare_mb,
                "memory_ratio": ours_mb / bare_mb,
            }
        )
    return results


def make_work(load: Load, mode: Mode, network: Network) -> Callable[[], None]:
    """One step on a batch that lies on the device already."""
    device = torch.device(load.device)
    model = make_network(load, network).to(device)
    side = PRESETS[load.preset].chip_px
    x = torch.rand(load.batch_chips, load.bands, side, side, device=device)
    step = _forward(model, x) if mode == "forward" else _training(model, x)

    def run() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def make_network(load: Load, network: Network) -> nn.Module:
    """The adapted ViT with its refinement, or the bare one; on the CPU, in training mode."""
    foundation = load_foundation(load.backbone)
    fields: dict[str, Any] = {
        "wavelength_nm": np.linspace(420, 2440, load.bands).tolist(),
        "vit": foundation.vit.config,
        "foundation": foundation.identity,
    }
    preset = PRESETS[load.preset]
    if network != "adapters":
        bare = AdaptedViT(preset.adapted(**fields, adaptation=network), foundation.vit)
        return _Taps(bare, None).train()
    config = preset.adapted(**fields)
    tokenizer = config.tokenizer
    refine = RefiningAdapter(
        config.vit.embed_dim,
        tokenizer.stem_width,
        config.grid,
        tokenizer.stem_side,
        match=preset.match,
    )
    return _Taps(AdaptedViT(config, foundation.vit), refine).train()


class _Taps(nn.Module):
    """What neck and head would be given."""

    def __init__(self, adapted: AdaptedViT, refine: RefiningAdapter | None) -> None:
        super().__init__()
        self.adapted, self.refine = adapted, refine

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, C, chip, chip) to (B, D, G, G) for each tapped block."""
        taps: tuple[Tensor, ...] = self.adapted(x, self.refine).taps
        return taps


def _forward(model: nn.Module, x: Tensor) -> Callable[[], None]:
    model.eval()

    def step() -> None:
        with torch.inference_mode():
            model(x)

    return step


def _training(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward, backward and AdamW's step."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)

    def step() -> None:
        optimiser.zero_grad()
        loss = torch.stack([tap.float().square().mean() for tap in model(x)]).sum()
        with torch.autocast(x.device.type, enabled=False):
            loss.backward()
        optimiser.step()

    return step


def _peak_in_child(load: Load, mode: Mode, network: Network) -> float:
    """Megabytes, weights included, that two steps take in a process of their own."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in asdict(load).items()]
    command = [sys.executable, "-m", "benchmarks.adapter_cost", mode, network, *options]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mb"])


def peak_of_steps(load: Load, mode: Mode, network: Network) -> int:
    """Bytes on the device at the peak of two steps, weights included; for a fresh process."""
    _forget_peak()
    before = peak_bytes()
    work = make_work(load, mode, network)
    _forget_peak()  # that of reading the weights
    work()
    work()
    if load.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak_bytes() - before


def _forget_peak() -> None:
    """Let the peak begin anew where that can be done; elsewhere that of reading counts too."""
    switch = Path("/proc/self/clear_refs")
    if switch.exists():
        switch.write_text("5")


def _main() -> None:
    parser = argparse.ArgumentParser(description="Do two steps and print the peak of memory.")
    parser.add_argument("mode", choices=get_args(Mode))
    parser.add_argument("network", choices=get_args(Network))
    parser.add_argument("--preset", choices=sorted(PRESETS), required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--bands", type=int, required=True)
    parser.add_argument("--batch-chips", type=int, required=True)
    parser.add_argument("--device", required=True)
    options = vars(parser.parse_args())
    prepare_process()
    mode, network = options.pop("mode"), options.pop("network")
    print(json.dumps({"peak_mb": peak_of_steps(Load(**options), mode, network) / 1e6}))


if __name__ == "__main__":
    _main()

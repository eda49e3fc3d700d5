"""``python -m benchmarks``: measure, print a table, keep the numbers as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.__main__ import prepare_process

PARTS = (
    "read",
    "end-to-end",
    "memory",
    "startup",
    "distil",
    "segment",
    "adapters",
    "adapt",
    "fusion",
)
ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts that were asked for."""
    options = _parser().parse_args(arguments)
    prepare_process()
    options.folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Callable[[argparse.Namespace], list[list[str]]]] = {
        "read": _read,
        "end-to-end": _end_to_end,
        "memory": _memory,
        "startup": _startup,
        "distil": _distil,
        "segment": _segment,
        "adapters": _adapters,
        "adapt": _adapt,
        "fusion": _fusion,
    }
    rows = []
    for name in options.parts:
        start_s = time.monotonic()
        rows += parts[name](options)
        print(f"{name}: measured in {time.monotonic() - start_s:.0f} s", file=sys.stderr)
    _print_table([["what", "measured", "ratio", "aim", ""], *rows])
    print(f"Kept in {options.folder}")
    return 0


def _read(options: argparse.Namespace) -> list[list[str]]:
    import torch

    from benchmarks.speed import measure_read_rate
    from engine.device import choose_device

    device = choose_device(options.device).device
    devices = [device] if device.type == "cpu" else [device, torch.device("cpu")]
    results = [
        result
        for each in devices
        for result in measure_read_rate(options.folder, _sizes(options), each)
    ]
    _keep(options, "read", results)
    return [
        [
            f"read rate, free model, {r['layout']}, {r['device']}",
            f"{r['ours_mpx_s']:.2f} of {r['plain_mpx_s']:.2f} Mpx/s",
            f"{r['ratio']:.2f}",
            f">= {r['aim']}",
            _verdict(r["ratio"] >= r["aim"]),
        ]
        for r in results
    ]


def _end_to_end(options: argparse.Namespace) -> list[list[str]]:
    from benchmarks.speed import measure_end_to_end

    results = measure_end_to_end(options.folder, _sizes(options), options.device)
    _keep(options, "end_to_end", results)
    return [
        [
            f"classify / bare model, {r['what']}, {r['side_px']} px, {r['device'].split()[0]}",
            f"{r['ours_mpx_s']:.3f} of {r['bare_mpx_s']:.3f} Mpx/s",
            f"{r['ratio']:.2f}",
            f"<= {r['aim']}",
            _verdict(r["ratio"] <= r["aim"]),
        ]
        for r in results
    ]


def _memory(options: argparse.Namespace) -> list[list[str]]:
    from benchmarks.memory import measure_memory

    result = measure_memory(options.folder, options.memory_sides, options.bands)
    _keep(options, "memory", result)
    return [
        [
            f"peak memory, {run['layout']}, {' / '.join(map(str, run['peak_mb']))} px",
            " / ".join(f"{peak:.0f}" for peak in run["peak_mb"].values()) + " MB",
            f"{run['growth']:.2f}",
            f"<= {result['aim']}",
            _verdict(run["growth"] <= result["aim"]),
        ]
        for run in result["runs"]
    ]


def _startup(options: argparse.Namespace) -> list[list[str]]:
    from benchmarks.startup import measure_startup

    r = measure_startup(options.folder, options.model, max(1, options.pairs // 2))
    _keep(options, "startup", r)
    return [
        [
            "packaged scene, cold / warm worker",
            f"{r['cold_s']:.2f} s / {r['warm_s']:.2f} s",
            f"{r['ratio']:.1f}",
            "",
            "",
        ]
    ]


def _distil(options: argparse.Namespace) -> list[list[str]]:
    from benchmarks.distillation_speed import measure_distillation

    results = measure_distillation(options.folder, options.pairs, options.device)
    _keep(options, "distil", results)
    return [
        [
            f"distillation / its networks, {r['preset']}, {r['device'].split()[0]}",
            f"{r['tiles_s']:.1f} of {r['bare_tiles_s']:.1f} tiles/s"
            + (f", {r['peak_gpu_gib']:.1f} GiB" if r["peak_gpu_gib"] is not None else ""),
            f"{r['share']:.2f}",
            f">= {r['aim']}",
            _verdict(r["share"] >= r["aim"]),
        ]
        for r in results
    ]


def _segment(options: argparse.Namespace) -> list[list[str]]:
    from benchmarks.segmentation_speed import measure_segmentation

    results = measure_segmentation(
        options.folder, options.encoder_side, options.bands, options.pairs, options.device
    )
    _keep(options, "segment", results)
    return [
        [
            f"segment / bare model, {r['preset']}, {r['side_px']} px in {r['chips']} chips of "
            f"{r['bare_chips']}, {r['device'].split()[0]}",
            f"{r['ours_mpx_s']:.3f} of {r['bare_mpx_s']:.3f} Mpx/s",
            f"{r['ratio']:.2f}",
            f"<= {r['aim']}",
            _verdict(r["ratio"] <= r["aim"] and r["chips"] == r["bare_chips"]),
        ]
        for r in results
    ]


def _adapters(options: argparse.Namespace) -> list[list[str]]:
    from benchmarks.adapter_cost import measure_adapters

    results = measure_adapters(options.folder, options.bands, options.pairs, options.device)
    _keep(options, "adapters", results)
    return [
        [
            f"adapters / {r['against']} backbone, {r['mode']}, {r['preset']}, "
            f"{r['batch_chips']} chips, {r['device'].split()[0]}",
            f"{r['chips_s']:.2f} of {r['bare_chips_s']:.2f} chips/s, "
            f"{r['peak_mb']:.0f} of {r['bare_peak_mb']:.0f} MB",
            f"{r['time_ratio']:.2f} time, {r['memory_ratio']:.2f} memory",
            "",
            "",
        ]
        for r in results
    ]


def _adapt(options: argparse.Namespace) -> list[list[str]]:
    from benchmarks.adaptation_speed import measure_training

    results = measure_training(options.folder, options.bands, options.pairs, options.device)
    _keep(options, "adapt", results)
    return [
        [
            f"{r['what']} / its network, {r['preset']}, {r['batch_chips']} chips a step, "
            f"{r['device'].split()[0]}",
            f"{r['steps_s']:.2f} of {r['bare_steps_s']:.2f} steps/s"
            + (f", {r['peak_gpu_gib']:.1f} GiB" if r["peak_gpu_gib"] is not None else ""),
            f"{r['share']:.2f}",
            f">= {r['aim']}",
            _verdict(r["share"] >= r["aim"]),
        ]
        for r in results
    ]


def _fusion(options: argparse.Namespace) -> list[list[str]]:
    from benchmarks.fusion_speed import measure_fuse, measure_networks

    networks = measure_networks(options.pairs, options.device)
    _keep(options, "fusion_networks", networks)
    r = measure_fuse(
        options.folder, options.fusion_side, options.pairs, options.device, options.fusion_model
    )
    _keep(options, "fusion", r)
    rows = [
        [
            f"CSAKD {n['role']} / its convolutions alone, {n['preset']}, {n['side_px']} px, "
            f"{n['device'].split()[0]}",
            f"{n['ours_gmac_s']:.0f} of {n['plain_gmac_s']:.0f} G multiply-adds/s, "
            f"{n['ours_s']:.2f} s, {n['peak_mb']:.0f} MB",
            f"{n['share']:.2f}",
            f">= {n['aim']}",
            _verdict(n["share"] >= n["aim"]),
        ]
        for n in networks
    ]
    fuse_row = [
        f"fuse / bare model, {r['bands']} bands, {r['fine_px']} px, {r['device'].split()[0]}",
        f"{r['ours_mpx_s']:.3f} of {r['bare_mpx_s']:.3f} Mpx/s",
        f"{r['ratio']:.2f}",
        f"<= {r['aim']}",
        _verdict(r["ratio"] <= r["aim"]),
    ]
    return [*rows, fuse_row]


def _sizes(options: argparse.Namespace) -> Any:
    from benchmarks.speed import Sizes

    return Sizes(options.side, options.encoder_side, options.bands, options.pairs, options.model)


def _keep(options: argparse.Namespace, name: str, result: Any) -> None:
    """Write the numbers with what they were measured on."""
    from engine.version import engine_version

    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "engine_version": engine_version(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    content = {
        "machine": machine,
        "side_px": options.side,
        "bands": options.bands,
        "result": result,
    }
    (options.folder / f"{name}.json").write_text(json.dumps(content, indent=2), encoding="utf-8")


def _verdict(met: bool) -> str:
    return "met" if met else "NOT MET"


def _print_table(rows: list[list[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--parts",
        type=_parts,
        default=list(PARTS),
        help="of " + ",".join(PARTS) + " (default: all)",
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--side", type=int, default=2000, help="of the scene for speed, in px")
    parser.add_argument(
        "--encoder-side", type=int, default=400, help="of the scene for the encoder, in px"
    )
    parser.add_argument(
        "--fusion-side", type=int, default=400, help="of the pair to fuse, in coarse px"
    )
    parser.add_argument("--bands", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=5, help="of runs, one of each side of a ratio")
    parser.add_argument(
        "--memory-sides", type=_sides, default=[1000, 2000, 4000], help="such as 250,500,1000"
    )
    parser.add_argument("--model", default="berlin-enmap-landcover")
    parser.add_argument("--fusion-model", default="berlin-enmap-fusion")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser


def _parts(text: str) -> list[str]:
    parts = text.split(",")
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise argparse.ArgumentTypeError(f"no such part: {', '.join(unknown)}")
    return parts


def _sides(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    free = shutil.disk_usage(ROOT).free
    if free < 10e9:
        print(f"Only {free / 1e9:.0f} GB are free: large scenes may not fit.", file=sys.stderr)
    sys.exit(main())

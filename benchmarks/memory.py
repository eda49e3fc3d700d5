"""Peak memory of a run at growing sizes, each in a process of its own; it must not grow."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scenes import make_scene, remove_scene
from engine.__main__ import prepare_process

# Allocators and GDAL's cache fill up to their bounds; a scene in memory would be 16 times larger.
GROWTH_AIM = 1.1
NUM_CLASSES = 8


def measure_memory(folder: Path, sides_px: list[int], bands: int) -> dict[str, Any]:
    """Measure the peak memory of mapping scenes of several sizes with all probabilities."""
    runs = []
    for layout in ("tiled by pixel", "ENVI BIL"):
        peaks = {side: _peak_in_child(folder, layout, side, bands) for side in sides_px}
        runs.append(
            {
                "layout": layout,
                "peak_mb": peaks,
                "growth": max(peaks.values()) / peaks[min(peaks)],
                "scene_mb": {side: side * side * bands * 2 / 1e6 for side in sides_px},
            }
        )
    return {"runs": runs, "ratio": max(run["growth"] for run in runs), "aim": GROWTH_AIM}


def _peak_in_child(folder: Path, layout: str, side: int, bands: int) -> float:
    """Map one scene in a process of its own; megabytes of its peak."""
    wavelength_nm = np.linspace(420, 2440, bands)
    path = make_scene(folder, layout, side, wavelength_nm, np.full(bands, 10.0))
    command = [sys.executable, "-m", "benchmarks.memory", path, str(folder)]
    root = Path(__file__).resolve().parents[1]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    finally:
        remove_scene(path)
        for file in folder.glob("memory_*"):
            file.unlink()
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mb"])


def _map_scene(path: str, folder: Path) -> None:
    """Map a scene into classes and probabilities; the imports count as they do in the engine."""
    import torch
    from torch import Tensor

    from engine.feedback import SilentFeedback
    from engine.raster.scene import open_scene
    from engine.raster.spectra import BandMatch
    from engine.raster.stream import stream_scene
    from engine.raster.style import RampStyle
    from engine.raster.tiles import Tiling, Window
    from engine.raster.writer import Grid, RasterWriter

    class FewBands:
        """Probabilities of the first bands."""

        tiling, out_channels = Tiling(512, 4), NUM_CLASSES

        def __call__(self, reflectance: Tensor, valid: Tensor) -> Tensor:
            return reflectance[:, :NUM_CLASSES].softmax(dim=1)

    scene = open_scene(path)
    grid = Grid(scene.height, scene.width, scene.transform, scene.crs)
    names = [f"class {number}" for number in range(NUM_CLASSES)]
    with (
        RasterWriter(str(folder / "memory_map.tif"), grid, ["class"], "uint8", 0) as classes,
        RasterWriter(
            str(folder / "memory_shares.tif"), grid, names, "float32", None, style=RampStyle()
        ) as shares,
    ):

        def sink(window: Window, values: np.ndarray, valid: np.ndarray) -> None:
            classes.write(window, (values.argmax(0, keepdims=True) + 1).astype(np.uint8) * valid)
            shares.write(window, values)

        stream_scene(
            scene, BandMatch(tuple(range(len(scene.band_sources))), None, ()), FewBands(), sink,
            device=torch.device("cpu"), feedback=SilentFeedback(),
        )  # fmt: skip


def _main() -> None:
    parser = argparse.ArgumentParser(description="Map one scene and print the peak memory.")
    parser.add_argument("scene")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    prepare_process()
    _map_scene(options.scene, options.folder)
    print(json.dumps({"peak_mb": peak_bytes() / 1e6}))


def peak_bytes() -> int:
    """The most memory that this process ever had."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says on Linux includes the parent before the exec
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    _main()

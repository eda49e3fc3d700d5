"""Segmenting with SpectralX against its bare model on tensors in memory."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.random_backbone import VIT_L_FILE, write_random_vit
from benchmarks.scenes import make_scene, remove_scene
from benchmarks.speed import BareModel, DeviceName, paired, seconds
from engine.device import choose_device
from engine.feedback import SilentFeedback
from engine.jobs.segment import Request, segment
from engine.models.spectralx.presets import PRESETS, SegmentPreset
from engine.models.spectralx.segmenter import SegmenterConfig, SpectralXSegmenter
from engine.packages.cache import load_model
from engine.packages.foundations import Foundation, load_foundation
from engine.packages.metadata import ModelInfo, Normalisation
from engine.packages.package import save_package
from engine.raster.plan import count_lanes, plan_scene
from engine.raster.scene import open_scene
from engine.raster.spectra import BandMatch, BandTable
from engine.raster.style import ClassInfo
from engine.raster.tiles import Strip, Tiling, redundancy

SEGMENT_AIM = 1.2
NANO = "galileo-nano"
NUM_CLASSES = 8
COLOURS = ("#332288", "#88ccee", "#44aa99", "#117733", "#999933", "#ddcc77", "#cc6677", "#aa4499")


def measure_segmentation(
    folder: Path, side_px: int, bands: int, pairs: int, device: DeviceName
) -> list[dict[str, Any]]:
    """Measure the job ``segment`` against its model on tensors that lie in memory.

    The laptop preset on Galileo nano, and on a GPU the large one on a ViT-L; random parts, the
    default overlap, float32. Both sides compute the same chips in the same batches, and the bare
    model may take all cores for each batch or a core for each, whichever is faster.
    """
    choice = choose_device(device)
    where = {"device": f"{choice.device} ({choice.reason})"}
    models = [("laptop", NANO)]
    if choice.device.type == "cuda":
        models.append(("large", write_random_vit(folder / VIT_L_FILE)))
    try:
        return [
            _measure_model(folder, PRESETS[name], backbone, (side_px, bands, pairs), choice.device)
            | where
            for name, backbone in models
        ]
    finally:
        (folder / VIT_L_FILE).unlink(missing_ok=True)


def save_random_segmenter(
    path: Path, preset: SegmentPreset, backbone: str, wavelength_nm: NDArray[np.float64]
) -> str:
    """Save a package with random parts; a backbone in a file lies beside it.

    Returns:
        its path.
    """
    foundation = load_foundation(backbone)
    config = segmenter_config(preset, foundation, wavelength_nm)
    module = SpectralXSegmenter(config, foundation.vit)
    bands = len(wavelength_nm)
    info = ModelInfo(
        name=path.name,
        title="Random",
        description="For measurements.",
        version="1.0.0",
        architecture="spectralx-segmenter",
        config=asdict(config),
        bands=BandTable(
            tuple(f"band {number}" for number in range(1, bands + 1)),
            wavelength_nm,
            np.full(bands, 10.0),
            np.ones(bands, bool),
        ),
        classes=tuple(
            ClassInfo(value, f"class {value}", colour) for value, colour in enumerate(COLOURS, 1)
        ),
        normalisation=Normalisation.of(np.zeros(bands), np.ones(bands)),
        tiling=Tiling(module.tile_size_px, module.halo_px, module.blend),
        licence="other",
    )
    return str(save_package(str(path), info, module.own_state()))


def _measure_model(
    folder: Path,
    preset: SegmentPreset,
    backbone: str,
    sizes: tuple[int, int, int],
    device: torch.device,
) -> dict[str, Any]:
    """One model; ``sizes`` are the side of the scene in px, its bands, and the pairs."""
    side_px, bands, pairs = sizes
    wavelength_nm = np.linspace(420, 2440, bands)
    scene = make_scene(folder, "tiled by pixel", side_px, wavelength_nm, np.full(bands, 10.0))
    model = save_random_segmenter(folder / "segmenter", preset, backbone, wavelength_nm)
    output = str(folder / "segments.tif")
    parameters = {"input": scene, "model": model, "output": output, "precision": "float32"}
    request = Request.parse(parameters | {"device": device.type})

    def ours() -> None:
        segment(request, SilentFeedback())

    try:
        loaded = load_model(model, device)
        match = BandMatch(tuple(range(bands)), None, ())
        strips = plan_scene(open_scene(scene), match, loaded.package.info.tiling)
        bare, lanes = _fastest_bare(loaded.module, strips, match, device)
        computed = _count_chips(loaded.module, ours)
        bare_s, ours_s = paired(bare.run, ours, pairs)
    finally:
        remove_scene(scene)
        shutil.rmtree(model)
        for file in folder.glob("segments.*"):
            file.unlink()
    ratios = [mine / other for other, mine in zip(bare_s, ours_s, strict=True)]
    return {
        "preset": preset.name,
        "bands": bands,
        "side_px": side_px,
        "chips": computed,
        "bare_chips": bare.tiles,
        "bare_lanes": lanes,
        "computed_per_pixel": redundancy(strips),
        "ours_mpx_s": side_px**2 / 1e6 / statistics.median(ours_s),
        "bare_mpx_s": side_px**2 / 1e6 / statistics.median(bare_s),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "aim": SEGMENT_AIM,
    }


def _fastest_bare(
    module: nn.Module, strips: list[Strip], match: BandMatch, device: torch.device
) -> tuple[BareModel, int]:
    """The bare model with all cores for each batch or with one for each, and its lanes."""
    bands = len(match.scene_band_index)
    lanes = count_lanes(strips, match, device.type, torch.get_num_threads())
    found: list[tuple[float, BareModel, int]] = []
    for count in sorted({1, lanes}):
        bare = BareModel(module, strips, bands, device, count)
        bare.run()  # fills caches
        found.append((seconds(bare.run), bare, count))
    _best_s, bare, count = min(found, key=lambda item: item[0])
    return bare, count


def _count_chips(module: nn.Module, work: Callable[[], None]) -> int:
    """How many chips a module is given while something runs."""
    counts: list[int] = []  # appended to by several threads
    hook = module.register_forward_pre_hook(lambda _module, args: counts.append(len(args[0])))
    try:
        work()
    finally:
        hook.remove()
    return sum(counts)


def segmenter_config(
    preset: SegmentPreset, foundation: Foundation, wavelength_nm: NDArray[np.float64]
) -> SegmenterConfig:
    """The settings of a preset's model of `NUM_CLASSES` classes on bands at these wavelengths."""
    return preset.segmenter(
        num_classes=NUM_CLASSES,
        wavelength_nm=wavelength_nm.tolist(),
        vit=foundation.vit.config,
        foundation=foundation.identity,
    )

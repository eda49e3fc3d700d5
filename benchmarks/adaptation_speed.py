"""Steps a second of both of SpectralX's trainings, against their networks and nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from benchmarks.distillation_speed import SHARE_AIM
from benchmarks.random_backbone import VIT_L_FILE, write_random_vit
from benchmarks.scenes import make_scene, remove_scene
from benchmarks.segmentation_speed import NANO, segmenter_config
from benchmarks.speed import DeviceName, paired
from engine.device import choose_device
from engine.feedback import SilentFeedback
from engine.models.spectralx.presets import PRESETS, SegmentPreset
from engine.models.spectralx.segmenter import SegmenterConfig, SpectralXSegmenter
from engine.packages.foundations import Foundation, load_foundation
from engine.raster.scene import open_scene
from engine.training.adaptation import AdaptationSettings, AdaptationTask, open_adaptation_tiles
from engine.training.held_out import random_mask
from engine.training.masked_fit import fit
from engine.training.samples import Samples
from engine.training.scene_tiles import SceneTiles, TileBatch
from engine.training.segmentation_chips import chip_sizes
from engine.training.segmentation_fit import fit_segmenter
from engine.training.segmentation_steps import SegmentationSettings
from engine.training.tile_scaling import network_input

LABEL_STEP_PX = 4  # one pixel in four of a row, and one row in four, has a label
BLOCK_PX = 64


@dataclass(frozen=True)
class Load:
    """What is trained.

    Args:
        preset: of the model.
        backbone: name or path of the foundation.
        bands: of the scene.
        side_px: of the scene of stage 1.
        chips: of the samples of stage 2.
        steps: of a run of stage 1, about; stage 2 takes three times as many, because it begins
            several trainings.
    """

    preset: SegmentPreset
    backbone: str
    bands: int
    side_px: int
    chips: int
    steps: int


def measure_training(
    folder: Path, bands: int, pairs: int, device: DeviceName
) -> list[dict[str, Any]]:
    """Measure both trainings against forward and backward of their networks, nothing else.

    The bare side has one batch, which lies on the device, and sends a plain gradient back. The
    other side reads scenes or cuts windows, draws masks or light, computes the whole loss, takes
    AdamW's steps, and in stage 2 fits the spectral path, trains without each fold of places and
    looks at the folds.
    """
    choice = choose_device(device)
    on_gpu = choice.device.type == "cuda"
    fabric = Fabric(
        accelerator=choice.device.type, devices=1, precision="bf16-mixed" if on_gpu else "32-true"
    )
    loads = [Load(PRESETS["laptop"], NANO, bands, 256, 32, 40)]
    try:
        if on_gpu:
            backbone = write_random_vit(folder / VIT_L_FILE)
            loads.append(Load(PRESETS["large"], backbone, bands, 2240, 16, 40))
        return [
            result | {"device": f"{choice.device} ({choice.reason})"}
            for load in loads
            for result in (
                measure_stage_1(load, folder, pairs, fabric),
                measure_stage_2(load, pairs, fabric),
            )
        ]
    finally:
        (folder / VIT_L_FILE).unlink(missing_ok=True)


def measure_stage_1(load: Load, folder: Path, pairs: int, fabric: Fabric) -> dict[str, Any]:
    """Masked reconstruction, from scene to trained weights."""
    wavelength_nm = np.linspace(420, 2440, load.bands)
    scene = make_scene(
        folder, "tiled by pixel", load.side_px, wavelength_nm, np.full(load.bands, 10.0)
    )
    preset = load.preset
    try:
        tiles = open_adaptation_tiles(
            [open_scene(scene)], preset, validation=0.0, feedback=SilentFeedback()
        )
        per_epoch = tiles.steps_per_epoch(preset.batch_chips)
        epochs = max(round(load.steps / per_epoch), 1)
        settings = AdaptationSettings(preset, epochs=epochs)
        foundation = load_foundation(load.backbone)
        task = AdaptationTask(tiles, foundation, settings, SilentFeedback())
        task.attach(fabric)
        bare = _bare_stage_1(tiles, foundation, settings, fabric, epochs * per_epoch)

        def ours() -> None:
            fit(task, tiles, settings.fit, fabric=fabric, feedback=SilentFeedback())
            _wait(fabric)

        return _compare("stage 1", load, epochs * per_epoch, (bare, ours), pairs, fabric)
    finally:
        remove_scene(scene)


def _bare_stage_1(
    tiles: SceneTiles,
    foundation: Foundation,
    settings: AdaptationSettings,
    fabric: Fabric,
    steps: int,
) -> Callable[[], None]:
    """Forward and backward of stage 1's network on one batch."""
    task = AdaptationTask(tiles, foundation, settings, SilentFeedback())
    model = fabric.setup_module(task.model)
    model.train()
    first: TileBatch = next(iter(tiles.training_batches(settings.preset.batch_chips, range(1))))
    batch = first.to(fabric.device)
    mask = random_mask(batch, task.patch_px, settings.mask_ratio, torch.Generator())
    x = network_input(task.network.adapted, batch)

    def run() -> None:
        for _step in range(steps):
            loss = model(x, mask.ids_keep).prediction.float().square().mean()
            model.zero_grad()
            fabric.backward(loss)
        _wait(fabric)

    return run


def measure_stage_2(load: Load, pairs: int, fabric: Fabric) -> dict[str, Any]:
    """Segmentation, from samples in memory to a trained model."""
    preset, foundation = load.preset, load_foundation(load.backbone)
    config = segmenter_config(preset, foundation, np.linspace(420, 2440, load.bands))
    samples = random_samples(config, load.chips)
    defaults = SegmentationSettings()
    # One training for each fold and one on all places.
    per_epoch = (defaults.folds + 1) * -(-load.chips // preset.batch_chips)
    settings = SegmentationSettings(
        epochs=max(round(3 * load.steps / per_epoch), 1),
        batch_chips=preset.batch_chips,
        learning_rate=preset.learning_rate,
    )
    steps: list[int] = []

    def ours() -> None:
        _model, history = fit_segmenter(
            samples, config, foundation, settings, fabric=fabric, feedback=SilentFeedback()
        )
        steps.append(history.steps)
        _wait(fabric)

    ours()  # how many steps it takes depends on what the folds say
    bare = _bare_stage_2(samples, config, foundation, (preset.batch_chips, steps[0]), fabric)
    return _compare("stage 2", load, steps[0], (bare, ours), pairs, fabric)


def _bare_stage_2(
    samples: Samples,
    config: SegmenterConfig,
    foundation: Foundation,
    sizes: tuple[int, int],
    fabric: Fabric,
) -> Callable[[], None]:
    """Forward and backward of the segmenter on one batch; ``sizes`` are its chips, and steps."""
    batch_chips, steps = sizes
    network = SpectralXSegmenter(config, foundation.vit)
    network.set_trainable()
    if network.spectral is not None:
        network.spectral.requires_grad_(False)  # fitted before, as in the training
    model = fabric.setup_module(network)
    model.train()
    window = slice(0, config.chip_px)
    x = samples.reflectance[:batch_chips, :, window, window].contiguous().to(fabric.device)
    valid = samples.valid[:batch_chips, window, window].contiguous().to(fabric.device)

    def run() -> None:
        for _step in range(steps):
            loss = model(x, valid).float().square().mean()
            model.zero_grad()
            fabric.backward(loss)
        _wait(fabric)

    return run


def random_samples(config: SegmenterConfig, chips: int) -> Samples:
    """Chips of noise with a lattice of labels, each chip a place of its own.

    Args:
        config: of the segmenter.
        chips: side by side, as wide as training reads them.
    """
    sizes = chip_sizes(config, BLOCK_PX)
    read_px, margin_px = sizes.chip_px, (sizes.chip_px - sizes.core_px) // 2
    generator = torch.Generator().manual_seed(0)
    reflectance = torch.rand(chips, config.in_channels, read_px, read_px, generator=generator)
    at = torch.arange(margin_px, margin_px + sizes.core_px, LABEL_STEP_PX)
    chip, row, col = torch.cartesian_prod(torch.arange(chips), at, at).T
    count = len(chip)
    classes = torch.randint(config.num_classes, (count,), generator=generator)
    return Samples(
        reflectance,
        torch.ones(chips, read_px, read_px, dtype=torch.bool),
        chip,
        row,
        col,
        torch.eye(config.num_classes)[classes],
        torch.ones(count),
        torch.ones(count, dtype=torch.bool),
        chip,
        torch.stack([torch.zeros_like(chip), row, col + chip * sizes.core_px], dim=1),
    )


def _compare(
    what: str,
    load: Load,
    steps: int,
    sides: tuple[Callable[[], None], Callable[[], None]],
    pairs: int,
    fabric: Fabric,
) -> dict[str, Any]:
    """Time both sides, the bare one first, in turn."""
    on_gpu = fabric.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    bare_s, ours_s = paired(*sides, pairs)
    shares = [one / other for one, other in zip(bare_s, ours_s, strict=True)]
    return {
        "what": what,
        "preset": load.preset.name,
        "backbone": Path(load.backbone).stem,
        "bands": load.bands,
        "batch_chips": load.preset.batch_chips,
        "steps": steps,
        "steps_s": steps / statistics.median(ours_s),
        "bare_steps_s": steps / statistics.median(bare_s),
        "share": statistics.median(shares),
        "shares": shares,
        "aim": SHARE_AIM,
        "peak_gpu_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
    }


def _wait(fabric: Fabric) -> None:
    if fabric.device.type == "cuda":
        torch.cuda.synchronize()

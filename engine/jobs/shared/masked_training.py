"""What the jobs share that train on scenes alone: request, devices, memory, checkpoint, package."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from lightning_fabric import Fabric
from pydantic import BeforeValidator, Field

from engine.device import GIB, DeviceChoice, choose_device
from engine.errors import CapacityError, DeviceError, RequestError
from engine.feedback import Feedback
from engine.jobs.check_engine import available_memory_bytes
from engine.jobs.request import DeviceRequest
from engine.jobs.shared.training import as_list, check_package_outputs
from engine.models.mae import Precision, StudentPreset, estimate_bytes
from engine.raster.scene import Scene, open_scene
from engine.training.masked_fit import (
    FitHistory,
    FitSettings,
    MaskedTask,
    TrainableTask,
    TrainedT,
    fit,
)
from engine.training.reconstruction import ReconstructionResult
from engine.training.run_checkpoint import RunCheckpoint, RunState, restore_model
from engine.training.scene_tiles import SceneTiles
from engine.training.several_devices import fit_on_devices

LOG = logging.getLogger(__name__)

FabricPrecision = Literal["32-true", "bf16-mixed"]

# What has no influence on the weights, or not to the last bit, and may change for a resume.
_FREE_SETTINGS = (
    "output", "report", "resume", "device", "require_gpu", "precision", "title", "description",
    "licence", "attribution", "input", "teacher", "backbone", "targets", "bands", "responses",
)  # fmt: skip


class MaskedTrainingRequest(DeviceRequest):
    """The parameters of every training on scenes alone.

    ``input`` lists scenes; a scene is a source that GDAL opens, or a list of single-band files.
    ``batch_size`` and ``learning_rate`` are the preset's when left out. ``validation`` is the share
    of the ground that is held out for the scores. ``resume`` goes on from the checkpoint beside
    ``output``. ``gpus`` is how many train together. ``title`` to ``attribution`` go into the
    package as they are.
    """

    input: Annotated[list[str | list[str]], BeforeValidator(as_list)] = Field(min_length=1)
    mask_ratio: float = Field(default=0.75, gt=0.0, lt=1.0)
    epochs: int = Field(default=200, ge=1, le=100_000)
    batch_size: int | None = Field(default=None, ge=1, le=65_536)
    learning_rate: float | None = Field(default=None, gt=0.0, le=1.0)
    validation: float = Field(default=0.2, ge=0.0, le=0.5)
    seed: int = Field(default=0, ge=0, lt=2**31)
    resume: bool = False
    gpus: int = Field(default=1, ge=1, le=64)
    bands: str | None = None
    output: str
    report: str | None = None
    title: str | None = None
    description: str | None = None
    licence: str = "other"
    attribution: str = ""


@dataclass(frozen=True)
class Devices:
    """Where a training runs.

    Args:
        choice: the device, or the first of several GPUs.
        count: how many.
        precision: as Fabric names it.
    """

    choice: DeviceChoice
    count: int
    precision: FabricPrecision

    @property
    def text(self) -> str:
        """For logs and results."""
        many = f"{self.count} GPUs, the first: " if self.count > 1 else ""
        kind = "bfloat16" if self.precision == "bf16-mixed" else "float32"
        return f"{many}{self.choice.device} ({self.choice.reason}), {kind}"


def choose_devices(request: MaskedTrainingRequest, feedback: Feedback) -> Devices:
    """Choose device and precision: bfloat16 on GPUs that are made for it, else float32.

    Raises:
        DeviceError: a GPU is required and there is none, or there are fewer than asked for.
        RequestError: the batch cannot be shared by the GPUs.
    """
    choice = choose_device(request.device, request.require_gpu, request.precision)
    is_cuda = choice.device.type == "cuda"
    available = torch.cuda.device_count() if is_cuda else 1
    if request.gpus > available:
        raise DeviceError(
            f"{request.gpus} GPUs were asked for, and "
            f"{available if is_cuda else 'none'} can be used ({choice.reason}).",
            "Ask for fewer.",
        )
    if request.batch_size is not None and request.batch_size % request.gpus:
        raise RequestError(
            f"A step of {request.batch_size} tiles cannot be shared by {request.gpus} GPUs.",
            "Choose a multiple of their number as batch_size.",
        )
    # On a CPU only when asked for: a resumed run is to be the same to the last bit.
    wanted = choice.precision if is_cuda or request.precision != "auto" else "float32"
    precision: FabricPrecision = "bf16-mixed" if wanted == "bfloat16" else "32-true"
    devices = Devices(choice, request.gpus, precision)
    feedback.info(f"Device: {devices.text}")
    return devices


def open_scenes(request: MaskedTrainingRequest, feedback: Feedback) -> list[Scene]:
    """Open all scenes and pass on what was assumed about them."""
    scenes = [open_scene(source, request.bands) for source in request.input]
    for scene in scenes:
        for note in scene.notes:
            feedback.warning(note)
    return scenes


def check_training_outputs(
    request: MaskedTrainingRequest, scenes: Sequence[Scene], others: Iterable[str] = ()
) -> None:
    """Refuse outputs that cannot be written, before work begins.

    Args:
        request: what was asked for.
        scenes: that must not be overwritten.
        others: files and packages that must not be either, see `check_package_outputs`.
    """
    inputs = [file for scene in scenes for file in scene.files]
    check_package_outputs(request.output, request.report, inputs, others)


def require_memory(
    presets: Mapping[str, StudentPreset],
    preset: StudentPreset,
    in_channels: int,
    batch_size: int | None,
    devices: Devices,
    extra_bytes: int = 0,
) -> None:
    """Refuse a preset that the memory will not hold, before hours of work.

    Args:
        presets: all that could be chosen, the largest first.
        preset: the one that was.
        in_channels: C, bands.
        batch_size: tiles a step, over all devices; None: the preset's.
        devices: to run on.
        extra_bytes: of what else is held, such as a teacher.

    Raises:
        CapacityError: with what is needed, what there is, and the largest preset that fits.
    """
    precision: Precision = "bfloat16" if devices.precision == "bf16-mixed" else "float32"

    def needed(name: str, tiles: int) -> int:
        return estimate_bytes(presets[name], in_channels, tiles, precision) + extra_bytes

    batches = {name: batch_size or one.batch_tiles for name, one in presets.items()}
    require_bytes(batches, preset.name, in_channels, devices, needed)


def require_bytes(
    batches: Mapping[str, int],
    preset: str,
    in_channels: int,
    devices: Devices,
    needed: Callable[[str, int], int],
    *,
    batch_is_free: bool = True,
) -> None:
    """Refuse a preset that the memory will not hold, however its need is estimated.

    Args:
        batches: tiles a step, over all devices, by the names of all presets, the largest first.
        preset: the one that was chosen.
        in_channels: C, bands.
        devices: to run on.
        needed: the bytes that a preset needs for a number of tiles on one device.
        batch_is_free: whether a request may choose another batch.

    Raises:
        CapacityError: with what is needed, what there is, and the largest preset that fits.
    """
    free_bytes = _free_bytes(devices.choice.device)
    batch_tiles = batches[preset]

    def fits(name: str, tiles: int) -> bool:
        return free_bytes is None or needed(name, -(-tiles // devices.count)) <= free_bytes

    if free_bytes is None or fits(preset, batch_tiles):
        return
    fitting = [name for name, tiles in batches.items() if fits(name, tiles)]
    fewer = [tiles for tiles in _halves(batch_tiles) if fits(preset, tiles)]
    ways = [f"the preset {fitting[0]}"] if fitting else []
    ways += [f"a batch_size of {fewer[0]}"] if fewer and batch_is_free else []
    where = "the GPU" if devices.choice.device.type == "cuda" else "this computer"
    wanted_bytes = needed(preset, -(-batch_tiles // devices.count))
    raise CapacityError(
        f"The preset {preset} needs about {wanted_bytes / GIB:.1f} GiB of "
        f"memory for {batch_tiles} tiles of {in_channels} bands a step; {where} has "
        f"{free_bytes / GIB:.1f} GiB free.",
        f"Choose {' or '.join(ways)}: that fits." if ways else "Close other programs.",
    )


def open_checkpoint(
    request: MaskedTrainingRequest,
    scenes: Sequence[Scene],
    feedback: Feedback,
    **identities: str | None,
) -> tuple[RunCheckpoint, RunState | None]:
    """Find the state that an interrupted run has left, if it is wanted.

    Args:
        request: what was asked for; all that decides the weights must be as it was.
        scenes: the same.
        feedback: told where the run goes on, or that it begins anew.
        identities: of further inputs, such as the SHA-256 of a teacher.

    Raises:
        TrainingError: the state is of another run, or damaged.
    """
    settings = request.model_dump(mode="json", exclude=set(_FREE_SETTINGS))
    scene_texts = [f"{s.name} {s.width}x{s.height} {len(s.band_sources)}" for s in scenes]
    settings = {**settings, "input": scene_texts, **identities}
    return find_checkpoint(request.output, settings, request.resume, feedback)


def find_checkpoint(
    output: str, settings: Mapping[str, Any], resume: bool, feedback: Feedback
) -> tuple[RunCheckpoint, RunState | None]:
    """Find the state that an interrupted run has left beside its output, if it is wanted.

    Args:
        output: of the run.
        settings: all that decides the result, by the names that the user knows; plain values.
        resume: whether to go on from the state.
        feedback: told where the run goes on, or that it begins anew.

    Raises:
        TrainingError: the state is of another run, or damaged.
    """
    checkpoint = RunCheckpoint.beside(output, settings)
    if not resume:
        if checkpoint.path.exists():
            feedback.warning(
                f"{checkpoint.path} of an interrupted run will be replaced: this run begins anew. "
                "With resume it would go on from there."
            )
        return checkpoint, None
    state = checkpoint.load()
    if state is None:
        feedback.warning(f"There is no {checkpoint.path} to resume from: the run begins anew.")
    else:
        feedback.info(f"Going on after step {state.step} of the run that was interrupted.")
    return checkpoint, state


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """How a training went.

    Args:
        seconds: that it took, without what was done before a resume.
        tiles_per_second: that were trained on in this time; NaN when nothing was left to do.
    """

    seconds: float
    tiles_per_second: float


def train(
    task: TrainableTask[TrainedT],
    tiles: SceneTiles,
    settings: FitSettings,
    devices: Devices,
    checkpoint: RunCheckpoint,
    state: RunState | None,
    feedback: Feedback,
) -> tuple[TrainedT, TrainingRun]:
    """Train on one device or several, and look at the held-out tiles on one.

    Args:
        task: what to train.
        tiles: to train on.
        settings: of the loop.
        devices: where.
        checkpoint: where the state is kept.
        state: to go on from.
        feedback: told of progress; asked whether to go on.
    """
    start_s = time.perf_counter()
    accelerator = devices.choice.device.type
    fabric = Fabric(accelerator=accelerator, devices=1, precision=devices.precision)
    if devices.count == 1:
        task.attach(fabric)
        history = fit(
            task,
            tiles,
            settings,
            fabric=fabric,
            feedback=feedback,
            checkpoint=checkpoint,
            resume=state,
        )
    else:
        fit_on_devices(
            task,
            tiles,
            settings,
            accelerator=accelerator,
            devices=devices.count,
            precision=devices.precision,
            feedback=feedback,
            checkpoint=checkpoint,
            resume=state is not None,
        )
        history = _take_back(task, checkpoint)
        fabric.to_device(task.model)
    seconds = time.perf_counter() - start_s
    steps = settings.epochs * tiles.steps_per_epoch(settings.batch_tiles)
    steps -= 0 if state is None else state.step
    rate = steps * settings.batch_tiles / seconds if steps else float("nan")
    return task.finish(tiles, history, fabric.device, feedback), TrainingRun(seconds, rate)


def tell_scores(scores: ReconstructionResult | None, feedback: Feedback) -> None:
    """Say how good reconstructions are of tiles that training did not see."""
    if scores is None:
        feedback.warning("No tile was held out, so the quality of reconstructions is not known.")
        return
    feedback.info(
        f"Hidden parts of tiles that were held out: PSNR {scores.psnr_db:.2f} dB, SSIM "
        f"{scores.ssim:.3f}, spectral angle {scores.spectral_angle_deg:.2f} degrees."
    )


def score_values(scores: ReconstructionResult | None) -> dict[str, float | None]:
    """The six numbers of the result; null where there are none."""
    if scores is not None:
        return dict(scores.summary())
    return dict.fromkeys(ReconstructionResult.__dataclass_fields__)


def _take_back(task: MaskedTask, checkpoint: RunCheckpoint) -> FitHistory:
    """Bring what several processes have learned into this one."""
    state = checkpoint.load()
    if state is None:
        raise RuntimeError(f"The processes left no {checkpoint.path}.")
    restore_model(state, task.model)
    return FitHistory(state.history)


def _free_bytes(device: torch.device) -> int | None:
    """Memory that a new job could use; None where the system does not tell."""
    if device.type == "cuda":
        free_bytes, _total_bytes = torch.cuda.mem_get_info(device)
        return int(free_bytes)
    return available_memory_bytes()


def _halves(batch_tiles: int) -> list[int]:
    """Smaller batches, the largest first."""
    halves = []
    while batch_tiles > 1:
        batch_tiles //= 2
        halves.append(batch_tiles)
    return halves

"""train_fusion: pairs of images in, a model package that fuses such pairs out."""

from __future__ import annotations

import sys
import time
from functools import cache
from typing import Any

from lightning_fabric import Fabric

from engine.device import choose_device
from engine.errors import RequestError
from engine.feedback import Feedback, StepFeedback
from engine.jobs.shared.fusion_package import FusionTrainingRequest, describe, write_report
from engine.jobs.shared.fusion_pairs import TrainingPairs, prepare_pairs
from engine.jobs.shared.masked_training import Devices, find_checkpoint, require_bytes
from engine.jobs.shared.training import as_list, check_package_outputs
from engine.models.fusion.presets import PRESETS
from engine.packages.package import save_package
from engine.training.fusion import TrainedFusion, gate_summary, train_fuser
from engine.training.fusion_data import make_triplets
from engine.training.fusion_memory import estimate_memory
from engine.training.fusion_report import STUDENT, TEACHER, TITLES, best_classical
from engine.training.fusion_settings import FusionSettings
from engine.training.memory import StepMemory
from engine.training.run_checkpoint import RunCheckpoint, RunState

# What has no influence on the weights, or is told apart by the images themselves.
_FREE_SETTINGS = (
    "output", "report", "resume", "device", "require_gpu", "precision", "title", "description",
    "licence", "attribution", "hyperspectral", "multispectral", "bands", "multispectral_bands",
)  # fmt: skip


class Request(FusionTrainingRequest):
    """The parameters; see there."""


def train_fusion(request: Request, feedback: Feedback) -> dict[str, Any]:
    """Train teacher and student on pairs of images, and save the student as a package.

    Returns:
        ``output`` and, when asked for, ``report`` (paths); ``psnr_db``, ``sam_deg`` and ``ergas``
        of the student on held-out ground; ``teacher_psnr_db`` and ``best_classical_psnr_db`` of the
        teacher and of the best classical method there; ``shift_x`` and ``shift_y``, coarse pixels
        that were corrected in the first pair; ``parameters`` of the student; ``seconds``;
        ``device``.

    Raises:
        DeviceError: a GPU is required and there is none.
        RequestError: there are not as many images of both kinds, or the ratio is below 2.
        SceneError: an image cannot be read, or a pair does not fit together.
        BandTableError, BandMatchError: bands have no wavelengths, or differ from pair to pair.
        TrainingError: the checkpoint is of another run, or the training diverged.
        OutputError: an output cannot be written.
    """
    start_s = time.monotonic()
    devices = _choose_devices(request, feedback)
    check_package_outputs(request.output, request.report, _files(request), ())
    settings = _settings(request)
    pairs = prepare_pairs(
        request.hyperspectral, request.multispectral, request, StepFeedback(feedback, 0.0, 0.1)
    )
    _check_memory(request, settings, pairs, devices)
    checkpoint, state = _open_checkpoint(request, pairs, feedback)
    trained = train_fuser(
        make_triplets(pairs.sample, pairs.physics),
        settings,
        full_pairs=pairs.sample,
        physics=pairs.physics,
        fabric=Fabric(
            accelerator=devices.choice.device.type, devices=1, precision=devices.precision
        ),
        feedback=StepFeedback(feedback, 0.1, 0.9),
        checkpoint=checkpoint,
        resume=state,
    )
    _tell_scores(trained, feedback)

    feedback.progress(0.9, "Saving the model")
    feedback.raise_if_cancelled()
    info = describe(request, pairs, trained)
    output = save_package(request.output, info, trained.student.state_dict())
    report = {}
    if request.report is not None:
        feedback.progress(0.92, "Writing the report")
        report["report"] = write_report(request, pairs, trained, info, str(output))
    checkpoint.delete()
    feedback.progress(1.0, "Done")
    shift_x, shift_y = pairs.pairs[0].pair.shift_px
    return {
        "output": str(output),
        **report,
        **_score_values(trained),
        "shift_x": shift_x,
        "shift_y": shift_y,
        "parameters": trained.parameters[STUDENT],
        "seconds": time.monotonic() - start_s,
        "device": devices.text,
    }


def _choose_devices(request: Request, feedback: Feedback) -> Devices:
    """One device; bfloat16 on GPUs that are made for it, else only when asked for."""
    choice = choose_device(request.device, request.require_gpu, request.precision)
    is_free = choice.device.type == "cuda" or request.precision != "auto"
    rough = is_free and choice.precision == "bfloat16"
    devices = Devices(choice, 1, "bf16-mixed" if rough else "32-true")
    feedback.info(f"Device: {devices.text}")
    return devices


def _files(request: Request) -> list[str]:
    """All files that are read, as far as the request names them."""
    sources = [*request.hyperspectral, *request.multispectral]
    tables = (request.bands, request.multispectral_bands, request.response)
    named = [table for table in tables if table not in (None, "estimate", "nominal")]
    return [path for source in sources for path in as_list(source)] + [str(path) for path in named]


def _settings(request: Request) -> FusionSettings:
    """The settings of the training: the request's, else the preset's."""
    given: dict[str, Any] = {
        name: value
        for name in ("epochs", "distillation", "fusion")
        if (value := getattr(request, name)) is not None
    }
    if request.start is not None:
        given["start"] = "injection" if request.start else "none"
    return FusionSettings.of(
        request.preset, validation=request.validation, seed=request.seed, **given
    )


def _open_checkpoint(
    request: Request, pairs: TrainingPairs, feedback: Feedback
) -> tuple[RunCheckpoint, RunState | None]:
    """Find the state that an interrupted run has left, if it is wanted."""
    settings = request.model_dump(mode="json", exclude=set(_FREE_SETTINGS))
    images = [
        f"{scene.name} {scene.width}x{scene.height} {len(index)}"
        for ready in pairs.pairs
        for scene, index in (
            (ready.pair.hsi, ready.pair.usable_hsi_index),
            (ready.pair.msi, ready.pair.msi_index),
        )
    ]
    return find_checkpoint(request.output, {**settings, "images": images}, request.resume, feedback)


def _check_memory(
    request: Request, settings: FusionSettings, pairs: TrainingPairs, devices: Devices
) -> None:
    """Refuse a preset that the memory will not hold, before the work begins.

    Raises:
        CapacityError: see `require_bytes`.
        RequestError: the preset is as wide as half the bands, and there are too few.
    """
    changes: dict[str, Any] = {} if settings.fusion is None else {"fusion": settings.fusion}
    counts = len(pairs.hsi_bands), len(pairs.msi_bands), pairs.ratio

    @cache
    def memory(name: str) -> StepMemory:
        return estimate_memory(PRESETS[name], *counts, settings.start, **changes)

    def needed(name: str, crops: int) -> int:
        try:
            return memory(name).bytes_for(crops)
        except ValueError as error:
            if name == request.preset:
                raise RequestError(str(error), "Choose another preset.") from error
            return sys.maxsize  # there are too few bands for it, however much memory there is

    needed(request.preset, 1)
    batches = {name: preset.batch for name, preset in PRESETS.items()}
    count = len(pairs.hsi_bands)
    require_bytes(batches, request.preset, count, devices, needed, batch_is_free=False)


def _tell_scores(trained: TrainedFusion, feedback: Feedback) -> None:
    """Say how good the student is where it did not learn, and warn when it is not worth it."""
    if trained.gates:
        feedback.info(f"Weight of the network's answer: {gate_summary(trained.gates)}.")
    student = trained.scores.get(STUDENT)
    if student is None:
        feedback.warning("No ground was held out, so how good the model is is not known.")
        return
    feedback.info(
        f"On held-out ground: PSNR {student.psnr_db:.2f} dB, spectral angle "
        f"{student.sam_deg:.2f} degrees, ERGAS {student.ergas:.2f}."
    )
    best = best_classical(trained.scores)
    if best is None:
        return
    other = trained.scores[best]
    feedback.info(f"The best classical method there: {TITLES[best]}, {other.psnr_db:.2f} dB.")
    if other.psnr_db > student.psnr_db:
        feedback.warning(
            f"On held-out ground {TITLES[best]} is better than the model: {other.psnr_db:.2f} dB "
            f"beside {student.psnr_db:.2f} dB. Train on more ground, or use that method."
        )


def _score_values(trained: TrainedFusion) -> dict[str, float | None]:
    """The scores of the result; null where there are none."""
    best = best_classical(trained.scores)
    student, teacher, other = (
        None if name is None else trained.scores.get(name) for name in (STUDENT, TEACHER, best)
    )
    return {
        "psnr_db": None if student is None else student.psnr_db,
        "sam_deg": None if student is None else student.sam_deg,
        "ergas": None if student is None else student.ergas,
        "teacher_psnr_db": None if teacher is None else teacher.psnr_db,
        "best_classical_psnr_db": None if other is None else other.psnr_db,
    }

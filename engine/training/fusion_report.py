"""What the report on the training of a fusion shows: tables as rows, figures as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from engine.models.fusion.classical import CLASSICAL
from engine.models.fusion.consistency import Consistency, measure_consistency
from engine.models.fusion.method import FusionMethod, ImagePair
from engine.raster.spectra import BandTable
from engine.report import INK, MUTED, figure_to_data_uri
from engine.training.fusion import TrainedFusion
from engine.training.fusion_figures import band_errors_figure
from engine.training.fusion_looks import (
    Look,
    look_part,
    looks_figure,
    response_figure,
    sample_points,
    spectra_figure,
)
from engine.training.fusion_metrics import MEASURES, FusionScores
from engine.training.pair_physics import PairPhysics

STUDENT, TEACHER, START = "student", "teacher", "start"
TITLES = {
    STUDENT: "CSAKD, the student (this model)",
    TEACHER: "CSAKD, its teacher",
    START: "the regression that they begin with",
    "bicubic": "bicubic, without the multispectral image",
    "gsa": "GSA",
    "glphs": "MTF-GLP-HS",
    "cnmf": "CNMF",
}
MAX_LOOKS = 3  # pairs that are shown
CURVE_COLUMNS = 2
LEARNERS = {STUDENT: "#0b6e6e", TEACHER: "#c4572b"}
# Of a learner's name and these, names in the history are made.
TERM_TITLES = {
    "": "loss, weighted sum",
    "_smooth_l1": "smooth L1 to the target",
    "_spectral_angle": "1 - cosine of spectra",
    "_band_energy": "error of bands by their energy",
    "_response": "distance to the teacher's image",
    "_feature": "distance to the teacher's features",
    "_consistency": "what is not given back at full resolution",
}


@dataclass(frozen=True)
class MethodRow:
    """A method in the table of scores."""

    title: str
    is_this: bool
    scores: FusionScores


@dataclass(frozen=True)
class ConsistencyRow:
    """How well a method's result at full resolution gives back what it was made of.

    Args:
        title: of the method.
        is_this: whether it is the package's.
        hsi: root mean square difference to the hyperspectral image, relative to it; 0 = the same.
        msi: likewise of the multispectral image.
    """

    title: str
    is_this: bool
    hsi: float
    msi: float


@dataclass(frozen=True)
class ResponseRow:
    """A fine band in the table of responses."""

    name: str
    wavelength_nm: float
    offset: float
    error: float


def fusion_values(
    trained: TrainedFusion,
    names: Sequence[str],
    samples: Sequence[Sequence[ImagePair]],
    physics: PairPhysics,
    nominal: NDArray[np.float64] | None,
    bands: BandTable,
    fine_bands: BandTable,
) -> dict[str, Any]:
    """Everything that ``train_fusion.html`` names, beside the model itself and its pairs.

    Args:
        trained: the result of training.
        names: of the pairs.
        samples: of each pair, at full resolution.
        physics: that was estimated.
        nominal: (M, L) responses that were known before; None when none were.
        bands: (L) of the hyperspectral images.
        fine_bands: (M) of the multispectral ones.
    """
    parts = [look_part(sample) for sample in samples[:MAX_LOOKS]]
    looks = [
        Look.of(name, part, fuse_part(trained.student, part)[0])
        for name, part in zip(names[:MAX_LOOKS], parts, strict=True)
    ]
    response = response_figure(physics.response.weights.numpy(), nominal, bands, fine_bands.names)
    return {
        "measures": MEASURES,
        "rows": method_rows(trained.scores),
        "bands_figure": figure_to_data_uri(bands_figure(trained.scores, bands))
        if STUDENT in trained.scores
        else None,
        "looks": [_look_values(look, bands, fine_bands) for look in looks],
        "consistency_rows": consistency_rows(trained, samples, parts, physics),
        "response_figure": figure_to_data_uri(response),
        "response_rows": response_rows(physics, fine_bands),
        "nominal_is_known": nominal is not None,
        "spread_estimated": physics.spread_estimated,
        "curves_figure": figure_to_data_uri(curves_figure(trained.history)),
        "spread_fine_px": physics.spread.fwhm_px,
        "spread_coarse_px": physics.spread.fwhm_px / physics.ratio,
    }


def method_rows(scores: Mapping[str, FusionScores]) -> list[MethodRow]:
    """All methods on the same held-out ground, the best first."""
    rows = [
        MethodRow(TITLES.get(name, name), name == STUDENT, found) for name, found in scores.items()
    ]
    return sorted(rows, key=lambda row: -row.scores.psnr_db)


def gate_text(trained: TrainedFusion) -> str:
    """Say how much of the networks' answers is added to what they begin with, and why."""
    if trained.student.start is None:
        return "The networks answer alone, with nothing to begin with."
    choice = trained.gates.get(STUDENT)
    if choice is None:
        return (
            "The networks learn what a regression leaves, and their answer is added whole: there "
            "was too little ground to ask whether it helps."
        )
    if choice.gate == 0:
        return (
            "The networks learn what a regression leaves. Places held out within the training did "
            "not confirm that the student helps, so its answer is left out: the model is the "
            "regression."
        )
    return (
        "The networks learn what a regression leaves. The student's answer is added with a weight "
        f"of {choice.gate:.2f}, mean over the coefficients of spectra: so much of it was confirmed "
        f"on places held out within the training, where it gains {choice.gain_db:.2f} dB and has "
        f"{choice.angle_ratio:.0%} of the regression's spectral angle."
    )


def best_classical(scores: Mapping[str, FusionScores]) -> str | None:
    """The classical method with the highest peak signal-to-noise ratio; None without any."""
    found = {name: scores[name].psnr_db for name in CLASSICAL if name in scores}
    return max(found, key=lambda name: found[name]) if found else None


def bands_figure(scores: Mapping[str, FusionScores], bands: BandTable) -> Figure:
    """Draw the error of each band: the student's, its teacher's, its start's, the best other's."""
    shown = dict.fromkeys([best_classical(scores), START, TEACHER, STUDENT])
    named = {TITLES[name]: scores[name] for name in shown if name is not None and name in scores}
    return band_errors_figure(named, bands, TITLES[STUDENT])


def curves_figure(history: Sequence[Mapping[str, float]]) -> Figure:
    """Draw each term of both losses by epoch.

    Args:
        history: rows with "epoch", and terms by the names of `FusionFit`.
    """
    names = {name: None for row in history for name in row}
    terms = [term for term in TERM_TITLES if any(f"{one}{term}" in names for one in LEARNERS)]
    rows = -(-len(terms) // CURVE_COLUMNS)
    figure = Figure(figsize=(7.2, 2.2 * rows), layout="constrained")
    grid = figure.subplots(rows, CURVE_COLUMNS, squeeze=False).ravel()
    for axes, term in zip(grid, terms, strict=False):
        for learner, color in LEARNERS.items():
            known = [row for row in history if f"{learner}{term}" in row]
            if not known:
                continue  # a teacher learns from nobody
            epochs = [row["epoch"] for row in known]
            values = [row[f"{learner}{term}"] for row in known]
            axes.plot(epochs, values, color=color, lw=1.4, label=learner)
        axes.set_title(TERM_TITLES[term], fontsize=9, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#c9d3d0")
        axes.tick_params(colors=MUTED, labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        # The published energies may make a loss negative.
        axes.set_ylim(bottom=min(0.0, *(min(line.get_ydata()) for line in axes.lines)))
    for axes in grid[len(terms) :]:
        axes.set_visible(False)
    grid[0].legend(fontsize=8, frameon=False)
    return figure


@torch.no_grad()
def fuse_part(method: FusionMethod, part: ImagePair) -> NDArray[np.float32]:
    """Fuse (B, L, H, W), on the method's own device.

    Args:
        method: in eval mode.
        part: on any device.
    """
    device = next((tensor.device for tensor in method.buffers()), torch.device("cpu"))
    return np.asarray(method(part.to(device)).cpu().numpy(), dtype=np.float32)


def consistency_rows(
    trained: TrainedFusion,
    samples: Sequence[Sequence[ImagePair]],
    parts: Sequence[ImagePair],
    physics: PairPhysics,
) -> list[ConsistencyRow]:
    """Degrade what the methods make of some parts, and compare with the images themselves.

    Args:
        trained: student and teacher; and its scores, for the best classical method.
        samples: that the classical methods are fitted on, as `Fuse` fits them.
        parts: at full resolution.
        physics: how results are degraded.
    """
    sample = [part for pair in samples for part in pair]
    methods: dict[str, FusionMethod] = {STUDENT: trained.student, TEACHER: trained.teacher}
    for name in dict.fromkeys([best_classical(trained.scores), "bicubic"]):
        if name is not None:
            methods[name] = CLASSICAL[name](sample, physics)
    return [
        ConsistencyRow(TITLES[name], name == STUDENT, *_consistency(method.eval(), parts, physics))
        for name, method in methods.items()
    ]


def _consistency(
    method: FusionMethod, parts: Sequence[ImagePair], physics: PairPhysics
) -> tuple[float, float]:
    """Relative root mean square differences over all parts; NaN where nothing is valid."""
    sums = np.zeros(4)
    for part in parts:
        fused = torch.from_numpy(fuse_part(method, part))
        found = measure_consistency(fused, part, physics.spread, physics.response)
        sums += _summed(found, physics.spread.reach_px)
    with np.errstate(invalid="ignore", divide="ignore"):
        hsi, msi = np.sqrt(sums[:2] / sums[2:])
    return float(hsi), float(msi)


def _summed(found: Consistency, border_px: int) -> NDArray[np.float64]:
    """Errors and energies of both images; at its border a part is not degraded as the whole is."""
    height, width = found.hsi_valid.shape[-2:]
    inner = np.s_[:, border_px : height - border_px, border_px : width - border_px]
    hsi_valid = found.hsi_valid[inner]
    pairs = (
        found.hsi_error[inner][hsi_valid],
        found.msi_error[found.msi_valid],
        found.hsi_energy[inner][hsi_valid],
        found.msi_energy[found.msi_valid],
    )
    return np.array([float(values.double().sum()) for values in pairs])


def response_rows(physics: PairPhysics, fine_bands: BandTable) -> list[ResponseRow]:
    """One row a fine band: where it lies, what is added, how much is left unexplained."""
    offset = physics.response.offset.tolist()
    error = np.asarray(physics.response_error, dtype=np.float64).tolist()
    return [
        ResponseRow(name, float(wavelength_nm), *found)
        for name, wavelength_nm, *found in zip(
            fine_bands.names, fine_bands.wavelength_nm, offset, error, strict=True
        )
    ]


def _look_values(look: Look, bands: BandTable, fine_bands: BandTable) -> dict[str, Any]:
    """The pictures of one pair."""
    points = sample_points(look)
    spectra = spectra_figure(look, bands, fine_bands, points) if points else None
    return {
        "name": look.name,
        "figure": figure_to_data_uri(looks_figure(look, bands, fine_bands, points)),
        "spectra_figure": None if spectra is None else figure_to_data_uri(spectra),
    }

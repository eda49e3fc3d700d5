"""assess_accuracy: a class map against a reference, as scores and a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from engine.errors import LabelError
from engine.feedback import Feedback, StepFeedback
from engine.jobs.request import JobRequest
from engine.raster.class_map import ClassMap, match_field_values, unnamed_class
from engine.raster.labels import FieldValue, SceneLabels, open_labels
from engine.raster.style import ClassInfo
from engine.raster.tiles import Window
from engine.raster.writer import Grid, check_outputs
from engine.report import (
    MUTED,
    confusion_figure,
    figure_to_data_uri,
    format_number,
    format_percent,
    new_figure,
    render_report,
)
from engine.training.areas import AreaEstimate, estimate_areas
from engine.training.metrics import Scores, scores_from_confusion

MIN_COVER = 0.6  # of a pixel, by one class: the rest is mixed, and no map could be right there
WINDOW_PX = 256  # small, because references are, and each of its pixels is sampled many times
M2_PER_HA = 10_000
PRODUCER_COLOR, USER_COLOR = "#0b6e6e", "#e2b13c"


class Request(JobRequest):
    """The parameters: a class map, what is known about the ground, and where to report.

    ``class_field`` holds class values or class names; a raster reference needs none.
    """

    input: str
    reference: str
    class_field: str | None = None
    report: str | None = None


@dataclass(frozen=True, eq=False)
class Assessment:
    """What came out.

    Args:
        classes: K, of the map and of the reference, in order of value.
        scores: of the pixels compared; its confusion matrix is (K, K), rows = reference.
        mapped_px: (K,) pixels of each class in the whole map.
        areas: corrected for the map's errors; None where there are too few references.
        pixel_area_m2: None where the map's unit is no length.
        mixed_px: pixels with references that were left out, as no class covers enough.
        unmapped_px: pixels with a reference where the map has no class.
        notes: for people.
    """

    classes: tuple[ClassInfo, ...]
    scores: Scores
    mapped_px: NDArray[np.int64]
    areas: AreaEstimate | None
    pixel_area_m2: float | None
    mixed_px: int
    unmapped_px: int
    notes: tuple[str, ...]


def assess_accuracy(request: Request, feedback: Feedback) -> dict[str, Any]:
    """Compare a class map with a reference.

    Returns:
        ``overall_accuracy``, ``balanced_accuracy``, ``kappa``, ``f1_macro``, ``iou_macro``,
        ``pixels`` compared; ``report`` when asked for.

    Raises:
        SceneError: the map cannot be read, or holds no classes.
        LabelError: the reference cannot be read, or has no pixel in common with the map.
        OutputError: the report cannot be written.
    """
    sources = [request.input, request.reference]
    _check_not_same(request)
    check_outputs([request.report], sources, suffixes=(".html", ".htm"))
    with ClassMap(request.input) as class_map:
        labels = open_labels(request.reference, request.class_field, class_map.grid.crs)
        if class_map.grid.crs is None:
            feedback.warning("The map has no CRS; the reference is taken to be in the same one.")
        class_of = match_field_values(labels.values, class_map.classes)
        mapped = _count_map(class_map, StepFeedback(feedback, 0.0, 0.3))
        step = StepFeedback(feedback, 0.3, 0.9)
        counts = _count_pairs(class_map, labels.on(class_map.grid), class_of, step)
        assessment = _assess(counts, mapped, class_of, class_map)
    for note in assessment.notes:
        feedback.warning(note)
    feedback.info(_summary_text(assessment))
    result: dict[str, Any] = {
        **assessment.scores.summary(),
        "pixels": int(assessment.scores.confusion.sum()),
    }
    if request.report is not None:
        feedback.progress(0.9, "Writing the report")
        result["report"] = str(_write_report(request, request.report, assessment))
    feedback.progress(1.0, "Done")
    return result


def _check_not_same(request: Request) -> None:
    """Refuse a map as its own reference: it would be right everywhere."""
    try:
        same = Path(request.input).samefile(request.reference)
    except OSError:  # one is no local file
        return
    if same:
        raise LabelError(
            f"The map and the reference are the same file, {request.input}.",
            "Choose what is known about the ground as the reference.",
        )


@dataclass
class _Counts:
    """Pixels by (class in the reference, class in the map), and those that were left out."""

    pairs: Counter[tuple[int, int]]
    mixed_px: int = 0
    unmapped_px: int = 0

    def add_pairs(self, reference: NDArray[np.int64], mapped: NDArray[np.int32]) -> None:
        """Count pairs of class values of equal shape."""
        both, times = np.unique(np.stack([reference, mapped]), axis=1, return_counts=True)
        for (true_value, map_value), count in zip(both.T.tolist(), times.tolist(), strict=True):
            self.pairs[true_value, map_value] += count


def _count_map(class_map: ClassMap, feedback: Feedback) -> Counter[int]:
    """Count the pixels of each class in the whole map."""
    mapped: Counter[int] = Counter()
    for window in class_map.strips():
        feedback.raise_if_cancelled()
        feedback.progress(window.row_off / class_map.grid.height, "Counting the map")
        values, counts = np.unique(class_map.read(window), return_counts=True)
        mapped.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    del mapped[0]
    return mapped


def _count_pairs(
    class_map: ClassMap,
    labels: SceneLabels,
    class_of: Mapping[FieldValue, ClassInfo],
    feedback: Feedback,
) -> _Counts:
    """Count how often each class of the map meets each class of the reference."""
    counts = _Counts(Counter())
    # Several values of the field may be one class: their shares are added.
    fields = list(class_of)
    values = np.unique([info.value for info in class_of.values()])
    belongs = np.array([[class_of[field].value == value for field in fields] for value in values])
    for window in _windows(class_map.grid):
        feedback.raise_if_cancelled()
        feedback.progress(window.row_off / class_map.grid.height, "Comparing with the reference")
        by_field = labels.shares(window, fields)[:-1]  # the last is of values that are no class
        if not by_field.any():
            continue
        shares = np.tensordot(belongs.astype(np.float32), by_field, axes=1)
        clear = shares.max(axis=0) >= MIN_COVER - 1e-6
        counts.mixed_px += int(np.count_nonzero(shares.any(axis=0) & ~clear))
        reference = values[shares.argmax(axis=0)][clear]
        mapped = class_map.read(window)[clear]
        counts.unmapped_px += int(np.count_nonzero(mapped == 0))
        counts.add_pairs(reference[mapped > 0], mapped[mapped > 0])
    return counts


def _assess(
    counts: _Counts,
    mapped: Counter[int],
    class_of: Mapping[FieldValue, ClassInfo],
    class_map: ClassMap,
) -> Assessment:
    """Make scores, areas and notes of the counts.

    Raises:
        LabelError: no pixel has both a class in the map and a reference.
    """
    if not counts.pairs:
        raise _no_overlap(counts, class_map)
    known = {info.value: info for info in (*class_map.classes, *class_of.values())}
    values = sorted({*mapped, *(info.value for info in class_of.values())})
    classes = tuple(known.get(value) or unnamed_class(value) for value in values)
    confusion = np.zeros((len(values), len(values)), np.int64)
    for (reference, predicted), count in counts.pairs.items():
        confusion[values.index(reference), values.index(predicted)] = count
    mapped_px = np.array([mapped[value] for value in values], np.int64)
    return Assessment(
        classes=classes,
        scores=scores_from_confusion(confusion),
        mapped_px=mapped_px,
        areas=estimate_areas(confusion, mapped_px),
        pixel_area_m2=_pixel_area_m2(class_map.grid),
        mixed_px=counts.mixed_px,
        unmapped_px=counts.unmapped_px,
        notes=tuple(_notes(classes, confusion, mapped_px, counts)),
    )


def _no_overlap(counts: _Counts, class_map: ClassMap) -> LabelError:
    if counts.unmapped_px:
        return LabelError(
            f"The map has no class at any of the {counts.unmapped_px} pixels with a reference.",
            "Choose a reference where the map is not nodata.",
        )
    if counts.mixed_px:
        return LabelError(
            f"All {counts.mixed_px} pixels with a reference are mixed: no class covers "
            f"{MIN_COVER:.0%} of one.",
            "Choose larger polygons, or points.",
        )
    return LabelError(
        f"The reference and the map {Path(class_map.source).name} do not overlap.",
        "Choose a reference inside the map, and check the CRS of both.",
    )


def _notes(
    classes: tuple[ClassInfo, ...],
    confusion: NDArray[np.int64],
    mapped_px: NDArray[np.int64],
    counts: _Counts,
) -> Iterator[str]:
    """Say what a reader of the scores must know."""
    referenced, mapped = confusion.sum(axis=1) > 0, mapped_px > 0
    if names := _names(classes, mapped & ~referenced):
        yield f"There is no reference for {names}: these scores say nothing about it."
    if names := _names(classes, referenced & ~mapped):
        yield f"The map has no {names}, the reference has."
    if names := _names(classes, ~referenced & ~mapped):
        yield f"No pixel counts for {names}: no reference covers enough of one on the map."
    if counts.unmapped_px:
        yield f"{counts.unmapped_px:,} pixels with a reference have no class in the map."


def _names(classes: tuple[ClassInfo, ...], wanted: NDArray[np.bool_]) -> str:
    return ", ".join(info.name for info, want in zip(classes, wanted, strict=True) if want)


def _pixel_area_m2(grid: Grid) -> float | None:
    """Area of a pixel; None for degrees, of which no two rows have the same."""
    if grid.crs is None or not grid.crs.is_projected:
        return None
    _unit, metres = grid.crs.linear_units_factor
    return abs(float(grid.transform.determinant)) * float(metres) ** 2


def _windows(grid: Grid) -> Iterator[Window]:
    """Squares that cover a grid, row by row."""
    for row_off in range(0, grid.height, WINDOW_PX):
        for col_off in range(0, grid.width, WINDOW_PX):
            rows, cols = min(WINDOW_PX, grid.height - row_off), min(WINDOW_PX, grid.width - col_off)
            yield Window(row_off, col_off, rows, cols)


def _summary_text(assessment: Assessment) -> str:
    scores = assessment.scores
    lines = [
        f"{scores.confusion.sum():,} pixels compared: "
        f"overall accuracy {format_percent(scores.overall_accuracy)}, "
        f"balanced {format_percent(scores.balanced_accuracy)}, kappa {format_number(scores.kappa)}."
    ]
    for index, info in enumerate(assessment.classes):
        lines.append(
            f"{info.name}: producer's accuracy {format_percent(scores.recall[index])}, user's "
            f"{format_percent(scores.precision[index])}, {scores.confusion[index].sum():,} pixels"
        )
    return "\n".join(lines)


def _write_report(request: Request, path: str, assessment: Assessment) -> Path:
    """Fill the template."""
    scores = assessment.scores
    seen = (scores.confusion.sum(axis=0) > 0) | (scores.confusion.sum(axis=1) > 0)
    names = [info.name for info, shown in zip(assessment.classes, seen, strict=True) if shown]
    confusion = scores.confusion[np.ix_(seen, seen)]
    return render_report(
        "assess_accuracy.html",
        path,
        map_name=Path(request.input).name,
        reference_name=Path(request.reference.split("|")[0]).name,
        class_field=request.class_field or "",
        assessment=assessment,
        scores=scores,
        pixels=int(confusion.sum()),
        rows=_class_rows(assessment),
        area_rows=_area_rows(assessment),
        names=names,
        confusion=confusion.tolist(),
        confusion_figure=figure_to_data_uri(confusion_figure(confusion, names)),
        accuracy_figure=figure_to_data_uri(_accuracy_figure(assessment)),
        min_cover=MIN_COVER,
    )


def _class_rows(assessment: Assessment) -> list[dict[str, Any]]:
    """One row a class, for the template."""
    scores = assessment.scores
    return [
        {
            "info": info,
            "recall": float(scores.recall[index]),
            "precision": float(scores.precision[index]),
            "f1": float(scores.f1[index]),
            "iou": float(scores.iou[index]),
            "reference_px": int(scores.confusion[index].sum()),
            "compared_px": int(scores.confusion[:, index].sum()),
        }
        for index, info in enumerate(assessment.classes)
    ]


def _area_rows(assessment: Assessment) -> list[dict[str, Any]]:
    """One row a class: as mapped and corrected, in hectares or else in shares."""
    areas = assessment.areas
    if areas is None:
        return []
    assessed_px = float(assessment.mapped_px[areas.assessed].sum())
    hectares = (assessment.pixel_area_m2 or 0.0) / M2_PER_HA
    return [
        {
            "info": info,
            "mapped_share": float(areas.mapped[index]),
            "share": float(areas.estimated[index]),
            "share_95": float(areas.estimated_95[index]),
            "mapped_ha": float(areas.mapped[index]) * assessed_px * hectares,
            "ha": float(areas.estimated[index]) * assessed_px * hectares,
            "ha_95": float(areas.estimated_95[index]) * assessed_px * hectares,
        }
        for index, info in enumerate(assessment.classes)
        if areas.assessed[index] or areas.estimated[index] > 0
    ]


def _accuracy_figure(assessment: Assessment) -> Figure:
    """Draw producer's and user's accuracy of each class as two dots on one line."""
    scores, count = assessment.scores, len(assessment.classes)
    figure, axes = new_figure(7.6, 0.9 + 0.36 * count)
    rows = np.arange(count)
    axes.hlines(rows, scores.recall, scores.precision, color="#c9d3d0", linewidth=3, zorder=1)
    axes.scatter(scores.recall, rows, s=52, color=PRODUCER_COLOR, label="producer's", zorder=2)
    axes.scatter(scores.precision, rows, s=52, color=USER_COLOR, label="user's", zorder=2)
    axes.set_yticks(rows, [info.name for info in assessment.classes])
    axes.invert_yaxis()
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks(np.linspace(0, 1, 6), [f"{share:.0%}" for share in np.linspace(0, 1, 6)])
    axes.grid(axis="x", color="#e6ebe9")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=MUTED)
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    return figure

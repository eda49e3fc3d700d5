"""Spectral range-based channel alignment: the student's bands reduced to the teacher's ranges.

HyperKD (arXiv 2508.09453) names this ingredient; how it reduces a range to one channel is not
known to us, so the three ways here are our choice and a setting. Bands are found by wavelength
when a run starts, because the centres differ from scene to scene of one sensor.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engine.errors import BandMatchError, BandTableError
from engine.raster.sidecar import read_text
from engine.raster.spectra import SIGMA_PER_FWHM, BandTable, axis_share_nm, filled_fwhm_nm

Alignment = Literal["mean", "response", "nearest"]
# (L,) wavelengths in nm, ascending, and (L,) responses, at least 0, of any scale.
Response = tuple[NDArray[np.float64], NDArray[np.float64]]

# A band is seen by a response where that has at least this share of its peak: its half maximum.
SEEN_RESPONSE = 0.5
# A mean whose centre is further off than this share of the range stands on one side of it.
LOPSIDED_SHARE = 0.25

_RESPONSE_REMEDY = (
    "Give a first column wavelength_nm and one column a teacher band, named as the band is, with "
    "its response at each wavelength (0 or more)."
)


@dataclass(frozen=True)
class RangeBand:
    """A broad band of a teacher's sensor.

    Args:
        name: as the teacher calls it ("B02").
        low_nm: where its range begins.
        high_nm: where its range ends, the end included.
        centre_nm: its centre or centroid, inside the range.
        fwhm_nm: full width at half maximum of its response.

    Raises:
        BandTableError: the range is empty, its centre outside, or the width not positive.
    """

    name: str
    low_nm: float
    high_nm: float
    centre_nm: float
    fwhm_nm: float

    def __post_init__(self) -> None:
        if not 0 < self.low_nm <= self.centre_nm <= self.high_nm < np.inf:
            raise BandTableError(
                f"The range of band {self.name}, {self.low_nm:g} to {self.high_nm:g} nm, does not "
                f"hold its centre at {self.centre_nm:g} nm."
            )
        if not (self.low_nm < self.high_nm and 0 < self.fwhm_nm < np.inf):
            raise BandTableError(
                f"Band {self.name} needs a range and a width above 0 nm, not {self.low_nm:g} to "
                f"{self.high_nm:g} nm and {self.fwhm_nm:g} nm."
            )

    @classmethod
    def from_centre(cls, name: str, centre_nm: float, fwhm_nm: float) -> RangeBand:
        """The band whose range is its full width at half maximum around its centre."""
        half_nm = fwhm_nm / 2
        return cls(name, centre_nm - half_nm, centre_nm + half_nm, centre_nm, fwhm_nm)


@dataclass(frozen=True)
class AlignmentRow:
    """What one band of the teacher is made of.

    Args:
        teacher_band: the band.
        student_bands: names of the bands with a weight, by wavelength.
        centre_nm: weighted mean of their centres; NaN without bands.
    """

    teacher_band: RangeBand
    student_bands: tuple[str, ...]
    centre_nm: float


@dataclass(frozen=True, eq=False)
class BandAlignment:
    """How to make a teacher's bands from the student's.

    Args:
        weights: (T, C) float32, at least 0, rows sum to 1: teacher = weights @ student.
        rows: one a teacher band, for messages and reports.
        notes: what was assumed or is doubtful, for the log.
    """

    weights: NDArray[np.float32]
    rows: tuple[AlignmentRow, ...]
    notes: tuple[str, ...] = ()

    def table(self) -> str:
        """Write the rows, and the notes below them, as aligned text."""
        return "\n".join([_rows_as_text(self.rows), *self.notes])


def align_bands(
    student: BandTable,
    teacher: Sequence[RangeBand],
    how: Alignment = "mean",
    *,
    present: NDArray[np.bool_] | None = None,
    responses: Mapping[str, Response] | None = None,
) -> BandAlignment:
    """Find the bands of the student that each band of a teacher is made of.

    - "mean": all bands whose centre lies in the range, with equal weight.
    - "response": all bands by the teacher band's response at their centre times the part of the
      wavelength axis they stand for. The response is the tabulated one where there is one, else
      the Gaussian of the band's centre and width.
    - "nearest": the band next to the centre, if it lies in the range or within half the range's
      width of the centre.

    The order of the student's bands decides nothing.

    Args:
        student: C bands; those that are not ``good`` are never used.
        teacher: T bands, in the teacher's order.
        how: see above.
        present: (C,) bool, False where a scene has no data in the band; None when all have.
        responses: for "response", by the teacher bands' names (upper or lower case).

    Raises:
        BandMatchError: teacher bands are without a band of the student; all of them are listed.
            Or ``responses`` are given and none is of a band of this teacher.
    """
    usable = student.good if present is None else student.good & present
    fwhm_nm, _estimated = filled_fwhm_nm(student)
    weigh = _weigher(how, responses, teacher, student.wavelength_nm, fwhm_nm, usable)
    weights = np.zeros((len(teacher), len(student)))
    for row, band in zip(weights, teacher, strict=True):
        row[usable] = weigh(band)
    missing = [band for band, row in zip(teacher, weights, strict=True) if not row.any()]
    if missing:
        raise _missing_error(missing, len(teacher), student, usable)
    weights /= weights.sum(axis=1, keepdims=True)
    rows = tuple(_row(band, row, student) for band, row in zip(teacher, weights, strict=True))
    notes = _response_notes(how, responses, teacher) + _lopsided_notes(rows)
    return BandAlignment(weights.astype(np.float32), rows, notes)


def read_responses(path: str) -> dict[str, Response]:
    """Read tabulated spectral responses.

    A CSV (comma, semicolon or tab; ``#`` starts a comment): the first column is
    ``wavelength_nm``, each other one is a band; an empty cell means 0. Rows in any order.

    Args:
        path: of the file.

    Returns:
        By the names of the columns: (L,) wavelengths in nm, ascending, and (L,) responses.

    Raises:
        BandTableError: it cannot be read, its first column is not ``wavelength_nm``, a cell is
            no number of 0 or more, a wavelength stands twice, or a band never responds.
    """
    text = read_text(path)
    if text is None:
        raise BandTableError(f"The responses {path} cannot be read.", "Check the path.")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    delimiter = next((mark for mark in (";", "\t") if lines and mark in lines[0]), ",")
    cells = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    if len(cells) < 3 or len(cells[0]) < 2 or cells[0][0].lower() != "wavelength_nm":
        raise BandTableError(
            f"The responses {path} need a first column wavelength_nm, a column a band, and two "
            "rows or more.",
            _RESPONSE_REMEDY,
        )
    if delimiter == ";":
        # Spreadsheets that separate by semicolon write decimal commas.
        cells = [cells[0], *([cell.replace(",", ".") for cell in row] for row in cells[1:])]
    numbers = _response_numbers(cells, path)
    return _responses_by_name(cells[0][1:], numbers[np.argsort(numbers[:, 0])], path)


def _weigher(
    how: Alignment,
    responses: Mapping[str, Response] | None,
    teacher: Sequence[RangeBand],
    wavelength_nm: NDArray[np.float64],
    fwhm_nm: NDArray[np.float64],
    usable: NDArray[np.bool_],
) -> Callable[[RangeBand], NDArray[np.float64]]:
    """The function from a teacher band to the weights of the usable bands, all 0 for none."""
    centre_nm, width_nm = wavelength_nm[usable], fwhm_nm[usable]
    if how == "mean":
        return lambda band: _in_range(band, centre_nm).astype(np.float64)
    if how == "nearest":
        return lambda band: _nearest_weights(band, centre_nm, width_nm)
    known = {name.lower(): response for name, response in (responses or {}).items()}
    if known and not any(band.name.lower() in known for band in teacher):
        raise BandMatchError(
            f"None of the responses ({', '.join(responses or ())}) is of a band of the teacher "
            f"({', '.join(band.name for band in teacher)}).",
            _RESPONSE_REMEDY,
        )
    share_nm = _axis_shares_nm(centre_nm, width_nm)
    return lambda band: _response_weights(band, centre_nm, share_nm, known.get(band.name.lower()))


def _in_range(band: RangeBand, centre_nm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(C,) bool: bands whose centre lies in the range, its ends included."""
    return np.asarray((band.low_nm <= centre_nm) & (centre_nm <= band.high_nm))


def _nearest_weights(
    band: RangeBand, centre_nm: NDArray[np.float64], width_nm: NDArray[np.float64]
) -> NDArray[np.float64]:
    """1 for the nearest band that is near enough; of equally near ones the shortest, narrowest."""
    distance_nm = np.abs(centre_nm - band.centre_nm)
    near = _in_range(band, centre_nm) | (distance_nm <= (band.high_nm - band.low_nm) / 2)
    weights = np.zeros(len(centre_nm))
    if near.any():
        order = np.lexsort((width_nm, centre_nm, np.where(near, distance_nm, np.inf)))
        weights[order[0]] = 1.0
    return weights


def _response_weights(
    band: RangeBand,
    centre_nm: NDArray[np.float64],
    share_nm: NDArray[np.float64],
    response: Response | None,
) -> NDArray[np.float64]:
    """The response at each band's centre times its part of the axis; all 0 when none is seen."""
    if response is None:
        offset = (centre_nm - band.centre_nm) / (band.fwhm_nm * SIGMA_PER_FWHM)
        seen = np.exp(-0.5 * offset**2)
    else:
        tabulated_nm, values = response
        seen = np.interp(centre_nm, tabulated_nm, values / values.max(), left=0.0, right=0.0)
    if np.max(seen, initial=0.0) < SEEN_RESPONSE:
        return np.zeros(len(centre_nm))
    # The tail of a Gaussian gives far bands nothing that float32 could hold.
    return np.asarray(np.where(seen < 1e-6, 0.0, seen * share_nm))


def _axis_shares_nm(
    centre_nm: NDArray[np.float64], width_nm: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`axis_share_nm` for bands in any order; bands at one place share their part equally."""
    if len(centre_nm) == 0:
        return np.empty(0)
    places_nm, place, count = np.unique(centre_nm, return_inverse=True, return_counts=True)
    widest_nm = np.zeros(len(places_nm))
    np.maximum.at(widest_nm, place, width_nm)
    shares_nm: NDArray[np.float64] = (axis_share_nm(places_nm, widest_nm) / count)[place]
    return shares_nm


def _row(band: RangeBand, weights: NDArray[np.float64], student: BandTable) -> AlignmentRow:
    used = np.flatnonzero(weights)
    used = used[np.argsort(student.wavelength_nm[used], kind="stable")]
    centre_nm = float(weights @ student.wavelength_nm)
    return AlignmentRow(band, tuple(student.names[i] for i in used), centre_nm)


def _missing_error(
    missing: Sequence[RangeBand], count: int, student: BandTable, usable: NDArray[np.bool_]
) -> BandMatchError:
    """The refusal: every teacher band that nothing covers, and where the student's bands lie."""
    ranges = ", ".join(f"{band.name} ({band.low_nm:g} to {band.high_nm:g} nm)" for band in missing)
    usable_nm = student.wavelength_nm[usable]
    span = "no usable band"
    if len(usable_nm):
        span = (
            f"{len(usable_nm)} usable bands from {usable_nm.min():.0f} to {usable_nm.max():.0f} nm"
        )
    return BandMatchError(
        f"The student's bands do not cover {len(missing)} of the teacher's {count} ranges: "
        f"{ranges}.",
        f"Choose a teacher whose ranges this sensor covers, or check the scene's wavelengths, bad "
        f"bands and dropped ranges; it has {span}.",
        missing,
    )


def _response_notes(
    how: Alignment, responses: Mapping[str, Response] | None, teacher: Sequence[RangeBand]
) -> tuple[str, ...]:
    """A note when some bands are aligned by a Gaussian although responses were given."""
    known = {name.lower() for name in responses or ()}
    without = [band.name for band in teacher if band.name.lower() not in known]
    if how != "response" or not known or not without:
        return ()
    return (f"No response was given for {', '.join(without)}: a Gaussian of its width is used.",)


def _lopsided_notes(rows: Sequence[AlignmentRow]) -> tuple[str, ...]:
    """A note for each range that is covered on one side only."""
    return tuple(
        f"Band {row.teacher_band.name} is made of bands around {row.centre_nm:.0f} nm, "
        f"{abs(row.centre_nm - row.teacher_band.centre_nm):.0f} nm off its centre."
        for row in rows
        if abs(row.centre_nm - row.teacher_band.centre_nm)
        > LOPSIDED_SHARE * (row.teacher_band.high_nm - row.teacher_band.low_nm)
    )


def _response_numbers(cells: list[list[str]], path: str) -> NDArray[np.float64]:
    """(L, 1 + bands) float64 from the rows below the header."""
    width = len(cells[0])
    try:
        # Rows of a spreadsheet may end early; what is not there is no response.
        rows = [[float(cell or 0) for cell in (row + [""] * width)[:width]] for row in cells[1:]]
    except ValueError as error:
        raise BandTableError(
            f"The responses {path} hold a cell that is no number ({error}).", _RESPONSE_REMEDY
        ) from error
    numbers = np.asarray(rows, np.float64)
    if not (np.isfinite(numbers).all() and (numbers >= 0).all() and (numbers[:, 0] > 0).all()):
        raise BandTableError(
            f"The responses {path} hold a negative or missing number.", _RESPONSE_REMEDY
        )
    if len(np.unique(numbers[:, 0])) < len(numbers):
        raise BandTableError(f"The responses {path} hold a wavelength twice.", _RESPONSE_REMEDY)
    return numbers


def _responses_by_name(
    names: Sequence[str], numbers: NDArray[np.float64], path: str
) -> dict[str, Response]:
    silent = [name for name, values in zip(names, numbers.T[1:], strict=True) if not values.any()]
    if silent:
        raise BandTableError(
            f"In the responses {path} the band {silent[0]} is 0 everywhere.", _RESPONSE_REMEDY
        )
    return {
        name: (numbers[:, 0], values) for name, values in zip(names, numbers.T[1:], strict=True)
    }


def _rows_as_text(rows: Sequence[AlignmentRow]) -> str:
    """Columns: teacher band, its range, number and names of the student's bands, their centre."""
    lines = [f"{'teacher band':<14} {'range nm':>15}  {'bands':>5}  {'mean nm':>8}  student bands"]
    for row in rows:
        band, names = row.teacher_band, row.student_bands
        shown = ", ".join(names) if len(names) <= 3 else f"{names[0]} … {names[-1]}"
        extent = f"{band.low_nm:.1f}-{band.high_nm:.1f}"
        lines.append(
            f"{band.name:<14} {extent:>15}  {len(names):>5}  {row.centre_nm:>8.1f}  {shown}"
        )
    return "\n".join(lines)

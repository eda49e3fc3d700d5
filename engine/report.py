"""Reports: templates and figures become one self-contained HTML file."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from numpy.typing import NDArray

from engine.textfile import write_text
from engine.version import engine_version

TEMPLATES = Path(__file__).resolve().parent / "templates"
NO_VALUE = "\u2013"  # a dash
INK = "#1f2a2e"
MUTED = "#64737a"
MOST_DECIMALS = 9
FIGURE_DPI = 160  # twice what screens show, so that print is sharp


def render_report(template_name: str, path: str, **values: Any) -> Path:
    """Fill a template and write it; the file appears whole or not at all.

    Templates extend ``base.html``, may import ``parts.html``, and have the filters ``percent``,
    ``number``, ``figures`` and ``count``. All values are escaped.

    Args:
        template_name: a file in ``engine/templates``.
        path: of the report.
        values: what the template names; a name without a value is an error.

    Raises:
        OutputError: the file cannot be written.
    """
    template = _environment().get_template(template_name)
    made_on = datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z")
    html = template.render(engine_version=engine_version(), made_on=made_on, **values)
    return write_text(path, html)


def new_figure(width_in: float, height_in: float) -> tuple[Figure, Any]:
    """Make a figure with one plain pair of axes, without any global state of matplotlib.

    Returns:
        figure and axes.
    """
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c9d3d0")
    axes.tick_params(colors=MUTED, labelsize=9)
    return figure, axes


def figure_to_data_uri(figure: Figure) -> str:
    """Draw a figure as PNG, in a form that fits into ``<img src>``."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=FIGURE_DPI, facecolor="white")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def confusion_figure(confusion: NDArray[np.int64], names: Sequence[str]) -> Figure:
    """Draw a confusion matrix, each row coloured by its share of the reference class.

    Args:
        confusion: (K, K) counts, rows = reference, columns = map.
        names: of the K classes.
    """
    count = len(names)
    side_in = min(max(3.6, 1.6 + 0.62 * count), 10.0)
    figure, axes = new_figure(side_in + 0.6, side_in)
    totals = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)
    axes.imshow(shares, cmap="GnBu", vmin=0, vmax=1)
    for row, column in np.ndindex(confusion.shape):
        if confusion[row, column]:
            color = "white" if shares[row, column] > 0.55 else INK
            text = format_count(float(confusion[row, column]))
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    axes.spines[:].set_visible(False)
    axes.set_xticks(range(count), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), names)
    axes.tick_params(length=0)
    axes.set_xlabel("map", color=INK)
    axes.set_ylabel("reference", color=INK)
    return figure


def format_percent(share: float | None, digits: int = 1) -> str:
    """Write a share, 0 to 1, as per cent; a dash where there is none."""
    return NO_VALUE if _missing(share) else f"{100 * float(share or 0):.{digits}f} %"


def format_number(value: float | None, digits: int = 3) -> str:
    """Write a number; a dash where there is none."""
    return NO_VALUE if _missing(value) else f"{float(value or 0):,.{digits}f}"


def format_figures(value: float | None, figures: int = 4) -> str:
    """Write a number of any magnitude by its first figures; a dash where there is none."""
    if _missing(value):
        return NO_VALUE
    number = float(value or 0)
    magnitude = math.floor(math.log10(abs(number))) if number else 0
    return f"{number:,.{min(max(figures - 1 - magnitude, 0), MOST_DECIMALS)}f}"


def format_count(value: float | None) -> str:
    """Write a whole number; a dash where there is none."""
    return format_number(value, digits=0)


def _missing(value: float | None) -> bool:
    return value is None or not math.isfinite(value)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters.update(
        percent=format_percent, number=format_number, count=format_count, figures=format_figures
    )
    return environment

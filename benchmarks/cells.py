"""Tables that take hours: cells are measured side by side and kept, and lines are written alike."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

Work = tuple[Callable[..., Any], tuple[Any, ...]]


def measure_cells(
    path: Path, wanted: Mapping[str, Work], jobs: int, logger: logging.Logger
) -> dict[str, Any]:
    """Measure what is not measured yet; each cell is kept as soon as it is finished.

    Args:
        path: of the JSON file that keeps them.
        wanted: for each cell's name a function and its arguments, in the order of work.
        jobs: processes at a time; small trainings gain more from those than from threads.
        logger: told each cell.

    Returns:
        the wanted cells by name.
    """
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {
            pool.submit(function, *arguments): name
            for name, (function, arguments) in wanted.items()
            if name not in kept
        }
        for future in as_completed(futures):
            name = futures[future]
            kept[name] = future.result()
            path.write_text(json.dumps(kept, indent=1))
            logger.info("%s: %s", name, kept[name])
    return {name: kept[name] for name in wanted}


def spread(values: Sequence[float], digits: int, *, signed: bool = False) -> str:
    """Mean and standard deviation; 0 for a single value."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):{'+' if signed else ''}.{digits}f} ± {deviation:.{digits}f}"


def table_row(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"

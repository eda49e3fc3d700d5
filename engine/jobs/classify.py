"""classify: a scene through a classifier, as a map of classes."""

from __future__ import annotations

import time
from typing import Any

from engine.feedback import Feedback
from engine.jobs.shared.class_outputs import (
    WITH_CHIPS,
    ClassMapRequest,
    require_own_tiles,
    write_class_map,
)
from engine.jobs.shared.prediction import prepare


class Request(ClassMapRequest):
    """The parameters of `ClassMapRequest`."""


def classify(request: Request, feedback: Feedback) -> dict[str, Any]:
    """Make a class map of a scene.

    Returns:
        ``output`` and, when asked for, ``confidence``, ``probabilities`` and ``support`` (paths);
        ``valid_pixels`` (with a class), ``seconds``, ``device``.

    Raises:
        DeviceError: a GPU is required and there is none.
        PackageError: the model cannot be loaded, is no classifier, or is asked for support that
            its package does not hold.
        SceneError, BandTableError, BandMatchError: the scene cannot be read or does not fit.
        RequestError, LabelError: extent or mask lie outside the scene, or the model is made for
            other tiles.
        OutputError: an output cannot be written.
    """
    start_s = time.monotonic()
    ready = prepare(request, "semantic-segmentation", feedback)
    if ready.info.architecture in WITH_CHIPS:
        require_own_tiles(request, ready.info.tiling)
    return write_class_map(request, ready, feedback, step="Classifying", start_s=start_s)

"""Classify land cover: a scene and a model in, a class map out."""

from __future__ import annotations

from typing import ClassVar

from ..layer_styles import CLASSES, SHARE
from ..layers import ResultLook
from .prediction import ClassPrediction


class Classify(ClassPrediction):
    """Maps land cover with a trained model."""

    command = "classify"
    title = "Classify land cover"
    keywords = (
        "land cover",
        "classification",
        "deep learning",
        "predict",
        "map",
        "EnMAP",
        "PRISMA",
    )
    use = "classifier"
    looks: ClassVar[dict[str, ResultLook]] = {
        "OUTPUT": ResultLook(CLASSES, "Land cover", 0),
        "CONFIDENCE": ResultLook(SHARE, "Confidence", 1),
        "SUPPORT": ResultLook(SHARE, "Support", 2),
        "PROBABILITIES": ResultLook(SHARE, "Probabilities", 3),
    }

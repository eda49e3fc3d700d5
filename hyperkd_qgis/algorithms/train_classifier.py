"""Train a classifier: labelled places in scenes in, a model package out."""

from __future__ import annotations

from .training import ClassTraining


class TrainClassifier(ClassTraining):
    """Makes a classifier of the user's own."""

    command = "train_classifier"
    title = "Train a land cover classifier"
    keywords = ("train", "fit", "learn", "classification", "samples", "deep learning")

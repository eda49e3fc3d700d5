"""Pretrain a teacher: multispectral scenes in, a package of a teacher out."""

from __future__ import annotations

from .pretraining import Pretraining


class PretrainTeacher(Pretraining):
    """Makes a teacher of the user's own from scenes of few broad bands."""

    command = "pretrain_teacher"
    title = "Pretrain a teacher"
    keywords = (
        "teacher",
        "masked autoencoder",
        "pretraining",
        "self-supervised",
        "Prithvi",
        "Landsat",
        "HLS",
        "Sentinel-2",
        "deep learning",
    )
    presets = ("laptop", "small", "prithvi-100m")

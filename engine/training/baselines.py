"""Classical classifiers on the same split, so that every report says what the model is worth."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from engine.feedback import Feedback

MAX_PIXELS = 5000  # a support vector machine takes minutes beyond


def fit_baselines(
    spectra: NDArray[np.float32],
    class_index: NDArray[np.int64],
    test_spectra: NDArray[np.float32],
    seed: int,
    feedback: Feedback,
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Train each classifier on pure pixels and apply it.

    Args:
        spectra: (M, C) reflectance of the training pixels.
        class_index: (M,) their classes.
        test_spectra: (T, C) reflectance of the held-out pixels.
        seed: of the forest, and of the choice of pixels when there are many.
        feedback: asked for a cancel between classifiers.

    Yields:
        name, and (T,) class indices.
    """
    if len(spectra) > MAX_PIXELS:
        chosen = np.random.default_rng(seed).permutation(len(spectra))[:MAX_PIXELS]
        spectra, class_index = spectra[chosen], class_index[chosen]
    if len(np.unique(class_index)) < 2 or not len(test_spectra):
        return
    for name, classifier in _classifiers(seed).items():
        feedback.raise_if_cancelled()
        yield name, classifier.fit(spectra, class_index).predict(test_spectra)


def _classifiers(seed: int):  # type: ignore[no-untyped-def]  # noqa: ANN202
    """Settings that do well on spectra without a search; the best found on Berlin."""
    return {
        "Random forest": RandomForestClassifier(
            500, class_weight="balanced", random_state=seed, n_jobs=1
        ),
        "Support vector machine": make_pipeline(
            StandardScaler(), SVC(C=100.0, gamma="scale", class_weight="balanced")
        ),
        "Logistic regression": make_pipeline(
            StandardScaler(), LogisticRegression(max_iter=3000, class_weight="balanced")
        ),
    }

"""Classical regressions on the same split, so that every report says what the model is worth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cross_decomposition import PLSRegression
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from engine.feedback import Feedback

MAX_PIXELS = 5000  # a forest takes minutes beyond
RIDGE_ALPHAS = tuple(10.0 ** np.arange(-2, 5.1, 0.5))
MAX_COMPONENTS = 20


def fit_value_baselines(
    spectra: NDArray[np.float32],
    value: NDArray[np.float32],
    fold: NDArray[np.int64],
    test_spectra: NDArray[np.float32],
    seed: int,
    feedback: Feedback,
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Train each regression and apply it.

    Penalty and components are chosen on the same folds of places that the model is chosen on.

    Args:
        spectra: (M, C) reflectance of the training pixels.
        value: (M,) what is right, in any unit.
        fold: (M,) of their places.
        test_spectra: (T, C) reflectance of the held-out pixels.
        seed: of the forest, and of the choice of pixels when there are many.
        feedback: asked for a cancel between regressions.

    Yields:
        name, and (T,) estimates.
    """
    if len(spectra) > MAX_PIXELS:
        chosen = np.random.default_rng(seed).permutation(len(spectra))[:MAX_PIXELS]
        spectra, value, fold = spectra[chosen], value[chosen], fold[chosen]
    if len(value) < 2 or not len(test_spectra):
        return
    # In float32 a small penalty leaves ridge regression with a matrix that cannot be solved.
    exact, exact_test = spectra.astype(np.float64), test_spectra.astype(np.float64)
    for name, regression in _regressions(fold, spectra.shape, seed).items():
        feedback.raise_if_cancelled()
        yield name, np.ravel(regression.fit(exact, value.astype(np.float64)).predict(exact_test))


def _regressions(
    fold: NDArray[np.int64], shape: tuple[int, ...], seed: int
) -> dict[str, Any]:  # scikit-learn has no types
    """The three that a spectroscopist would try, each with its own setting searched."""
    smallest_fit = len(fold) - int(np.bincount(fold).max()) if fold.max() > 0 else len(fold)
    components = range(1, max(min(MAX_COMPONENTS, smallest_fit - 1, shape[1]), 1) + 1)
    ridge = make_pipeline(StandardScaler(), Ridge())
    return {
        "Ridge regression": _searched(ridge, {"ridge__alpha": RIDGE_ALPHAS}, fold),
        "Partial least squares": _searched(
            PLSRegression(), {"n_components": list(components)}, fold
        ),
        "Random forest": RandomForestRegressor(
            500, max_features=1 / 3, random_state=seed, n_jobs=1
        ),
    }


def _searched(regression: Any, settings: dict[str, Any], fold: NDArray[np.int64]) -> Any:
    """The regression with its best setting on held-out folds; in the middle without any."""
    if fold.max() == 0:
        middle = {name: values[len(values) // 2] for name, values in settings.items()}
        return regression.set_params(**middle)
    return GridSearchCV(
        regression, settings, scoring="neg_mean_squared_error", cv=PredefinedSplit(fold)
    )

"""What the ablation of the distillation learns from and is asked about: scenes, places, labels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import Affine
from scipy.io import loadmat
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from benchmarks.accuracy import BLOCK_PX, CLASSES, ROOT, SCENE, TEST_LABELS
from engine.training.metrics import scores_from_confusion
from engine.training.places import hold_out

TESTED_SHARE = 0.4  # of the labelled pixels lie on ground that neither training sees
SHOTS = (5, 10, 20)
DRAWS = 10  # of the labelled pixels, for each number of them
PROBE_C = 0.1  # the classifier on the features: a linear one, that a few pixels can train


@dataclass(frozen=True, eq=False)
class Places:
    """Labelled pixels of Berlin, on ground that may be learned from and on ground that is tested.

    Args:
        row: (M,) of the scene.
        col: (M,) of the scene.
        label: (M,) class index.
        tested: (M,) bool, True where no training looks.
        hidden: (H, W) bool, the ground blocks of the tested pixels.
    """

    row: NDArray[np.int64]
    col: NDArray[np.int64]
    label: NDArray[np.int64]
    tested: NDArray[np.bool_]
    hidden: NDArray[np.bool_]


def deal_places(seed: int) -> Places:
    """Choose whole blocks of 10 x 10 px for the test, with the same share of every class."""
    with rasterio.open(TEST_LABELS) as source:
        value = source.read(1)
    row, col = np.nonzero((value >= 1) & (value <= len(CLASSES)))
    label = value[row, col].astype(np.int64) - 1
    blocks = -(-value.shape[1] // BLOCK_PX)
    place = (row // BLOCK_PX) * blocks + col // BLOCK_PX
    tested = hold_out(label, place, TESTED_SHARE, seed)
    rows, cols = np.indices(value.shape) // BLOCK_PX
    hidden = np.isin(rows * blocks + cols, np.unique(place[tested]))
    return Places(row, col, label, tested, hidden)


def training_scenes(hidden: NDArray[np.bool_], data: Path | None, folder: Path) -> list[str]:
    """Write Berlin without the tested ground, and list it with the other scenes that there are.

    Args:
        hidden: (H, W) bool, the ground that becomes nodata.
        data: folder of the real scenes; None or absent: Berlin alone.
        folder: to write to.

    Returns:
        sources; Berlin first, so that its bands are the student's.
    """
    found = [_berlin_without(hidden, folder / "berlin.tif")]
    if data is None or not data.is_dir():
        return found
    found.append(str(data / "jasper_ridge" / "derived" / "jasper_hsi.tif"))
    cube = loadmat(data / "gatorsense" / "a_hsi_img_for_VI_demo.mat")
    found.append(_write_cube(cube["hsi_img"], cube["wavelengths"].ravel(), folder / "aviris.tif"))
    return found


def data_folder() -> Path | None:
    """The real scenes that are not packaged."""
    folder = Path(os.environ.get("HYPERKD_DATA", ROOT.parent / "shared" / "data"))
    return folder if folder.is_dir() else None


def _berlin_without(hidden: NDArray[np.bool_], path: Path) -> str:
    with rasterio.open(SCENE) as source:
        array = source.read()
        array[:, hidden] = int(source.nodata)
        write_scene(
            path,
            array,
            {band: source.tags(band) for band in source.indexes},
            {"crs": source.crs, "transform": source.transform, "nodata": source.nodata},
        )
    return str(path)


def _write_cube(cube: NDArray[Any], wavelength_nm: NDArray[np.float64], path: Path) -> str:
    """Write an (H, W, C) array of reflectance x 10,000 as a GeoTIFF with wavelengths."""
    # AVIRIS pixels of unknown place: 20 m, on a grid of their own far from Berlin.
    grid = {"crs": CRS.from_epsg(32610), "transform": Affine(20, 0, 5e5, 0, -20, 4e6)}
    write_scene(path, np.moveaxis(cube, 2, 0), wavelength_tags(wavelength_nm), grid)
    return str(path)


def wavelength_tags(wavelength_nm: Iterable[float]) -> dict[int, dict[str, str]]:
    """Tags of bands, by their number from 1, that say where they lie."""
    return {
        band: {"wavelength": f"{nm:g}", "wavelength_units": "nm"}
        for band, nm in enumerate(wavelength_nm, start=1)
    }


def write_scene(
    path: Path, array: NDArray[Any], tags: dict[int, dict[str, str]], grid: dict[str, Any]
) -> None:
    """Write a (C, H, W) array as a GeoTIFF; ``grid`` has its place, and nodata if it has one."""
    bands, height, width = array.shape
    profile = {"count": bands, "height": height, "width": width, "dtype": array.dtype, **grid}
    with rasterio.open(path, "w", driver="GTiff", **profile) as output:
        output.write(array)
        for band, items in tags.items():
            output.update_tags(band, **items)


def chips_around(places: Places, size_px: int) -> Tensor:
    """(M, C, size, size) float32 reflectance around the labelled pixels, mirrored at the edges.

    The pixel is in row and column ``size_px // 2``.
    """
    with rasterio.open(SCENE) as source:
        cube = source.read().astype(np.float32) * np.float32(1e-4)
    margin = size_px // 2
    cube = np.pad(cube, ((0, 0), (margin, size_px), (margin, size_px)), mode="reflect")
    chips = [
        cube[:, row : row + size_px, col : col + size_px]
        for row, col in zip(places.row, places.col, strict=True)
    ]
    return torch.from_numpy(np.stack(chips))


def few_shot(features: NDArray[np.float32], places: Places, seed: int) -> dict[str, float]:
    """Balanced accuracy on the tested ground of a linear classifier trained on a few pixels.

    Args:
        features: (M, F) of the labelled pixels.
        places: which pixels are tested.
        seed: of the draws, the same for all features.

    Returns:
        by number of labelled pixels a class: the mean over the draws.
    """
    return {
        str(shots): float(np.mean([
            _probe(features, places, drawn)
            for drawn in _draws(places, shots, np.random.default_rng((seed, shots)))
        ]))
        for shots in SHOTS
    }  # fmt: skip


def _draws(places: Places, shots: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Indices of ``shots`` pixels of every class, or of all that there are."""
    for _draw in range(DRAWS):
        yield np.concatenate(
            [
                rng.permutation(np.flatnonzero(~places.tested & (places.label == number)))[:shots]
                for number in range(len(CLASSES))
            ]
        )


def _probe(features: NDArray[np.float32], places: Places, drawn: NDArray[np.int64]) -> float:
    probe = make_pipeline(
        StandardScaler(), LogisticRegression(C=PROBE_C, max_iter=500, class_weight="balanced")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits change no answer
        probe.fit(features[drawn], places.label[drawn])
    confusion = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    np.add.at(
        confusion,
        (places.label[places.tested], probe.predict(features[places.tested])),
        1,
    )
    return float(scores_from_confusion(confusion).balanced_accuracy)

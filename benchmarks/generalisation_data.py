"""Real scenes to learn in, and others to be asked about: what `benchmarks.generalisation` uses.

Jasper Ridge and Samson were flown by different sensors over different places; three classes are in
both. Berlin is cut into a north and a south, with ground between them that nobody sees: 180 m in
the hyperspectral scene, whose few labels allow no more, and 790 m in the image of 3.6 m.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine
from rasterio.windows import Window

from benchmarks.accuracy import (
    CLASSES,
    POLYGONS,
    SAMPLE,
    SCENE,
    collect_pixels,
    tested_labels,
)
from benchmarks.distillation_data import data_folder, wavelength_tags, write_scene
from engine.raster.band_presence import select_bands
from engine.raster.scene import open_scene
from engine.raster.spectra import BandTable
from engine.training.samples import Samples, SampleSizes

SHARED_CLASSES = ("tree", "water", "soil")
HIGH_RESOLUTION = SAMPLE / "HighResolution_BerlinUrbanGradient.tif"
# What both scenes have: Samson's range, in Jasper Ridge's bands, which are the broader ones.
SHARED_NM = (401.0, 889.0)
# First row below the north, first row of the south.
HYPERSPECTRAL_ROWS = (42, 48)
HIGH_RESOLUTION_ROWS = (220, 440)
# Index among Sentinel-2's thirteen bands: centre in nm.
SENTINEL2 = {1: 492.4, 2: 559.8, 3: 664.6, 7: 832.8, 11: 1613.7, 12: 2202.4}


@dataclass(frozen=True, eq=False)
class Domain:
    """One side of a task.

    Args:
        samples: labelled pixels, mixed ones too where the labels are polygons.
        scene: as a source, for trainings without labels.
    """

    samples: Samples
    scene: str


@dataclass(frozen=True, eq=False)
class Task:
    """Learn here, be asked there.

    Args:
        name: of the table's column.
        classes: names, in the order of the class indices.
        bands: that every method reads.
        source: with labels to learn from.
        target: whose labels are for the score alone.
    """

    name: str
    classes: tuple[str, ...]
    bands: BandTable
    source: Domain
    target: Domain


def load_tasks(sizes: SampleSizes, folder: Path) -> dict[str, Task]:
    """Read the tasks whose scenes are there.

    Args:
        sizes: of the chips around labelled pixels.
        folder: for the parts of Berlin.
    """
    tasks = _berlin_tasks(sizes, folder)
    data = data_folder()
    if data is not None:
        tasks |= _aviris_tasks(data, sizes)
    return tasks


def _aviris_tasks(data: Path, sizes: SampleSizes) -> dict[str, Task]:
    """Jasper Ridge to Samson, and back."""
    jasper_path = str(data / "jasper_ridge" / "derived" / "jasper_hsi.tif")
    samson_path = str(data / "samson" / "derived" / "samson_hsi.tif")
    jasper, samson = open_scene(jasper_path), open_scene(samson_path)
    table, (low_nm, high_nm) = jasper.require_bands(), SHARED_NM
    inside = (table.wavelength_nm >= low_nm) & (table.wavelength_nm <= high_nm)
    bands = select_bands(table, table.good & inside)
    jasper_labels = str(data / "jasper_ridge" / "derived" / "jasper_pure70.tif")
    samson_labels = str(data / "samson" / "derived" / "samson_pure70.tif")
    # The values of tree, water and soil in the two label rasters.
    a = Domain(collect_pixels(jasper, bands, jasper_labels, None, (1, 2, 3), sizes), jasper_path)
    b = Domain(collect_pixels(samson, bands, samson_labels, None, (2, 3, 1), sizes), samson_path)
    there = Task("Jasper Ridge to Samson", SHARED_CLASSES, bands, a, b)
    back = Task("Samson to Jasper Ridge", SHARED_CLASSES, bands, b, a)
    return {task.name: task for task in (there, back)}


def _berlin_tasks(sizes: SampleSizes, folder: Path) -> dict[str, Task]:
    """The north of Berlin to its south, and back, in both of its scenes."""
    tasks: dict[str, Task] = {}
    for name, path, rows in (
        ("Berlin, 30 m", SCENE, HYPERSPECTRAL_ROWS),
        ("Berlin, 3.6 m", HIGH_RESOLUTION, HIGH_RESOLUTION_ROWS),
    ):
        bands = open_scene(str(path)).require_bands()
        north, south = (
            _berlin_part(str(part), bands, sizes, path == SCENE)
            for part in _cut(path, bands, rows, folder)
        )
        there = Task(f"{name}, north to south", CLASSES, bands, north, south)
        back = Task(f"{name}, south to north", CLASSES, bands, south, north)
        tasks |= {task.name: task for task in (there, back)}
    return tasks


def _berlin_part(path: str, bands: BandTable, sizes: SampleSizes, is_coarse: bool) -> Domain:
    """One side. At 30 m polygons share pixels: scored are those of one class by 60 %."""
    scene = open_scene(path)
    samples = collect_pixels(scene, bands, POLYGONS, "class_name", CLASSES, sizes)
    if is_coarse:
        samples = replace(samples, pure=tested_labels(scene, bands, samples, sizes) >= 0)
    return Domain(samples, path)


def _cut(path: Path, bands: BandTable, rows: tuple[int, int], folder: Path) -> tuple[Path, Path]:
    """Write the rows above the first and below the second as scenes of their own."""
    parts = folder / f"{path.stem}_north.tif", folder / f"{path.stem}_south.tif"
    with rasterio.open(path) as source:
        spans = (0, rows[0]), (rows[1], source.height)
        for part, (start, stop) in zip(parts, spans, strict=True):
            window = Window(0, start, source.width, stop - start)
            grid = {
                "crs": source.crs,
                "transform": source.window_transform(window),
                "nodata": source.nodata,
            }
            write_scene(
                part, source.read(window=window), wavelength_tags(bands.wavelength_nm), grid
            )
            with rasterio.open(part, "r+") as output:
                output.scales, output.offsets = source.scales, source.offsets
    return parts


def pretraining_scenes(folder: Path) -> list[str]:
    """Write five dates of Sentinel-2 as scenes, without labels.

    Raises:
        FileNotFoundError: the folder that HYPERKD_DATA names is not there.
    """
    data = data_folder()
    if data is None:
        raise FileNotFoundError("The scenes are in the folder that HYPERKD_DATA names.")
    dates = np.load(data / "sentinel2_slovenia" / "REFERENCE_SCENES.npy")
    grid = {"crs": "EPSG:32633", "transform": Affine(10, 0, 5e5, 0, -10, 5.1e6)}
    paths = []
    for number, cube in enumerate(dates[..., list(SENTINEL2)]):
        path = folder / f"sentinel2_{number}.tif"
        write_scene(path, np.moveaxis(cube, 2, 0), wavelength_tags(SENTINEL2.values()), grid)
        paths.append(str(path))
    return paths

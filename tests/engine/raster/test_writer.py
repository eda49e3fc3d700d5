"""Outputs appear whole, with their look and their grid, or not at all."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.crs import CRS

from engine.errors import CancelledError, OutputError
from engine.raster import writer as writer_module
from engine.raster.style import ClassInfo, ClassStyle, RampStyle
from engine.raster.tiles import Window
from engine.raster.writer import Grid, RasterWriter
from tests.engine.raster.made_scenes import CancelAfter

GRID = Grid(24, 17, Affine(30, 0, 4e5, 0, -20, 5.8e6), CRS.from_epsg(32633))
STYLE = ClassStyle((ClassInfo(1, "roof", "#e41a1c"), ClassInfo(3, "Bäume", "#4daf4a")))
TAGS = {"HYPERKD_MODEL": "berlin", "HYPERKD_MATCH": "a < b"}


def class_values(grid=GRID):
    rng = np.random.default_rng(0)
    return rng.choice(np.array([0, 1, 3], np.uint8), (1, grid.height, grid.width))


def write_rows(writer, values, rows=7):
    for row in range(0, values.shape[1], rows):
        part = values[:, row : row + rows]
        writer.write(Window(row, 0, part.shape[1], part.shape[2]), part)


def write_map(path, grid=GRID, values=None, **options):
    values = class_values(grid) if values is None else values
    options = {"tags": TAGS, "style": STYLE} | options
    with RasterWriter(str(path), grid, ["land cover"], "uint8", 0, **options) as writer:
        write_rows(writer, values)
    return values


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "map.tif"


def test_values_come_back(path):
    values = write_map(path)
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.read(), values)
        assert dataset.nodata == 0
        assert dataset.descriptions == ("land cover",)


def test_it_is_a_deflated_cloud_optimized_geotiff(path):
    write_map(path)
    with rasterio.open(path) as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.compression.name == "deflate"
        assert dataset.profile["tiled"]


def test_only_the_map_its_names_and_its_style_are_left(path):
    write_map(path)
    assert names_in(path.parent) == ["map.qml", "map.tif", "map.tif.aux.xml"]


@pytest.mark.parametrize(
    "transform, crs",
    [
        (GRID.transform, GRID.crs),
        (GRID.transform, None),
        (Affine.identity(), None),
        (Affine(25, 9, 4e5, 12, -18, 5.8e6), GRID.crs),
        (Affine(0.001, 0, 13.4, 0, -0.0005, 52.5), CRS.from_epsg(4326)),
        (GRID.transform, CRS.from_proj4("+proj=aea +lat_1=29 +lat_2=-36 +lon_0=132 +datum=WGS84")),
    ],
    ids=["non-square pixels", "no crs", "no position", "rotated", "degrees", "crs without a code"],
)
def test_grid_and_crs_are_exactly_the_scene_s(path, transform, crs):
    write_map(path, Grid(24, 17, transform, crs))
    with rasterio.open(path) as dataset:
        assert dataset.shape == (24, 17)
        assert dataset.transform == transform
        assert dataset.crs == crs


def test_colours_and_names_are_inside(path):
    write_map(path)
    with rasterio.open(path) as dataset:
        assert dataset.colormap(1)[3] == (77, 175, 74, 255)
        assert [c["name"] for c in json.loads(dataset.tags()["CLASSES"])] == ["roof", "Bäume"]
    assert "Bäume" in Path(f"{path}.aux.xml").read_text(encoding="utf-8")
    assert "paletted" in path.with_suffix(".qml").read_text(encoding="utf-8")


def test_provenance_is_in_the_tags(path):
    write_map(path)
    with rasterio.open(path) as dataset:
        assert TAGS.items() <= dataset.tags().items()


def test_overviews_of_classes_are_classes(path):
    grid = Grid(1100, 1030, GRID.transform, GRID.crs)
    values = np.zeros((1, 1100, 1030), np.uint8)
    values[:, :, ::2], values[:, :, 1::2] = 1, 3
    write_map(path, grid, values)
    with rasterio.open(path, overview_level=0) as overview:
        assert set(np.unique(overview.read())) <= {1, 3}
        assert overview.shape == (550, 515)


def test_overviews_of_numbers_are_means_without_nodata(path):
    grid = Grid(1100, 1030, GRID.transform, GRID.crs)
    values = np.full((1, 1100, 1030), 0.25, np.float32)
    values[:, :, ::2] = 0.75
    values[:, :4, :4] = np.nan
    with RasterWriter(str(path), grid, ["p"], "float32", np.nan, style=RampStyle()) as writer:
        write_rows(writer, values, rows=100)
    with rasterio.open(path, overview_level=0) as overview:
        means = overview.read(1)
    assert np.isnan(means[:2, :2]).all()
    np.testing.assert_allclose(means[10:, 10:], 0.5)


def test_several_bands_keep_their_names_and_order(path):
    values = np.random.default_rng(0).random((3, 24, 17), np.float32)
    with RasterWriter(str(path), GRID, ["a", "b", "c"], "float32", np.nan) as writer:
        write_rows(writer, values)
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.read(), values)
        assert dataset.descriptions == ("a", "b", "c")
        assert np.isnan(dataset.nodata)
    assert names_in(path.parent) == ["map.tif"]


def test_a_part_of_a_scene_is_written_in_the_scene_s_windows(path):
    window = Window(5, 3, 10, 8)
    values = class_values()[:, 5:15, 3:11]
    with RasterWriter(str(path), GRID.crop(window), ["c"], "uint8", 0, style=STYLE) as writer:
        writer.write(Window(5, 3, 4, 8), values[:, :4])
        writer.write(Window(9, 3, 6, 8), values[:, 4:])
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.read(), values)
        assert dataset.transform == GRID.transform @ Affine.translation(3, 5)


def test_a_failed_run_leaves_nothing(path):
    with (
        pytest.raises(ArithmeticError),
        RasterWriter(str(path), GRID, ["c"], "uint8", 0, style=STYLE) as writer,
    ):
        writer.write(Window(0, 0, 24, 17), class_values())
        raise ArithmeticError
    assert names_in(path.parent) == []


@pytest.fixture
def existing(path):
    write_map(path)
    return {file: file.read_bytes() for file in path.parent.iterdir()}


def assert_unchanged(existing):
    (folder,) = {file.parent for file in existing}
    assert {file: file.read_bytes() for file in folder.iterdir()} == existing


def test_an_older_output_survives_a_failed_run(path, existing):
    with (
        pytest.raises(ArithmeticError),
        RasterWriter(str(path), GRID, ["c"], "uint8", 0, style=STYLE) as writer,
    ):
        writer.write(Window(0, 0, 24, 17), class_values() * 0)
        raise ArithmeticError
    assert_unchanged(existing)


def test_an_older_output_survives_a_failure_at_the_very_end(path, existing, monkeypatch):
    def fail(*_, **__):
        raise rasterio.errors.RasterioIOError("no space left")

    monkeypatch.setattr(rasterio.shutil, "copy", fail)
    with pytest.raises(OutputError, match=r"map.tif cannot be written: no space left"):
        write_map(path)
    assert_unchanged(existing)


def test_outputs_that_belong_together_appear_together(tmp_path, monkeypatch):
    """One that cannot be finished keeps the other, which already was, from appearing."""
    old = write_map(tmp_path / "a.tif")
    copy = rasterio.shutil.copy

    def fail_second(rows, cog, **options):
        if ".b.tif." in str(rows):
            raise rasterio.errors.RasterioIOError("no space left")
        copy(rows, cog, **options)

    monkeypatch.setattr(rasterio.shutil, "copy", fail_second)
    with (
        pytest.raises(OutputError, match=r"b.tif cannot be written: no space left"),
        RasterWriter(str(tmp_path / "a.tif"), GRID, ["a"], "uint8", 0) as first,
        RasterWriter(str(tmp_path / "b.tif"), GRID, ["b"], "uint8", 0) as second,
    ):
        first.write(Window(0, 0, 24, 17), class_values() * 0)
        first.finish()
        second.finish()
    with rasterio.open(tmp_path / "a.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(), old)
    assert names_in(tmp_path) == ["a.qml", "a.tif", "a.tif.aux.xml"]


def test_what_an_older_output_left_beside_does_not_outlive_it(path):
    write_map(path)
    Path(f"{path}.ovr").write_bytes(b"old")
    with RasterWriter(str(path), GRID, ["c"], "float32", np.nan) as writer:
        writer.write(Window(0, 0, 24, 17), np.zeros((1, 24, 17), np.float32))
    assert not Path(f"{path}.aux.xml").exists()
    assert not Path(f"{path}.ovr").exists()


def test_rows_that_are_missing_are_noticed(path, monkeypatch):
    monkeypatch.setattr(
        writer_module.rasterio.shutil, "copy",
        lambda rows, cog, **_: write_other_values(rows, cog),
    )  # fmt: skip
    with pytest.raises(OutputError, match="reads back with other values from row 0"):
        write_map(path)
    assert names_in(path.parent) == []


def write_other_values(rows, cog):
    with rasterio.open(rows) as source:
        profile, tags = source.profile, source.tags()
        with rasterio.open(cog, "w", **profile) as target:
            target.write(source.read() + 1)
            target.update_tags(**tags)
            target.set_band_description(1, source.descriptions[0])


def test_a_cancel_while_the_file_is_made_is_answered_and_leaves_nothing(path, monkeypatch):
    ended = threading.Event()

    def slow_copy(rows, cog, **_):
        time.sleep(1.5)
        Path(cog).parent.mkdir(exist_ok=True)  # as a driver that opens its file late
        Path(cog).write_bytes(b"half")
        ended.set()

    monkeypatch.setattr(writer_module.rasterio.shutil, "copy", slow_copy)
    start_s = time.monotonic()
    with pytest.raises(CancelledError):
        write_map(path, feedback=CancelAfter(looks=2))
    assert time.monotonic() - start_s < 1
    assert names_in(path.parent) == []
    assert ended.wait(5)
    time.sleep(0.1)
    assert names_in(path.parent) == []


FULL_DISK = """
import resource, sys
import numpy as np
from affine import Affine
from engine.errors import OutputError
from engine.raster.tiles import Window
from engine.raster.writer import Grid, RasterWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
values = np.random.default_rng(0).random((1, 100, 700), np.float32)
grid = Grid(900, 700, Affine.identity(), None)
try:
    with RasterWriter(sys.argv[1], grid, ["p"], "float32", None) as writer:
        for row in range(0, 900, 100):
            writer.write(Window(row, 0, 100, 700), values)
except OutputError as error:
    print("OutputError", error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="files are limited by POSIX only")
def test_a_disk_that_fills_up_is_said_and_nothing_is_left(path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"OutputError The output {path} ")
    assert "full disk" in done.stdout
    assert names_in(path.parent) == []

"""Rasters of many bands: what they say of their bands comes back, and their blocks stay small."""

from datetime import UTC, datetime

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from engine.raster.cube import (
    CubeInfo,
    block_side_px,
    colour_style,
    overview_factors,
    stretch,
)
from engine.raster.pair_dates import acquisition_time
from engine.raster.scene import SceneReader, open_scene
from engine.raster.spectra import BandTable
from engine.raster.tiles import Window
from engine.raster.writer import Grid, RasterWriter

NM = np.array([418.3, 486.25, 561.0, 662.5, 1024.125, 2445.3])
FWHM_NM = np.array([6.99, np.nan, 8.0, 8.25, 12.0, 7.5])
GOOD = np.array([True, True, True, True, False, True])
TABLE = BandTable(tuple(f"band {i}" for i in (4, 5, 6, 9, 20, 80)), NM, FWHM_NM, GOOD, "made")
TAKEN = datetime(2022, 6, 27, 10, 45, 48, tzinfo=UTC)
GRID = Grid(40, 33, Affine(10, 0, 4e5, 0, -8, 5.8e6), CRS.from_epsg(32633))


def cube_values(bands=6, grid=GRID):
    shape = bands, grid.height, grid.width
    return np.random.default_rng(0).integers(200, 4000, shape).astype("int16")


def write_cube(path, values, grid=GRID, table=TABLE, side=16, cube=None, nodata=-32768, **options):
    """Write tiles from the lower right to the upper left: cubes arrive in any order."""
    cube = cube or CubeInfo(table, 1e-4, 0.0, TAKEN)
    names = table.names if table is not None else [f"b{i}" for i in range(len(values))]
    with RasterWriter(
        str(path), grid, names, values.dtype.name, nodata, cube=cube, **options
    ) as writer:
        for row in reversed(range(0, grid.height, side)):
            for col in reversed(range(0, grid.width, side)):
                part = np.ascontiguousarray(values[:, row : row + side, col : col + side])
                writer.write(Window(row, col, *part.shape[1:]), part)


def wide_table(count):
    nm = np.linspace(420.0, 2450.0, count)
    names = tuple(f"band {i}" for i in range(count))
    return BandTable(names, nm, np.full(count, 10.0), np.ones(count, bool), "made")


def test_a_scene_opens_with_all_that_was_written(tmp_path):
    path = tmp_path / "fused.tif"
    values = cube_values()
    write_cube(path, values)
    scene = open_scene(str(path))
    assert scene.bands.names == TABLE.names
    np.testing.assert_array_equal(scene.bands.wavelength_nm, NM)
    np.testing.assert_array_equal(scene.bands.fwhm_nm, FWHM_NM)
    np.testing.assert_array_equal(scene.bands.good, GOOD)
    np.testing.assert_array_equal(scene.scale, 1e-4)
    assert scene.nodata == (-32768.0,) * 6
    assert scene.notes == ()
    assert acquisition_time(scene) == TAKEN
    with SceneReader(scene, range(6)) as reader:
        np.testing.assert_array_equal(reader.read(Window(0, 0, 40, 33)), values)


def test_gdal_s_imagery_domain_has_the_wavelengths_in_micrometres(tmp_path):
    write_cube(tmp_path / "fused.tif", cube_values())
    with rasterio.open(tmp_path / "fused.tif") as dataset:
        tags = [dataset.tags(number, ns="IMAGERY") for number in (1, 2)]
    assert tags[0] == {"CENTRAL_WAVELENGTH_UM": "0.4183", "FWHM_UM": "0.00699"}
    assert tags[1] == {"CENTRAL_WAVELENGTH_UM": "0.48625"}


def test_reflectance_in_floats_needs_no_scale(tmp_path):
    values = (cube_values() * np.float32(1e-4)).astype(np.float32)
    values[:, 3, 4] = np.nan
    write_cube(tmp_path / "fused.tif", values, cube=CubeInfo(TABLE), nodata=np.nan)
    scene = open_scene(str(tmp_path / "fused.tif"))
    assert scene.dtype == np.float32
    np.testing.assert_array_equal(scene.scale, 1.0)
    with SceneReader(scene, range(6)) as reader:
        np.testing.assert_array_equal(reader.read(Window(0, 0, 40, 33)), values)


def test_a_cube_without_wavelengths_keeps_its_scale(tmp_path):
    write_cube(tmp_path / "f.tif", cube_values(), table=None, cube=CubeInfo(scale=2e-4, offset=0.5))
    scene = open_scene(str(tmp_path / "f.tif"))
    assert scene.bands is None
    assert (scene.scale[0], scene.offset[0]) == (2e-4, 0.5)


@pytest.mark.parametrize(
    ("bands", "dtype", "side"),
    [(1, "uint8", 512), (12, "float32", 256), (177, "int16", 128), (224, "float32", 64),
     (100_000, "float64", 16)],
)  # fmt: skip
def test_blocks_are_bounded_by_bytes(bands, dtype, side):
    assert block_side_px(bands, np.dtype(dtype)) == side
    assert side == 16 or bands * side**2 * np.dtype(dtype).itemsize <= 8 * 2**20


def test_a_cube_is_a_cloud_optimized_geotiff_in_small_blocks(tmp_path):
    path = tmp_path / "fused.tif"
    grid = Grid(150, 140, GRID.transform, GRID.crs)
    values = cube_values(180, grid)
    write_cube(path, values, grid, wide_table(180), side=70)
    with rasterio.open(path) as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.block_shapes[0] == (128, 128)
        assert dataset.compression.name == "deflate"
        np.testing.assert_array_equal(dataset.read(), values)


def test_overviews_of_a_cube_are_means_without_nodata(tmp_path):
    path = tmp_path / "fused.tif"
    grid = Grid(48, 620, GRID.transform, GRID.crs)
    values = np.full((60, 48, 620), 1000, np.int16)
    values[:, :, ::2] = 3000
    values[:, :2, 0] = -32768
    write_cube(path, values, grid, wide_table(60), side=48)
    with rasterio.open(path) as dataset:
        assert dataset.overviews(1) == [2]
    with rasterio.open(path, overview_level=0) as overview:
        seen = overview.read(7)
    assert seen[0, 0] == 1000
    assert (seen[1:] == 2000).all()


@pytest.mark.parametrize(
    ("shape", "factors"),
    [((512, 400), []), ((513, 20), [2]), ((1025, 2048), [2, 4]), ((6000, 6000), [2, 4, 8, 16])],
)
def test_the_last_overview_fits_on_a_screen(shape, factors):
    assert overview_factors(*shape) == factors
    assert max(shape) / max([1, *factors]) <= 512


def test_colours_are_the_good_bands_nearest_to_those_of_eyes():
    assert colour_style(TABLE, 6).bands == (4, 3, 2)
    without_red = BandTable(TABLE.names, NM, FWHM_NM, GOOD & (NM != 662.5))
    assert colour_style(without_red, 6).bands == (6, 3, 1)  # 1024 nm is bad, the rest is spread


def test_a_cube_without_colours_or_wavelengths_is_spread():
    infrared = wide_table(11)
    infrared = BandTable(infrared.names, infrared.wavelength_nm + 600, infrared.fwhm_nm,
                         infrared.good)  # fmt: skip
    assert colour_style(infrared, 11).bands == (10, 6, 2)
    assert colour_style(None, 11).bands == (10, 6, 2)
    assert colour_style(None, 1).bands == (1, 1, 1)


def test_a_picture_is_stretched_to_what_was_written(tmp_path):
    values = np.zeros((6, 40, 33), np.int16)
    values += np.arange(40, dtype=np.int16)[:, None] * 100
    values[:, :, 20:] = -32768
    write_cube(tmp_path / "fused.tif", values, style=colour_style(TABLE, 6))
    qml = (tmp_path / "fused.qml").read_text()
    # 2 and 98 % of 0 to 3900, as reflectance; nodata takes no part.
    assert "<minValue>0</minValue>" in qml and "<maxValue>0.39</maxValue>" in qml
    assert 'redBand="4" greenBand="3" blueBand="2"' in qml


def test_limits_of_nothing_and_of_one_value_can_be_shown():
    assert stretch(np.array([])) == (0.0, 1.0)
    assert stretch(np.full(9, 0.25)) == (0.25, 1.25)

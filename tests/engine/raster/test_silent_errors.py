"""The ten silent wrong results found in other tools: none of them may happen here."""

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

from engine.errors import BandMatchError, CancelledError
from engine.feedback import SilentFeedback
from engine.jobs.classify import Request, classify
from engine.packages.package import save_package
from engine.raster.scene import open_scene
from engine.raster.spectra import BandTable, match_bands
from engine.raster.stream import stream_scene
from engine.raster.style import ClassInfo, ClassStyle
from engine.raster.tiles import Tiling
from engine.raster.writer import Grid, RasterWriter
from tests.engine.jobs.brightest import info_of, model_of
from tests.engine.raster.made_scenes import (
    CancelAfter,
    ConvModel,
    IdentityModel,
    all_bands,
    make_values,
    run,
    write_scene,
)

BOTH = [Tiling(32, 4), Tiling(32, 4, blend=True)]


def is_image(result, values):
    return result.valid.all() and np.allclose(result.values, values * 1e-4, rtol=1e-4, atol=1e-6)


@pytest.fixture
def package(tmp_path):
    """Tells by the brightest of the first three bands: class values 2, 7 and 200."""
    model = model_of()
    return str(save_package(str(tmp_path / "brightest"), info_of(model), model.state_dict()))


def write_bright_scene(path, dtype, nodata, invalid):
    """Band 2 is the brightest everywhere; ``invalid`` goes into the first row of all bands."""
    values = np.full((12, 24, 17), 0.05 if np.dtype(dtype).kind == "f" else 500).astype(dtype)
    values[1] = 0.6 if np.dtype(dtype).kind == "f" else 6000
    values[:, 0] = invalid
    source = write_scene(path, values, nodata)
    with rasterio.open(source, "r+") as dataset:
        for band_number, wavelength_nm in enumerate(np.linspace(450, 1000, 12), start=1):
            dataset.update_tags(band_number, wavelength=str(wavelength_nm))
    return source


@pytest.mark.parametrize("tiling", BOTH)
@pytest.mark.parametrize("side", [32, 31, 7])
def test_01_a_raster_as_small_as_a_tile_is_not_blank(tmp_path, side, tiling):
    values = make_values(side, side, "int16")
    assert is_image(run(write_scene(tmp_path / "s", values), IdentityModel(tiling)), values)


@pytest.mark.parametrize("tiling", BOTH)
@pytest.mark.parametrize("size", [(7, 100), (100, 7), (1, 100)])
def test_02_a_raster_with_one_side_shorter_than_a_tile_is_not_blank(tmp_path, size, tiling):
    values = make_values(*size, "int16")
    assert is_image(run(write_scene(tmp_path / "s", values), IdentityModel(tiling)), values)


def test_03_the_same_spectrum_gives_the_same_result_beside_whatever_else(tmp_path):
    """Nothing is normalised by what else is in a tile, so that there are no seams."""
    dark = np.full((12, 32, 64), 500, np.int16)
    bright = dark.copy()
    bright[:, :, 40:] = 9000
    model = ConvModel(Tiling(16, 2))
    alone = run(write_scene(tmp_path / "dark", dark), model)
    beside = run(write_scene(tmp_path / "bright", bright), model)
    np.testing.assert_allclose(alone.values[:, :, :38], beside.values[:, :, :38], atol=1e-6)


@pytest.mark.parametrize("tiling", [Tiling(16, 4, True), Tiling(16, 7, True), Tiling(16, 4)])
def test_04_there_is_no_ring_of_zero_weight_around_the_image(tmp_path, tiling):
    values = np.full((12, 40, 40), 7000, np.int16)
    result = run(write_scene(tmp_path / "s", values), IdentityModel(tiling))
    np.testing.assert_allclose(result.values, 0.7, rtol=1e-5)


@pytest.mark.parametrize(
    "dtype, nodata, invalid",
    [("int16", -9999, -9999), ("float32", np.nan, np.nan), ("float32", -9999, -9999),
     ("float32", None, np.nan)],
)  # fmt: skip
def test_05_nodata_that_no_byte_can_hold_becomes_the_map_s_own(
    tmp_path, package, dtype, nodata, invalid
):
    source = write_bright_scene(tmp_path / "s", dtype, nodata, invalid)
    output = str(tmp_path / "map.tif")
    request = {"input": source, "model": package, "output": output, "device": "cpu"}
    classify(Request.parse(request), SilentFeedback())
    with rasterio.open(output) as dataset:
        assert (dataset.dtypes, dataset.nodata) == (("uint8",), 0)
        values = dataset.read(1)
    assert (values[0] == 0).all()
    assert (values[1:] == 7).all()


@pytest.mark.parametrize("band_index", [0, 5, 11])
def test_06_nodata_in_any_band_makes_a_pixel_invalid_not_only_in_the_first(tmp_path, band_index):
    values = make_values(24, 17, "int16")
    values[band_index, 3, 4] = -9999
    source = write_scene(tmp_path / "s", values, nodata=-9999)
    valid = run(source, IdentityModel(Tiling(16, 0))).valid
    assert not valid[3, 4]
    assert valid.sum() == 24 * 17 - 1


@pytest.mark.parametrize("looks", [1, 5, 9])
def test_07_a_cancelled_run_leaves_no_file_that_looks_complete(tmp_path, looks):
    source = write_scene(tmp_path / "s", make_values(53, 47, "int16"))
    before = sorted(tmp_path.iterdir())
    grid = Grid(53, 47, Affine.translation(1, 1), None)
    style = ClassStyle((ClassInfo(1, "a", "#000000"),))
    with (
        pytest.raises(CancelledError),
        RasterWriter(str(tmp_path / "map.tif"), grid, ["a"], "uint8", 0, style=style) as writer,
    ):
        run_into(source, writer, CancelAfter(looks))
    assert sorted(tmp_path.iterdir()) == before


def run_into(source, writer, feedback):
    scene = open_scene(source)
    stream_scene(
        scene,
        all_bands(scene),
        IdentityModel(Tiling(16, 2)),
        lambda window, values, valid: writer.write(window, valid[None].astype(np.uint8)),
        device=torch.device("cpu"),
        feedback=feedback,
        piece_bytes=10_000,
    )


def table(wavelength_nm):
    count = len(wavelength_nm)
    names = tuple(f"b{number}" for number in range(1, count + 1))
    return BandTable(
        names, np.array(wavelength_nm, float), np.full(count, 10.0), np.ones(count, bool)
    )


def test_08_bands_in_another_order_are_found_by_wavelength(tmp_path):
    values = make_values(24, 17, "int16", bands=4)
    source = write_scene(tmp_path / "s", values)  # 450, 500, 550, 600 nm
    match = match_bands(table([600, 450, 500, 550]), open_scene(source).require_bands())
    result = run(source, IdentityModel(Tiling(16, 0), 4), match=match)
    np.testing.assert_allclose(result.values, values[[3, 0, 1, 2]] * 1e-4, rtol=1e-5)


def test_08_as_many_bands_elsewhere_in_the_spectrum_are_refused(tmp_path):
    source = write_scene(tmp_path / "s", make_values(24, 17, "int16", bands=4))
    with pytest.raises(BandMatchError):
        match_bands(table([1600, 1650, 2200, 2250]), open_scene(source).require_bands())


def test_09_numbers_are_not_squeezed_into_bytes(tmp_path, package):
    source = write_bright_scene(tmp_path / "s", "int16", None, 700)
    names = ("output", "confidence", "probabilities")
    paths = {name: str(tmp_path / f"{name}.tif") for name in names}
    request = {"input": source, "model": package, "device": "cpu"} | paths
    classify(Request.parse(request), SilentFeedback())
    for name in names[1:]:
        with rasterio.open(paths[name]) as dataset:
            assert set(dataset.dtypes) == {"float32"}
            assert 0 < np.nanmax(dataset.read()) <= 1


@pytest.mark.parametrize("blend", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (32, 48), (33, 47)])
def test_10_tiles_without_an_overlap_give_the_whole_image(tmp_path, size, blend):
    values = make_values(*size, "int16")
    source = write_scene(tmp_path / "s", values)
    result = run(source, IdentityModel(Tiling(16, 0, blend)), piece_bytes=10_000)
    assert is_image(result, values)

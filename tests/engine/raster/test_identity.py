"""The whole pipeline with a model that returns its input must return the image."""

import numpy as np
import pytest

from engine.raster.tiles import Tiling, Window
from tests.engine.raster.made_scenes import (
    LAYOUTS,
    ConvModel,
    IdentityModel,
    make_values,
    run,
    write_scene,
)

DTYPES = ["int16", "uint16", "float32"]
SIZES = {
    "24 x 17": (24, 17),
    "one row": (1, 40),
    "one column": (40, 1),
    "one pixel": (1, 1),
    "smaller than a tile": (9, 11),
    "one tile": (20, 20),
    "odd": (53, 47),
}
SMALL_PIECES = 600 * 12 * 2  # bytes of 600 pixels: several strips and pieces even here
TILINGS = {
    "no halo": Tiling(20, 0),
    "halo": Tiling(20, 3),
    "tokens": Tiling(20, 3, align_px=4),
    "blended": Tiling(20, 4, blend=True),
}


def nodata_of(kind, dtype):
    return {"none": None, "value": -999.0 if dtype != "uint16" else 65535.0, "NaN": np.nan}[kind]


def expected(values):
    """Reflectance of stored values, float32."""
    return values if values.dtype.kind == "f" else values * np.float32(1e-4)


def assert_is_image(result, values, valid):
    np.testing.assert_array_equal(result.valid, valid)
    reference = np.where(valid, expected(values), 0)
    np.testing.assert_allclose(result.values, reference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layout_and_type(tmp_path, layout, dtype):
    values = make_values(24, 17, dtype)
    source = write_scene(tmp_path / "scene", values, layout=layout)
    result = run(source, IdentityModel(TILINGS["halo"]), piece_bytes=SMALL_PIECES)
    assert_is_image(result, values, np.ones((24, 17), bool))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("layout", ["tiled, by pixel", "bil"])
def test_every_size_and_tiling(tmp_path, size, tiling, layout):
    values = make_values(*SIZES[size], "int16")
    source = write_scene(tmp_path / "scene", values, layout=layout)
    result = run(source, IdentityModel(TILINGS[tiling]), piece_bytes=SMALL_PIECES)
    assert_is_image(result, values, np.ones(SIZES[size], bool))


@pytest.mark.parametrize(
    "kind, dtype",
    [("none", "int16"), ("value", "int16"), ("value", "uint16"), ("value", "float32"),
     ("NaN", "float32")],
)  # fmt: skip
@pytest.mark.parametrize("tiling", TILINGS)
def test_every_kind_of_nodata(tmp_path, kind, dtype, tiling):
    values = make_values(24, 17, dtype)
    nodata = nodata_of(kind, dtype)
    valid = np.ones((24, 17), bool)
    if nodata is not None:
        values[:, :7, :5] = nodata  # a corner, in all bands
        values[5, 20, 12] = nodata  # one pixel, in one band
        valid[:7, :5] = valid[20, 12] = False
    source = write_scene(tmp_path / "scene", values, nodata)
    result = run(source, IdentityModel(TILINGS[tiling]), piece_bytes=SMALL_PIECES)
    assert_is_image(result, values, valid)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_never_valid(tmp_path, number):
    values = make_values(24, 17, "float32")
    values[3, 10, 10] = number
    valid = np.ones((24, 17), bool)
    valid[10, 10] = False
    source = write_scene(tmp_path / "scene", values, nodata=None)
    assert_is_image(run(source, IdentityModel(TILINGS["halo"])), values, valid)


@pytest.mark.parametrize("layout", ["tiled, by pixel", "bil"])
@pytest.mark.parametrize("tiling", TILINGS)
def test_an_extent_gives_its_part_of_the_image(tmp_path, layout, tiling):
    values = make_values(53, 47, "int16")
    source = write_scene(tmp_path / "scene", values, layout=layout)
    extent = Window(7, 5, 30, 33)
    result = run(source, IdentityModel(TILINGS[tiling]), extent=extent, piece_bytes=SMALL_PIECES)
    valid = np.zeros((53, 47), bool)
    valid[7:37, 5:38] = True
    np.testing.assert_array_equal(result.valid, valid)
    np.testing.assert_allclose(
        result.values[:, valid], expected(values)[:, valid], rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("layout", ["tiled, by pixel", "striped, by band", "bil"])
@pytest.mark.parametrize(
    "tiling", [Tiling(16, 2), Tiling(12, 2, align_px=4), Tiling(9, 4)], ids=str
)
def test_tiled_equals_untiled(tmp_path, layout, tiling):
    values = make_values(53, 47, "int16")
    values[:, :9, :6] = -999
    source = write_scene(tmp_path / "scene", values, -999, layout)
    whole = run(source, ConvModel(Tiling(512, 2)))
    tiled = run(source, ConvModel(tiling), piece_bytes=SMALL_PIECES)
    np.testing.assert_array_equal(tiled.valid, whole.valid)
    np.testing.assert_allclose(tiled.values, whole.values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "extent", [Window(10, 12, 20, 21), Window(0, 0, 1, 47), Window(52, 46, 1, 1)]
)
def test_an_extent_equals_its_part_of_the_whole(tmp_path, extent):
    source = write_scene(tmp_path / "scene", make_values(53, 47, "int16"))
    whole = run(source, ConvModel(Tiling(512, 2)))
    part = run(source, ConvModel(Tiling(16, 2)), extent=extent, piece_bytes=SMALL_PIECES)
    rows, cols = extent.slices_in(Window(0, 0, 53, 47))
    np.testing.assert_allclose(
        part.values[:, rows, cols], whole.values[:, rows, cols], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "extent", [Window(10, 12, 30, 31), Window(3, 29, 20, 18), Window(30, 20, 9, 9)]
)
def test_a_blended_extent_equals_its_part_of_the_whole_inside_its_border(tmp_path, extent):
    source = write_scene(tmp_path / "scene", make_values(53, 47, "int16"))
    tiling = Tiling(12, 2, blend=True)  # of less than the model's reach: where a tile lies matters
    whole = run(source, ConvModel(tiling))
    part = run(source, ConvModel(tiling), extent=extent, piece_bytes=SMALL_PIECES)
    inside = Window(
        extent.row_off + 4, extent.col_off + 4, extent.height - 4, extent.width - 4
    ).slices_in(Window(0, 0, 53, 47))
    np.testing.assert_allclose(
        part.values[(slice(None), *inside)],
        whole.values[(slice(None), *inside)],
        rtol=1e-5,
        atol=1e-6,
    )

"""Scenes: every layout and type, several files as one, what is assumed, and what is refused."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine

from engine.errors import SceneError
from engine.raster.scene import SceneReader, open_scene
from engine.raster.tiles import Window
from tests.engine.conftest import BANDS, CRS, HEIGHT, TRANSFORM, WAVELENGTH_NM, WIDTH, ramp

WHOLE = Window(0, 0, HEIGHT, WIDTH)
LAYOUTS = {
    "GeoTIFF, striped": {"blockysize": 5},
    "GeoTIFF, tiled": {"tiled": True, "blockxsize": 16, "blockysize": 16},
    "GeoTIFF, by pixel": {"interleave": "pixel"},
    "GeoTIFF, by band": {"interleave": "band"},
    "GeoTIFF, deflate": {"compress": "deflate", "predictor": 2, "tiled": True},
    "GeoTIFF, lzw": {"compress": "lzw"},
    "ENVI BSQ": {"name": "scene.bsq", "driver": "ENVI", "interleave": "bsq", "tags": "envi"},
    "ENVI BIL": {"name": "scene.bil", "driver": "ENVI", "interleave": "bil", "tags": "envi"},
    "ENVI BIP": {"name": "scene.bip", "driver": "ENVI", "interleave": "bip", "tags": "envi"},
    "ENVI BSQ, gzip": {
        "name": "z.bsq", "driver": "ENVI", "interleave": "bsq", "tags": "envi", "gzipped": True,
    },
    "ENVI BIL, gzip": {
        "name": "z.bil", "driver": "ENVI", "interleave": "bil", "tags": "envi", "gzipped": True,
    },
}  # fmt: skip


def read(scene, band_index=None, window=WHOLE):
    band_index = range(len(scene.band_sources)) if band_index is None else band_index
    with SceneReader(scene, band_index) as reader:
        return reader.read(window)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_as_it_was_written(make_raster, layout):
    made = make_raster(**LAYOUTS[layout])
    scene = open_scene(made.path)
    assert (scene.height, scene.width, len(scene.band_sources)) == (HEIGHT, WIDTH, BANDS)
    assert scene.transform == TRANSFORM
    assert scene.crs.to_string() == CRS
    np.testing.assert_array_equal(read(scene), made.array)
    assert scene.bands.wavelength_nm == pytest.approx(WAVELENGTH_NM)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_the_stored_type_is_kept(make_raster, dtype):
    made = make_raster(dtype=dtype)
    scene = open_scene(made.path)
    assert scene.dtype == read(scene).dtype == np.dtype(dtype)
    np.testing.assert_array_equal(read(scene), made.array)


@pytest.mark.parametrize("dtype", ["complex64", "uint32"])
def test_types_that_no_reflectance_has_are_refused(make_raster, dtype):
    with pytest.raises(SceneError, match=f"of type {dtype}.*gdal_translate"):
        open_scene(make_raster(array=np.ones((2, 3, 4), dtype)).path)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("band_index", [[5], [3, 4, 5], [9, 2, 2, 7]])
def test_bands_come_in_the_order_asked_for(make_raster, layout, band_index):
    made = make_raster(**LAYOUTS[layout])
    window = Window(3, 2, 7, 11)
    expected = made.array[band_index, 3:10, 2:13]
    np.testing.assert_array_equal(read(open_scene(made.path), band_index, window), expected)


def test_a_window_is_read_into_an_array_that_is_given(make_raster):
    made = make_raster()
    scene = open_scene(made.path)
    out = np.zeros((2, HEIGHT, WIDTH), np.int16)
    with SceneReader(scene, [4, 1]) as reader:
        assert reader.read(WHOLE, out) is out
    np.testing.assert_array_equal(out, made.array[[4, 1]])


def test_a_scene_of_one_pixel_is_read(make_raster):
    made = make_raster(array=ramp(3, 1, 1))
    np.testing.assert_array_equal(
        read(open_scene(made.path), window=Window(0, 0, 1, 1)), made.array
    )


def test_a_rotated_grid_is_kept_to_the_last_digit(make_raster):
    rotated = Affine(20.1, 5.3, 383472.515, 4.7, -19.9, 5818310.015)
    assert open_scene(make_raster(transform=rotated).path).transform == rotated


def test_a_scene_without_a_crs_is_opened_with_a_note(make_raster):
    scene = open_scene(make_raster(crs=None).path)
    assert scene.crs is None
    assert any("has no CRS" in note for note in scene.notes)


def test_a_mask_that_is_not_used_is_said(make_raster):
    made = make_raster()
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(made.path, "r+") as dataset:
        dataset.write_mask(np.ones((HEIGHT, WIDTH), bool))
    assert any("mask of its own" in note for note in open_scene(made.path).notes)


# Several files


def single_band_files(make_raster, array, **options):
    return [
        make_raster(
            f"b{i}.tif", array=band[np.newaxis], wavelength_nm=WAVELENGTH_NM[i : i + 1], **options
        ).path
        for i, band in enumerate(array)
    ]


def test_single_band_files_form_one_scene(make_raster):
    array = ramp(4)
    files = single_band_files(make_raster, array)
    scene = open_scene(files)
    assert scene.files == tuple(files)
    assert scene.bands.wavelength_nm == pytest.approx(WAVELENGTH_NM[:4])
    np.testing.assert_array_equal(read(scene), array)
    np.testing.assert_array_equal(read(scene, [3, 0, 2]), array[[3, 0, 2]])


def test_files_of_several_bands_are_joined_too(make_raster):
    array = ramp()
    one = make_raster("a.tif", array=array[:5], wavelength_nm=WAVELENGTH_NM[:5])
    other = make_raster("b.tif", array=array[5:], wavelength_nm=WAVELENGTH_NM[5:])
    scene = open_scene([one.path, other.path])
    assert scene.band_sources[4:6] == ((0, 5), (1, 1))
    np.testing.assert_array_equal(read(scene, [6, 7, 1]), array[[6, 7, 1]])


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"array": ramp(1, HEIGHT, WIDTH + 1)}, "17 x 24 px and 18 x 24 px"),
        ({"array": ramp(1, dtype="uint16")}, "type int16 and uint16"),
        ({"array": ramp(1), "crs": "EPSG:32632"}, "EPSG:32633 and EPSG:32632"),
        (
            {"array": ramp(1), "transform": TRANSFORM @ Affine.translation(0.5, 0)},
            "at different places",
        ),
    ],
)
def test_files_that_do_not_fit_are_named(make_raster, options, difference):
    one = make_raster("one.tif", array=ramp(1))
    other = make_raster("other.tif", **options)
    with pytest.raises(SceneError, match=rf"one\.tif and .*other\.tif.*{difference}"):
        open_scene([one.path, other.path])


def test_no_file_at_all_is_refused():
    with pytest.raises(SceneError, match="No raster"):
        open_scene([])


def test_bands_of_several_types_in_one_file_are_refused(make_raster, tmp_path):
    one, other = make_raster("one.tif", array=ramp(1)), make_raster("f.tif", array=ramp(1) / 9.0)
    vrt = tmp_path / "mixed.vrt"
    vrt.write_text(vrt_text([(one.path, "Int16"), (other.path, "Float64")]))
    with pytest.raises(SceneError, match=r"mixed\.vrt are of type float64, int16"):
        open_scene(str(vrt))


# Virtual rasters and archives


def vrt_text(sources, width=WIDTH, height=HEIGHT):
    bands = "".join(
        f'<VRTRasterBand dataType="{dtype}" band="{i}"><SimpleSource>'
        f'<SourceFilename relativeToVRT="{int(not os.path.isabs(path))}">{path}</SourceFilename>'
        f"<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        for i, (path, dtype) in enumerate(sources, start=1)
    )
    return f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">{bands}</VRTDataset>'


def test_a_vrt_is_read(make_raster, tmp_path):
    made = make_raster(tiled=True, blockxsize=16, blockysize=16)
    vrt = str(tmp_path / "scene.vrt")
    rasterio.shutil.copy(made.path, vrt, driver="VRT")
    scene = open_scene(vrt)
    assert scene.bands.wavelength_nm == pytest.approx(WAVELENGTH_NM)
    assert scene.block_shape == (16, 16)
    np.testing.assert_array_equal(read(scene), made.array)


def test_wavelengths_are_found_in_the_sources_of_a_vrt(make_raster, tmp_path):
    array = ramp(3)
    files = single_band_files(make_raster, array, scale=0.002, good=[False])
    vrt = tmp_path / "stack.vrt"
    vrt.write_text(vrt_text([(Path(file).name, "Int16") for file in reversed(files)]))
    scene = open_scene(str(vrt))
    assert scene.bands.wavelength_nm == pytest.approx(WAVELENGTH_NM[2::-1])
    assert scene.bands.origin == "bands of the VRT's sources"
    assert not scene.bands.good.any()
    assert set(scene.scale) == {0.002}
    np.testing.assert_array_equal(read(scene), array[::-1])


def test_a_vrt_without_its_source_names_the_source(make_raster, tmp_path):
    made = make_raster(array=ramp(1))
    vrt = tmp_path / "lost.vrt"
    vrt.write_text(vrt_text([(made.path, "Int16")]))
    os.remove(made.path)
    with pytest.raises(SceneError, match=r"scene\.tif"):
        open_scene(str(vrt))


def test_a_truncated_source_of_a_vrt_is_noticed(make_raster, tmp_path):
    made = make_raster("raw.bsq", driver="ENVI", interleave="bsq", tags="envi")
    vrt = str(tmp_path / "scene.vrt")
    rasterio.shutil.copy(made.path, vrt, driver="VRT")
    cut(made.path, 0.6)
    with pytest.raises(SceneError, match=r"raw\.bsq is truncated.*bands 8 to 12"):
        open_scene(vrt)


def test_a_raster_in_a_zip_is_read(make_raster, tmp_path):
    made = make_raster()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(made.path, "folder/scene.tif")
    scene = open_scene(f"/vsizip/{tmp_path}/a.zip/folder/scene.tif")
    np.testing.assert_array_equal(read(scene), made.array)


def test_names_with_spaces_and_accents_are_opened(make_raster):
    made = make_raster("scène 100% (été).tif")
    np.testing.assert_array_equal(read(open_scene(made.path)), made.array)


# Scale, offset, nodata


def test_scale_and_offset_are_those_of_the_file(make_raster):
    scene = open_scene(make_raster(scale=2e-4, offset=-0.1).path)
    assert set(scene.scale) == {2e-4}
    assert set(scene.offset) == {-0.1}
    assert scene.notes == ()


def test_bands_have_scales_of_their_own(make_raster):
    made = make_raster()
    with rasterio.open(made.path, "r+") as dataset:
        dataset.scales = [1e-4 * number for number in dataset.indexes]
    assert open_scene(made.path).scale == pytest.approx(1e-4 * np.arange(1, BANDS + 1))


def test_the_reflectance_scale_factor_of_envi_divides(make_raster):
    made = make_raster("scene.bsq", driver="ENVI", tags="envi")
    with open(made.path.replace(".bsq", ".hdr"), "a") as header:
        header.write("reflectance scale factor = 5000\n")
    assert open_scene(made.path).scale == pytest.approx(np.full(BANDS, 1 / 5000))


@pytest.mark.parametrize(
    ("array", "scale", "note"),
    [
        (ramp(dtype="int16"), 1e-4, "int16 values were taken as reflectance x 10,000"),
        (ramp(dtype="uint16"), 1e-4, "uint16 values were taken as reflectance x 10,000"),
        (ramp(dtype="uint16") + np.uint16(50_000), 1 / 65535, "divided by 65535"),
        (ramp(dtype="uint8"), 1 / 255, "divided by 255"),
        (ramp(dtype="float32"), 1.0, None),
        (ramp(dtype="float32") * 10_000, 1e-4, "float32 values were taken as reflectance x 10"),
        (ramp(dtype="float32") * 40, 1.0, "used as they are"),
        (np.zeros((2, 4, 5), np.int16), 1e-4, "x 10,000"),
    ],
)
def test_what_is_assumed_without_a_scale_is_said(make_raster, array, scale, note):
    scene = open_scene(make_raster(array=array).path)
    assert set(scene.scale) == {scale}
    assert set(scene.offset) == {0.0}
    assert (len(scene.notes) == 0) if note is None else any(note in n for n in scene.notes)


def test_nodata_does_not_decide_the_scale(make_raster):
    array = ramp(dtype="float32")
    array[:, :20] = -9999.0
    assert set(open_scene(make_raster(array=array, nodata=-9999.0).path).scale) == {1.0}


def test_radiance_is_said(make_raster):
    scene = open_scene(make_raster("f130_rdn_v1.tif", dtype="float32").path)
    assert any("radiance, not reflectance" in note for note in scene.notes)


@pytest.mark.parametrize(
    ("dtype", "nodata", "kept"),
    [("int16", -99, -99.0), ("float32", np.nan, np.nan), ("uint16", 0, 0.0)],
)
def test_nodata_is_given_per_band(make_raster, dtype, nodata, kept):
    scene = open_scene(make_raster(dtype=dtype, nodata=nodata).path)
    np.testing.assert_array_equal(scene.nodata, [kept] * BANDS)


def test_nodata_of_float32_is_the_number_that_is_stored(make_raster):
    scene = open_scene(make_raster(dtype="float32", nodata=-3.4e38).path)
    assert scene.nodata[0] == float(np.float32(-3.4e38))


def test_nodata_that_the_type_cannot_hold_is_dropped_with_a_note(make_raster, tmp_path):
    table = tmp_path / "bands.csv"
    table.write_text("wavelength,nodata\n500,-9999\n")
    scene = open_scene(make_raster(array=ramp(1, dtype="uint16")).path, str(table))
    assert scene.nodata == (None,)
    assert any("-9999 cannot occur in uint16" in note for note in scene.notes)


# Missing and damaged files


def test_a_missing_file_is_named():
    with pytest.raises(SceneError, match=r"There is no raster /nowhere/a\.tif"):
        open_scene("/nowhere/a.tif")


def test_a_folder_is_not_a_raster(tmp_path):
    with pytest.raises(SceneError, match="is a folder"):
        open_scene(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"not a raster at all"])
def test_what_gdal_cannot_open_is_named(tmp_path, content):
    file = tmp_path / "broken.tif"
    file.write_bytes(content)
    with pytest.raises(SceneError, match=r"GDAL cannot open .*broken\.tif"):
        open_scene(str(file))


def cut(path, share):
    os.truncate(path, int(os.path.getsize(path) * share))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_truncated_file_is_never_read_as_zeros(make_raster, layout):
    made = make_raster(**LAYOUTS[layout])
    cut(made.path, 0.6)
    with pytest.raises(SceneError, match=Path(made.path).name):
        read(open_scene(made.path))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_truncated_after_it_was_opened_is_noticed(make_raster, layout):
    made = make_raster(**LAYOUTS[layout])
    scene = open_scene(made.path)
    with SceneReader(scene, range(BANDS)) as reader:
        reader.read(Window(0, 0, 1, WIDTH))
        cut(made.path, 0.3)
        with pytest.raises(SceneError, match=r"rows 20 to 23 and columns 0 to 16") as caught:
            reader.read(Window(20, 0, 4, WIDTH))
    assert made.path in str(caught.value)


def test_a_file_removed_while_it_is_read_is_named_with_the_block(make_raster):
    made = make_raster()
    scene = open_scene(made.path)
    with SceneReader(scene, [0]) as reader:
        os.remove(made.path)
        with pytest.raises(SceneError, match=r"scene\.tif was removed.*rows 4 to 5"):
            reader.read(Window(4, 0, 2, WIDTH))


def test_a_file_removed_before_it_is_read_is_named(make_raster):
    made = make_raster()
    scene = open_scene(made.path)
    os.remove(made.path)
    with (
        pytest.raises(SceneError, match=r"There is no raster .*scene\.tif"),
        SceneReader(scene, [0]),
    ):
        pass


def test_a_file_replaced_before_it_is_read_is_noticed(make_raster):
    scene = open_scene(make_raster().path)
    make_raster(array=ramp(BANDS, HEIGHT + 1, WIDTH))
    with pytest.raises(SceneError, match="was replaced"), SceneReader(scene, [0]):
        pass


def test_a_damaged_block_is_named(make_raster):
    noise = np.random.default_rng(1).integers(0, 9000, (BANDS, HEIGHT, WIDTH)).astype(np.int16)
    made = make_raster(array=noise, scale=1e-4, compress="deflate", interleave="band")
    data = bytearray(Path(made.path).read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = b"\xff" * 300
    Path(made.path).write_bytes(data)
    with pytest.raises(SceneError, match=r"scene\.tif.*rows 0 to 23 and columns 0 to 16: .*band"):
        read(open_scene(made.path))


def test_a_damaged_stream_of_a_compressed_envi_file_is_noticed(make_raster):
    made = make_raster(**LAYOUTS["ENVI BSQ, gzip"])
    data = bytearray(Path(made.path).read_bytes())
    data[len(data) // 2] ^= 0xFF
    Path(made.path).write_bytes(data)
    with pytest.raises(SceneError, match=r"z\.bsq is truncated or damaged"):
        read(open_scene(made.path))


def test_an_unpacked_file_is_removed_afterwards(make_raster, monkeypatch, tmp_path):
    made = make_raster(**LAYOUTS["ENVI BSQ, gzip"])
    scene = open_scene(made.path)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with SceneReader(scene, [0]) as reader:
        reader.read(WHOLE)
        assert len(list(folder.iterdir())) == 1
    assert list(folder.iterdir()) == []


def test_a_file_of_subdatasets_names_one(tmp_path):
    package = str(tmp_path / "two.gpkg")
    profile = {"driver": "GPKG", "width": 4, "height": 3, "count": 1, "dtype": "uint8"}
    for table, append in (("first", "NO"), ("second", "YES")):
        options = {"raster_table": table, "append_subdataset": append}
        with rasterio.open(package, "w", crs=CRS, transform=TRANSFORM, **profile, **options) as out:
            out.write(np.ones((1, 3, 4), np.uint8))
    with pytest.raises(SceneError, match=r"but 2 data sets inside.*GPKG:.*first"):
        open_scene(package)


def test_the_block_cache_is_bounded(make_raster):
    from rasterio.env import get_gdal_config

    open_scene(make_raster().path)
    assert get_gdal_config("GDAL_CACHEMAX") <= 256 * 1024**2


def test_the_real_scene_is_read(data_folder):
    scene = open_scene(str(data_folder / "berlin/EnMAP_BerlinUrbanGradient.bsq"))
    values = read(scene, window=Window(0, 0, 80, 60))
    assert values.shape == (177, 80, 60)
    assert set(scene.nodata) == {-99.0}
    assert set(scene.scale) == {1e-4}
    assert (np.median(values[values != -99]) * 1e-4) == pytest.approx(0.12, abs=0.1)


def test_the_real_landsat_scene_is_made_of_its_files(data_folder):
    files = [
        data_folder / f"landsat5/LT52240631988227CUB02_B{i}.TIF" for i in (1, 2, 3, 4, 5, 6, 7)
    ]
    scene = open_scene([str(file) for file in files])
    assert scene.bands.names == ("B1", "B2", "B3", "B4", "B5", "B6", "B7")
    assert scene.bands.wavelength_nm[2] == pytest.approx(660, abs=2)
    assert scene.bands.good.tolist() == [True] * 5 + [False, True]
    assert any("as those of Landsat 5" in note for note in scene.notes)


def test_copying_a_scene_keeps_its_table(make_raster, tmp_path):
    made = make_raster(tags="imagery")
    shutil.copy(made.path, tmp_path / "copy.tif")
    copied = open_scene(str(tmp_path / "copy.tif"))
    np.testing.assert_array_equal(
        copied.bands.wavelength_nm, open_scene(made.path).bands.wavelength_nm
    )

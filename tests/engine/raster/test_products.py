"""What lies beside a raster: EnMAP products, STAC items; and sensors known by name."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil

from engine.errors import BandTableError, SceneError
from engine.raster.scene import SceneReader, open_scene
from engine.raster.sensors import SENSOR_FOLDER, SENSORS, sensor_table
from engine.raster.sidecar import list_beside, read_text
from engine.raster.tiles import Window
from engine.raster.xml_tree import XmlError, parse_xml
from tests.engine.conftest import BANDS, FWHM_NM, HEIGHT, WAVELENGTH_NM, WIDTH

UNSORTED_NM = np.concatenate([np.linspace(420, 990, 7), np.linspace(900, 1300, 5)])
WHOLE = Window(0, 0, HEIGHT, WIDTH)


def read(scene):
    with SceneReader(scene, range(len(scene.band_sources))) as reader:
        return reader.read(WHOLE)


# EnMAP


@pytest.mark.parametrize("chosen", [0, 1], ids=["METADATA.XML", "SPECTRAL_IMAGE.TIF"])
@pytest.mark.parametrize("wavelength_nm", [WAVELENGTH_NM, UNSORTED_NM], ids=["sorted", "overlap"])
def test_an_enmap_product_is_opened_by_either_file(make_enmap_product, chosen, wavelength_nm):
    product = make_enmap_product(wavelength_nm, empty=(4, 5))
    scene = open_scene(product[chosen])
    bands = scene.require_bands()
    assert bands.wavelength_nm == pytest.approx(wavelength_nm)
    assert bands.fwhm_nm == pytest.approx(FWHM_NM)
    assert np.flatnonzero(~bands.good).tolist() == [4, 5]
    assert scene.nodata == (-32768.0,) * BANDS
    assert set(scene.scale) == {1e-4}
    assert set(scene.offset) == {0.0}
    assert scene.notes == ()
    assert bands.origin == "METADATA.XML"
    np.testing.assert_array_equal(read(scene), product[2])


def test_the_gain_of_the_product_is_used(make_enmap_product):
    assert set(open_scene(make_enmap_product(gain="0.0002")[0]).scale) == {2e-4}


@pytest.mark.parametrize("gain", ["", "0", "1", "n/a"])
def test_a_gain_that_gives_no_reflectance_is_replaced_with_a_note(make_enmap_product, gain):
    scene = open_scene(make_enmap_product(gain=gain)[0])
    assert set(scene.scale) == {1e-4}
    assert any("no usable gain" in note for note in scene.notes)


def test_a_radiance_product_is_said_to_be_one(make_enmap_product):
    scene = open_scene(make_enmap_product(level="L1C", gain="0.012")[0])
    assert set(scene.scale) == {0.012}
    assert any("level L1C: radiance" in note for note in scene.notes)


def test_a_product_in_a_zip_is_opened(make_enmap_product, tmp_path):
    metadata, image, array = make_enmap_product(folder=tmp_path / "product")
    archive = tmp_path / "product.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for file in (metadata, image):
            out.write(file, f"P/{Path(file).name}")
    for source in (str(archive), f"/vsizip/{archive}/P/{Path(image).name}"):
        scene = open_scene(source)
        assert scene.require_bands().origin == "METADATA.XML"
        np.testing.assert_array_equal(read(scene), array)


def test_a_product_without_its_image_says_so(make_enmap_product):
    metadata, image, _ = make_enmap_product()
    Path(image).unlink()
    with pytest.raises(SceneError, match=r"beside 0 spectral images.*SPECTRAL_IMAGE"):
        open_scene(metadata)


def test_a_product_of_two_images_names_them(make_enmap_product):
    metadata, image, _ = make_enmap_product()
    Path(image.replace("SPECTRAL_IMAGE", "SPECTRAL_IMAGE_VNIR")).write_bytes(b"")
    with pytest.raises(SceneError, match=r"beside 2 spectral images.*IMAGE_VNIR"):
        open_scene(metadata)


def test_one_of_two_products_in_a_folder_finds_its_own(make_enmap_product, tmp_path):
    metadata, image, _ = make_enmap_product()
    make_enmap_product(WAVELENGTH_NM + 100, level="L2X")
    assert open_scene(metadata).files == (image,)
    assert open_scene(image).bands.wavelength_nm == pytest.approx(WAVELENGTH_NM)


def test_metadata_of_another_band_count_are_not_used(make_enmap_product):
    metadata, _, _ = make_enmap_product()
    Path(metadata).write_text(
        Path(metadata)
        .read_text()
        .replace('<bandID number="12"><wave', "<x><wave")
        .replace(
            "</OffsetOfBand></bandID></bandCharacterisation>",
            "</OffsetOfBand></x></bandCharacterisation>",
        )
    )
    with pytest.raises(BandTableError, match="describes 11 bands, the image has 12"):
        open_scene(metadata).require_bands()


def test_damaged_metadata_are_named(make_enmap_product):
    metadata, _, _ = make_enmap_product()
    Path(metadata).write_text("<level_X><base>")
    with pytest.raises(SceneError, match=r"METADATA\.XML cannot be read.*not well-formed"):
        open_scene(metadata)


def test_a_vrt_of_a_product_has_its_bands(make_enmap_product, tmp_path):
    _, image, _ = make_enmap_product(empty=(2,))
    vrt = str(tmp_path / "product.vrt")
    rasterio.shutil.copy(image, vrt, driver="VRT")
    bands = open_scene(vrt).require_bands()
    assert bands.wavelength_nm == pytest.approx(WAVELENGTH_NM)
    assert not bands.good[2]


# STAC


def stac_item(name, bands, key="eo:bands"):
    asset = {"href": f"./{name}?token=1", "roles": ["data"], key: bands}
    return {"type": "Feature", "stac_version": "1.0.0", "assets": {"x": {"href": "b"}, "d": asset}}


@pytest.mark.parametrize(
    ("key", "wavelength", "fwhm"),
    [
        ("eo:bands", "center_wavelength", "full_width_half_max"),
        ("bands", "eo:center_wavelength", "eo:full_width_half_max"),
    ],
    ids=["STAC 1.0", "STAC 1.1"],
)
def test_a_stac_item_is_in_micrometres(make_raster, tmp_path, key, wavelength, fwhm):
    made = make_raster(tags="none")
    bands = [
        {"name": f"N{i}", wavelength: nm / 1000, fwhm: 0.01} for i, nm in enumerate(WAVELENGTH_NM)
    ]
    (tmp_path / "item.json").write_text(json.dumps(stac_item("scene.tif", bands, key)))
    table = open_scene(made.path).require_bands()
    assert table.wavelength_nm == pytest.approx(WAVELENGTH_NM)
    assert table.fwhm_nm == pytest.approx(10.0)
    assert table.names[3] == "N3"
    assert table.origin == "STAC item"


def test_raster_bands_of_a_stac_item_give_the_scale(make_raster, tmp_path):
    made = make_raster(tags="none")
    item = stac_item("scene.tif", [{"center_wavelength": nm / 1000} for nm in WAVELENGTH_NM])
    item["assets"]["d"]["raster:bands"] = [{"scale": 2e-4, "offset": -0.1}] * BANDS
    (tmp_path / "scene.json").write_text(json.dumps(item))
    scene = open_scene(made.path)
    assert set(scene.scale) == {2e-4}
    assert set(scene.offset) == {-0.1}


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"type": "Feature", "assets": {"a": 1}}'])
def test_other_json_beside_a_raster_does_no_harm(make_raster, tmp_path, text):
    made = make_raster()
    (tmp_path / "other.json").write_text(text)
    assert open_scene(made.path).bands.origin == "band tags"


def test_a_stac_item_of_another_file_is_not_used(make_raster, tmp_path):
    made = make_raster(tags="none")
    item = stac_item("another.tif", [{"center_wavelength": 0.5}] * BANDS)
    (tmp_path / "item.json").write_text(json.dumps(item))
    assert open_scene(made.path).bands is None


# Sensors


@pytest.mark.parametrize(
    ("name", "count", "first_nm"),
    [
        ("enmap", 224, 418.24), ("prisma", 234, 402.5), ("desis", 235, 402.0), ("emit", 285, 381.0),
        ("sentinel2a", 13, 442.7), ("sentinel2b", 13, 442.2), ("landsat5", 7, 486.1),
        ("landsat7", 8, 478.7), ("landsat8", 11, 443.0), ("landsat9", 11, 443.0),
    ],
)  # fmt: skip
def test_the_tables_of_the_sensors(name, count, first_nm):
    table = sensor_table(name)
    assert len(table.wavelength_nm) == len(table.names) == count
    assert table.wavelength_nm[0] == pytest.approx(first_nm)
    assert (table.fwhm_nm > 0).all()


def test_every_table_belongs_to_a_sensor():
    assert {path.stem for path in SENSOR_FOLDER.glob("*.csv")} == {s.table for s in SENSORS}


@pytest.mark.parametrize(
    ("file", "sensor"),
    [
        ("ENMAP01-____L2A-DT0000001_20220627T104548Z_001-SPECTRAL.tif", "EnMAP"),
        ("PRS_L2D_STD_20200209102459_0001.tif", "PRISMA"),
        ("DESIS-HSI-L2A-DT0123.tif", "DESIS"),
        ("EMIT_L2A_RFL_001_20220903T163129.tif", "EMIT"),
        ("emit20250324t221005_rfl.tif", "EMIT"),
        ("S2B_MSIL2A_20200101.tif", "Sentinel-2B"),
        ("S2A_MSIL2A_20200101.tif", "Sentinel-2A"),
        ("T33UUU_20200101T101010_B02_10m.tif", "Sentinel-2A"),
        ("LC08_L2SP_193023_20200101.tif", "Landsat 8"),
        ("LC09_L2SP_193023_20220101.tif", "Landsat 9"),
        ("LE07_L2SP_193023_20000101.tif", "Landsat 7"),
        ("LT52240631988227CUB02.tif", "Landsat 5"),
        ("remittance.tif", None),
        ("results2a_final.tif", None),
        ("scene.tif", None),
    ],
)
def test_a_file_name_tells_the_sensor(file, sensor):
    found = next((s.name for s in SENSORS if s.pattern.search(Path(file).stem)), None)
    assert found == sensor


def test_a_sensor_is_used_when_the_band_count_fits(make_raster):
    array = np.ones((224, 3, 2), np.int16)
    scene = open_scene(make_raster("ENMAP_subset.tif", array=array, tags="none").path)
    assert scene.require_bands().wavelength_nm[0] == pytest.approx(418.24)
    assert any("in the order of the table as those of EnMAP" in note for note in scene.notes)


def test_a_sensor_is_not_used_when_the_band_count_differs(make_raster):
    array = np.ones((223, 3, 2), np.int16)
    assert open_scene(make_raster("ENMAP_subset.tif", array=array, tags="none").path).bands is None


def test_bands_of_a_sensor_are_found_by_name_in_any_order(make_raster):
    made = make_raster("stack.tif", array=np.ones((3, 4, 5), np.int16), tags="none")
    with rasterio.open(made.path, "r+") as dataset:
        dataset.descriptions = ["B8A", "B02", "Band 4"]
        dataset.update_tags(SPACECRAFT="Sentinel-2B")
    bands = open_scene(made.path).require_bands()
    assert bands.wavelength_nm == pytest.approx([864.0, 492.1, 664.9], abs=0.1)


def test_a_wavelength_in_the_file_goes_before_the_sensor(make_raster):
    made = make_raster("S2A_x.tif", array=np.ones((13, 4, 5), np.int16))
    assert open_scene(made.path).bands.origin == "band tags"


def test_landsat_surface_reflectance_has_its_own_scale(make_raster):
    names = [f"LC08_L2SP_193023_20200101_02_T1_SR_B{i}.TIF" for i in (4, 5)]
    files = [
        make_raster(name, array=np.full((1, 3, 4), 9000, np.uint16), tags="none").path
        for name in names
    ]
    scene = open_scene(files)
    assert scene.bands.names == ("B4", "B5")
    assert scene.scale * 9000 + scene.offset == pytest.approx([0.0475, 0.0475])
    assert scene.nodata == (0.0, 0.0)


@pytest.mark.parametrize(("baseline", "offset"), [("N0300", 0.0), ("N0509", -0.1)])
def test_sentinel_2_subtracts_its_offset_since_baseline_4(make_raster, tmp_path, baseline, offset):
    product = tmp_path / f"S2A_MSIL2A_20230101T101010_{baseline}_R022_T33UUU_20230101T1.SAFE"
    product.mkdir()
    array = np.full((1, 3, 4), 3000, np.uint16)
    made = make_raster(
        f"{product.name}/T33UUU_20230101T101010_B04_10m.tif", array=array, tags="none"
    )
    scene = open_scene(made.path)
    assert scene.offset == pytest.approx([offset])
    assert scene.scale == pytest.approx([1e-4])


# XML and files beside


def test_xml_that_declares_entities_is_refused():
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><x>&b;</x>'
    with pytest.raises(XmlError, match="document type"):
        parse_xml(bomb)


@pytest.mark.parametrize("text", ["", "<a>", "<a></b>", "plain"])
def test_what_is_no_xml_is_refused(text):
    with pytest.raises(XmlError, match="not well-formed"):
        parse_xml(text)


def test_xml_becomes_a_tree_without_namespaces():
    root = parse_xml('<n:a xmlns:n="u"><n:b k="1"> tex<!-- c -->t </n:b><b>two</b></n:a>')
    assert [(b.attributes.get("k"), b.text) for b in root.find_all("b")] == [
        ("1", "text"), (None, "two"),
    ]  # fmt: skip
    assert root.first_text("missing", "b") == "text"


def test_files_beside_are_listed_in_folders_and_archives(tmp_path):
    (tmp_path / "a.txt").write_text("A")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("in/b.txt", "B")
        archive.writestr("in/c.txt", "C")
        archive.writestr("other/d.txt", "D")
    inside = f"/vsizip/{tmp_path}/z.zip/in/"
    assert list_beside(inside + "b.txt") == [inside + "b.txt", inside + "c.txt"]
    assert read_text(inside + "c.txt") == "C"
    assert read_text(inside + "nothing.txt") is None
    assert str(tmp_path / "a.txt") in list_beside(str(tmp_path / "a.txt"))
    assert list_beside("/vsicurl/https://example.org/a.tif") == []

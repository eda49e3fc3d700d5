"""Wavelengths, widths and flags, wherever and however they are written."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio

from engine.errors import BandTableError
from engine.raster.band_metadata import BandFacts, description_facts, merge_facts
from engine.raster.band_tables import parse_envi_header
from engine.raster.scene import open_scene
from engine.raster.units import unit_factor
from tests.engine.conftest import BANDS, FWHM_NM, WAVELENGTH_NM

UNSORTED_NM = WAVELENGTH_NM[::-1].copy()
GOOD = np.arange(BANDS) != 3
NM, UM = "Nanometers", "Micrometers"

PLACES = {
    "band tags, nm": {"tags": "bands", "unit": NM},
    "band tags, µm": {"tags": "bands", "unit": UM},
    "IMAGERY domain": {"tags": "imagery", "unit": UM},
    "ENVI domain, nm": {"tags": "envi", "unit": NM},
    "ENVI domain, µm": {"tags": "envi", "unit": UM},
    "data set tags, nm": {"tags": "dataset", "unit": NM},
    "data set tags, µm": {"tags": "dataset", "unit": "µm"},
    "ENVI header, nm": {"tags": "envi", "unit": NM, "driver": "ENVI", "name": "scene.bil"},
    "ENVI header, µm": {"tags": "envi", "unit": UM, "driver": "ENVI", "name": "scene.bsq"},
}


def bands_of(path, **options):
    return open_scene(path, **options).require_bands()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("wavelength_nm", [WAVELENGTH_NM, UNSORTED_NM], ids=["sorted", "unsorted"])
def test_one_scene_gives_one_table_from_every_place(make_raster, place, wavelength_nm):
    made = make_raster(**PLACES[place], wavelength_nm=wavelength_nm)
    bands = bands_of(made.path)
    assert bands.wavelength_nm == pytest.approx(wavelength_nm)
    assert bands.fwhm_nm == pytest.approx(FWHM_NM)
    assert bands.good.all()


@pytest.mark.parametrize("place", [place for place in PLACES if place != "IMAGERY domain"])
def test_bad_bands_are_found_everywhere(make_raster, place):
    made = make_raster(**PLACES[place], good=GOOD)
    assert bands_of(made.path).good.tolist() == GOOD.tolist()


def test_an_envi_header_keeps_the_digits_that_gdal_rounds_away(make_raster):
    made = make_raster(
        "scene.bsq", driver="ENVI", tags="envi", unit=UM, fwhm_nm=np.full(BANDS, 5.8)
    )
    assert bands_of(made.path).fwhm_nm == pytest.approx(5.8)


def test_tags_of_bands_go_before_those_of_the_data_set(make_raster):
    made = make_raster()
    with rasterio.open(made.path, "r+") as dataset:
        dataset.update_tags(ns="ENVI", wavelength="{" + ",".join(["999"] * BANDS) + "}")
    bands = bands_of(made.path)
    assert bands.wavelength_nm == pytest.approx(WAVELENGTH_NM)
    assert bands.origin == "band tags"


@pytest.mark.parametrize(
    "tags",
    [
        {"WAVELENGTH": "500", "WAVELENGTH_UNITS": "nm"},
        {"Wavelength": "0.5", "Wavelength_Unit": "um"},
        {"wavelength_nm": "500"},
        {"wavelength_um": "0.5"},
        {"center_wavelength": "500 nm"},
        {"Central Wavelength": "0.5", "wavelength units": "microns"},
        {"wavelength": "5e-7", "wavelength_units": "m"},
        {"wavelength": "5000", "wavelength_units": "Angstroms"},
    ],
    ids=str,
)
def test_spellings_of_band_tags(make_raster, tags):
    made = make_raster(tags="none")
    with rasterio.open(made.path, "r+") as dataset:
        for number in dataset.indexes:
            dataset.update_tags(number, **tags)
    scene = open_scene(made.path)
    assert scene.require_bands().wavelength_nm == pytest.approx(500.0)
    assert not any("unit" in note for note in scene.notes)


@pytest.mark.parametrize(
    ("unit", "expected"),
    [("nm", 1), ("NANOMETERS", 1), ("µm", 1e3), ("μm", 1e3), ("Micrometers", 1e3), ("micron", 1e3)],
)
def test_units_in_their_spellings(unit, expected):
    assert unit_factor(unit) == expected


@pytest.mark.parametrize("unit", [None, "Unknown"])
@pytest.mark.parametrize("written", [NM, UM])
def test_without_a_unit_it_is_guessed_with_a_note(make_raster, unit, written):
    made = make_raster("scene.bil", driver="ENVI", tags="envi", unit=written)
    header = made.path.replace(".bil", ".hdr")
    with open(header) as file:
        text = file.read()
    new_line = "" if unit is None else f"wavelength units = {unit}\n"
    with open(header, "w") as file:
        file.write(text.replace(f"wavelength units = {written}\n", new_line))
    scene = open_scene(made.path)
    assert scene.require_bands().wavelength_nm == pytest.approx(WAVELENGTH_NM)
    word = "nanometres" if written == NM else "micrometres"
    assert any(f"were taken as {word}" in note for note in scene.notes)


def test_wavenumbers_are_no_wavelengths(make_raster):
    made = make_raster(unit="Wavenumber")
    with pytest.raises(BandTableError, match="'Wavenumber', which is not a wavelength"):
        bands_of(made.path)


def test_widths_in_another_unit_than_the_wavelengths_are_mended(make_raster):
    made = make_raster(tags="envi", unit=UM, fwhm_nm=FWHM_NM * 1e3)  # 10 in µm: meant as nm
    scene = open_scene(made.path)
    assert scene.require_bands().fwhm_nm == pytest.approx(FWHM_NM)
    assert any("widths in nm and wavelengths in µm" in note for note in scene.notes)


def test_missing_widths_stay_unknown(make_raster):
    assert np.isnan(bands_of(make_raster(fwhm_nm=None).path).fwhm_nm).all()


def test_bands_without_a_wavelength_are_left_out_with_a_note(make_raster):
    made = make_raster()
    with rasterio.open(made.path, "r+") as dataset:
        dataset.update_tags(BANDS, wavelength="", wavelength_units="")
    scene = open_scene(made.path)
    assert len(scene.require_bands()) == len(scene.band_sources) == BANDS - 1
    assert any("1 of 12 bands have no wavelength and are left out: 12." in n for n in scene.notes)


def test_a_list_of_another_length_is_passed_over_with_a_note(make_raster):
    made = make_raster(wavelength_nm=None, fwhm_nm=None)
    with rasterio.open(made.path, "r+") as dataset:
        dataset.update_tags(ns="ENVI", wavelength="{500, 600}")
    with pytest.raises(BandTableError, match="lists 2 values as 'wavelength' for 12 bands"):
        bands_of(made.path)


def test_wavelengths_in_band_names_are_the_last_resort(make_raster):
    made = make_raster(wavelength_nm=None, fwhm_nm=None)
    with rasterio.open(made.path, "r+") as dataset:
        dataset.descriptions = [
            f"B{i} ({nm / 1000:.4f} Micrometers)" for i, nm in enumerate(WAVELENGTH_NM)
        ]
    scene = open_scene(made.path)
    assert scene.require_bands().wavelength_nm == pytest.approx(WAVELENGTH_NM)
    assert any("names of the bands" in note for note in scene.notes)


@pytest.mark.parametrize(
    ("name", "nm"),
    [("B2 - 490 nm", 490), ("Band 3 (0.560000 Micrometers)", 560), ("665nm", 665), ("0.8 µm", 800)],
)
def test_wavelengths_in_names(name, nm):
    assert description_facts([name])[1].wavelength_nm.tolist() == [nm]


@pytest.mark.parametrize("name", ["band 12", "NDVI", "10 m", "30 nm", None, "slope 45 deg"])
def test_names_without_wavelengths(name):
    assert len(description_facts([name])) == 1


def test_a_raster_without_wavelengths_says_what_to_do(make_raster):
    scene = open_scene(make_raster(wavelength_nm=None, fwhm_nm=None).path)
    assert scene.bands is None
    with pytest.raises(BandTableError, match=r"no wavelengths for its 12 bands.*band table"):
        scene.require_bands()


def test_an_envi_header_beside_a_geotiff_is_read(make_raster, tmp_path):
    made = make_raster(wavelength_nm=None, fwhm_nm=None)
    values = ", ".join(f"{nm:g}" for nm in WAVELENGTH_NM)
    (tmp_path / "scene.hdr").write_text(
        f"ENVI\nbands = {BANDS}\nwavelength units = nm\nwavelength = {{\n{values}}}\n"
    )
    assert bands_of(made.path).origin == "ENVI header"


def test_a_header_is_split_into_keys_and_values():
    text = "ENVI\nDescription = {a = b,\n c}\nbands   = 3\n; comment = 1\nfwhm={1,\n2 ,3}\n"
    tags = parse_envi_header(text)
    assert tags == {"description": "{a = b, c}", "bands": "3", "fwhm": "{1, 2 ,3}"}


def test_merging_takes_whole_columns_before_partial_ones():
    partial = BandFacts("a", wavelength_nm=np.asarray([np.nan, 500.0]), notes=("from a",))
    whole = BandFacts("b", wavelength_nm=np.asarray([400.0, 500.0]), notes=("from b",))
    merged = merge_facts([partial, whole])
    assert merged.origin == "b"
    assert merged.notes == ("from b",)


# The user's table


def user_table(tmp_path, text):
    path = tmp_path / "bands.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def rows(*columns):
    return "\n".join(",".join(str(cell) for cell in row) for row in zip(*columns, strict=True))


def test_the_users_table_goes_before_the_file(make_raster, tmp_path):
    table = user_table(tmp_path, "wavelength,fwhm\n" + rows(WAVELENGTH_NM + 5, FWHM_NM + 1))
    bands = bands_of(make_raster().path, bands_csv=table)
    assert bands.wavelength_nm == pytest.approx(WAVELENGTH_NM + 5)
    assert bands.fwhm_nm == pytest.approx(FWHM_NM + 1)
    assert bands.origin == "band table"


@pytest.mark.parametrize(
    "text",
    [
        "Wavelength_um;FWHM_nm\n" + "\n".join(f"{nm / 1e3:.5f};10" for nm in WAVELENGTH_NM),
        "wavelength;fwhm\n" + "\n".join(f"{nm:.3f};10".replace(".", ",") for nm in WAVELENGTH_NM),
        "# made by hand\nname\twavelength\tfwhm\n"
        + "\n".join(f"b{i}\t{nm}\t10" for i, nm in enumerate(WAVELENGTH_NM)),
        "\n".join(f"{nm},10" for nm in WAVELENGTH_NM),
        "wavelength,fwhm,unit\n" + "\n".join(f"{nm / 1e3},0.01,um" for nm in WAVELENGTH_NM),
    ],
    ids=["semicolon, µm and nm", "decimal commas", "tabs", "no header", "unit column"],
)
def test_spellings_of_the_users_table(make_raster, tmp_path, text):
    made = make_raster(wavelength_nm=None, fwhm_nm=None)
    bands = bands_of(made.path, bands_csv=user_table(tmp_path, text))
    assert bands.wavelength_nm == pytest.approx(WAVELENGTH_NM, abs=1e-2)
    assert bands.fwhm_nm == pytest.approx(10.0)


def test_the_users_table_sets_scale_offset_nodata_flags_and_names(make_raster, tmp_path):
    text = "name,wavelength,good,scale,offset,nodata\n" + rows(
        [f"x{i}" for i in range(BANDS)],
        WAVELENGTH_NM,
        GOOD.astype(int),
        [0.5] * BANDS,
        [0.1] * BANDS,
        [-1, *[""] * (BANDS - 1)],
    )
    scene = open_scene(make_raster(nodata=7).path, bands_csv=user_table(tmp_path, text))
    assert scene.bands.names[2] == "x2"
    assert scene.bands.good.tolist() == GOOD.tolist()
    assert set(scene.scale) == {0.5}
    assert set(scene.offset) == {0.1}
    assert scene.nodata == (-1.0, *[None] * (BANDS - 1))
    assert not any("scale" in note for note in scene.notes)


def test_the_users_rows_may_be_placed_by_band_number(make_raster, tmp_path):
    text = "band_number,wavelength\n12,1000\n1,450\n"
    scene = open_scene(make_raster(tags="none").path, bands_csv=user_table(tmp_path, text))
    assert scene.band_sources == ((0, 1), (0, 12))
    assert scene.bands.wavelength_nm.tolist() == [450.0, 1000.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("wavelength\n500\n", "has 1 rows, the scene 12 bands"),
        ("name,fwhm\n" + "a,1\n" * BANDS, "no column 'wavelength'"),
        ("wavelength\n" + "green\n" * BANDS, "'green' as wavelength of row 1"),
        ("wavelength,fwhm\n500,1\n510\n", "Row 3.*1 of 2 columns"),
        ("band_number,wavelength\n13,500\n", "row for band '13'.*1 to 12"),
        ("wavelength,unit\n" + "500,GHz\n" * BANDS, "bands in 'GHz'"),
    ],
)
def test_a_users_table_that_does_not_fit_is_refused(make_raster, tmp_path, text, message):
    with pytest.raises(BandTableError, match=message):
        open_scene(make_raster().path, bands_csv=user_table(tmp_path, text))


def test_a_users_table_that_is_not_there_is_refused(make_raster):
    with pytest.raises(BandTableError, match=r"nowhere\.csv cannot be read"):
        open_scene(make_raster().path, bands_csv="nowhere.csv")


# Real files


@pytest.mark.parametrize(
    ("path", "count", "first_nm", "bad", "note"),
    [
        ("emit/emit20250324t221005_jpl_unmix_ex", 285, 381.0055927, 41, "taken as nanometres"),
        ("emit/ang20170323t202244_rdn_7000-7010", 425, 376.86, 0, "radiance"),
        ("gamsberg/cubus_gamsberg_subset", 189, 426.820007, 0, "'Unknown' as unit"),
        ("berlin/EnMAP_BerlinUrbanGradient.bsq", 177, 460.0, 0, "reflectance x 10,000"),
        ("jasper_ridge/derived/jasper_hsi.tif", 198, 394.92, 0, "reflectance x 10,000"),
        ("salinasA/derived/salinasA_hsi.tif", 204, 365.91, 0, "reflectance x 10,000"),
    ],
)
def test_odd_real_files(data_folder, path, count, first_nm, bad, note):
    scene = open_scene(str(data_folder / path))
    bands = scene.require_bands()
    assert len(bands) == count
    assert bands.wavelength_nm[0] == pytest.approx(first_nm)
    assert np.count_nonzero(~bands.good) == bad
    assert any(note in text for text in scene.notes)


def test_a_real_geotiff_without_anything_needs_a_table(data_folder):
    scene = open_scene(str(data_folder / "neon_osbs/example.tif"))
    with pytest.raises(BandTableError, match="no wavelengths for its 426 bands"):
        scene.require_bands()
    assert any("no CRS" in note for note in scene.notes)


def test_real_sensor_tables_serve_as_the_users_table(data_folder, make_raster):
    made = make_raster(array=np.ones((224, 3, 2), np.int16), tags="none")
    scene = open_scene(made.path, bands_csv=str(data_folder / "srf/enmap.csv"))
    assert scene.require_bands().wavelength_nm[0] == pytest.approx(418.24)


def test_wavelengths_of_real_cubes_go_through_a_file_unchanged(data_folder, make_raster, tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    cube = scipy_io.loadmat(data_folder / "gatorsense/an_hsi_image_sub_for_demo.mat")
    array = np.moveaxis(cube["hsi_img_sub"], 2, 0).astype(np.float32)
    wavelength_nm = cube["wavelengths"].ravel().astype(float)
    made = make_raster(array=array, wavelength_nm=wavelength_nm, fwhm_nm=None, unit=UM)
    bands = bands_of(made.path)
    assert bands.wavelength_nm == pytest.approx(wavelength_nm)

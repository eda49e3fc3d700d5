"""When images were taken, and a word when they are of different days."""

from datetime import UTC, datetime

import numpy as np
import pytest
import rasterio

from engine.raster.pair import open_pair
from engine.raster.pair_dates import acquisition_time, parse_time
from engine.raster.scene import open_scene
from tests.engine.raster.made_pairs import COARSE, HSI_NM, make_pair, numbers, write_image


def dated(path, key, value, ns=None):
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(ns=ns, **{key: value})


@pytest.fixture
def image(tmp_path):
    return write_image(tmp_path / "scene.tif", numbers(6, 8, 9), COARSE, nm=HSI_NM)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2022-06-27T10:45:48.123Z", datetime(2022, 6, 27, 10, 45, 48, tzinfo=UTC)),
        ("2022:06:27 10:45:48", datetime(2022, 6, 27, 10, 45, 48, tzinfo=UTC)),
        ("2010-08-18", datetime(2010, 8, 18, tzinfo=UTC)),
        ("20220627T104548Z", datetime(2022, 6, 27, 10, 45, 48, tzinfo=UTC)),
        ("2022-06-31", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_times_are_read_in_the_ways_files_write_them(text, expected):
    assert parse_time(text) == expected


@pytest.mark.parametrize(
    ("key", "value", "ns"),
    [
        ("ACQUISITIONDATETIME", "2022-06-27 10:45:48", None),
        ("acquisition_time", "2022-06-27T10:45:48Z", None),
        ("acquisition time", "2022-06-27T10:45:48Z", "ENVI"),
        ("TIFFTAG_DATETIME", "2022:06:27 10:45:48", None),
    ],
)
def test_a_date_is_found_in_the_tags(image, key, value, ns):
    dated(image, key, value, ns)
    assert acquisition_time(open_scene(image)) == datetime(2022, 6, 27, 10, 45, 48, tzinfo=UTC)


def test_the_date_of_the_file_itself_is_the_last_resort(image):
    dated(image, "TIFFTAG_DATETIME", "2024:01:01 00:00:00")
    dated(image, "acquisition_time", "2022-06-27T10:45:48Z")
    assert acquisition_time(open_scene(image)).year == 2022


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("T33UUU_20220627T101601_B04_10m.tif", datetime(2022, 6, 27, 10, 16, 1, tzinfo=UTC)),
        ("PRS_L2D_STD_20200529100806_20200529100810_0001.tif",
         datetime(2020, 5, 29, 10, 8, 6, tzinfo=UTC)),
        ("LC08_L2SP_193023_20220627_20230101_02_T1_SR.tif", datetime(2022, 6, 27, tzinfo=UTC)),
        ("result_20240101.tif", None),
        ("scene_123456789012345678.tif", None),
    ],
)  # fmt: skip
def test_a_date_is_found_in_the_names_of_products(tmp_path, name, expected):
    path = write_image(tmp_path / name, numbers(6, 8, 9), COARSE, nm=HSI_NM)
    assert acquisition_time(open_scene(path)) == expected


def test_an_enmap_product_says_when_it_began(make_enmap_product):
    metadata, image, _ = make_enmap_product()
    with open(metadata, encoding="utf-8") as file:
        text = file.read()
    start = "<temporalCoverage><startTime>2022-06-27T10:45:50.5Z</startTime></temporalCoverage>"
    with open(metadata, "w", encoding="utf-8") as file:
        file.write(text.replace("<base>", f"<base>{start}"))
    assert acquisition_time(open_scene(image)) == datetime(2022, 6, 27, 10, 45, 50, tzinfo=UTC)


def test_images_of_different_days_are_told(tmp_path):
    made = make_pair(tmp_path)
    dated(made.hsi_path, "acquisition_time", "2022-06-27T10:45:48Z")
    dated(made.msi_path, "acquisition_time", "2022-07-09T10:16:01Z")
    (note,) = open_pair(made.hsi_path, made.msi_path).notes
    assert note.startswith("hsi was taken on 2022-06-27 and msi on 2022-07-09, 12 days apart")


@pytest.mark.parametrize("second", ["2022-06-27T23:59:00Z", ""])
def test_images_of_one_day_or_of_none_are_fine(tmp_path, second):
    made = make_pair(tmp_path)
    dated(made.hsi_path, "acquisition_time", "2022-06-27T10:45:48Z")
    dated(made.msi_path, "acquisition_time", second)
    assert open_pair(made.hsi_path, made.msi_path).notes == ()


def test_a_scene_without_a_date_has_none(image):
    assert acquisition_time(open_scene(image)) is None
    assert np.dtype("int16") == open_scene(image).dtype

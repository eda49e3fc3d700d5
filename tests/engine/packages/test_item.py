from __future__ import annotations

import json

import numpy as np
import pytest

from engine.errors import PackageError
from engine.packages.item import info_from_item, parse_item
from engine.packages.item_text import WeightsFile, item_text
from engine.packages.metadata import Quantity
from tests.engine.packages.factory import tiny_info

WEIGHTS = WeightsFile(sha256="ab" * 32, size_bytes=1234, parameter_count=39, memory_bytes=156)


def written(**changes):
    return json.loads(item_text(tiny_info(**changes), WEIGHTS))


def read(item):
    return info_from_item(parse_item(json.dumps(item).encode()))


def test_every_field_comes_back():
    info = tiny_info()
    again = info_from_item(parse_item(item_text(info, WEIGHTS)))
    for name in (
        "name title description version architecture config classes tiling licence task "
        "attribution units training scores training_area training_period created engine_version"
    ).split():
        assert getattr(again, name) == getattr(info, name), name
    assert again.bands.names == info.bands.names
    np.testing.assert_array_equal(again.bands.wavelength_nm, info.bands.wavelength_nm)
    np.testing.assert_array_equal(again.bands.fwhm_nm, info.bands.fwhm_nm)
    np.testing.assert_array_equal(again.bands.good, info.bands.good)
    np.testing.assert_array_equal(again.normalisation.mean, info.normalisation.mean)
    np.testing.assert_array_equal(again.normalisation.std, info.normalisation.std)


def test_hash_and_size_come_back():
    item = parse_item(item_text(tiny_info(), WEIGHTS))
    assert (item.weights_sha256, item.weights_size_bytes) == (WEIGHTS.sha256, 1234)


def test_wavelengths_are_micrometres_for_stac():
    first = written()["properties"]["bands"][0]
    assert first == {
        "name": "band 1",
        "eo:center_wavelength": 0.42303,
        "eo:full_width_half_max": 0.0065,
    }


def test_an_unknown_width_is_left_out():
    assert "eo:full_width_half_max" not in written()["properties"]["bands"][3]
    assert written()["properties"]["hyperkd:bands"][3]["fwhm_nm"] is None


def test_a_period_leaves_datetime_null():
    properties = written()["properties"]
    assert properties["datetime"] is None
    assert properties["start_datetime"] == "2009-08-20T10:00:00Z"
    assert properties["end_datetime"] == "2009-08-21T11:30:00Z"


def test_without_a_period_datetime_is_when_it_was_made():
    properties = written(training_period=None)["properties"]
    assert properties["datetime"] == "2026-01-02T03:04:05Z"
    assert "start_datetime" not in properties


def test_without_an_area_geometry_is_null_and_there_is_no_bbox():
    item = written(training_area=None)
    assert item["geometry"] is None
    assert "bbox" not in item


def test_an_area_over_the_antimeridian_is_cut():
    item = written(training_area=(179.0, -18.0, -179.0, -17.0))
    parts = item["geometry"]["coordinates"]
    west_to_east = [(ring[0][0][0], ring[0][1][0]) for ring in parts]
    assert west_to_east == [(179.0, 180.0), (-180.0, -179.0)]
    assert read(item).training_area == (179.0, -18.0, -179.0, -17.0)


def test_scores_without_a_sample_are_left_out():
    assert read(written(scores={"kappa": float("nan"), "f1_macro": 0.5})).scores == {
        "f1_macro": 0.5
    }


def test_training_may_hold_what_numpy_made():
    training = {"counts": np.array([1, 2]), "loss": np.float32(0.5), "best": float("nan")}
    assert read(written(training=training)).training == {
        "counts": [1, 2],
        "loss": 0.5,
        "best": None,
    }


def test_a_newer_format_is_refused():
    item = written()
    item["properties"]["hyperkd:format_version"] = 2
    with pytest.raises(PackageError, match=r"has format 2; this engine reads up to 1.*Update"):
        read(item)


def test_a_newer_format_is_said_before_its_new_fields_are_complained_about():
    item = {"properties": {"hyperkd:format_version": 9}}
    with pytest.raises(PackageError, match="has format 9"):
        read(item)


@pytest.mark.parametrize("content", [b"{}", b"[]", b'{"properties": 3}', b"null"])
def test_other_json_is_no_package(content):
    with pytest.raises(PackageError, match="not a HyperKD model package"):
        parse_item(content)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_damaged_json_is_said_to_be_damaged(content):
    with pytest.raises(PackageError, match=r"model\.json is not valid JSON"):
        parse_item(content)


@pytest.mark.parametrize(
    "field", ["mlm:architecture", "hyperkd:bands", "hyperkd:normalisation", "mlm:output", "license"]
)
def test_a_missing_field_is_named(field):
    item = written()
    del item["properties"][field]
    with pytest.raises(PackageError, match=f"properties.{field}: Field required"):
        read(item)


def test_nan_in_the_normalisation_is_refused():
    item = written()
    item["properties"]["hyperkd:normalisation"]["std"][2] = float("nan")
    with pytest.raises(PackageError, match="normalisation of band number 3"):
        read(item)


def test_a_wavelength_that_differs_between_the_units_is_refused():
    item = written()
    item["properties"]["bands"][5]["eo:center_wavelength"] += 0.001
    with pytest.raises(PackageError, match=r"contradicts itself about the wavelength .*'band 6'"):
        read(item)


def test_bands_in_another_order_than_the_input_are_refused():
    item = written()
    item["properties"]["mlm:input"][0]["bands"].reverse()
    with pytest.raises(PackageError, match="contradicts itself about the names"):
        read(item)


def test_a_class_more_than_outputs_is_refused():
    item = written()
    item["properties"]["mlm:output"][0]["classification:classes"].pop()
    with pytest.raises(PackageError, match="contradicts itself about the number of classes"):
        read(item)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"value": 0}, "Class value 0"), ({"color_hint": "red"}, "Colour '#red'")],
)
def test_classes_that_no_map_can_show_are_refused(change, message):
    item = written()
    item["properties"]["mlm:output"][0]["classification:classes"][1].update(change)
    with pytest.raises(PackageError, match=f"classes cannot be used: {message}"):
        read(item)


def test_a_tiling_without_a_core_is_refused():
    item = written()
    item["properties"]["hyperkd:tiling"]["halo_px"] = 40
    with pytest.raises(PackageError, match="tiling cannot be used: A tile of 64 px has no core"):
        read(item)


def test_weights_elsewhere_are_refused():
    item = written()
    item["assets"]["weights"]["href"] = "../../other/weights.safetensors"
    with pytest.raises(PackageError, match=r"assets\.weights\.href"):
        read(item)


def test_fields_of_others_are_left_alone():
    item = written()
    item["properties"]["somebody:field"] = 1
    assert read(item).name == "tiny-test"


def test_a_quantity_comes_back():
    quantity = Quantity("soil organic carbon", "g/kg", 3.5, 61.0)
    item = written(task="regression", classes=(), quantity=quantity)
    assert item["properties"]["mlm:output"][0]["result"]["shape"] == [-1, 1, -1, -1]
    assert read(item).quantity == quantity


def test_a_quantity_beside_several_outputs_is_a_contradiction():
    quantity = Quantity("soil organic carbon", "g/kg", 3.5, 61.0)
    item = written(task="regression", classes=(), quantity=quantity)
    item["properties"]["mlm:output"][0]["result"]["shape"][1] = 2
    with pytest.raises(PackageError, match="number of quantities"):
        read(item)


def test_a_package_of_before_has_no_quantity():
    item = written()
    assert "hyperkd:quantity" not in item["properties"]
    assert read(item).quantity is None

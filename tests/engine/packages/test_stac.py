"""model.json against the schemas of STAC and the official models of the MLM extension.

Both come with packages of the test environment: pystac carries the schemas of STAC's core, and
stac-model, by the authors of the extension, its fields as pydantic models. Neither asks the net.
"""

from __future__ import annotations

import json

import pytest

from engine.packages.item_text import EXTENSIONS, WeightsFile, item_text
from engine.packages.metadata import Quantity
from tests.engine.packages.factory import fusion_facts, tiny_info

WEIGHTS = WeightsFile(sha256="ab" * 32, size_bytes=1234, parameter_count=39, memory_bytes=156)

VARIANTS = {
    "whole": {},
    "no place, time, settings or scores": {
        "training_area": None,
        "training_period": None,
        "config": {},
        "scores": {},
    },
    "over the antimeridian": {"training_area": (179.0, -18.0, -179.0, -17.0)},
    "an encoder": {"task": "generative", "classes": ()},
    "a regression": {
        "task": "regression",
        "classes": (),
        "quantity": Quantity("soil organic carbon", "g/kg", 3.5, 61.0),
    },
    "a fusion": fusion_facts(),
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def item(request):
    return json.loads(item_text(tiny_info(**request.param), WEIGHTS))


def core_errors(item):
    """What STAC's own schema says; the extensions' are not in the wheel and are left out."""
    pystac = pytest.importorskip("pystac", reason="pystac[validation] carries STAC's schemas")
    validation = pytest.importorskip("pystac.validation")
    pytest.importorskip("jsonschema", reason="pystac validates with jsonschema")
    try:
        validation.validate_dict({**item, "stac_extensions": []})
    except pystac.errors.STACValidationError as error:
        return str(error)
    return ""


def test_it_is_a_stac_item(item):
    assert core_errors(item) == ""


@pytest.mark.parametrize("field", ["geometry", "assets", "properties"])
def test_the_check_of_stac_items_finds_what_is_missing(field):
    item = json.loads(item_text(tiny_info(), WEIGHTS))
    del item[field]
    assert f"'{field}' is a required property" in core_errors(item)


def mlm_fields(item):
    schema = pytest.importorskip("stac_model.schema", reason="stac-model has the MLM fields")
    fields = {key: part for key, part in item["properties"].items() if key.startswith("mlm:")}
    return schema.MLModelProperties.model_validate(fields)


def test_the_authors_of_mlm_read_our_fields(item):
    fields = mlm_fields(item)
    assert fields.name == "tiny-test"
    assert fields.input[0].bands == item["properties"]["mlm:input"][0]["bands"]
    assert fields.input[0].input.shape == [-1, 12, -1, -1]


def test_the_authors_of_mlm_read_our_classes():
    classes = mlm_fields(json.loads(item_text(tiny_info(), WEIGHTS))).output[0].classes
    assert [(part.value, part.description, part.color_hint) for part in classes] == [
        (1, "Low vegetation", "8fce5a"),
        (4, "Wasser/Water ö", "1E78B4"),
        (200, "Roof", "e31a1c"),
    ]


def test_mlm_refuses_a_field_that_is_missing():
    item = json.loads(item_text(tiny_info(), WEIGHTS))
    del item["properties"]["mlm:output"]
    with pytest.raises(ValueError, match="mlm:output"):
        mlm_fields(item)


def test_the_extensions_are_named(item):
    assert item["stac_extensions"] == list(EXTENSIONS)
    assert "https://stac-extensions.github.io/mlm/v1.5.0/schema.json" in EXTENSIONS


def test_the_weights_are_the_models_asset(item):
    asset = item["assets"]["weights"]
    assert "mlm:model" in asset["roles"]
    assert asset["mlm:artifact_type"] == "safetensors.torch.save_file"
    assert asset["file:checksum"] == "1220" + "ab" * 32

"""Packages that fuse two images: the bands of the finer one, beside those of the coarse one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from engine.errors import PackageError
from engine.packages.build import ARCHITECTURES, Architecture, build_model
from engine.packages.item import info_from_item, parse_item
from engine.packages.item_text import WeightsFile, item_text
from engine.packages.package import load_package, save_package
from tests.engine.packages.factory import (
    BAND_COUNT,
    TinyFuser,
    TinyFuserConfig,
    fusion_facts,
    tiny_info,
)

WEIGHTS = WeightsFile(sha256="ab" * 32, size_bytes=1234, parameter_count=39, memory_bytes=156)


def fusion_info(**changes):
    return tiny_info(**fusion_facts() | changes)


def written(**changes):
    return json.loads(item_text(fusion_info(**changes), WEIGHTS))


def read(item):
    return info_from_item(parse_item(json.dumps(item).encode()))


def test_the_fine_bands_come_back():
    bands = read(written()).fine_bands
    assert bands.names == ("band 1", "near infrared")
    np.testing.assert_array_equal(bands.wavelength_nm, [560.0, 842.0])
    np.testing.assert_array_equal(bands.fwhm_nm, [36.0, np.nan])


def test_the_coarse_bands_come_back_beside_them():
    assert len(read(written()).bands) == BAND_COUNT


def test_each_image_is_an_input_of_its_own():
    inputs = written()["properties"]["mlm:input"]
    assert [part["name"] for part in inputs] == ["hyperspectral", "multispectral"]
    assert [part["input"]["shape"] for part in inputs] == [
        [-1, BAND_COUNT, -1, -1],
        [-1, 2, -1, -1],
    ]


def test_stac_has_no_name_twice():
    names = [band["name"] for band in written()["properties"]["bands"]]
    assert len(set(names)) == len(names) == BAND_COUNT + 2


def test_all_coarse_bands_come_out():
    output = written()["properties"]["mlm:output"][0]
    assert output["name"] == "fused"
    assert output["result"]["shape"] == [-1, BAND_COUNT, -1, -1]


def test_a_package_of_one_image_has_no_fine_bands():
    assert read(json.loads(item_text(tiny_info(), WEIGHTS))).fine_bands is None


def test_a_fusion_without_fine_bands_is_refused():
    with pytest.raises(PackageError, match="fuses two images but lists the bands of one"):
        fusion_info(fine_bands=None)


def test_a_fusion_with_classes_is_refused():
    with pytest.raises(PackageError, match="super-resolution but lists classes"):
        fusion_info(classes=tiny_info().classes)


@pytest.mark.parametrize("config", [{}, {"ratio": 1}, {"ratio": 2.5}, {"ratio": "3"}])
def test_a_fusion_without_a_ratio_of_two_or_more_is_refused(config):
    with pytest.raises(PackageError, match="at a ratio of"):
        fusion_info(config=config)


def test_the_ratio_of_a_model_of_one_image_is_none():
    assert (fusion_info().ratio, tiny_info().ratio) == (3, None)


def test_fine_bands_of_a_model_of_one_image_are_refused():
    with pytest.raises(PackageError, match="lists the bands of a second image"):
        tiny_info(fine_bands=fusion_facts()["fine_bands"])


def test_an_input_that_is_missing_is_a_contradiction():
    item = written()
    del item["properties"]["mlm:input"][1]
    with pytest.raises(PackageError, match="names or the number of bands"):
        read(item)


def test_an_input_too_many_is_a_contradiction():
    item = written()
    properties = item["properties"]
    del properties["hyperkd:fine_bands"]
    properties["bands"] = properties["bands"][:BAND_COUNT]
    properties["mlm:input"][1]["bands"] = []
    with pytest.raises(PackageError, match="number of inputs"):
        read(item)


def test_a_third_input_is_refused():
    item = written()
    item["properties"]["mlm:input"] *= 2
    with pytest.raises(PackageError, match="mlm:input"):
        read(item)


def test_fine_bands_in_another_order_than_stacs_are_a_contradiction():
    item = written()
    item["properties"]["hyperkd:fine_bands"].reverse()
    with pytest.raises(PackageError, match="names or the number of bands"):
        read(item)


def test_a_wavelength_of_a_fine_band_that_differs_between_the_units_is_refused():
    item = written()
    item["properties"]["hyperkd:fine_bands"][0]["wavelength_nm"] = 561.0
    with pytest.raises(PackageError, match="wavelength or width of band 'band 1'"):
        read(item)


def test_fewer_outputs_than_coarse_bands_are_a_contradiction():
    item = written()
    item["properties"]["mlm:output"][0]["result"]["shape"][1] = BAND_COUNT - 1
    with pytest.raises(PackageError, match="number of fused bands"):
        read(item)


@pytest.fixture
def fuser_package(monkeypatch, tmp_path):
    """Saves and loads a package of an architecture with settings for two images."""
    place = Architecture("tests.engine.packages.factory", "TinyFuser", "TinyFuserConfig")
    monkeypatch.setitem(ARCHITECTURES, "tiny-fuser", place)

    def save(hsi_channels, msi_channels):
        config = {"hsi_channels": hsi_channels, "msi_channels": msi_channels, "ratio": 3}
        info = fusion_info(architecture="tiny-fuser", config=config)
        state = TinyFuser(TinyFuserConfig(**config)).state_dict()
        return load_package(str(save_package(str(tmp_path / "fuser"), info, state)))

    return save


def test_a_fuser_of_the_bands_that_the_package_lists_is_built(fuser_package):
    assert build_model(fuser_package(BAND_COUNT, 2)).config.ratio == 3


def test_a_fuser_of_other_coarse_bands_is_refused(fuser_package):
    with pytest.raises(PackageError, match="lists 12 bands, but its setting hsi_channels is 11"):
        build_model(fuser_package(11, 2))


def test_a_fuser_of_other_fine_bands_is_refused(fuser_package):
    message = "lists 2 bands of a finer image, but its setting msi_channels is 4"
    with pytest.raises(PackageError, match=message):
        build_model(fuser_package(BAND_COUNT, 4))

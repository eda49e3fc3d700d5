"""The codes of places and wavelengths against those of the published code."""

from __future__ import annotations

import pytest
import torch

from engine.models.spectralx.encodings import sincos, spatial_encoding, wavelength_encoding
from tests.engine.models.spectralx.official import Fixture

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def fixture(fixtures_folder):
    return Fixture(fixtures_folder, "spectralx_encodings")


def wavelength_outputs(fixture: Fixture, kind: str) -> list[str]:
    found = [name for name in fixture.output_names if name.startswith(f"wavelength_{kind}_")]
    assert found
    return found


def wavelength_nm(fixture: Fixture, output: str) -> list[float]:
    return [1000 * um for um in fixture.constructor["wavelengths_um"][output.rsplit("_", 1)[-1]]]


def test_one_axis(fixture):
    [name] = [name for name in fixture.output_names if name.startswith("sincos1d_")]
    width = fixture.sidecar["outputs"][name]["full_shape"][-1]
    positions = torch.tensor(fixture.constructor["sincos1d_positions"])
    fixture.check(name, sincos(width, positions))


def test_places_of_the_tokenizer(fixture):
    [name] = [name for name in fixture.output_names if name.startswith("spatial_")]
    _one, places, width = fixture.sidecar["outputs"][name]["full_shape"]
    side = round(places**0.5)
    fixture.check(name, spatial_encoding(side, side, width)[None])


@pytest.mark.parametrize(
    ("kind", "step"), [("encoder_", 10.0), ("decoder_", 10.0), ("scalemae_table_", 1.0)]
)
def test_tables_of_scalemae(fixture, kind, step):
    """Row 0, that of CLS, is 0."""
    [name] = [name for name in fixture.output_names if name.startswith(kind)]
    shape = fixture.sidecar["outputs"][name]["full_shape"]
    side = round((shape[-2] - 1) ** 0.5)
    places = spatial_encoding(side, side, shape[-1], step)
    table = torch.cat([torch.zeros(1, shape[-1]), places]).reshape(shape)
    fixture.check(name, table)


def test_wavelengths_of_the_bands(fixture):
    for name in wavelength_outputs(fixture, "raw"):
        count, width = fixture.sidecar["outputs"][name]["full_shape"]
        nm = wavelength_nm(fixture, name)
        assert len(nm) == count
        fixture.check(name, sincos(width, torch.tensor(nm)))


def test_wavelengths_of_the_stems_channels(fixture):
    for name in wavelength_outputs(fixture, "512"):
        count, width = fixture.sidecar["outputs"][name]["full_shape"]
        fixture.check(name, wavelength_encoding(wavelength_nm(fixture, name), width, count))

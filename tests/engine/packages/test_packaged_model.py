"""The model that comes with the plugin, and the real sensors that people have."""

from pathlib import Path

import pytest

from engine.packages.package import load_package
from engine.raster.sensors import sensor_table
from engine.raster.spectra import BandTable, match_bands

MODEL = str(Path(__file__).parents[3] / "resources" / "models" / "berlin-enmap-landcover")


@pytest.mark.parametrize("sensor", ["enmap", "prisma", "emit"])
def test_packaged_model_fits_the_sensors_that_measure_its_range(sensor):
    model = load_package(MODEL).info.bands
    table = sensor_table(sensor)
    scene = BandTable(table.names, table.wavelength_nm, table.fwhm_nm, table.good)
    match = match_bands(model, scene)
    assert len(match.rows) == len(model)
    assert max(row.distance_nm for row in match.rows) < 10


def test_packaged_model_names_no_folder_of_the_machine_it_was_trained_on():
    request = load_package(MODEL).info.training["request"]
    paths = [*request["input"], request["training"], request["output"], request["bands"]]
    assert not any(Path(path).is_absolute() for path in paths)

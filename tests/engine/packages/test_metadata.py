from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from engine.errors import PackageError
from engine.packages.metadata import Normalisation, Quantity
from engine.raster.style import ClassInfo
from tests.engine.packages.factory import BAND_COUNT, tiny_info

RED = "#ff0000"


def test_normalisation_refuses_nan():
    mean = np.full(BAND_COUNT, 0.1)
    mean[4] = np.nan
    with pytest.raises(PackageError, match="band number 5 is mean nan"):
        Normalisation.of(mean, np.ones(BAND_COUNT))


@pytest.mark.parametrize("spread", [0.0, -1.0, np.inf])
def test_normalisation_refuses_spreads_that_nothing_can_be_divided_by(spread):
    with pytest.raises(PackageError, match=f"band number 2 is mean 0.2, spread {spread}"):
        Normalisation.of([0.1, 0.2], [1.0, spread])


def test_normalisation_refuses_different_lengths():
    with pytest.raises(PackageError, match="2 means and 3 spreads"):
        Normalisation.of([0.1, 0.2], [1.0, 1.0, 1.0])


def test_info_refuses_a_normalisation_of_other_bands():
    with pytest.raises(PackageError, match="12 bands and a normalisation of 2"):
        tiny_info(normalisation=Normalisation.of([0.1, 0.2], [1.0, 1.0]))


def test_info_refuses_no_classes():
    with pytest.raises(PackageError, match="classifies but lists no classes"):
        tiny_info(classes=())


def test_an_encoder_needs_no_classes():
    assert tiny_info(classes=(), task="generative").classes == ()


def test_info_refuses_a_class_value_twice():
    classes = (ClassInfo(3, "a", RED), ClassInfo(1, "b", RED), ClassInfo(3, "c", RED))
    with pytest.raises(PackageError, match="value 3 stands more than once"):
        tiny_info(classes=classes)


def test_info_refuses_class_values_that_a_byte_cannot_hold():
    with pytest.raises(PackageError, match="'a' has the value 256"):
        tiny_info(classes=(ClassInfo(256, "a", RED),))


def test_info_refuses_a_class_without_a_name():
    with pytest.raises(PackageError, match="class with value 7 has no name"):
        tiny_info(classes=(ClassInfo(7, " ", RED),))


@pytest.mark.parametrize("name", ["", "ab", "1model", "with space", "a/b", "../up", "end-"])
def test_info_refuses_names_that_are_no_file_names(name):
    with pytest.raises(PackageError, match="cannot name a model"):
        tiny_info(name=name)


def test_info_refuses_a_licence_in_prose():
    with pytest.raises(PackageError, match="not a licence identifier"):
        tiny_info(licence="free for all")


@pytest.mark.parametrize(
    "area", [(389000.0, 5819000.0, 390000.0, 5820000.0), (13.0, 53.0, 14.0, 52.0)]
)
def test_info_refuses_areas_that_are_not_degrees(area):
    with pytest.raises(PackageError, match="not west, south, east, north in degrees"):
        tiny_info(training_area=area)


def test_info_refuses_a_period_that_runs_backwards():
    period = (datetime(2020, 1, 2, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC))
    with pytest.raises(PackageError, match="not in order"):
        tiny_info(training_period=period)


def test_info_refuses_times_without_a_zone():
    period = (datetime(2020, 1, 1), datetime(2020, 1, 2))
    with pytest.raises(PackageError, match="no time zone"):
        tiny_info(training_period=period)


SOC = Quantity("soil organic carbon", "g/kg", 3.5, 61.0)


def test_a_quantity_is_written_with_its_unit():
    assert SOC.label == "soil organic carbon (g/kg)"
    assert Quantity("share of vegetation", "", 0.0, 1.0).label == "share of vegetation"


@pytest.mark.parametrize(("low", "high"), [(2.0, 1.0), (np.nan, 1.0), (0.0, np.inf)])
def test_a_quantity_without_a_range_is_refused(low, high):
    with pytest.raises(PackageError, match=f"'x' reach from {low} to {high}"):
        Quantity("x", "", low, high)


def test_a_quantity_without_a_name_is_refused():
    with pytest.raises(PackageError, match="no name"):
        Quantity(" ", "g/kg", 0.0, 1.0)


def test_info_for_regression_says_what_it_estimates():
    with pytest.raises(PackageError, match="does not say which"):
        tiny_info(classes=(), task="regression")
    assert tiny_info(classes=(), task="regression", quantity=SOC).quantity == SOC


def test_info_for_regression_has_no_classes():
    with pytest.raises(PackageError, match="for regression but lists classes"):
        tiny_info(task="regression", quantity=SOC)


def test_info_of_a_classifier_names_no_quantity():
    with pytest.raises(PackageError, match="names the quantity 'soil organic carbon'"):
        tiny_info(quantity=SOC)

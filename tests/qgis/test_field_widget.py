"""The field with the classes: of a layer that may be vector or raster."""

import pytest
from qgis.core import (
    QgsGraduatedSymbolRenderer,
    QgsProcessingContext,
    QgsProject,
    QgsRasterLayer,
)
from qgis.PyQt.QtWidgets import QDialog


class AlgorithmDialog(QDialog):
    """Processing looks at the name of a dialog's class."""


@pytest.fixture
def wrappers(plugin, algorithm, qtbot, labels, scene_path):
    yield from _wrappers(algorithm("trainclassifier"), "CLASS_FIELD", qtbot, labels, scene_path)


@pytest.fixture
def value_wrappers(plugin, algorithm, qtbot, labels, scene_path):
    yield from _wrappers(algorithm("trainregression"), "VALUE_FIELD", qtbot, labels, scene_path)


def _wrappers(made, field, qtbot, labels, scene_path):
    from processing.gui.wrappers import WidgetWrapperFactory

    raster = QgsRasterLayer(scene_path, "raster")
    QgsProject.instance().addMapLayers([labels, raster])
    dialog = AlgorithmDialog()
    qtbot.addWidget(dialog)
    found = {
        name: WidgetWrapperFactory.create_wrapper(made.parameterDefinition(name), dialog)
        for name in ("TRAINING", field)
    }
    context = QgsProcessingContext()
    context.setProject(QgsProject.instance())
    kept = found["TRAINING"].createWrappedWidget(context)
    for wrapper in found.values():
        wrapper.postInitialize(list(found.values()))
    found["choose"] = lambda layer: found["TRAINING"].setParameterValue(layer.id(), context)
    found["labels"], found["raster"], found["context"] = labels, raster, context
    yield found
    kept.deleteLater()
    QgsProject.instance().clear()


def test_fields_of_a_vector_layer_are_listed(wrappers):
    wrappers["choose"](wrappers["labels"])
    box = wrappers["CLASS_FIELD"].widget
    assert [box.itemText(index) for index in range(box.count())] == ["", "fid", "class"]
    assert box.isEnabled()


def test_field_of_the_legend_comes_first_to_mind(wrappers):
    wrappers["choose"](wrappers["labels"])
    assert wrappers["CLASS_FIELD"].parameterValue() == "class"


def test_another_field_can_be_chosen(wrappers):
    wrappers["choose"](wrappers["labels"])
    wrappers["CLASS_FIELD"].setParameterValue("fid", wrappers["context"])
    assert wrappers["CLASS_FIELD"].parameterValue() == "fid"


def test_a_raster_has_no_fields_and_nothing_crashes(wrappers):
    wrappers["choose"](wrappers["labels"])
    wrappers["choose"](wrappers["raster"])
    assert wrappers["CLASS_FIELD"].parameterValue() is None
    assert not wrappers["CLASS_FIELD"].widget.isEnabled()


def test_the_choice_survives_a_look_at_a_raster(wrappers):
    wrappers["choose"](wrappers["labels"])
    wrappers["CLASS_FIELD"].setParameterValue("fid", wrappers["context"])
    wrappers["choose"](wrappers["raster"])
    wrappers["choose"](wrappers["labels"])
    assert wrappers["CLASS_FIELD"].parameterValue() == "fid"


def test_a_field_that_is_set_before_its_layer_waits_for_it(wrappers):
    wrappers["choose"](wrappers["raster"])
    wrappers["CLASS_FIELD"].setParameterValue("fid", wrappers["context"])
    wrappers["choose"](wrappers["labels"])
    assert wrappers["CLASS_FIELD"].parameterValue() == "fid"


def test_no_field_is_no_value(wrappers):
    wrappers["choose"](wrappers["labels"])
    wrappers["CLASS_FIELD"].setParameterValue(None, wrappers["context"])
    assert wrappers["CLASS_FIELD"].parameterValue() is None


def test_values_are_in_fields_of_numbers(value_wrappers):
    value_wrappers["choose"](value_wrappers["labels"])
    box = value_wrappers["VALUE_FIELD"].widget
    assert [box.itemText(index) for index in range(box.count())] == ["", "fid"]
    assert value_wrappers["VALUE_FIELD"].parameterValue() is None


def test_values_are_those_that_the_layer_is_coloured_by(value_wrappers):
    value_wrappers["choose"](value_wrappers["raster"])
    value_wrappers["labels"].setRenderer(QgsGraduatedSymbolRenderer("fid"))
    value_wrappers["choose"](value_wrappers["labels"])
    assert value_wrappers["VALUE_FIELD"].parameterValue() == "fid"

"""The choice of a usual word, of other text, or of a file: in the dialog and in batch."""

import pytest
from qgis.core import QgsApplication, QgsProcessingContext, QgsProcessingModelAlgorithm
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtWidgets import QDialog, QFileDialog

WORDS = (("estimate", "Estimate it"), ("0,0", "None"))


@pytest.fixture
def make_box(plugin, qtbot):
    from hyperkd.hyperkd_qgis.gui.word_widget import WordBox

    def make(suffix=""):
        widget = WordBox(WORDS, suffix)
        qtbot.addWidget(widget)
        widget.show()
        return widget

    return make


def test_titles_are_shown_and_words_are_the_value(make_box):
    box = make_box()
    assert [box.combo.itemText(index) for index in range(box.combo.count())] == [
        "Estimate it",
        "None",
    ]
    box.combo.setCurrentIndex(1)
    assert box.value() == "0,0"
    assert box.combo.itemData(1, Qt.ItemDataRole.ToolTipRole) == "0,0"


def test_a_word_is_shown_by_its_title(make_box):
    box = make_box()
    box.set_value("0,0")
    assert box.combo.currentText() == "None"


@pytest.mark.parametrize(
    ("typed", "value"), [("0.5,-1", "0.5,-1"), ("estimate", "estimate"), ("none", "0,0")]
)
def test_what_is_typed_is_the_value_unless_it_is_a_title(make_box, qtbot, typed, value):
    box = make_box()
    box.combo.lineEdit().clear()
    qtbot.keyClicks(box.combo.lineEdit(), typed)
    assert box.value() == value


def test_without_files_there_is_no_button(make_box):
    assert not hasattr(make_box(), "button")


def test_a_file_is_browsed_for(make_box, qtbot, monkeypatch):
    asked = []

    def open_file(parent, title, folder, kinds):
        asked.append(kinds)
        return "/data/curves.csv", ""

    monkeypatch.setattr(QFileDialog, "getOpenFileName", open_file)
    box = make_box("csv")
    with qtbot.waitSignal(box.changed, timeout=1000):
        qtbot.mouseClick(box.button, Qt.MouseButton.LeftButton)
    assert (box.value(), asked) == ("/data/curves.csv", ["CSV (*.csv)"])


def test_a_browser_that_is_closed_changes_nothing(make_box, qtbot, monkeypatch):
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: ("", ""))
    box = make_box("csv")
    qtbot.mouseClick(box.button, Qt.MouseButton.LeftButton)
    assert box.value() == "estimate"


class AlgorithmDialog(QDialog):
    """Processing looks at the name of a dialog's class."""


class BatchAlgorithmDialog(QDialog):
    pass


@pytest.fixture
def wrap(algorithm, qtbot):
    from processing.gui.wrappers import WidgetWrapperFactory

    def make(name, dialog_class=AlgorithmDialog):
        dialog = dialog_class()
        qtbot.addWidget(dialog)
        definition = algorithm("fuse").parameterDefinition(name)
        return WidgetWrapperFactory.create_wrapper(definition, dialog)

    return make


@pytest.mark.parametrize("dialog_class", [AlgorithmDialog, BatchAlgorithmDialog])
@pytest.mark.parametrize(("name", "has_files"), [("SHIFT", False), ("RESPONSE", True)])
def test_a_dialog_offers_the_words_of_its_parameter(wrap, dialog_class, name, has_files):
    wrapper = wrap(name, dialog_class)
    assert type(wrapper).__name__ == "WordWidgetWrapper"
    assert wrapper.parameterValue() == "estimate"
    assert wrapper.widget.combo.count() == 2
    assert hasattr(wrapper.widget, "button") is has_files
    assert wrapper.widget.toolTip()


def test_an_emptied_box_has_no_value(wrap):
    wrapper = wrap("SHIFT")
    wrapper.setParameterValue("", QgsProcessingContext())
    assert wrapper.parameterValue() is None


def test_the_dialog_is_told_of_changes(wrap, qtbot):
    wrapper = wrap("SHIFT")
    with qtbot.waitSignal(wrapper.widgetValueHasChanged, timeout=1000):
        wrapper.widget.combo.setCurrentIndex(1)
    assert wrapper.parameterValue() == "0,0"


def test_the_model_designer_has_qgis_own_widget(plugin, qtbot):
    from processing.modeler.ModelerParametersDialog import ModelerParametersDialog
    from qgis.gui import QgsProcessingModelerParameterWidget

    algorithm = QgsApplication.processingRegistry().createAlgorithmById("hyperkd:fuse")
    dialog = ModelerParametersDialog(algorithm, QgsProcessingModelAlgorithm())
    qtbot.addWidget(dialog)
    panel = dialog.widget.widget if hasattr(dialog.widget, "widget") else dialog.widget
    for name in ("SHIFT", "RESPONSE", "MODEL"):
        assert isinstance(panel.wrappers[name], QgsProcessingModelerParameterWidget)


# The model of a fusion: its list begins with what leaves the choice to the engine


def test_the_models_of_a_fusion_begin_with_the_automatic_one(wrap, install_kinds):
    kinds = {
        "berlin": ("semantic-segmentation", "hyperkd-classifier"),
        "mine": ("super-resolution", "csakd-fuser"),
    }
    install_kinds(kinds)
    wrapper = wrap("MODEL")
    combo = wrapper.widget.combo
    names = [combo.itemData(index) for index in range(combo.count())]
    assert names[0] == "auto"
    assert "mine" in names
    assert "berlin" not in names
    assert wrapper.parameterValue() == "auto"
    assert combo.currentText().startswith("Automatic")

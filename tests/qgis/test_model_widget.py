"""The choice of a model: in the algorithm's dialog, in batch and in the model designer."""

import json

import pytest
from qgis.core import QgsApplication, QgsProcessingContext, QgsProcessingModelAlgorithm
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtWidgets import QDialog, QFileDialog


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    for name, title, task, architecture in (
        ("alps", "Alps, EnMAP", "semantic-segmentation", "hyperkd-classifier"),
        ("berlin", "Berlin land cover", "semantic-segmentation", "hyperkd-classifier"),
        ("carbon", "Soil organic carbon", "regression", "hyperkd-regressor"),
        ("encoder", "Encoder of Berlin", "generative", "hyperkd-backbone"),
        ("hls", "Our own teacher", "generative", "prithvi-mae"),
        ("adapters", "Adapters for EnMAP", "generative", "spectralx-adapted"),
        ("cities", "Cities of Europe", "semantic-segmentation", "spectralx-segmenter"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        kind = {"mlm:tasks": [task], "mlm:architecture": architecture}
        item = {"properties": {"title": title, **kind}}
        (folder / "model.json").write_text(json.dumps(item), encoding="utf-8")
    monkeypatch.setenv("HYPERKD_MODELS", str(tmp_path))
    return tmp_path


@pytest.fixture
def box(plugin, qtbot):
    from hyperkd.hyperkd_qgis.gui.model_box import ModelBox
    from hyperkd.hyperkd_qgis.model_catalogue import USES, installed_models, user_folder

    models = installed_models(user_folder())
    widget = ModelBox([model for model in models if USES["classifier"].accepts(model)])
    qtbot.addWidget(widget)
    widget.show()
    return widget


def test_titles_are_shown_and_names_are_the_value(box):
    titles = [box.combo.itemText(index) for index in range(box.combo.count())]
    assert titles == ["Alps, EnMAP", "Berlin land cover", "Cities of Europe"]
    box.combo.setCurrentIndex(1)
    assert box.value() == "berlin"


def test_a_name_is_shown_by_its_title(box):
    box.set_value("berlin")
    assert box.combo.currentText() == "Berlin land cover"


def test_a_typed_path_is_the_value(box, qtbot):
    box.combo.lineEdit().clear()
    qtbot.keyClicks(box.combo.lineEdit(), "/data/mine.zip")
    assert box.value() == "/data/mine.zip"


def test_a_typed_title_is_the_model_of_that_title(box, qtbot):
    box.combo.lineEdit().clear()
    qtbot.keyClicks(box.combo.lineEdit(), "berlin land cover")
    assert box.value() == "berlin"


def test_an_unknown_name_is_kept_as_it_is(box):
    box.set_value("not installed here")
    assert box.value() == "not installed here"


def test_tooltip_tells_name_and_path(box, models):
    assert box.combo.itemData(1, Qt.ItemDataRole.ToolTipRole) == f"berlin\n{models / 'berlin'}"


def test_browsing_for_a_zip(box, monkeypatch):
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: ("/data/mine.zip", ""))
    box.button.menu().actions()[0].trigger()
    assert box.value() == "/data/mine.zip"


def test_browsing_for_a_folder(box, monkeypatch):
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: "/data/mine")
    box.button.menu().actions()[1].trigger()
    assert box.value() == "/data/mine"


def test_a_browser_that_is_closed_changes_nothing(box, monkeypatch):
    box.set_value("berlin")
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: ("", ""))
    box.choose_zip()
    assert box.value() == "berlin"


def test_browsing_for_a_checkpoint(plugin, qtbot, monkeypatch):
    from hyperkd.hyperkd_qgis.gui.model_box import ModelBox

    asked = []

    def open_file(parent, title, folder, filters):
        asked.append(filters)
        return "/data/prithvi.pt", ""

    monkeypatch.setattr(QFileDialog, "getOpenFileName", open_file)
    box = ModelBox([], checkpoints=True)
    qtbot.addWidget(box)
    box.button.menu().actions()[2].trigger()
    assert box.value() == "/data/prithvi.pt"
    assert asked == ["Checkpoints (*.pt *.pth *.bin *.safetensors)"]


def test_where_no_checkpoint_serves_none_is_offered(box):
    assert [action.text() for action in box.button.menu().actions()] == ["Zip file…", "Folder…"]


def test_changes_are_told(box, qtbot):
    with qtbot.waitSignal(box.changed, timeout=1000):
        box.combo.setCurrentIndex(1)


# Processing's dialogs, as far as they need no window of QGIS


class AlgorithmDialog(QDialog):
    """Processing looks at the name of a dialog's class."""


class BatchAlgorithmDialog(QDialog):
    pass


def make_wrapper(algorithm, name, parameter, dialog):
    from processing.gui.wrappers import WidgetWrapperFactory

    definition = algorithm(name).parameterDefinition(parameter)
    return WidgetWrapperFactory.create_wrapper(definition, dialog)


@pytest.mark.parametrize("dialog_class", [AlgorithmDialog, BatchAlgorithmDialog])
def test_dialog_and_batch_have_the_list(plugin, algorithm, qtbot, dialog_class):
    from hyperkd.hyperkd_qgis.gui.model_box import ModelBox

    dialog = dialog_class()
    qtbot.addWidget(dialog)
    wrapper = make_wrapper(algorithm, "classify", "MODEL", dialog)
    assert isinstance(wrapper.widget, ModelBox)
    wrapper.setParameterValue("berlin", QgsProcessingContext())
    assert wrapper.parameterValue() == "berlin"
    assert (wrapper.label is None) == (dialog_class is BatchAlgorithmDialog)


def offered(wrapper):
    """List the names that a wrapper offers, but for those that come with the plugin."""
    combo = wrapper.widget.combo
    names = {combo.itemData(index) for index in range(combo.count())}
    return names & {"", "adapters", "alps", "berlin", "carbon", "cities", "encoder", "hls"}


@pytest.mark.parametrize("dialog_class", [AlgorithmDialog, BatchAlgorithmDialog])
@pytest.mark.parametrize(
    ("name", "parameter", "expected"),
    [
        ("classify", "MODEL", {"alps", "berlin", "cities"}),
        ("segment", "MODEL", {"alps", "berlin", "cities"}),
        ("estimate", "MODEL", {"carbon"}),
        (
            "describemodel",
            "MODEL",
            {"adapters", "alps", "berlin", "carbon", "cities", "encoder", "hls"},
        ),
        ("trainclassifier", "BACKBONE", {"", "alps", "berlin", "carbon", "encoder"}),
        ("trainregression", "BACKBONE", {"", "alps", "berlin", "carbon", "encoder"}),
        ("distillbackbone", "TEACHER", {"hls"}),
        ("adaptbackbone", "BACKBONE", {"hls"}),
        ("trainsegmentation", "BACKBONE", {"hls"}),
        ("trainsegmentation", "ADAPTED", {"", "adapters"}),
    ],
)
def test_each_parameter_offers_what_serves(
    plugin, algorithm, qtbot, dialog_class, name, parameter, expected
):
    dialog = dialog_class()
    qtbot.addWidget(dialog)
    assert offered(make_wrapper(algorithm, name, parameter, dialog)) == expected


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("distillbackbone", "TEACHER"),
        ("adaptbackbone", "BACKBONE"),
        ("trainsegmentation", "BACKBONE"),
    ],
)
def test_what_begins_with_a_foundation_has_the_packaged_one_and_takes_a_checkpoint(
    plugin, algorithm, qtbot, name, parameter
):
    dialog = AlgorithmDialog()
    qtbot.addWidget(dialog)
    wrapper = make_wrapper(algorithm, name, parameter, dialog)
    assert wrapper.parameterValue() == "galileo-nano"
    assert [action.text() for action in wrapper.widget.button.menu().actions()][2] == "Checkpoint…"


def test_small_learning_rates_keep_their_digits(plugin, algorithm, qtbot):
    dialog = AlgorithmDialog()
    qtbot.addWidget(dialog)
    wrapper = make_wrapper(algorithm, "distillbackbone", "LEARNING_RATE", dialog)
    context = QgsProcessingContext()
    kept = wrapper.createWrappedWidget(context)
    assert wrapper.parameterValue() is None
    wrapper.setParameterValue(0.0000094, context)
    assert wrapper.parameterValue() == pytest.approx(0.0000094, rel=1e-6)
    kept.deleteLater()


def test_a_question_left_to_the_preset_can_stay_open(plugin, algorithm, qtbot):
    dialog = AlgorithmDialog()
    qtbot.addWidget(dialog)
    wrapper = make_wrapper(algorithm, "adaptbackbone", "TRAIN_TOKENIZER", dialog)
    context = QgsProcessingContext()
    kept = wrapper.createWrappedWidget(context)
    assert wrapper.parameterValue() is None
    wrapper.setParameterValue("no", context)
    assert wrapper.parameterValue() == "no"
    wrapper.setParameterValue(None, context)
    assert wrapper.parameterValue() is None
    kept.deleteLater()


def test_an_optional_model_can_stay_empty(plugin, algorithm, qtbot):
    dialog = AlgorithmDialog()
    qtbot.addWidget(dialog)
    wrapper = make_wrapper(algorithm, "trainclassifier", "BACKBONE", dialog)
    assert wrapper.parameterValue() is None
    wrapper.setParameterValue("alps", QgsProcessingContext())
    assert wrapper.parameterValue() == "alps"
    wrapper.setParameterValue(None, QgsProcessingContext())
    assert wrapper.parameterValue() is None


def test_a_changed_model_is_told_to_the_dialog(plugin, algorithm, qtbot):
    dialog = AlgorithmDialog()
    qtbot.addWidget(dialog)
    wrapper = make_wrapper(algorithm, "classify", "MODEL", dialog)
    with qtbot.waitSignal(wrapper.widgetValueHasChanged, timeout=1000):
        wrapper.widget.set_value("alps")


def test_model_designer_offers_inputs_of_the_model_too(plugin, qtbot):
    from processing.modeler.ModelerParametersDialog import ModelerParametersDialog
    from qgis.gui import QgsProcessingModelerParameterWidget

    algorithm = QgsApplication.processingRegistry().createAlgorithmById("hyperkd:classify")
    dialog = ModelerParametersDialog(algorithm, QgsProcessingModelAlgorithm())
    qtbot.addWidget(dialog)
    wrapper = (
        dialog.widget.widget.wrappers["MODEL"]
        if hasattr(dialog.widget, "widget")
        else (dialog.widget.wrappers["MODEL"])
    )
    assert isinstance(wrapper, QgsProcessingModelerParameterWidget)
    child = dialog.createAlgorithm()
    assert child is not None

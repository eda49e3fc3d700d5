"""The dialogs of distillation and teachers, then a regression and its estimate on the map."""

import os
from pathlib import Path

import processing
from qgis.core import QgsApplication, QgsProject
from qgis.gui import QgsMessageBar
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtTest import QTest
from qgis.PyQt.QtWidgets import QPushButton, QWidget

SCENE = os.environ["HYPERKD_SCENE"]
VALUES = os.environ["HYPERKD_VALUES"]
WORK = Path(os.environ["HYPERKD_WORK"])
NAME = "EnMAP Berlin"
PLAIN = {"INPUT", "TEACHER", "PRESET", "EPOCHS", "OUTPUT", "REPORT"}


def play(desk):
    yield lambda: desk.window.isVisible() and find("hyperkd:estimate")
    desk.window.setGeometry(desk.window.screen().geometry())
    yield 0.5
    scene = desk.iface.addRasterLayer(SCENE, NAME)
    assert scene.isValid()
    desk.iface.zoomToActiveLayer()
    yield lambda: not desk.iface.mapCanvas().isDrawing()
    yield from look_at_distillation(desk, scene)
    yield from look_at_pretraining(desk)
    yield from train(desk, scene)
    yield from estimate(desk, scene)
    yield from check_layer(desk, scene)


def find(algorithm_id):
    return QgsApplication.processingRegistry().algorithmById(algorithm_id)


def open_dialog(name):
    dialog = processing.createAlgorithmDialog(f"hyperkd:{name}", {})
    dialog.resize(980, 800)
    dialog.move(140, 40)
    dialog.show()
    return dialog


def look_at_distillation(desk, scene):
    """Six parameters are in sight; the teacher is the packaged one, by its title."""
    dialog = open_dialog("distillbackbone")
    yield 0.5
    dialog.setParameters({"INPUT": [scene.id()]})
    yield 0.3
    desk.picture("distillation-dialog", dialog)
    wrappers = dialog.mainWidget().wrappers
    box = wrappers["TEACHER"].widget
    assert type(box).__name__ == "ModelBox", box
    assert box.value() == "galileo-nano", box.value()
    assert box.combo.currentText() != box.value(), "the teacher is shown by its name"
    titles = [box.combo.itemText(index) for index in range(box.combo.count())]
    assert not any("Land cover" in title for title in titles), titles
    advanced = desk.child(dialog, QWidget, "grpAdvanced")
    shown = {
        name
        for name, wrapper in wrappers.items()
        if not advanced.isAncestorOf(wrapper.wrappedWidget())
    }
    assert shown <= PLAIN, shown
    advanced.setProperty("collapsed", False)
    yield 0.5
    desk.picture("distillation-advanced", dialog)
    desk.facts["complaints"] = complaints(dialog)
    dialog.close()
    yield 0.3


def look_at_pretraining(desk):
    dialog = open_dialog("pretrainteacher")
    yield 0.5
    desk.picture("pretraining-dialog", dialog)
    desk.facts["complaints"] += complaints(dialog)
    dialog.close()
    yield 0.3


def train(desk, scene):
    """A regression on a raster of values: no field is asked for."""
    values = desk.iface.addRasterLayer(VALUES, "Vegetation cover")
    assert values.isValid()
    dialog = open_dialog("trainregression")
    yield 0.5
    dialog.setParameters(
        {
            "INPUT": [scene.id()],
            "TRAINING": values.id(),
            "QUANTITY": "vegetation cover",
            "UNIT": "%",
            "EPOCHS": 5,
            "DEVICE": "cpu",
            "OUTPUT": str(WORK / "vegetation.zip"),
            "REPORT": str(WORK / "vegetation.html"),
        }
    )
    yield 0.3
    desk.picture("regression-dialog", dialog)
    assert not dialog.mainWidget().wrappers["VALUE_FIELD"].parameterValue()
    yield from run(desk, dialog, "regression-log")
    assert (WORK / "vegetation.zip").is_file()
    QgsProject.instance().removeMapLayer(values.id())


def estimate(desk, scene):
    """The package that was just made is chosen by its path."""
    dialog = open_dialog("estimate")
    yield 0.5
    model = str(WORK / "vegetation.zip")
    dialog.setParameters({"INPUT": scene.id(), "MODEL": model})
    yield 0.3
    desk.picture("estimate-dialog", dialog)
    yield from run(desk, dialog, "estimate-log")


def run(desk, dialog, name):
    finished = []
    dialog.algorithmFinished.connect(lambda successful, results: finished.append(successful))
    QTest.mouseClick(desk.child(dialog, QPushButton, text="Run"), Qt.MouseButton.LeftButton)
    yield lambda: finished
    yield 0.3
    desk.picture(name, dialog)
    assert finished == [True], "the algorithm failed; the log is in the picture"
    desk.facts["complaints"] += complaints(dialog)
    dialog.close()
    yield 0.3


def check_layer(desk, scene):
    group = QgsProject.instance().layerTreeRoot().findGroup(f"HyperKD: {NAME}")
    assert group is not None, "the result is in no group"
    [node] = group.findLayers()
    layer = node.layer()
    assert node.name() == f"Vegetation cover of {NAME}", node.name()
    assert (layer.crs(), layer.extent()) == (scene.crs(), scene.extent())
    renderer = layer.renderer()
    assert renderer.type() == "singlebandpseudocolor", renderer.type()
    suffix = renderer.shader().rasterShaderFunction().legendSettings().suffix()
    assert suffix == " %", suffix
    desk.facts["range"] = [renderer.classificationMin(), renderer.classificationMax()]
    node.setExpanded(True)
    yield lambda: not desk.iface.mapCanvas().isDrawing()
    yield 0.5
    desk.picture("estimate")


def complaints(dialog):
    """Count the messages in a dialog's bars: of parameters that are not as they should be."""
    return sum(len(bar.items()) for bar in dialog.findChildren(QgsMessageBar))

"""The dialogs of distillation and teachers, then a regression and its estimate on the map."""

import os
from pathlib import Path

from qgis.core import QgsApplication, QgsProject
from qgis.PyQt.QtWidgets import QWidget

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


def look_at_distillation(desk, scene):
    """Six parameters are in sight; the teacher is the packaged one, by its title."""
    dialog = yield from desk.open_algorithm("distillbackbone", {"INPUT": [scene.id()]})
    desk.picture("distillation-dialog", dialog)
    box = dialog.mainWidget().wrappers["TEACHER"].widget
    assert type(box).__name__ == "ModelBox", box
    assert box.value() == "galileo-nano", box.value()
    assert box.combo.currentText() != box.value(), "the teacher is shown by its name"
    titles = [box.combo.itemText(index) for index in range(box.combo.count())]
    assert not any("Land cover" in title for title in titles), titles
    assert desk.names_in_sight(dialog) <= PLAIN, desk.names_in_sight(dialog)
    desk.child(dialog, QWidget, "grpAdvanced").setProperty("collapsed", False)
    yield 0.5
    desk.picture("distillation-advanced", dialog)
    yield from desk.close(dialog)


def look_at_pretraining(desk):
    dialog = yield from desk.open_algorithm("pretrainteacher", {})
    desk.picture("pretraining-dialog", dialog)
    yield from desk.close(dialog)


def train(desk, scene):
    """A regression on a raster of values: no field is asked for."""
    values = desk.iface.addRasterLayer(VALUES, "Vegetation cover")
    assert values.isValid()
    parameters = {
        "INPUT": [scene.id()],
        "TRAINING": values.id(),
        "QUANTITY": "vegetation cover",
        "UNIT": "%",
        "EPOCHS": 5,
        "DEVICE": "cpu",
        "OUTPUT": str(WORK / "vegetation.zip"),
        "REPORT": str(WORK / "vegetation.html"),
    }
    dialog = yield from desk.open_algorithm("trainregression", parameters)
    desk.picture("regression-dialog", dialog)
    assert not dialog.mainWidget().wrappers["VALUE_FIELD"].parameterValue()
    yield from desk.run(dialog, "regression-log")
    assert (WORK / "vegetation.zip").is_file()
    QgsProject.instance().removeMapLayer(values.id())


def estimate(desk, scene):
    """The package that was just made is chosen by its path."""
    parameters = {"INPUT": scene.id(), "MODEL": str(WORK / "vegetation.zip")}
    dialog = yield from desk.open_algorithm("estimate", parameters)
    desk.picture("estimate-dialog", dialog)
    yield from desk.run(dialog, "estimate-log")


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

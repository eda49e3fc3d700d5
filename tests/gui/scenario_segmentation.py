"""Adapt a backbone, train a segmentation on polygons, segment: layers and polygons on the map."""

import os
from pathlib import Path

from qgis.core import QgsApplication, QgsProject
from qgis.PyQt.QtWidgets import QWidget

SCENE = os.environ["HYPERKD_SCENE"]
LABELS = os.environ["HYPERKD_LABELS"]
WORK = Path(os.environ["HYPERKD_WORK"])
NAME = "EnMAP Berlin"
QUICK = {"EPOCHS": 1, "DEVICE": "cpu"}
ADAPTING = {"INPUT", "BACKBONE", "PRESET", "EPOCHS", "OUTPUT", "REPORT"}
TRAINING = ADAPTING | {"TRAINING", "CLASS_FIELD", "ADAPTED", "VALIDATION"}
LAYERS = ("Polygons", "Land cover", "Confidence", "Support")


def play(desk):
    yield lambda: desk.window.isVisible() and find("hyperkd:segment")
    desk.window.setGeometry(desk.window.screen().geometry())
    yield 0.5
    scene = desk.iface.addRasterLayer(SCENE, NAME)
    assert scene.isValid()
    desk.iface.zoomToActiveLayer()
    yield lambda: not desk.iface.mapCanvas().isDrawing()
    yield from adapt(desk, scene)
    yield from train(desk, scene)
    yield from segment(desk, scene)
    yield from check_layers(desk, scene)


def find(algorithm_id):
    return QgsApplication.processingRegistry().algorithmById(algorithm_id)


def adapt(desk, scene):
    """The backbone is the packaged one; what the preset decides is not chosen."""
    parameters = {
        "INPUT": [scene.id()],
        "OUTPUT": str(WORK / "adapted.zip"),
        "REPORT": str(WORK / "adapted.html"),
        **QUICK,
    }
    dialog = yield from desk.open_algorithm("adaptbackbone", parameters)
    assert desk.names_in_sight(dialog) <= ADAPTING, desk.names_in_sight(dialog)
    check_backbone(dialog)
    desk.child(dialog, QWidget, "grpAdvanced").setProperty("collapsed", False)
    yield 0.5
    desk.picture("adapting-dialog", dialog)
    yield from desk.run(dialog, "adapting-log")
    assert (WORK / "adapted.zip").is_file()


def check_backbone(dialog):
    wrappers = dialog.mainWidget().wrappers
    box = wrappers["BACKBONE"].widget
    assert box.value() == "galileo-nano", box.value()
    assert box.combo.currentText() != box.value(), "the backbone is shown by its name"
    assert wrappers["TRAIN_TOKENIZER"].parameterValue() is None
    assert wrappers["SCALING"].parameterValue() is None


def train(desk, scene):
    polygons = desk.iface.addVectorLayer(f"{LABELS}|layername=land_cover", "Labels", "ogr")
    assert polygons.isValid()
    parameters = {
        "INPUT": [scene.id()],
        "TRAINING": polygons.id(),
        "CLASS_FIELD": "class_name",
        "ADAPTED": str(WORK / "adapted.zip"),
        "OUTPUT": str(WORK / "segmenter.zip"),
        "REPORT": str(WORK / "segmenter.html"),
        **QUICK,
    }
    dialog = yield from desk.open_algorithm("trainsegmentation", parameters)
    assert desk.names_in_sight(dialog) <= TRAINING, desk.names_in_sight(dialog)
    check_backbone(dialog)
    desk.picture("segmentation-training-dialog", dialog)
    yield from desk.run(dialog, "segmentation-training-log")
    assert (WORK / "segmenter.zip").is_file()
    QgsProject.instance().removeMapLayer(polygons.id())


def segment(desk, scene):
    wanted = ("OUTPUT", "CONFIDENCE", "SUPPORT", "POLYGONS")
    parameters = {
        "INPUT": scene.id(),
        "MODEL": str(WORK / "segmenter.zip"),
        **dict.fromkeys(wanted, "TEMPORARY_OUTPUT"),
    }
    dialog = yield from desk.open_algorithm("segment", parameters)
    desk.picture("segmentation-dialog", dialog)
    yield from desk.run(dialog, "segmentation-log")


def check_layers(desk, scene):
    group = QgsProject.instance().layerTreeRoot().findGroup(f"HyperKD: {NAME}")
    assert group is not None, "the results are in no group"
    nodes = group.findLayers()
    assert [node.name() for node in nodes] == [f"{name} of {NAME}" for name in LAYERS], nodes
    polygons, classes, *shares = (node.layer() for node in nodes)
    assert all(node.layer().crs() == scene.crs() for node in nodes)
    assert colors_of_polygons(polygons) == colors_of_map(classes)
    assert all(layer.renderer().type() == "singlebandpseudocolor" for layer in shares)
    desk.facts["polygons"] = polygons.featureCount()
    for node in nodes:
        yield lambda: not desk.iface.mapCanvas().isDrawing()
        yield 0.5
        desk.picture(node.name().split(" of ")[0].lower().replace(" ", "-"))
        node.setItemVisibilityChecked(False)


def colors_of_polygons(layer):
    categories = layer.renderer().categories()
    return {int(item.value()): (item.label(), item.symbol().color().name()) for item in categories}


def colors_of_map(layer):
    entries = (entry for entry in layer.renderer().classes() if entry.value)
    return {int(entry.value): (entry.label, entry.color.name()) for entry in entries}

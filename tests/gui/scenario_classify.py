"""A scene, the toolbox, a class map with its confidence; then again, warm; then a batch."""

import os
import time
from pathlib import Path

import processing
from processing.gui.BatchAlgorithmDialog import BatchAlgorithmDialog
from qgis.core import (
    QgsApplication,
    QgsContrastEnhancement,
    QgsProcessingContext,
    QgsProject,
    QgsRasterMinMaxOrigin,
)
from qgis.PyQt.QtCore import QModelIndex, Qt
from qgis.PyQt.QtTest import QTest
from qgis.PyQt.QtWidgets import QDockWidget, QLineEdit, QPushButton, QTreeView, QWidget

SCENE = os.environ["HYPERKD_SCENE"]
LABELS = os.environ["HYPERKD_LABELS"]
FIELD = "class_name"
WORK = Path(os.environ["HYPERKD_WORK"])
LEFT = Qt.MouseButton.LeftButton
RED, GREEN, BLUE = 36, 20, 7  # about 640, 550 and 460 nm in EnMAP


def play(desk):
    yield lambda: desk.window.isVisible() and find("hyperkd:classify")
    desk.window.setGeometry(desk.window.screen().geometry())
    yield 0.5
    scene = open_scene(desk)
    yield lambda: not desk.iface.mapCanvas().isDrawing()
    yield from search_toolbox(desk)
    yield lambda: desk.dialog("AlgorithmDialog")
    yield 0.5
    cold_s = yield from classify(desk, "cold")
    yield from check_layers(desk, scene)
    desk.soon(lambda: processing.execAlgorithmDialog("hyperkd:classify"))
    yield lambda: desk.dialog("AlgorithmDialog")
    yield 0.3
    warm_s = yield from classify(desk, "warm")
    desk.facts.update(cold_s=round(cold_s, 2), warm_s=round(warm_s, 2))
    yield from run_batch(desk)
    yield from look_at_training(desk)


def find(algorithm_id):
    return QgsApplication.processingRegistry().algorithmById(algorithm_id)


def open_scene(desk):
    layer = desk.iface.addRasterLayer(SCENE, "EnMAP Berlin")
    assert layer.isValid()
    renderer = layer.renderer()
    renderer.setRedBand(RED)
    renderer.setGreenBand(GREEN)
    renderer.setBlueBand(BLUE)
    layer.setContrastEnhancement(
        QgsContrastEnhancement.ContrastEnhancementAlgorithm.StretchToMinimumMaximum,
        QgsRasterMinMaxOrigin.Limits.CumulativeCut,
    )
    desk.iface.zoomToActiveLayer()
    return layer


def search_toolbox(desk):
    dock = desk.child(desk.window, QDockWidget, "ProcessingToolbox")
    dock.show()
    dock.raise_()
    yield 0.5
    desk.type_into(desk.child(dock, QLineEdit), "classify land cover")
    yield 1.0
    desk.picture("toolbox")
    tree = desk.child(dock, QTreeView)
    entry = find_entry(tree.model(), QModelIndex(), "Classify land cover")
    assert entry is not None, "the toolbox does not show the algorithm"
    tree.scrollTo(entry)
    place = tree.visualRect(entry).center()
    QTest.mouseClick(tree.viewport(), LEFT, pos=place)
    desk.soon(lambda: QTest.mouseDClick(tree.viewport(), LEFT, pos=place))


def find_entry(model, parent, text):
    for row in range(model.rowCount(parent)):
        index = model.index(row, 0, parent)
        if str(model.data(index)) == text and model.rowCount(index) == 0:
            return index
        found = find_entry(model, index, text)
        if found is not None:
            return found
    return None


def classify(desk, name):
    """Fill in the dialog that is open, run, look at the log, close."""
    dialog = desk.dialog("AlgorithmDialog")
    dialog.resize(980, 760)
    dialog.move(140, 60)
    yield 0.3
    check_model_choice(dialog)
    desk.picture(f"{name}-dialog", dialog)
    if name == "cold":
        desk.child(dialog, QWidget, "grpAdvanced").setProperty("collapsed", False)
        yield 0.3
        desk.picture("advanced", dialog)
    scene = QgsProject.instance().mapLayersByName("EnMAP Berlin")[0]
    dialog.setParameters({"INPUT": scene.id(), "CONFIDENCE": "TEMPORARY_OUTPUT"})
    finished = []
    dialog.algorithmFinished.connect(lambda successful, results: finished.append(successful))
    started_s = time.monotonic()
    QTest.mouseClick(desk.child(dialog, QPushButton, text="Run"), LEFT)
    yield lambda: finished
    seconds = time.monotonic() - started_s
    yield 0.3
    desk.picture(f"{name}-log", dialog)
    assert finished == [True], "the algorithm failed; the log is in the picture"
    dialog.close()
    yield 0.3
    return seconds


def check_model_choice(dialog):
    """The packaged model is chosen, and shown by its title."""
    box = dialog.mainWidget().wrappers["MODEL"].widget
    assert type(box).__name__ == "ModelBox", box
    assert box.value(), "no packaged model is chosen"
    assert box.combo.currentText() != box.value(), "the model is shown by its name, not its title"


def check_layers(desk, scene):
    project = QgsProject.instance()
    group = project.layerTreeRoot().findGroup("HyperKD: EnMAP Berlin")
    assert group is not None, "the results are in no group"
    nodes = group.findLayers()
    names = [node.name() for node in nodes]
    assert names == ["Land cover of EnMAP Berlin", "Confidence of EnMAP Berlin"], names
    classes, confidence = (node.layer() for node in nodes)
    for layer in (classes, confidence):
        assert layer.crs() == scene.crs()
        assert layer.extent() == scene.extent()
    check_styles(desk, classes.renderer(), confidence.renderer())
    for node in nodes:
        node.setExpanded(True)
    yield lambda: not desk.iface.mapCanvas().isDrawing()
    yield 0.5
    desk.picture("landcover")
    nodes[0].setItemVisibilityChecked(False)
    yield lambda: not desk.iface.mapCanvas().isDrawing()
    yield 0.5
    desk.picture("confidence")
    nodes[0].setItemVisibilityChecked(True)


def check_styles(desk, classes, confidence):
    assert classes.type() == "paletted", classes.type()
    labels = [entry.label for entry in classes.classes() if entry.value]
    colors = [entry.color.name() for entry in classes.classes() if entry.value]
    assert len(labels) >= 3
    assert all(label and not label.isdigit() for label in labels), labels
    assert len(set(colors)) == len(colors), colors
    assert confidence.type() == "singlebandpseudocolor", confidence.type()
    desk.facts["classes"] = labels


def run_batch(desk):
    """Two rows in the real batch dialog."""
    dialog = BatchAlgorithmDialog(find("hyperkd:classify").create())
    dialog.resize(1100, 500)
    dialog.move(90, 120)
    dialog.show()
    yield 0.5
    panel = dialog.mainWidget()
    if panel.batchRowCount() < 2:
        panel.addRow()
    yield 0.3
    context = QgsProcessingContext()
    columns = [
        definition.name()
        for definition in find("hyperkd:classify").parameterDefinitions()
        if not definition.isDestination()
    ]
    outputs = []
    for row in range(2):
        panel.wrappers[row][columns.index("INPUT")].setParameterValue(SCENE, context)
        outputs.append(WORK / f"batch{row}.tif")
        column = panel.parameter_to_column["OUTPUT"]
        panel.tblParameters.cellWidget(row + 1, column).setValue(str(outputs[row]))
    yield 0.3
    desk.picture("batch", dialog)
    desk.soon(lambda: QTest.mouseClick(desk.child(dialog, QPushButton, text="Run"), LEFT))
    yield lambda: all(path.is_file() for path in outputs)
    yield lambda: desk.child(dialog, QPushButton, text="Run").isEnabled()
    yield 0.5
    desk.picture("batch-log", dialog)
    desk.facts["batch"] = [path.name for path in outputs]
    dialog.close()
    yield 0.3


def look_at_training(desk):
    """The training dialog takes polygons with a field, and a raster without one, in peace."""
    polygons = desk.iface.addVectorLayer(
        f"{LABELS}|layername=land_cover", "Land cover polygons", "ogr"
    )
    assert polygons.isValid()
    classes = QgsProject.instance().mapLayersByName("Land cover of EnMAP Berlin")[0]
    dialog = processing.createAlgorithmDialog("hyperkd:trainclassifier", {})
    dialog.resize(980, 760)
    dialog.move(140, 60)
    dialog.show()
    yield 0.5
    dialog.setParameters({"TRAINING": polygons.id(), "CLASS_FIELD": FIELD})
    yield 0.3
    desk.picture("training-polygons", dialog)
    assert dialog.mainWidget().wrappers["CLASS_FIELD"].parameterValue() == FIELD
    dialog.setParameters({"TRAINING": classes.id()})
    yield 0.3
    desk.picture("training-raster", dialog)
    wrappers = dialog.mainWidget().wrappers
    assert wrappers["TRAINING"].parameterValue() == classes.id()
    assert not wrappers["CLASS_FIELD"].parameterValue()
    yield from desk.close(dialog)

"""Two images of Berlin: train a fusion, fuse by a model, look at the cube and its consistency."""

import os
from pathlib import Path

from qgis.core import (
    QgsApplication,
    QgsContrastEnhancement,
    QgsPointXY,
    QgsProject,
    QgsRaster,
    QgsRasterMinMaxOrigin,
)
from qgis.PyQt.QtWidgets import QWidget

SCENE = os.environ["HYPERKD_SCENE"]
FINE = os.environ["HYPERKD_FINE_IMAGE"]
WORK = Path(os.environ["HYPERKD_WORK"])
NAME, FINE_NAME = "EnMAP Berlin", "Image of 3.6 m"
RATIO = 3
LAYERS = ("Fused image", "Consistency")
FUSING = {
    *("HYPERSPECTRAL", "MULTISPECTRAL", "METHOD", "MODEL", "EXTENT", "BACK_PROJECTION"),
    *("OUTPUT", "CONSISTENCY", "REPORT"),
}
TRAINING = {
    *("HYPERSPECTRAL", "MULTISPECTRAL", "PRESET", "EPOCHS", "VALIDATION", "OUTPUT", "REPORT"),
}
ASSESSING = {"INPUT", "REFERENCE", "HYPERSPECTRAL", "MULTISPECTRAL", "REPORT"}
RED, GREEN, BLUE = 36, 20, 7  # about 640, 550 and 460 nm in EnMAP


def play(desk):
    yield lambda: desk.window.isVisible() and find("hyperkd:fuse")
    desk.window.setGeometry(desk.window.screen().geometry())
    yield 0.5
    pair = open_images(desk)
    yield lambda: not desk.iface.mapCanvas().isDrawing()
    yield from train(desk, *pair)
    yield from fuse(desk, *pair)
    yield from check_layers(desk, pair[0])
    yield from assess(desk, *pair)


def find(algorithm_id):
    return QgsApplication.processingRegistry().algorithmById(algorithm_id)


def open_images(desk):
    fine = desk.iface.addRasterLayer(FINE, FINE_NAME)
    scene = desk.iface.addRasterLayer(SCENE, NAME)
    assert scene.isValid()
    assert fine.isValid()
    renderer = scene.renderer()
    renderer.setRedBand(RED)
    renderer.setGreenBand(GREEN)
    renderer.setBlueBand(BLUE)
    scene.setContrastEnhancement(
        QgsContrastEnhancement.ContrastEnhancementAlgorithm.StretchToMinimumMaximum,
        QgsRasterMinMaxOrigin.Limits.CumulativeCut,
    )
    desk.iface.zoomToActiveLayer()
    return scene, fine


def unfold(desk, dialog, name):
    """Keep pictures of a dialog: as it opens, and with its advanced parameters."""
    desk.picture(f"{name}-dialog", dialog)
    group = desk.child(dialog, QWidget, "grpAdvanced")
    group.setProperty("collapsed", False)
    dialog.resize(980, 860)
    yield 0.5
    desk.picture(f"{name}-advanced", dialog)


def train(desk, scene, fine):
    parameters = {
        "HYPERSPECTRAL": [scene.id()],
        "MULTISPECTRAL": [fine.id()],
        "RATIO": RATIO,
        "EPOCHS": 2,
        "DEVICE": "cpu",
        "OUTPUT": str(WORK / "fusion.zip"),
        "REPORT": str(WORK / "training.html"),
    }
    dialog = yield from desk.open_algorithm("trainfusion", parameters)
    assert desk.names_in_sight(dialog) <= TRAINING, desk.names_in_sight(dialog)
    wrappers = dialog.mainWidget().wrappers
    assert wrappers["START"].parameterValue() is None
    yield from unfold(desk, dialog, "training")
    yield from desk.run(dialog, "training-log")
    assert (WORK / "fusion.zip").is_file()


def fuse(desk, scene, fine):
    """The package that was just made is chosen by its path, the list begins with "auto"."""
    dialog = yield from desk.open_algorithm("fuse", {})
    wrappers = dialog.mainWidget().wrappers
    assert wrappers["MODEL"].parameterValue() == "auto"
    assert wrappers["SHIFT"].parameterValue() == "estimate"
    assert wrappers["RESPONSE"].parameterValue() == "estimate"
    parameters = {
        "HYPERSPECTRAL": scene.id(),
        "MULTISPECTRAL": fine.id(),
        "MODEL": str(WORK / "fusion.zip"),
        "OUTPUT": "TEMPORARY_OUTPUT",
        "CONSISTENCY": "TEMPORARY_OUTPUT",
        "REPORT": str(WORK / "fusion.html"),
    }
    dialog.setParameters(parameters)
    yield 0.3
    assert desk.names_in_sight(dialog) <= FUSING, desk.names_in_sight(dialog)
    yield from unfold(desk, dialog, "fusing")
    yield from desk.run(dialog, "fusing-log")


def check_layers(desk, scene):
    group = QgsProject.instance().layerTreeRoot().findGroup(f"HyperKD: {NAME}")
    assert group is not None, "the results are in no group"
    nodes = group.findLayers()
    assert [node.name() for node in nodes] == [f"{name} of {NAME}" for name in LAYERS], nodes
    cube, consistency = (node.layer() for node in nodes)
    assert cube.crs() == consistency.crs() == scene.crs()
    assert scene.extent().contains(cube.extent())  # as far as the fine image reaches
    assert cube.extent() == consistency.extent()
    assert cube.width() == RATIO * scene.width()
    assert cube.rasterUnitsPerPixelX() * RATIO == scene.rasterUnitsPerPixelX()
    assert cube.renderer().type() == "multibandcolor"
    assert consistency.renderer().type() == "singlebandpseudocolor"
    desk.facts["bands"] = cube.bandCount()
    desk.facts["reflectance"] = value_in_the_middle(cube, cube.renderer().greenBand())
    for node in nodes:
        node.setExpanded(True)
    for node in nodes:
        yield lambda: not desk.iface.mapCanvas().isDrawing()
        yield 0.5
        desk.picture(node.name().split(" of ")[0].lower().replace(" ", "-"))
        node.setItemVisibilityChecked(False)
    yield lambda: not desk.iface.mapCanvas().isDrawing()
    desk.picture("scene-beside-it")


def value_in_the_middle(layer, band_number):
    """Identify as a click on the map does."""
    place = QgsPointXY(layer.extent().center())
    found = layer.dataProvider().identify(place, QgsRaster.IdentifyFormat.IdentifyFormatValue)
    return found.results()[band_number]


def assess(desk, scene, fine):
    group = QgsProject.instance().layerTreeRoot().findGroup(f"HyperKD: {NAME}")
    cube = group.findLayers()[0].layer()
    parameters = {
        "INPUT": cube.id(),
        "HYPERSPECTRAL": scene.id(),
        "MULTISPECTRAL": fine.id(),
        "RATIO": RATIO,
        "REPORT": str(WORK / "quality.html"),
    }
    dialog = yield from desk.open_algorithm("assessfusion", parameters)
    assert desk.names_in_sight(dialog) <= ASSESSING, desk.names_in_sight(dialog)
    desk.picture("assessing-dialog", dialog)
    yield from desk.run(dialog, "assessing-log")
    assert (WORK / "quality.html").is_file()

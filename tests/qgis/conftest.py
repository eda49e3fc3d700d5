"""A real QGIS, the plugin in a folder called hyperkd, tiny data, and engines: fake and real.

pytest-qgis gives the application. QGIS's own Python plugins ("processing") go on the path here.
"""

import json
import os
import stat
import sys
from pathlib import Path

import pytest
from osgeo import gdal, osr

ROOT = Path(__file__).resolve().parents[2]
FAKE_ENGINE = ROOT / "tests" / "contract" / "fake_engine.py"
PREFIX = os.environ.get("QGIS_PREFIX_PATH", "/usr")

sys.path.insert(0, os.path.join(PREFIX, "share", "qgis", "python", "plugins"))
gdal.UseExceptions()


@pytest.fixture(scope="session")
def plugins_folder(tmp_path_factory):
    """The folder that QGIS finds the plugin in, under its own name."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "hyperkd").symlink_to(ROOT)
    sys.path.insert(0, str(folder))
    return folder


@pytest.fixture(scope="session")
def fake_python(tmp_path_factory):
    """What looks like the engine's interpreter and is the fake engine, whatever it is given."""
    script = tmp_path_factory.mktemp("engine") / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -E -s "{FAKE_ENGINE}" well serve\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


@pytest.fixture
def plugin(qgis_app, qgis_processing, plugins_folder, fake_python, monkeypatch):
    """The plugin as qgis_process loads it, without a window, with the fake engine."""
    monkeypatch.setenv("HYPERKD_ENGINE_PYTHON", str(fake_python))
    yield from _loaded()


@pytest.fixture(scope="module")
def real_plugin(qgis_app, qgis_processing, plugins_folder):
    """The plugin with the real engine, warm for a whole module."""
    if not os.environ.get("HYPERKD_ENGINE_PYTHON"):
        pytest.skip("HYPERKD_ENGINE_PYTHON names no engine")
    yield from _loaded()


def _loaded():
    from hyperkd import classFactory

    loaded = classFactory(None)
    loaded.initProcessing()
    yield loaded
    loaded.unload()


@pytest.fixture
def session(plugin):
    return plugin._session


@pytest.fixture
def algorithm(plugin):
    """Make an algorithm by its name, as the toolbox does."""
    from qgis.core import QgsApplication

    kept = []  # definitions die with their algorithm, and QGIS crashes on dead ones

    def make(name):
        kept.append(QgsApplication.processingRegistry().createAlgorithmById(f"hyperkd:{name}"))
        assert kept[-1] is not None, name
        return kept[-1]

    return make


class Tiny:
    """The tests' rasters: not square, with pixels that are not square: swapped axes show."""

    width, height, bands = 24, 17, 12
    pixel = (30.0, 20.0)
    corner = (390000.0, 5820000.0)
    epsg = 32633

    def write(self, path, bands=bands, kind=gdal.GDT_Int16, fill=None, epsg=epsg):
        driver = gdal.GetDriverByName("GTiff")
        raster = driver.Create(str(path), self.width, self.height, bands, kind)
        left, top = self.corner
        raster.SetGeoTransform((left, self.pixel[0], 0.0, top, 0.0, -self.pixel[1]))
        if epsg:
            reference = osr.SpatialReference()
            reference.ImportFromEPSG(epsg)
            raster.SetProjection(reference.ExportToWkt())
        for number in range(1, bands + 1):
            band = raster.GetRasterBand(number)
            band.Fill(100 * number if fill is None else fill)
            band.SetMetadataItem("wavelength", str(400 + 50 * number))
            band.SetMetadataItem("wavelength_units", "nm")
        del band, raster
        return str(path)


@pytest.fixture(scope="session")
def tiny():
    return Tiny()


@pytest.fixture
def scene_path(tiny, tmp_path):
    return tiny.write(tmp_path / "scene.tif")


@pytest.fixture
def scene(scene_path, qgis_app):
    from qgis.core import QgsRasterLayer

    layer = QgsRasterLayer(scene_path, "Berlin")
    assert layer.isValid()
    return layer


@pytest.fixture
def labels(qgis_app, tiny):
    """A memory layer of two polygons in degrees, with a class field and a legend."""
    from qgis.core import (
        QgsCategorizedSymbolRenderer,
        QgsCoordinateReferenceSystem,
        QgsCoordinateTransform,
        QgsFeature,
        QgsFillSymbol,
        QgsGeometry,
        QgsProject,
        QgsRectangle,
        QgsRendererCategory,
        QgsVectorLayer,
    )

    layer = QgsVectorLayer(
        "Polygon?crs=EPSG:4326&field=fid:integer&field=class:string", "L", "memory"
    )
    transform = QgsCoordinateTransform(
        QgsCoordinateReferenceSystem(f"EPSG:{tiny.epsg}"), layer.crs(), QgsProject.instance()
    )
    features = []
    for index, name in enumerate(("roof", "tree")):
        left, top = tiny.corner[0] + index * 300, tiny.corner[1]
        box = QgsGeometry.fromRect(QgsRectangle(left, top - 200, left + 240, top - 20))
        box.transform(transform)
        feature = QgsFeature(layer.fields())
        feature.setAttributes([7, name])
        feature.setGeometry(box)
        features.append(feature)
    layer.dataProvider().addFeatures(features)
    categories = [
        QgsRendererCategory("roof", QgsFillSymbol.createSimple({"color": "#c81e1e"}), "Roofs"),
        QgsRendererCategory("tree", QgsFillSymbol.createSimple({"color": "#1ec81e"}), "Trees"),
        QgsRendererCategory("", QgsFillSymbol.createSimple({"color": "#000000"}), "other"),
    ]
    layer.setRenderer(QgsCategorizedSymbolRenderer("class", categories))
    return layer


class Heard:
    """A Processing feedback that writes down what it is told."""

    def __init__(self, cancel_at=None):
        from qgis.core import QgsProcessingFeedback

        heard = self

        class Feedback(QgsProcessingFeedback):
            def pushInfo(self, text):
                heard.lines.append(text)

            def pushWarning(self, text):
                heard.lines.append(f"warning: {text}")

            def reportError(self, text, fatalError=False):
                heard.lines.append(f"error: {text}")

            def setProgressText(self, text):
                heard.steps.append(text)

        self.lines, self.steps, self.progress = [], [], []
        self.feedback = Feedback(False)
        self.feedback.progressChanged.connect(self._on_progress)
        self._cancel_at = cancel_at

    def _on_progress(self, percent):
        self.progress.append(percent)
        if self._cancel_at is not None and percent >= self._cancel_at:
            self.feedback.cancel()

    @property
    def text(self):
        return "\n".join(self.lines)


@pytest.fixture
def heard():
    return Heard


class RecordingClient:
    """Takes the engine's place, and looks at the exported files while they are there."""

    def __init__(self):
        self.command = self.parameters = None
        self.inspect = lambda parameters: None
        self.seen = None

    def run(self, command, parameters, listener):
        self.command, self.parameters = command, parameters
        self.seen = self.inspect(parameters)
        return {}

    def close(self):
        pass


@pytest.fixture
def client(session):
    recording = RecordingClient()
    session.client.close()
    session.client = recording
    return recording


@pytest.fixture
def install_kinds(tmp_path, monkeypatch):
    """Make the user's folder of models: of each package its name, and its task and architecture."""

    def install(kinds):
        for name, (task, architecture) in kinds.items():
            folder = tmp_path / "models" / name
            folder.mkdir(parents=True)
            properties = {"title": name, "mlm:tasks": [task], "mlm:architecture": architecture}
            item = json.dumps({"properties": properties})
            (folder / "model.json").write_text(item, encoding="utf-8")
        monkeypatch.setenv("HYPERKD_MODELS", str(tmp_path / "models"))
        return tmp_path / "models"

    return install

"""What the engine writes beside a map is what GDAL and QGIS read: with awkward class names too."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from osgeo import gdal
from qgis.core import QgsRasterLayer, QgsRenderContext, QgsVectorLayer

ROOT = Path(__file__).resolve().parents[2]
CLASSES = [[1, 'roofs <5% & "flat"', "#e41a1c"], [4, "Bäume", "#4daf4a"], [200, "eau", "#377eb8"]]
WRITE = """
import json, sys
import numpy as np
from rasterio.transform import from_origin
from engine.raster.polygons import PolygonWriter
from engine.raster.cube import CubeInfo
from engine.raster.style import ClassInfo, ClassStyle, RampStyle, RgbStyle
from engine.raster.tiles import Window
from engine.raster.writer import Grid, RasterWriter

folder, classes = sys.argv[1], tuple(ClassInfo(*row) for row in json.loads(sys.argv[2]))
grid, window = Grid(24, 17, from_origin(4e5, 5.8e6, 30, 20), None), Window(0, 0, 24, 17)
values = np.full((1, 24, 17), 4, np.uint8)
with RasterWriter(f"{folder}/m.tif", grid, ["c"], "uint8", 0, style=ClassStyle(classes)) as writer:
    writer.write(window, values)
with RasterWriter(f"{folder}/p.tif", grid, ["p"], "float32", None, style=RampStyle()) as writer:
    writer.write(window, values / np.float32(8))
error = RampStyle(0, 0.2, dark_at_minimum=True)
with RasterWriter(f"{folder}/e.tif", grid, ["e"], "float32", None, style=error) as writer:
    writer.write(window, values / np.float32(100))
cube = np.arange(24 * 17, dtype=np.int16).reshape(1, 24, 17) * np.ones((4, 1, 1), np.int16)
with RasterWriter(
    f"{folder}/f.tif", grid, list("abcd"), "int16", -32768, style=RgbStyle(4, 2, 1),
    cube=CubeInfo(scale=1e-3),
) as writer:
    writer.write(window, cube)
values[0, :9] = 200
with PolygonWriter(f"{folder}/v.gpkg", grid, classes) as writer:
    writer.write(window, values[0], values[0] / np.float32(255))
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    python = os.environ.get("HYPERKD_ENGINE_PYTHON")
    if not python:
        pytest.skip("HYPERKD_ENGINE_PYTHON names no engine")
    folder = tmp_path_factory.mktemp("written")
    foreign = ("PYTHON", "PROJ_", "GDAL_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    environment["PYTHONPATH"] = str(ROOT)
    command = [python, "-s", "-c", WRITE, str(folder), json.dumps(CLASSES)]
    subprocess.run(command, cwd=folder, env=environment, check=True)
    return folder


def test_gdal_reads_colours_names_and_attributes(written):
    dataset = gdal.Open(str(written / "m.tif"))
    band = dataset.GetRasterBand(1)
    table = band.GetDefaultRAT()  # GDAL reads the side file with it; names come from there too
    rows = [
        (table.GetValueAsInt(row, 0), table.GetValueAsString(row, 1))
        for row in range(table.GetRowCount())
    ]
    assert rows == [(value, name) for value, name, _ in CLASSES]
    assert band.GetColorTable().GetColorEntry(4) == (77, 175, 74, 255)
    names = band.GetRasterCategoryNames()
    assert [names[value] for value, _, _ in CLASSES] == [name for _, name, _ in CLASSES]


def test_qgis_reads_the_classes(written, qgis_app):
    layer = QgsRasterLayer(str(written / "m.tif"), "map")
    entries = [
        (entry.value, entry.label, entry.color.name()) for entry in layer.renderer().classes()
    ]
    assert entries == [tuple(row) for row in CLASSES]


def test_qgis_reads_the_ramp(written, qgis_app):
    layer = QgsRasterLayer(str(written / "p.tif"), "share")  # the renderer is the layer's
    items = layer.renderer().shader().rasterShaderFunction().colorRampItemList()
    assert [item.value for item in items] == [0, 0.25, 0.5, 0.75, 1]
    brightness = [item.color.value() for item in items]
    assert brightness == sorted(brightness, reverse=True)


def test_qgis_shows_a_cube_in_colours_between_limits_in_reflectance(written, qgis_app):
    layer = QgsRasterLayer(str(written / "f.tif"), "fused")
    renderer = layer.renderer()
    assert renderer.type() == "multibandcolor"
    assert (renderer.redBand(), renderer.greenBand(), renderer.blueBand()) == (4, 2, 1)
    stretch = renderer.redContrastEnhancement()
    # QGIS counts in scaled values: 2 and 98 % of 0 to 407 thousandths.
    low, high = stretch.minimumValue(), stretch.maximumValue()
    assert (round(low, 3), round(high, 3)) == (0.008, 0.399)
    bottom = layer.dataProvider().sample(layer.extent().center(), 1)[0]
    assert low < bottom < high


def test_errors_are_dark_where_there_is_none(written, qgis_app):
    layer = QgsRasterLayer(str(written / "e.tif"), "error")
    items = layer.renderer().shader().rasterShaderFunction().colorRampItemList()
    assert [item.value for item in items] == [0, 0.05, 0.1, 0.15, 0.2]
    brightness = [item.color.value() for item in items]
    assert brightness == sorted(brightness)


@pytest.mark.parametrize("ending", ["", "|layername=v"])
def test_qgis_reads_the_colours_of_polygons(written, qgis_app, ending):
    layer = QgsVectorLayer(f"{written / 'v.gpkg'}{ending}", "polygons")
    assert layer.featureCount() == 2
    renderer = layer.renderer()
    categories = [
        (int(item.value()), item.label(), item.symbol().color().name())
        for item in renderer.categories()
    ]
    assert categories == [tuple(row) for row in CLASSES]
    context = QgsRenderContext()
    renderer = renderer.clone()
    renderer.startRender(context, layer.fields())
    drawn = {
        feature["class_value"]: renderer.symbolForFeature(feature, context).color().name()
        for feature in layer.getFeatures()
    }
    renderer.stopRender(context)
    assert drawn == {4: "#4daf4a", 200: "#377eb8"}


def test_the_outline_is_as_thin_and_dark_as_the_plugin_draws_it(written, plugin):
    from hyperkd.hyperkd_qgis.layer_styles import polygon_symbol
    from qgis.PyQt.QtGui import QColor

    layer = QgsVectorLayer(str(written / "v.gpkg"), "polygons")
    for (_, _, color), item in zip(CLASSES, layer.renderer().categories(), strict=True):
        ours, theirs = polygon_symbol(QColor(color)), item.symbol()
        for one in (ours, theirs):
            assert one.symbolLayer(0).strokeWidth() == 0.1
        differences = [
            abs(first - second)
            for first, second in zip(
                ours.symbolLayer(0).strokeColor().getRgb(),
                theirs.symbolLayer(0).strokeColor().getRgb(),
                strict=True,
            )
        ]
        assert max(differences) <= 1

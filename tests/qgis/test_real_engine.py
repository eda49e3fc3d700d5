"""The whole street with the real engine: train, classify, assess, describe, check."""

import os
import time
from pathlib import Path

import processing
import pytest
from osgeo import gdal, ogr, osr
from qgis.core import QgsPalettedRasterRenderer, QgsProcessingException, QgsRasterLayer

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HEIGHT = 60, 44
WAVELENGTHS = range(450, 2250, 150)
CORNER, PIXEL_M = (390000.0, 5820000.0), 30.0

pytestmark = pytest.mark.usefixtures("real_plugin")


def is_water(column, row):
    """Stripes that cross every block, so that both classes are on both sides of the split."""
    return (column + row) // 6 % 2 == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory, qgis_app):
    """A scene of water and forest, and a vector layer that knows which is where."""
    folder = tmp_path_factory.mktemp("place")
    reference = osr.SpatialReference()
    reference.ImportFromEPSG(32633)
    scene = gdal.GetDriverByName("GTiff").Create(
        str(folder / "scene.tif"), WIDTH, HEIGHT, len(WAVELENGTHS), gdal.GDT_Int16
    )
    scene.SetGeoTransform((CORNER[0], PIXEL_M, 0, CORNER[1], 0, -PIXEL_M))
    scene.SetProjection(reference.ExportToWkt())
    for index, wavelength in enumerate(WAVELENGTHS):
        band = scene.GetRasterBand(index + 1)
        forest = 400 + (3000 if wavelength > 700 else 0)
        water = 500 - 30 * index
        rows = [
            (water if is_water(column, row) else forest) + (column * 7 + row * 13) % 40
            for row in range(HEIGHT)
            for column in range(WIDTH)
        ]
        packed = b"".join(value.to_bytes(2, "little", signed=True) for value in rows)
        band.WriteRaster(0, 0, WIDTH, HEIGHT, packed, buf_type=gdal.GDT_Int16)
        band.SetMetadataItem("wavelength", str(wavelength))
        band.SetMetadataItem("wavelength_units", "nm")
        band.SetMetadataItem("fwhm", "10")
        band.SetNoDataValue(-32768)
        band.SetScale(0.0001)
    del band, scene
    write_points(folder / "labels.gpkg", reference)
    return folder


def write_points(path, reference):
    source = ogr.GetDriverByName("GPKG").CreateDataSource(str(path))
    layer = source.CreateLayer("labels", reference, ogr.wkbPoint)
    layer.CreateField(ogr.FieldDefn("cover", ogr.OFTString))
    for row in range(HEIGHT):
        for column in range(row % 3, WIDTH, 3):
            feature = ogr.Feature(layer.GetLayerDefn())
            feature["cover"] = "water" if is_water(column, row) else "forest"
            x = CORNER[0] + (column + 0.5) * PIXEL_M
            y = CORNER[1] - (row + 0.5) * PIXEL_M
            feature.SetGeometry(ogr.CreateGeometryFromWkt(f"POINT ({x} {y})"))
            layer.CreateFeature(feature)


@pytest.fixture(scope="module")
def trained(real_plugin, place):
    return processing.run(
        "hyperkd:trainclassifier",
        {
            "INPUT": [str(place / "scene.tif")],
            "TRAINING": str(place / "labels.gpkg"),
            "CLASS_FIELD": "cover",
            "EPOCHS": 20,
            "DEVICE": "cpu",
            "OUTPUT": str(place / "water.zip"),
            "REPORT": str(place / "training.html"),
        },
    )


@pytest.fixture(scope="module")
def mapped(trained, place):
    return processing.run(
        "hyperkd:classify",
        {
            "INPUT": str(place / "scene.tif"),
            "MODEL": trained["OUTPUT"],
            "OUTPUT": str(place / "map.tif"),
            "CONFIDENCE": str(place / "confidence.tif"),
            "PROBABILITIES": str(place / "probabilities.tif"),
        },
    )


def test_training_makes_a_package_a_report_and_scores(trained):
    assert Path(trained["OUTPUT"]).is_file()
    assert "</html>" in Path(trained["REPORT"]).read_text(encoding="utf-8")
    assert trained["BALANCED_ACCURACY"] > 0.9
    assert all(0 <= trained[name] <= 1 for name in ("OVERALL_ACCURACY", "F1_MACRO", "IOU_MACRO"))
    assert -1 <= trained["KAPPA"] <= 1


def test_training_from_a_legend_takes_its_names_and_colours(trained, place):
    from qgis.core import (
        QgsCategorizedSymbolRenderer,
        QgsMarkerSymbol,
        QgsRendererCategory,
        QgsVectorLayer,
    )

    layer = QgsVectorLayer(str(place / "labels.gpkg"), "labels")
    categories = [
        QgsRendererCategory("water", QgsMarkerSymbol.createSimple({"color": "#0000ff"}), "Lake"),
        QgsRendererCategory("forest", QgsMarkerSymbol.createSimple({"color": "#00aa00"}), "Wood"),
    ]
    layer.setRenderer(QgsCategorizedSymbolRenderer("cover", categories))
    package = processing.run(
        "hyperkd:trainclassifier",
        {
            "INPUT": [str(place / "scene.tif")],
            "TRAINING": layer,
            "EPOCHS": 1,
            "DEVICE": "cpu",
            "OUTPUT": str(place / "legend.zip"),
        },
    )["OUTPUT"]
    result = processing.run(
        "hyperkd:classify",
        {
            "INPUT": str(place / "scene.tif"),
            "MODEL": package,
            "OUTPUT": str(place / "legend.tif"),
        },
    )
    mapped = QgsRasterLayer(result["OUTPUT"], "legend")
    assert [
        (entry.value, entry.label, entry.color.name())
        for entry in mapped.renderer().classes()
        if entry.value
    ] == [(1, "Lake", "#0000ff"), (2, "Wood", "#00aa00")]


def test_map_has_the_scenes_grid_and_all_its_layers(mapped, place):
    scene = QgsRasterLayer(str(place / "scene.tif"), "scene")
    for name, bands in (("OUTPUT", 1), ("CONFIDENCE", 1), ("PROBABILITIES", 2)):
        layer = QgsRasterLayer(mapped[name], name)
        assert layer.isValid()
        assert (layer.width(), layer.height(), layer.bandCount()) == (WIDTH, HEIGHT, bands)
        assert layer.extent() == scene.extent()
        assert layer.crs() == scene.crs()


def test_map_opens_styled_by_any_path(mapped):
    """By its style file, its colour table and its names, without our post-processor."""
    layer = QgsRasterLayer(mapped["OUTPUT"], "map")
    renderer = layer.renderer()
    assert isinstance(renderer, QgsPalettedRasterRenderer)
    labels = {entry.label for entry in renderer.classes() if entry.value}
    assert labels == {"water", "forest"}


def test_confidence_opens_in_a_sequential_ramp(mapped):
    layer = QgsRasterLayer(mapped["CONFIDENCE"], "confidence")
    assert layer.renderer().type() == "singlebandpseudocolor"


def test_assessment_gives_scores_and_a_report(mapped, place):
    result = processing.run(
        "hyperkd:assessaccuracy",
        {
            "INPUT": mapped["OUTPUT"],
            "REFERENCE": str(place / "labels.gpkg"),
            "CLASS_FIELD": "cover",
            "REPORT": str(place / "accuracy.html"),
        },
    )
    assert result["OVERALL_ACCURACY"] > 0.9
    assert set(result) == {
        "REPORT",
        "OVERALL_ACCURACY",
        "BALANCED_ACCURACY",
        "KAPPA",
        "F1_MACRO",
        "IOU_MACRO",
    }
    assert "</html>" in Path(result["REPORT"]).read_text(encoding="utf-8")


def test_extent_and_mask_narrow_the_map(trained, place):
    box = (CORNER[0], CORNER[0] + 300, CORNER[1] - 300, CORNER[1])
    result = processing.run(
        "hyperkd:classify",
        {
            "INPUT": str(place / "scene.tif"),
            "MODEL": trained["OUTPUT"],
            "EXTENT": "{},{},{},{} [EPSG:32633]".format(*box),
            "OUTPUT": "TEMPORARY_OUTPUT",
        },
    )
    layer = QgsRasterLayer(result["OUTPUT"], "part")
    assert (layer.width(), layer.height()) == (10, 10)


def test_model_is_described_with_its_match(trained, place):
    result = processing.run(
        "hyperkd:describemodel",
        {"MODEL": trained["OUTPUT"], "INPUT": str(place / "scene.tif")},
    )
    text = Path(result["REPORT"]).read_text(encoding="utf-8")
    assert "water" in text
    assert "450" in text


def test_engine_reports_on_itself(real_plugin):
    result = processing.run("hyperkd:checkengine", {})
    assert "torch" in result["TEXT"]
    assert Path(result["REPORT"]).read_text(encoding="utf-8") == result["TEXT"]


def test_scene_without_wavelengths_gets_a_sentence(trained, tiny, tmp_path):
    path = tmp_path / "plain.tif"
    raster = gdal.GetDriverByName("GTiff").Create(str(path), 24, 17, 3)
    del raster
    with pytest.raises(QgsProcessingException, match=r"no wavelengths for its 3 bands"):
        processing.run(
            "hyperkd:classify",
            {
                "INPUT": str(path),
                "MODEL": trained["OUTPUT"],
                "OUTPUT": str(tmp_path / "map.tif"),
            },
        )
    assert not (tmp_path / "map.tif").exists()


@pytest.fixture(scope="module")
def large_scene(place):
    """The place again and again: a scene that takes a while."""
    path = place / "large.tif"
    gdal.Translate(str(path), str(place / "scene.tif"), width=600, height=440)
    return str(path)


@pytest.mark.parametrize("percent", [1, 50, 95])
def test_cancel_leaves_nothing(trained, large_scene, heard, tmp_path, percent):
    hearing = heard(cancel_at=percent)
    cancelled_at = []
    hearing.feedback.canceled.connect(lambda: cancelled_at.append(time.monotonic()))
    with pytest.raises(QgsProcessingException, match="Cancelled"):
        processing.run(
            "hyperkd:classify",
            {
                "INPUT": large_scene,
                "MODEL": trained["OUTPUT"],
                "OUTPUT": str(tmp_path / "map.tif"),
                "CONFIDENCE": str(tmp_path / "confidence.tif"),
            },
            feedback=hearing.feedback,
        )
    # a second on a quiet machine; the suite runs on loaded ones
    assert time.monotonic() - cancelled_at[0] < 3.0
    assert os.listdir(tmp_path) == []


def test_second_run_is_warm(mapped, real_plugin, trained, place):
    client = real_plugin._session.client
    process = client._engine[0]
    start_s = time.monotonic()
    processing.run(
        "hyperkd:classify",
        {
            "INPUT": str(place / "scene.tif"),
            "MODEL": trained["OUTPUT"],
            "OUTPUT": "TEMPORARY_OUTPUT",
        },
    )
    assert client._engine[0] is process
    assert time.monotonic() - start_s < 10.0


# The packaged scene and model

SAMPLE = ROOT / "resources" / "sample"


def packaged_scene():
    """The hyperspectral scene of the sample: the raster with the most bands."""
    best, most = None, 10
    for path in sorted([*SAMPLE.rglob("*.tif"), *SAMPLE.rglob("*.bsq")]):
        layer = QgsRasterLayer(str(path), path.stem)
        if layer.isValid() and layer.bandCount() > most:
            best, most = path, layer.bandCount()
    return best


def test_packaged_model_maps_the_packaged_scene(real_plugin, tmp_path):
    scene = packaged_scene()
    if scene is None or not real_plugin._session.default_model():
        pytest.skip("the packaged scene or model is not in this checkout")
    output = str(tmp_path / "berlin.tif")
    processing.run("hyperkd:classify", {"INPUT": str(scene), "OUTPUT": output})
    layer = QgsRasterLayer(output, "map")
    assert len([entry for entry in layer.renderer().classes() if entry.value]) >= 3

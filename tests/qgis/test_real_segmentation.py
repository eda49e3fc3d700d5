"""The whole street of SpectralX with the real engine, on a scene of a few tiles: three steps."""

import os
from pathlib import Path

import processing
import pytest
from osgeo import gdal
from qgis.core import (
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingModelAlgorithm,
    QgsProcessingModelChildAlgorithm,
    QgsProcessingModelChildParameterSource,
    QgsProcessingModelOutput,
    QgsProcessingModelParameter,
    QgsProcessingParameterRasterLayer,
    QgsRasterLayer,
    QgsVectorLayer,
)

from tests.qgis.wet_place import (
    HEIGHT,
    PIXEL_M,
    WAVELENGTHS_NM,
    WIDTH,
    wetness,
    write_samples,
    write_scene,
)

QUICK = {"PRESET": "laptop", "EPOCHS": 2, "DEVICE": "cpu"}
LARGE_M2 = 20 * PIXEL_M**2

pytestmark = pytest.mark.usefixtures("real_plugin")


@pytest.fixture(scope="module")
def place(tmp_path_factory, qgis_app):
    folder = tmp_path_factory.mktemp("place")
    write_scene(folder / "scene.tif", WAVELENGTHS_NM)
    write_samples(folder / "samples.gpkg", row_step=5)
    return folder


@pytest.fixture(scope="module")
def adapted(real_plugin, place):
    return processing.run(
        "hyperkd:adaptbackbone",
        {
            "INPUT": [str(place / "scene.tif")],
            "OUTPUT": str(place / "adapted.zip"),
            "REPORT": str(place / "adaptation.html"),
            **QUICK,
        },
    )


def train(place, output, **parameters):
    return processing.run(
        "hyperkd:trainsegmentation",
        {
            "INPUT": [str(place / "scene.tif")],
            "TRAINING": str(place / "samples.gpkg"),
            "CLASS_FIELD": "cover",
            "OUTPUT": str(output),
            **QUICK,
            **parameters,
        },
    )


@pytest.fixture(scope="module")
def trained(adapted, place):
    return train(
        place,
        place / "cover.zip",
        ADAPTED=adapted["OUTPUT"],
        REPORT=str(place / "training.html"),
    )


@pytest.fixture(scope="module")
def tiled(real_plugin, place):
    """A model that looks at tiles for certain: no spectrum answers in the network's place."""
    return train(place, place / "tiled.zip", SPECTRAL_PATH="no", EPOCHS=1)


@pytest.fixture(scope="module")
def segmented(trained, place):
    names = ("OUTPUT", "CONFIDENCE", "PROBABILITIES", "SUPPORT")
    rasters = {name: str(place / f"{name.lower()}.tif") for name in names}
    return processing.run(
        "hyperkd:segment",
        {
            "INPUT": str(place / "scene.tif"),
            "MODEL": trained["OUTPUT"],
            "POLYGONS": str(place / "polygons.gpkg"),
            **rasters,
        },
    )


def is_report(path):
    return "</html>" in Path(path).read_text(encoding="utf-8")


def architecture_of(path):
    """What a package says that it is; the plugin's lists go by it."""
    from hyperkd.hyperkd_qgis.model_catalogue import USES, read_model

    model = read_model("made", Path(path))
    assert model.task
    assert not USES["foundation"].accepts(model)
    return model.architecture


# Without labels


def test_adapting_makes_adapters_a_report_and_scores(adapted):
    assert architecture_of(adapted["OUTPUT"]) == "spectralx-adapted"
    assert is_report(adapted["REPORT"])
    assert 0 < adapted["PSNR_DB"] < 100
    assert 0 < adapted["SPECTRAL_ANGLE_DEG"] < 180
    assert adapted["TRAINABLE_PARAMETERS"] > 10_000


def test_an_interrupted_adapting_is_gone_on_with(real_plugin, place, tmp_path, heard):
    values = {
        "INPUT": [str(place / "scene.tif")],
        "OUTPUT": str(tmp_path / "adapted.zip"),
        **QUICK,
        "EPOCHS": 6,
    }
    with pytest.raises(QgsProcessingException, match=r"adapted\.zip\.checkpoint\.safetensors"):
        processing.run("hyperkd:adaptbackbone", values, feedback=heard(cancel_at=40).feedback)
    assert not (tmp_path / "adapted.zip").exists()
    hearing = heard()
    processing.run("hyperkd:adaptbackbone", {**values, "RESUME": True}, feedback=hearing.feedback)
    assert [path.name for path in tmp_path.iterdir()] == ["adapted.zip"]
    assert "Going on after step" in hearing.text


# With labels


def test_training_makes_a_segmenter_a_report_and_scores(trained):
    assert architecture_of(trained["OUTPUT"]) == "spectralx-segmenter"
    assert is_report(trained["REPORT"])
    assert trained["BALANCED_ACCURACY"] > 0.6
    assert 0 <= trained["ECE"] <= 1
    assert trained["TRAINABLE_PARAMETERS"] > 10_000


def test_the_package_holds_no_backbone(trained):
    backbone = Path(__file__).parents[2] / "resources" / "models" / "galileo-nano"
    assert os.path.getsize(trained["OUTPUT"]) < 10e6
    assert (backbone / "weights.safetensors").is_file()


def test_a_frozen_backbone_without_adapters_is_trained_too(place, tmp_path):
    result = train(place, tmp_path / "frozen.zip", ADAPTATION="frozen", EPOCHS=1)
    assert architecture_of(result["OUTPUT"]) == "spectralx-segmenter"


def test_a_backbone_that_is_no_foundation_gets_a_sentence(trained, place, tmp_path):
    with pytest.raises(QgsProcessingException, match="is no backbone to adapt"):
        train(place, tmp_path / "x.zip", BACKBONE=trained["OUTPUT"])


# The map


def test_rasters_have_the_scenes_grid(segmented, place):
    scene = QgsRasterLayer(str(place / "scene.tif"), "scene")
    for name, bands in (("OUTPUT", 1), ("CONFIDENCE", 1), ("PROBABILITIES", 2), ("SUPPORT", 1)):
        layer = QgsRasterLayer(segmented[name], name)
        assert (layer.width(), layer.height(), layer.bandCount()) == (WIDTH, HEIGHT, bands)
        assert (layer.extent(), layer.crs()) == (scene.extent(), scene.crs())


@pytest.mark.parametrize("name", ["CONFIDENCE", "SUPPORT"])
def test_shares_open_in_a_ramp_and_lie_between_0_and_1(segmented, name):
    layer = QgsRasterLayer(segmented[name], name)
    assert layer.renderer().type() == "singlebandpseudocolor"
    dataset = gdal.Open(segmented[name])  # owns its bands
    least, most = dataset.GetRasterBand(1).ComputeRasterMinMax(False)
    assert 0 <= least < most <= 1


def test_what_is_known_has_support(segmented):
    dataset = gdal.Open(segmented["SUPPORT"])
    *_, mean, _ = dataset.GetRasterBand(1).ComputeStatistics(False)
    assert mean > 0.5


def polygons_of(path):
    layer = QgsVectorLayer(path, "polygons")
    assert layer.isValid()
    return layer


def test_polygons_cover_the_map_and_say_what_they_are(segmented, place):
    layer = polygons_of(segmented["POLYGONS"])
    assert {"class_value", "class_name", "area_m2", "mean_confidence"} <= set(
        layer.fields().names()
    )
    assert layer.crs() == QgsRasterLayer(str(place / "scene.tif"), "scene").crs()
    features = list(layer.getFeatures())
    assert sum(feature["area_m2"] for feature in features) == pytest.approx(
        WIDTH * HEIGHT * PIXEL_M**2
    )
    assert {feature["class_name"] for feature in features} == {"wet", "dry"}
    assert all(0 < feature["mean_confidence"] <= 1 for feature in features)


def test_polygons_agree_with_the_map(segmented):
    """Counted by class: pixels of the map and areas of the polygons."""
    dataset = gdal.Open(segmented["OUTPUT"])
    counts = dataset.GetRasterBand(1).GetHistogram(-0.5, 255.5, 256, False, False)
    areas = dict.fromkeys(range(256), 0.0)
    for feature in polygons_of(segmented["POLYGONS"]).getFeatures():
        areas[feature["class_value"]] += feature.geometry().area() / PIXEL_M**2
    assert [round(areas[value]) for value in range(1, 256)] == counts[1:]


def test_small_polygons_can_be_left_out(trained, segmented, place, tmp_path):
    result = processing.run(
        "hyperkd:segment",
        {
            "INPUT": str(place / "scene.tif"),
            "MODEL": trained["OUTPUT"],
            "MIN_AREA": LARGE_M2,
            "OUTPUT": str(tmp_path / "map.tif"),
            "POLYGONS": str(tmp_path / "large.gpkg"),
        },
    )
    kept = sorted(item["area_m2"] for item in polygons_of(result["POLYGONS"]).getFeatures())
    whole = [item["area_m2"] for item in polygons_of(segmented["POLYGONS"]).getFeatures()]
    assert kept == pytest.approx(sorted(area for area in whole if area >= LARGE_M2))


def test_polygons_arrive_in_the_maps_colours(segmented):
    from hyperkd.hyperkd_qgis.layer_styles import style_class_polygons, style_classes

    class_map = QgsRasterLayer(segmented["OUTPUT"], "map")
    style_classes(class_map)
    wanted = {entry.label: entry.color.name() for entry in class_map.renderer().classes()}
    layer = polygons_of(segmented["POLYGONS"])
    style_class_polygons(layer, segmented["OUTPUT"])
    renderer = layer.renderer()
    assert {item.label(): item.symbol().color().name() for item in renderer.categories()} == wanted


def test_the_map_is_worth_something(segmented):
    class_map = gdal.Open(segmented["OUTPUT"]).ReadRaster(buf_type=gdal.GDT_Byte)
    wet_value = next(
        feature["class_value"]
        for feature in polygons_of(segmented["POLYGONS"]).getFeatures()
        if feature["class_name"] == "wet"
    )
    right = [
        (class_map[row * WIDTH + column] == wet_value) == (wetness(column, row) > 0.5)
        for row in range(HEIGHT)
        for column in range(WIDTH)
    ]
    assert sum(right) / len(right) > 0.7


def test_a_cancelled_segmentation_leaves_nothing(trained, place, tmp_path, heard):
    large = str(place / "large.tif")
    gdal.Translate(large, str(place / "scene.tif"), width=4 * WIDTH, height=4 * HEIGHT)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(QgsProcessingException, match="Cancelled"):
        processing.run(
            "hyperkd:segment",
            {
                "INPUT": large,
                "MODEL": trained["OUTPUT"],
                "OUTPUT": str(out / "map.tif"),
                "SUPPORT": str(out / "support.tif"),
                "POLYGONS": str(out / "polygons.gpkg"),
            },
            feedback=heard(cancel_at=30).feedback,
        )
    assert os.listdir(out) == []


def test_another_tile_size_gets_a_sentence(tiled, place, tmp_path):
    with pytest.raises(QgsProcessingException, match=r"(?i)tile_size|tile size"):
        processing.run(
            "hyperkd:segment",
            {
                "INPUT": str(place / "scene.tif"),
                "MODEL": tiled["OUTPUT"],
                "TILE_SIZE": 64,
                "OUTPUT": str(tmp_path / "map.tif"),
            },
        )


# Batch, and a saved model


def test_a_batch(tiled, place, tmp_path, algorithm_of):
    made = algorithm_of("segment")
    for overlap in (4, 8):
        values = {
            "INPUT": str(place / "scene.tif"),
            "MODEL": tiled["OUTPUT"],
            "OVERLAP": overlap,
            "OUTPUT": str(tmp_path / f"map{overlap}.tif"),
        }
        results, successful = made.run(values, QgsProcessingContext(), QgsProcessingFeedback())
        assert successful
        assert Path(results["OUTPUT"]).is_file()


@pytest.fixture
def algorithm_of(real_plugin):
    from qgis.core import QgsApplication

    return lambda name: QgsApplication.processingRegistry().createAlgorithmById(f"hyperkd:{name}")


def test_inside_a_saved_model(trained, place, tmp_path):
    """The class map of a segmentation is assessed by the samples."""
    source = QgsProcessingModelChildParameterSource
    model = QgsProcessingModelAlgorithm("segment_and_check", "tests")
    model.addModelParameter(
        QgsProcessingParameterRasterLayer("scene", "Scene"), QgsProcessingModelParameter("scene")
    )
    first = QgsProcessingModelChildAlgorithm("hyperkd:segment")
    first.setChildId("map")
    first.addParameterSources("INPUT", [source.fromModelParameter("scene")])
    first.addParameterSources("MODEL", [source.fromStaticValue(trained["OUTPUT"])])
    polygons = QgsProcessingModelOutput("polygons", "polygons")
    polygons.setChildId("map")
    polygons.setChildOutputName("POLYGONS")
    first.setModelOutputs({"polygons": polygons})
    model.addChildAlgorithm(first)
    second = QgsProcessingModelChildAlgorithm("hyperkd:assessaccuracy")
    second.setChildId("check")
    second.addParameterSources("INPUT", [source.fromChildOutput("map", "OUTPUT")])
    second.addParameterSources("REFERENCE", [source.fromStaticValue(str(place / "samples.gpkg"))])
    second.addParameterSources("CLASS_FIELD", [source.fromStaticValue("cover")])
    model.addChildAlgorithm(second)
    path = str(tmp_path / "segment_and_check.model3")
    assert model.toFile(path)
    saved = QgsProcessingModelAlgorithm()
    assert saved.fromFile(path)
    name = next(item.name() for item in saved.destinationParameterDefinitions())
    output = str(tmp_path / "polygons.gpkg")
    result = processing.run(saved, {"scene": str(place / "scene.tif"), name: output})
    assert polygons_of(output).featureCount() > 1
    assert result["CHILD_RESULTS"]["check"]["OVERALL_ACCURACY"] > 0.7

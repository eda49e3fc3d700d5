"""From parameters to a request: sources that GDAL opens, the scene's CRS, the legend's classes."""

import processing
import pytest
from osgeo import gdal, ogr
from qgis.core import (
    QgsColorRampShader,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsPalettedRasterRenderer,
    QgsProcessingException,
    QgsProcessingFeatureSourceDefinition,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsReferencedRectangle,
    QgsVectorLayer,
)
from qgis.PyQt.QtGui import QColor


@pytest.fixture(autouse=True)
def a_model(tmp_path, monkeypatch):
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text('{"properties": {"title": "Tiny"}}')
    monkeypatch.setenv("HYPERKD_MODELS", str(folder.parent))


def classify(scene, **parameters):
    return processing.run(
        "hyperkd:classify",
        {"INPUT": scene, "MODEL": "tiny", "OUTPUT": "TEMPORARY_OUTPUT", **parameters},
    )


def train(scenes, training, **parameters):
    processing.run(
        "hyperkd:trainclassifier",
        {"INPUT": scenes, "TRAINING": training, "OUTPUT": "TEMPORARY_OUTPUT", **parameters},
    )


def read_features(path):
    dataset = ogr.Open(path)
    layer = dataset.GetLayer(0)
    names = [field.GetName() for field in layer.schema]
    box = layer.GetExtent()
    return {
        "rows": [[feature.GetField(name) for name in names] for feature in layer],
        "fields": names,
        "epsg": layer.GetSpatialRef().GetAuthorityCode(None),
        "box": box,
    }


# Plain values


def test_only_what_was_given_goes_over(client, scene_path):
    classify(scene_path)
    output = client.parameters.pop("output")
    assert output.endswith(".tif")
    assert client.command == "classify"
    assert client.parameters == {
        "input": scene_path,
        "model": "tiny",
        "device": "auto",
        "require_gpu": False,
        "precision": "auto",
    }


def test_every_value_goes_over(client, scene_path, tmp_path):
    bands = tmp_path / "bands.csv"
    bands.write_text("wavelength_nm\n500\n")
    paths = {
        name: str(tmp_path / f"{name}.tif") for name in ("OUTPUT", "CONFIDENCE", "PROBABILITIES")
    }
    classify(
        scene_path,
        BANDS=str(bands),
        DEVICE="cpu",
        REQUIRE_GPU=True,
        TILE_SIZE=64,
        PRECISION="float32",
        **paths,
    )
    assert client.parameters == {
        "input": scene_path,
        "model": "tiny",
        "bands": str(bands),
        "device": "cpu",
        "require_gpu": True,
        "tile_size": 64,
        "precision": "float32",
        "output": paths["OUTPUT"],
        "confidence": paths["CONFIDENCE"],
        "probabilities": paths["PROBABILITIES"],
    }


def test_training_has_its_defaults(client, scene_path, labels):
    train([scene_path], labels, CLASS_FIELD="class", REPORT="")
    parameters = client.parameters
    assert client.command == "train_classifier"
    assert parameters["input"] == [scene_path]
    assert parameters["output"].endswith(".zip")
    assert 0.05 <= parameters["validation"] <= 0.5
    assert (parameters["seed"], parameters["device"]) == (0, "auto")
    assert "backbone" not in parameters
    assert isinstance(parameters["epochs"], int)


def test_device_of_the_settings_is_what_auto_means(client, scene_path):
    from processing.core.ProcessingConfig import ProcessingConfig

    ProcessingConfig.setSettingValue("hyperkd/device", 1)
    try:
        classify(scene_path)
        assert client.parameters["device"] == "cpu"
        classify(scene_path, DEVICE="cuda")
        assert client.parameters["device"] == "cuda"
    finally:
        ProcessingConfig.setSettingValue("hyperkd/device", 0)


def test_temporary_outputs_have_places(client, scene_path):
    classify(scene_path, CONFIDENCE="TEMPORARY_OUTPUT")
    assert client.parameters["confidence"].endswith(".tif")
    assert client.parameters["confidence"] != client.parameters["output"]


# Extent


def test_extent_goes_over_in_the_scenes_crs(client, scene_path, tiny):
    box = QgsRectangle(
        tiny.corner[0] + 30, tiny.corner[1] - 200, tiny.corner[0] + 300, tiny.corner[1] - 40
    )
    classify(
        scene_path, EXTENT=QgsReferencedRectangle(box, QgsCoordinateReferenceSystem("EPSG:32633"))
    )
    assert client.parameters["extent"] == pytest.approx(
        [box.xMinimum(), box.yMinimum(), box.xMaximum(), box.yMaximum()]
    )


def test_extent_in_degrees_is_transformed(client, scene_path, tiny):
    box = QgsRectangle(
        tiny.corner[0] + 30, tiny.corner[1] - 200, tiny.corner[0] + 300, tiny.corner[1] - 40
    )
    degrees = QgsCoordinateReferenceSystem("EPSG:4326")
    transform = QgsCoordinateTransform(
        QgsCoordinateReferenceSystem(f"EPSG:{tiny.epsg}"), degrees, QgsProject.instance()
    )
    classify(
        scene_path, EXTENT=QgsReferencedRectangle(transform.transformBoundingBox(box), degrees)
    )
    # the box of a turned box is a little larger
    xmin, ymin, xmax, ymax = client.parameters["extent"]
    assert xmin == pytest.approx(box.xMinimum(), abs=10)
    assert ymin == pytest.approx(box.yMinimum(), abs=10)
    assert xmax == pytest.approx(box.xMaximum(), abs=10)
    assert ymax == pytest.approx(box.yMaximum(), abs=10)


def test_extent_as_text_of_qgis(client, scene_path):
    classify(scene_path, EXTENT="390000,390300,5819800,5820000 [EPSG:32633]")
    assert client.parameters["extent"] == [390000.0, 5819800.0, 390300.0, 5820000.0]


def test_extent_outside_of_the_scene_is_refused(client, scene_path):
    with pytest.raises(QgsProcessingException, match=r"extent lies outside of scene"):
        classify(scene_path, EXTENT="0,10,0,10 [EPSG:32633]")


def test_scene_without_a_crs_takes_the_extent_as_it_is(client, tmp_path, tiny):
    path = tiny.write(tmp_path / "nowhere.tif", epsg=None)
    classify(path, EXTENT="390000,390300,5819800,5820000")
    assert client.parameters["extent"] == [390000.0, 5819800.0, 390300.0, 5820000.0]


# Layers that the engine cannot open


def test_memory_layer_is_exported_in_its_own_crs(client, scene_path, labels):
    client.inspect = lambda parameters: read_features(parameters["mask"])
    classify(scene_path, MASK=labels)
    assert len(client.seen["rows"]) == 2
    assert client.seen["epsg"] == "4326"
    assert client.seen["fields"] == []


def test_exported_files_are_gone_after_the_run(client, scene_path, labels):
    from pathlib import Path

    classify(scene_path, MASK=labels)
    assert not Path(client.parameters["mask"]).exists()


def test_only_selected_features_are_exported(client, scene_path, labels):
    client.inspect = lambda parameters: read_features(parameters["mask"])
    QgsProject.instance().addMapLayer(labels, False)
    labels.selectByIds([1])
    classify(scene_path, MASK=QgsProcessingFeatureSourceDefinition(labels.id(), True))
    assert len(client.seen["rows"]) == 1
    QgsProject.instance().takeMapLayer(labels)


def test_filter_of_a_layer_counts(client, scene_path, labels, tmp_path):
    path = str(tmp_path / "labels.shp")
    processing.run("native:savefeatures", {"INPUT": labels, "OUTPUT": path})
    layer = QgsVectorLayer(path, "labels")
    assert layer.setSubsetString("\"class\" = 'tree'")
    client.inspect = lambda parameters: read_features(parameters["training"])
    train([scene_path], layer, CLASS_FIELD="class")
    assert client.seen["rows"] == [["tree"]]


@pytest.fixture
def saved(labels, tmp_path):
    path = str(tmp_path / "labels.shp")
    processing.run("native:savefeatures", {"INPUT": labels, "OUTPUT": path})
    return path


def test_file_that_the_engine_reads_goes_over_as_it_is(client, scene_path, saved):
    train([scene_path], QgsVectorLayer(saved, "labels"), CLASS_FIELD="class")
    assert client.parameters["training"] == saved
    classify(scene_path, MASK=saved)
    assert client.parameters["mask"] == saved


def test_layer_of_a_geopackage_keeps_its_name(client, scene_path, labels, tmp_path):
    path = str(tmp_path / "labels.gpkg")
    labels.dataProvider().deleteAttributes([0])  # a GeoPackage numbers its features itself
    labels.updateFields()
    processing.run("native:savefeatures", {"INPUT": labels, "OUTPUT": path, "LAYER_NAME": "two"})
    source = f"{path}|layername=two"
    train([scene_path], QgsVectorLayer(source, "labels"), CLASS_FIELD="class")
    assert client.parameters["training"] == source
    train([scene_path], QgsVectorLayer(source, "labels"), CLASS_FIELD="fid")
    assert client.parameters["training"] != source


def test_crs_that_the_user_put_right_is_exported(client, scene_path, saved):
    layer = QgsVectorLayer(saved, "labels")
    layer.setCrs(QgsCoordinateReferenceSystem("EPSG:4258"))
    client.inspect = lambda parameters: read_features(parameters["training"])
    train([scene_path], layer, CLASS_FIELD="class")
    assert client.seen["epsg"] == "4258"


def test_unsaved_edits_are_exported(client, scene_path, saved):
    layer = QgsVectorLayer(saved, "labels")
    client.inspect = lambda parameters: read_features(parameters["training"])
    assert layer.startEditing() and layer.changeAttributeValue(0, 1, "lake")
    train([scene_path], layer, CLASS_FIELD="class")
    assert client.seen["rows"] == [["lake"], ["tree"]]
    layer.rollBack()


def test_nothing_selected_is_said(client, scene_path, labels):
    QgsProject.instance().addMapLayer(labels, False)
    with pytest.raises(QgsProcessingException, match="no features"):
        classify(scene_path, MASK=QgsProcessingFeatureSourceDefinition(labels.id(), True))
    QgsProject.instance().takeMapLayer(labels)


def test_class_field_may_have_a_name_that_geopackage_wants_for_itself(client, scene_path, labels):
    client.inspect = lambda parameters: read_features(parameters["training"])
    train([scene_path], labels, CLASS_FIELD="fid")
    assert client.seen["rows"] == [[7], [7]]
    assert client.parameters["class_field"] == "fid"


def test_raster_of_another_provider_is_exported(client, scene, tiny):
    box = scene.extent()
    corners = f"{box.xMinimum()},{box.yMinimum()},{box.xMaximum()},{box.yMaximum()}"
    virtual = QgsRasterLayer(
        f"?crs=EPSG:32633&extent={corners}&width={tiny.width}&height={tiny.height}"
        f"&formula=%22a@1%22%20*%202&a:uri={scene.source()}&a:provider=gdal",
        "virtual",
        "virtualraster",
    )
    if not virtual.isValid():
        pytest.skip("this QGIS has no virtual rasters")

    def inspect(parameters):
        dataset = gdal.Open(parameters["input"])
        return (
            dataset.RasterXSize,
            dataset.RasterYSize,
            dataset.GetGeoTransform()[1],
            dataset.GetGeoTransform()[5],
            dataset.GetRasterBand(1).ComputeRasterMinMax(False)[0],
        )

    client.inspect = inspect
    classify(virtual)
    assert client.seen == (tiny.width, tiny.height, 30.0, -20.0, 200.0)


def test_layer_without_pixels_of_its_own_is_refused(client, scene_path):
    from hyperkd.hyperkd_qgis.sources import Exports, SourceError
    from qgis.core import QgsCoordinateTransformContext

    tiles = QgsRasterLayer("type=xyz&url=file:///nowhere/{z}/{x}/{y}.png", "tiles", "wms")
    with pytest.raises(SourceError, match=r"tiles .* has no pixels of its own"):
        Exports(QgsCoordinateTransformContext()).raster_source(tiles)


def test_open_options_of_qgis_are_no_part_of_the_source(qgis_app, plugin, scene_path):
    from hyperkd.hyperkd_qgis.sources import Exports
    from qgis.core import QgsCoordinateTransformContext

    layer = QgsRasterLayer(f"{scene_path}|option:NUM_THREADS=2", "scene")
    assert Exports(QgsCoordinateTransformContext()).raster_source(layer) == scene_path


# Labels


def test_names_and_colours_of_the_legend_go_over(client, scene_path, labels):
    train([scene_path], labels, CLASS_FIELD="class")
    assert client.parameters["class_field"] == "class"
    assert client.parameters["classes"] == [
        {"value": 1, "name": "Roofs", "color": "#c81e1e", "field_value": "roof"},
        {"value": 2, "name": "Trees", "color": "#1ec81e", "field_value": "tree"},
    ]


def test_field_of_the_legend_is_taken_when_none_is_chosen(client, scene_path, labels):
    client.inspect = lambda parameters: read_features(parameters["training"])
    train([scene_path], labels)
    assert client.parameters["class_field"] == "class"
    assert client.seen["rows"] == [["roof"], ["tree"]]


def test_legend_of_another_field_does_not_count(client, scene_path, labels):
    train([scene_path], labels, CLASS_FIELD="fid")
    assert "classes" not in client.parameters


def test_numbers_of_the_legend_stay_the_class_values(client, scene_path, labels):
    from qgis.core import QgsCategorizedSymbolRenderer, QgsFillSymbol, QgsRendererCategory

    categories = [
        QgsRendererCategory(value, QgsFillSymbol.createSimple({"color": "red"}), f"class {value}")
        for value in (7, 3)
    ]
    labels.setRenderer(QgsCategorizedSymbolRenderer("fid", categories))
    train([scene_path], labels, CLASS_FIELD="fid")
    assert [entry["value"] for entry in client.parameters["classes"]] == [7, 3]


@pytest.mark.parametrize(
    ("values", "expected"),
    [((2.0, 5.0), [2, 5]), ((2.5, 5.0), [1, 2]), ((0, 5), [1, 2]), ((1, 256), [1, 2])],
)
def test_numbers_that_a_class_map_cannot_hold_are_replaced(plugin, values, expected):
    from hyperkd.hyperkd_qgis.class_legend import _class_values

    assert _class_values(list(values)) == expected


def test_vector_labels_need_a_field(client, scene_path, labels):
    from qgis.core import QgsNullSymbolRenderer

    labels.setRenderer(QgsNullSymbolRenderer())
    with pytest.raises(
        QgsProcessingException, match=r"choose the field of its classes \(fid, class\)"
    ):
        train([scene_path], labels)


def test_field_that_is_not_there_is_named(client, scene_path, labels):
    with pytest.raises(QgsProcessingException, match=r"no field kind. Its fields are fid, class"):
        train([scene_path], labels, CLASS_FIELD="kind")


def test_raster_labels_need_no_field(client, scene_path, tmp_path, tiny):
    path = tiny.write(tmp_path / "labels.tif", bands=1, kind=gdal.GDT_Byte, fill=1)
    train([scene_path], path)
    assert client.parameters["training"] == path
    assert "class_field" not in client.parameters


def test_palette_of_raster_labels_goes_over(client, scene_path, tmp_path, tiny):
    path = tiny.write(tmp_path / "labels.tif", bands=1, kind=gdal.GDT_Byte, fill=1)
    layer = QgsRasterLayer(path, "labels")
    layer.setRenderer(
        QgsPalettedRasterRenderer(
            layer.dataProvider(),
            1,
            [
                QgsPalettedRasterRenderer.Class(0, QColor("black"), "nothing"),
                QgsPalettedRasterRenderer.Class(4, QColor("#2e8b57"), "forest"),
                QgsPalettedRasterRenderer.Class(5, QColor("#000001"), ""),
            ],
        )
    )
    train([scene_path], layer)
    assert client.parameters["classes"] == [
        {"value": 4, "name": "forest", "color": "#2e8b57"},
        {"value": 5, "name": "Class 5", "color": "#000001"},
    ]


def test_several_scenes(client, scene_path, tmp_path, labels, tiny):
    other = tiny.write(tmp_path / "other.tif")
    train([scene_path, other], labels)
    assert client.parameters["input"] == [scene_path, other]


def test_assessment_takes_layers_too(client, scene_path, labels):
    client.inspect = lambda parameters: read_features(parameters["reference"])
    processing.run(
        "hyperkd:assessaccuracy", {"INPUT": scene_path, "REFERENCE": labels, "CLASS_FIELD": "class"}
    )
    assert client.command == "assess_accuracy"
    assert client.seen["rows"] == [["roof"], ["tree"]]


# What is refused before work begins


def test_unknown_model_is_refused_with_the_names_of_the_known(client, scene_path):
    with pytest.raises(QgsProcessingException, match=r"no model package 'nonsense'.*tiny"):
        classify(scene_path, MODEL="nonsense")


def test_path_of_a_package_is_taken(client, scene_path, tmp_path):
    classify(scene_path, MODEL=str(tmp_path / "models" / "tiny"))
    assert client.parameters["model"] == str(tmp_path / "models" / "tiny")


def test_output_must_not_overwrite_the_scene(client, scene_path):
    with pytest.raises(QgsProcessingException, match=r"OUTPUT would overwrite INPUT"):
        classify(scene_path, OUTPUT=scene_path)


def test_output_must_not_overwrite_the_scene_by_another_name(client, scene_path, tmp_path):
    link = tmp_path / "link.tif"
    link.symlink_to(scene_path)
    with pytest.raises(QgsProcessingException, match=r"OUTPUT would overwrite INPUT"):
        classify(scene_path, OUTPUT=str(link))


def test_scene_that_is_not_there_is_refused(client, tmp_path):
    with pytest.raises(QgsProcessingException, match="INPUT"):
        classify(str(tmp_path / "missing.tif"))


def test_ramp_layer_is_no_class_legend(client, scene_path, tmp_path, tiny):
    path = tiny.write(tmp_path / "labels.tif", bands=1, kind=gdal.GDT_Byte, fill=1)
    layer = QgsRasterLayer(path, "labels")
    from qgis.core import QgsRasterShader, QgsSingleBandPseudoColorRenderer

    shader = QgsRasterShader()
    shader.setRasterShaderFunction(QgsColorRampShader(0, 1))
    layer.setRenderer(QgsSingleBandPseudoColorRenderer(layer.dataProvider(), 1, shader))
    train([scene_path], layer)
    assert "classes" not in client.parameters

"""The layers that arrive in the project after a run: named, styled, in a group, in order."""

import processing
import pytest
from qgis.core import (
    QgsApplication,
    QgsProcessingAlgRunnerTask,
    QgsProcessingContext,
    QgsProcessingOutputLayerDefinition,
    QgsProject,
)


@pytest.fixture(autouse=True)
def a_model(tmp_path, monkeypatch):
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text('{"properties": {"title": "Tiny"}}')
    monkeypatch.setenv("HYPERKD_MODELS", str(folder.parent))


def parameters(scene, output="TEMPORARY_OUTPUT", **more):
    return {"INPUT": scene, "MODEL": "tiny", "OUTPUT": output, **more}


def load_results(values, context, qtbot, name="classify"):
    """Run as the dialog does: in a task, then load the layers in the main thread."""
    from processing.gui.Postprocessing import handleAlgorithmResults

    algorithm = QgsApplication.processingRegistry().createAlgorithmById(f"hyperkd:{name}")
    context.setProject(QgsProject.instance())
    done = []
    task = QgsProcessingAlgRunnerTask(algorithm, values, context)
    task.executed.connect(lambda ok, results: done.append(ok))
    QgsApplication.taskManager().addTask(task)
    qtbot.waitUntil(lambda: bool(done), timeout=20000)
    assert done == [True]
    assert handleAlgorithmResults(algorithm, context)


def to_project():
    return QgsProcessingOutputLayerDefinition("TEMPORARY_OUTPUT", QgsProject.instance())


@pytest.fixture
def project(qgis_app, qgis_iface, qtbot):
    from qgis.core import QgsLayerTreeModel
    from qgis.gui import QgsLayerTreeView

    QgsProject.instance().clear()
    view = QgsLayerTreeView()  # from 3.40 on, Processing asks the window for a real one
    view.setModel(QgsLayerTreeModel(QgsProject.instance().layerTreeRoot(), view))
    qtbot.addWidget(view)
    qgis_iface.layerTreeView = lambda: view
    yield QgsProject.instance()
    QgsProject.instance().clear()


def test_both_layers_arrive_styled_named_and_in_a_group(plugin, scene, project, qtbot):
    project.addMapLayer(scene)
    context = QgsProcessingContext()
    load_results(parameters(scene, to_project(), CONFIDENCE=to_project()), context, qtbot)
    group = project.layerTreeRoot().findGroup("HyperKD: Berlin")
    assert [node.name() for node in group.findLayers()] == [
        "Land cover of Berlin",
        "Confidence of Berlin",
    ]
    classes, confidence = (node.layer().renderer() for node in group.findLayers())
    assert [(entry.value, entry.label) for entry in classes.classes()] == [(1, "roof"), (2, "tree")]
    assert [entry.color.name() for entry in classes.classes()] == ["#c81e1e", "#1ec81e"]
    assert confidence.type() == "singlebandpseudocolor"
    assert (confidence.classificationMin(), confidence.classificationMax()) == (0.0, 1.0)


def test_an_estimate_arrives_with_its_quantity_and_unit(plugin, scene, project, qtbot):
    project.addMapLayer(scene)
    load_results(parameters(scene, to_project()), QgsProcessingContext(), qtbot, "estimate")
    group = project.layerTreeRoot().findGroup("HyperKD: Berlin")
    [node] = group.findLayers()
    assert node.name() == "Soil organic carbon of Berlin"
    renderer = node.layer().renderer()
    assert renderer.type() == "singlebandpseudocolor"
    assert (renderer.classificationMin(), renderer.classificationMax()) == (10.0, 50.0)
    function = renderer.shader().rasterShaderFunction()
    assert function.legendSettings().suffix() == " g/kg"
    assert [item.label for item in function.colorRampItemList()] == ["10", "20", "30", "40", "50"]


def test_legend_of_an_estimate_is_continuous_and_titled(plugin, scene, project, qtbot):
    from qgis.core import QgsColorRampLegendNode, QgsLayerTreeModel, QgsSimpleLegendNode

    project.addMapLayer(scene)
    load_results(parameters(scene, to_project()), QgsProcessingContext(), qtbot, "estimate")
    [node] = project.layerTreeRoot().findGroup("HyperKD: Berlin").findLayers()
    legend = QgsLayerTreeModel(project.layerTreeRoot())
    legend.refreshLayerLegend(node)
    nodes = legend.layerLegendNodes(node)
    assert [type(item) for item in nodes] == [QgsSimpleLegendNode, QgsColorRampLegendNode]
    assert nodes[0].data(0).startswith("Band 1: soil organic carbon")


@pytest.mark.parametrize(
    ("most", "shown"), [(12345.6, "12,346"), (94.5, "94.5"), (88.149673, "88.15"), (0.05, "0.05")]
)
def test_legend_has_as_many_digits_as_the_range_is_worth(plugin, most, shown):
    from hyperkd.hyperkd_qgis.layer_styles import _legend_settings
    from qgis.core import QgsNumericFormatContext

    settings = _legend_settings(most, "g/kg")
    assert settings.numericFormat().formatDouble(most, QgsNumericFormatContext()) == shown


def test_range_of_a_style_file_counts_for_an_estimate(plugin, scene_path):
    from hyperkd.hyperkd_qgis.layer_styles import ramp_renderer, style_values
    from qgis.core import QgsRasterLayer

    layer = QgsRasterLayer(scene_path, "scene")
    layer.setRenderer(ramp_renderer(layer, -2.0, 7.0))
    style_values(layer)
    renderer = layer.renderer()
    assert (renderer.classificationMin(), renderer.classificationMax()) == (-2.0, 7.0)
    assert renderer.shader().rasterShaderFunction().legendSettings().suffix() == ""


def test_an_estimate_of_one_value_everywhere_keeps_qgis_own_style(plugin, scene_path):
    from hyperkd.hyperkd_qgis.layer_styles import style_values
    from qgis.core import QgsRasterLayer

    layer = QgsRasterLayer(scene_path, "scene")  # each band is filled with one value
    kind = layer.renderer().type()
    style_values(layer)
    assert layer.renderer().type() == kind


def test_a_file_that_is_gone_has_no_quantity(plugin, tmp_path):
    from hyperkd.hyperkd_qgis.layer_styles import Quantity, read_quantity

    assert read_quantity(str(tmp_path / "gone.tif")) == Quantity()


def test_layers_beside_a_chosen_one_make_no_group_in_the_group(plugin, scene, project):
    """With a window, QGIS puts a new layer beside the one that is chosen."""
    from hyperkd.hyperkd_qgis.layers import move_to_group
    from qgis.core import QgsRasterLayer

    layers = [QgsRasterLayer(scene.source(), name) for name in ("classes", "confidence")]
    root = project.layerTreeRoot()
    project.addMapLayers(layers, False)
    root.addLayer(layers[0])
    move_to_group(layers[0], "HyperKD: Berlin", 0)
    root.findGroup("HyperKD: Berlin").insertLayer(0, layers[1])
    move_to_group(layers[1], "HyperKD: Berlin", 1)
    [group] = root.findGroups()
    assert [node.name() for node in group.findLayers()] == ["classes", "confidence"]
    assert group.findGroups() == []


def test_a_second_run_goes_into_the_same_group(plugin, scene, project, qtbot):
    project.addMapLayer(scene)
    for _ in range(2):
        load_results(parameters(scene, to_project()), QgsProcessingContext(), qtbot)
    groups = project.layerTreeRoot().findGroups()
    assert [group.name() for group in groups] == ["HyperKD: Berlin"]
    assert len(groups[0].findLayers()) == 2


def test_a_name_that_the_user_chose_stays(plugin, scene, project, qtbot, monkeypatch):
    project.addMapLayer(scene)
    definition = to_project()
    definition.destinationName = "My own map"
    load_results(parameters(scene, definition), QgsProcessingContext(), qtbot)
    assert project.mapLayersByName("My own map")


def test_a_style_file_wins(plugin, scene_path, project, tiny, tmp_path):
    from hyperkd.hyperkd_qgis.layer_styles import style_share
    from qgis.core import QgsRasterLayer, QgsSingleBandPseudoColorRenderer

    layer = QgsRasterLayer(scene_path, "scene")
    renderer = QgsSingleBandPseudoColorRenderer(layer.dataProvider(), 3)
    renderer.setClassificationMin(5)
    layer.setRenderer(renderer)
    style_share(layer)
    assert layer.renderer().classificationMin() == 5


def test_finishers_are_let_go(plugin, scene, project, qtbot):
    from hyperkd.hyperkd_qgis import layers

    project.addMapLayer(scene)
    load_results(parameters(scene, to_project()), QgsProcessingContext(), qtbot)
    assert layers._alive == []


def test_nothing_is_styled_where_nothing_is_loaded(plugin, scene_path):
    from hyperkd.hyperkd_qgis import layers

    processing.run("hyperkd:classify", parameters(scene_path))
    assert layers._alive == []


# Segmentation: five outputs, polygons among them

SHARES = ("CONFIDENCE", "SUPPORT", "PROBABILITIES")


@pytest.fixture
def segmented(plugin, scene, project, qtbot):
    """The layers of a segmentation with everything, from the top of the tree down."""
    project.addMapLayer(scene)
    more = {name: to_project() for name in (*SHARES, "POLYGONS")}
    load_results(parameters(scene, to_project(), **more), QgsProcessingContext(), qtbot, "segment")
    return project.layerTreeRoot().findGroup("HyperKD: Berlin").findLayers()


def test_all_layers_of_a_segmentation_arrive_in_one_group_in_order(segmented):
    names = ("Polygons", "Land cover", "Confidence", "Support", "Probabilities")
    assert [node.name() for node in segmented] == [f"{name} of Berlin" for name in names]


def test_polygons_have_the_names_and_colours_of_the_class_map(segmented):
    renderer = segmented[0].layer().renderer()
    assert renderer.classAttribute() == "class_value"
    shown = [
        (item.value(), item.label(), item.symbol().color().name()) for item in renderer.categories()
    ]
    assert shown == [(1, "roof", "#c81e1e"), (2, "tree", "#1ec81e")]


def test_every_polygon_is_drawn(segmented):
    from qgis.core import QgsRenderContext

    layer = segmented[0].layer()
    renderer = layer.renderer().clone()
    context = QgsRenderContext()
    renderer.startRender(context, layer.fields())
    drawn = [renderer.symbolForFeature(feature, context) for feature in layer.getFeatures()]
    renderer.stopRender(context)
    assert len(drawn) == 2
    assert None not in drawn


@pytest.mark.parametrize("place", [2, 3])
def test_confidence_and_support_have_a_ramp_from_0_to_1(segmented, place):
    renderer = segmented[place].layer().renderer()
    assert renderer.type() == "singlebandpseudocolor"
    assert (renderer.classificationMin(), renderer.classificationMax()) == (0.0, 1.0)


@pytest.fixture
def polygons(plugin, scene_path, tmp_path):
    """A segmentation's files, and the layer of its polygons as QGIS opens it."""
    from qgis.core import QgsVectorLayer

    paths = {"OUTPUT": str(tmp_path / "map.tif"), "POLYGONS": str(tmp_path / "map.gpkg")}
    result = processing.run("hyperkd:segment", {"INPUT": scene_path, "MODEL": "tiny", **paths})
    layer = QgsVectorLayer(result["POLYGONS"], "polygons")
    assert layer.isValid()
    return layer, paths["OUTPUT"]


def test_polygons_that_have_a_style_of_their_own_keep_it(polygons):
    from hyperkd.hyperkd_qgis.layer_styles import style_class_polygons
    from qgis.core import QgsCategorizedSymbolRenderer

    layer, map_path = polygons
    layer.setRenderer(QgsCategorizedSymbolRenderer("class_name", []))
    style_class_polygons(layer, map_path)
    assert layer.renderer().classAttribute() == "class_name"


def test_polygons_whose_map_is_gone_keep_qgis_own_style(polygons, tmp_path):
    from hyperkd.hyperkd_qgis.layer_styles import style_class_polygons

    layer, _ = polygons
    style_class_polygons(layer, str(tmp_path / "gone.tif"))
    assert layer.renderer().type() == "singleSymbol"


def test_a_class_map_without_classes_colours_no_polygons(polygons, scene_path):
    from hyperkd.hyperkd_qgis.layer_styles import style_class_polygons

    layer, _ = polygons
    style_class_polygons(layer, scene_path)
    assert layer.renderer().type() == "singleSymbol"


# Fusion: a cube in its own colours, and what is not given back


@pytest.fixture
def fused(plugin, scene, scene_path, project, qtbot):
    """The layers of a fusion, from the top of the tree down."""
    project.addMapLayer(scene)
    values = {"HYPERSPECTRAL": scene, "MULTISPECTRAL": scene_path}
    values |= {name: to_project() for name in ("OUTPUT", "CONSISTENCY")}
    load_results(values, QgsProcessingContext(), qtbot, "fuse")
    return project.layerTreeRoot().findGroup("HyperKD: Berlin").findLayers()


def test_the_layers_of_a_fusion_arrive_in_one_group_in_order(fused):
    assert [node.name() for node in fused] == ["Fused image of Berlin", "Consistency of Berlin"]


def test_a_fused_image_is_shown_in_its_own_colours(fused):
    renderer = fused[0].layer().renderer()
    assert renderer.type() == "multibandcolor"
    assert (renderer.redBand(), renderer.greenBand(), renderer.blueBand()) == (3, 2, 1)
    stretch = renderer.redContrastEnhancement()
    assert 0 <= stretch.minimumValue() < 0.1 < 0.5 < stretch.maximumValue() < 0.6


def test_consistency_is_dark_where_all_is_given_back(fused):
    renderer = fused[1].layer().renderer()
    assert renderer.type() == "singlebandpseudocolor"
    assert (renderer.classificationMin(), renderer.classificationMax()) == (0.0, 0.1)
    items = renderer.shader().rasterShaderFunction().colorRampItemList()
    brightness = [item.color.value() for item in items]
    assert brightness == sorted(brightness)


def test_legend_of_consistency_is_in_percent(fused):
    from qgis.core import QgsNumericFormatContext

    function = fused[1].layer().renderer().shader().rasterShaderFunction()
    numbers = function.legendSettings().numericFormat()
    assert numbers.formatDouble(0.1, QgsNumericFormatContext()) == "10%"


def loaded_by_processing(path):
    """A layer as Processing loads it: without the style that lies beside its file."""
    from qgis.core import QgsRasterLayer

    options = QgsRasterLayer.LayerOptions()
    options.loadDefaultStyle = False
    return QgsRasterLayer(path, "result", "gdal", options)


def test_a_style_file_of_a_fused_image_wins(plugin, tiny, tmp_path):
    from hyperkd.hyperkd_qgis.layer_styles import style_cube
    from qgis.core import QgsMultiBandColorRenderer, QgsRasterLayer

    path = tiny.write(tmp_path / "fused.tif")
    layer = QgsRasterLayer(path, "fused")
    layer.setRenderer(QgsMultiBandColorRenderer(layer.dataProvider(), 9, 8, 7))
    layer.saveDefaultStyle()
    result = loaded_by_processing(path)
    style_cube(result)
    renderer = result.renderer()
    assert (renderer.redBand(), renderer.greenBand(), renderer.blueBand()) == (9, 8, 7)


def test_a_cube_without_the_light_that_is_seen_keeps_qgis_own_style(plugin, tiny, tmp_path):
    from hyperkd.hyperkd_qgis.layer_styles import style_cube
    from qgis.core import QgsRasterLayer

    layer = QgsRasterLayer(tiny.write(tmp_path / "one.tif", bands=1), "one")  # of 450 nm
    kind = layer.renderer().type()
    style_cube(layer)
    assert layer.renderer().type() == kind


def test_a_cube_that_is_gone_keeps_what_it_has(plugin, tiny, tmp_path):
    from hyperkd.hyperkd_qgis.layer_styles import style_cube
    from qgis.core import QgsRasterLayer

    layer = QgsRasterLayer(str(tmp_path / "gone.tif"), "gone")
    style_cube(layer)
    assert layer.renderer() is None


def test_range_of_a_style_file_counts_for_consistency(plugin, scene_path):
    from hyperkd.hyperkd_qgis.layer_styles import ramp_renderer, style_residual
    from qgis.core import QgsRasterLayer

    layer = QgsRasterLayer(scene_path, "scene")
    layer.setRenderer(ramp_renderer(layer, 0.0, 0.25))
    layer.saveDefaultStyle()
    result = loaded_by_processing(scene_path)
    style_residual(result)
    assert result.renderer().classificationMax() == 0.25

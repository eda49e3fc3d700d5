"""Runs from end to end with an engine that is a process, if not the real one."""

import time
from pathlib import Path

import processing
import pytest
from osgeo import gdal
from qgis.core import (
    QgsApplication,
    QgsProcessingAlgRunnerTask,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingModelAlgorithm,
    QgsProcessingModelChildAlgorithm,
    QgsProcessingModelChildParameterSource,
    QgsProcessingModelOutput,
    QgsProcessingModelParameter,
    QgsProcessingMultiStepFeedback,
    QgsProcessingOutputLayerDefinition,
    QgsProcessingParameterRasterLayer,
    QgsProject,
)

SLOW = 4096  # the fake engine takes this tile size as a wish to take its time


@pytest.fixture(autouse=True)
def a_model(tmp_path, monkeypatch):
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text('{"properties": {"title": "Tiny"}}')
    monkeypatch.setenv("HYPERKD_MODELS", str(folder.parent))


@pytest.fixture
def teacher(tmp_path):
    """A file that the fake engine does not look into."""
    path = tmp_path / "teacher.pt"
    path.write_bytes(b"weights")
    return {"TEACHER": str(path)}


def parameters(scene, output="TEMPORARY_OUTPUT", **more):
    return {"INPUT": scene, "MODEL": "tiny", "OUTPUT": output, **more}


# processing.run


def test_classify(plugin, scene_path, tmp_path):
    output = str(tmp_path / "map.tif")
    result = processing.run("hyperkd:classify", parameters(scene_path, output))
    assert result == {"OUTPUT": output}
    dataset = gdal.Open(output)
    assert (dataset.RasterXSize, dataset.RasterYSize) == (24, 17)


def test_classify_with_everything(plugin, scene_path):
    temporary = "TEMPORARY_OUTPUT"
    result = processing.run(
        "hyperkd:classify",
        parameters(scene_path, CONFIDENCE=temporary, PROBABILITIES=temporary),
    )
    assert sorted(result) == ["CONFIDENCE", "OUTPUT", "PROBABILITIES"]
    assert all(Path(path).is_file() for path in result.values())


def test_train_classifier(plugin, scene_path, labels, tmp_path):
    package, report = str(tmp_path / "mine.zip"), str(tmp_path / "report.html")
    result = processing.run(
        "hyperkd:trainclassifier",
        {"INPUT": [scene_path], "TRAINING": labels, "OUTPUT": package, "REPORT": report},
    )
    assert (result["OUTPUT"], result["REPORT"]) == (package, report)
    assert result["OVERALL_ACCURACY"] == 0.5
    assert result["IOU_MACRO"] == pytest.approx(0.7)


def test_assess_accuracy(plugin, scene_path, labels):
    result = processing.run(
        "hyperkd:assessaccuracy",
        {
            "INPUT": scene_path,
            "REFERENCE": labels,
            "CLASS_FIELD": "class",
            "REPORT": "TEMPORARY_OUTPUT",
        },
    )
    assert result["KAPPA"] == pytest.approx(0.6)
    assert Path(result["REPORT"]).suffix == ".html"


def test_describe_model_reports_without_being_asked_where(plugin, scene_path):
    result = processing.run("hyperkd:describemodel", {"MODEL": "tiny", "INPUT": scene_path})
    assert Path(result["REPORT"]).read_text(encoding="utf-8").startswith("<html>")


RECONSTRUCTION = {"PSNR_DB": 30.5, "SSIM": 0.9, "SPECTRAL_ANGLE_DEG": 2.5}


@pytest.mark.parametrize("name", ["distillbackbone", "pretrainteacher"])
def test_backbones_and_teachers_have_their_scores(plugin, scene_path, tmp_path, teacher, name):
    package = str(tmp_path / "mine.zip")
    values = {"INPUT": [scene_path], "OUTPUT": package, **(teacher if "dist" in name else {})}
    result = processing.run(f"hyperkd:{name}", values)
    whole = {f"{score}_WHOLE": value for score, value in RECONSTRUCTION.items()}
    assert result == {"OUTPUT": package, **RECONSTRUCTION, **whole}


def test_a_cancelled_distillation_says_where_it_can_be_gone_on_with(
    plugin, scene_path, tmp_path, teacher, heard
):
    hearing = heard(cancel_at=0.1)
    values = {"INPUT": [scene_path], "SEED": 99, "OUTPUT": str(tmp_path / "mine.zip"), **teacher}
    with pytest.raises(
        QgsProcessingException, match=r"mine\.zip\.checkpoint\.safetensors: run again .* RESUME"
    ):
        processing.run("hyperkd:distillbackbone", values, feedback=hearing.feedback)


def test_train_regression(plugin, scene_path, tiny, tmp_path):
    values = tiny.write(tmp_path / "values.tif", bands=1)
    result = processing.run(
        "hyperkd:trainregression",
        {"INPUT": [scene_path], "TRAINING": values, "OUTPUT": str(tmp_path / "mine.zip")},
    )
    scores = {"RMSE": 1.5, "MAE": 1.25, "R2": -0.5}
    assert result == {"OUTPUT": str(tmp_path / "mine.zip"), **scores}


def test_check_engine(plugin, heard, tmp_path):
    hearing = heard()
    report = str(tmp_path / "engine.txt")
    result = processing.run("hyperkd:checkengine", {"REPORT": report}, feedback=hearing.feedback)
    assert result == {"REPORT": report, "TEXT": "HyperKD 0.1.0\nAll is well.\n"}
    assert "All is well." in hearing.text


# What the user hears


def test_the_log_begins_with_the_device_and_why(plugin, scene_path, heard):
    hearing = heard()
    processing.run("hyperkd:classify", parameters(scene_path), feedback=hearing.feedback)
    assert hearing.lines[0].startswith("HyperKD engine 0.1.0, Python 3.11, cpu (no GPU wanted")


def test_progress_moves_and_names_the_step(plugin, scene_path, heard):
    hearing = heard()
    processing.run("hyperkd:classify", parameters(scene_path), feedback=hearing.feedback)
    assert hearing.steps[-2:] == ["Classifying", "Writing"]
    assert hearing.progress == sorted(hearing.progress)
    assert hearing.progress[-1] == 100.0


def run_command(session, algorithm, command, heard, **request):
    """Have an algorithm send another command, which the fake engine knows."""
    made = algorithm("assessaccuracy")
    made.command = command
    hearing = heard()
    return hearing, lambda: made.run_engine(request, hearing.feedback)


def test_an_error_is_a_sentence_with_a_remedy(session, algorithm, heard):
    _, run = run_command(session, algorithm, "refuse", heard)
    with pytest.raises(QgsProcessingException, match=r"^The scene is empty\. Take another\.$"):
        run()


def test_a_crash_is_told_with_the_last_words(session, algorithm, heard):
    _, run = run_command(session, algorithm, "crash", heard)
    with pytest.raises(QgsProcessingException, match=r"(?s)exit code 7.*terrible thing.*log"):
        run()


def test_warnings_are_warnings(session, algorithm, heard):
    hearing, run = run_command(session, algorithm, "echo", heard)
    run()
    assert "warning: Mind the gap" in hearing.lines


# Cancel


@pytest.mark.parametrize("percent", [1, 4, 8])
def test_cancel_stops_within_a_second_and_leaves_nothing(
    plugin, scene_path, heard, tmp_path, percent
):
    processing.run("hyperkd:checkengine", {})  # the engine is warm
    folder = tmp_path / "out"
    folder.mkdir()
    hearing = heard(cancel_at=percent / 10)
    cancelled_at = []
    hearing.feedback.canceled.connect(lambda: cancelled_at.append(time.monotonic()))
    with pytest.raises(QgsProcessingException, match="Cancelled"):
        processing.run(
            "hyperkd:classify",
            parameters(scene_path, str(folder / "map.tif"), TILE_SIZE=SLOW),
            feedback=hearing.feedback,
        )
    assert time.monotonic() - cancelled_at[0] < 1.0
    assert list(folder.iterdir()) == []


def test_cancel_in_the_background_as_the_dialog_does_it(plugin, scene_path, qtbot, heard, tmp_path):
    algorithm = QgsApplication.processingRegistry().createAlgorithmById("hyperkd:classify")
    context, hearing, done = QgsProcessingContext(), heard(cancel_at=0.2), []
    values = parameters(scene_path, str(tmp_path / "map.tif"), TILE_SIZE=SLOW)
    task = QgsProcessingAlgRunnerTask(algorithm, values, context, hearing.feedback)
    task.executed.connect(lambda ok, results: done.append(ok))
    QgsApplication.taskManager().addTask(task)
    qtbot.waitUntil(lambda: bool(done), timeout=10000)
    assert done == [False]
    assert not (tmp_path / "map.tif").exists()


# Batch


def test_batch(plugin, tiny, tmp_path, algorithm):
    """One algorithm for all rows, and the feedback of several steps: as the batch dialog does."""
    scenes = [tiny.write(tmp_path / f"scene{number}.tif") for number in range(3)]
    made = algorithm("classify")
    whole = QgsProcessingFeedback()
    steps = QgsProcessingMultiStepFeedback(len(scenes), whole)
    for number, scene in enumerate(scenes):
        steps.setCurrentStep(number)
        values = parameters(scene, str(tmp_path / f"map{number}.tif"))
        results, successful = made.run(values, QgsProcessingContext(), steps)
        assert successful
        assert Path(results["OUTPUT"]).is_file()


def test_batch_in_several_threads_shares_one_engine(plugin, session, tiny, tmp_path, qtbot):
    scenes = [tiny.write(tmp_path / f"scene{number}.tif") for number in range(3)]
    algorithm = QgsApplication.processingRegistry().createAlgorithmById("hyperkd:classify")
    contexts = []  # tasks keep no reference to theirs
    finished = []
    for number, scene in enumerate(scenes):
        contexts.append(QgsProcessingContext())
        values = parameters(scene, str(tmp_path / f"map{number}.tif"))
        task = QgsProcessingAlgRunnerTask(algorithm, values, contexts[-1])
        task.executed.connect(lambda ok, results: finished.append(ok))
        QgsApplication.taskManager().addTask(task)
    qtbot.waitUntil(lambda: len(finished) == 3, timeout=20000)
    assert finished == [True, True, True]
    assert sorted(path.name for path in tmp_path.glob("map*.tif")) == [
        "map0.tif",
        "map1.tif",
        "map2.tif",
    ]


def test_the_cancel_button_of_a_batch_in_the_main_thread_can_be_clicked(
    plugin, session, qtbot, scene_path, algorithm
):
    """Until 3.36 the batch dialog runs in the main thread: clicks must come through."""
    from qgis.PyQt.QtCore import QTimer

    processing.run("hyperkd:checkengine", {})
    whole = QgsProcessingFeedback()
    steps = QgsProcessingMultiStepFeedback(1, whole)
    click = QTimer()
    click.setSingleShot(True)
    click.timeout.connect(whole.cancel)
    click.start(300)
    start_s = time.monotonic()
    _, successful = algorithm("classify").run(
        parameters(scene_path, TILE_SIZE=SLOW), QgsProcessingContext(), steps
    )
    assert not successful
    assert time.monotonic() - start_s < 3.0


# A saved model


def make_model():
    """Classify, then assess the map against itself: the first's output is the second's input."""
    model = QgsProcessingModelAlgorithm("map_and_check", "tests")
    model.addModelParameter(
        QgsProcessingParameterRasterLayer("scene", "Scene"), QgsProcessingModelParameter("scene")
    )
    source = QgsProcessingModelChildParameterSource
    first = QgsProcessingModelChildAlgorithm("hyperkd:classify")
    first.setChildId("map")
    first.addParameterSources("INPUT", [source.fromModelParameter("scene")])
    first.addParameterSources("MODEL", [source.fromStaticValue("tiny")])
    output = QgsProcessingModelOutput("landcover", "landcover")
    output.setChildId("map")
    output.setChildOutputName("OUTPUT")
    first.setModelOutputs({"landcover": output})
    model.addChildAlgorithm(first)
    second = QgsProcessingModelChildAlgorithm("hyperkd:assessaccuracy")
    second.setChildId("check")
    second.addParameterSources("INPUT", [source.fromChildOutput("map", "OUTPUT")])
    second.addParameterSources("REFERENCE", [source.fromChildOutput("map", "OUTPUT")])
    model.addChildAlgorithm(second)
    return model


def test_inside_a_saved_model(plugin, scene_path, tmp_path, heard):
    path = str(tmp_path / "map_and_check.model3")
    assert make_model().toFile(path)
    model = QgsProcessingModelAlgorithm()
    assert model.fromFile(path)
    assert model.initAlgorithm() is None
    possible, message = model.canExecute()
    assert possible, message
    output = str(tmp_path / "map.tif")
    hearing = heard()
    name = next(item.name() for item in model.destinationParameterDefinitions())
    result = processing.run(model, {"scene": scene_path, name: output}, feedback=hearing.feedback)
    assert Path(output).is_file()
    assert result["CHILD_RESULTS"]["check"]["KAPPA"] == pytest.approx(0.6)


def test_a_model_says_that_the_engine_is_missing(plugin, monkeypatch, tmp_path, scene_path):
    monkeypatch.setenv("HYPERKD_ENGINE_PYTHON", "/nowhere/python")
    model = make_model()
    with pytest.raises(QgsProcessingException):
        name = next(item.name() for item in model.destinationParameterDefinitions())
        processing.run(model, {"scene": scene_path, name: str(tmp_path / "map.tif")})
    assert not (tmp_path / "map.tif").exists()


# The layers that arrive


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
    from hyperkd.hyperkd_qgis.layers import _legend_settings
    from qgis.core import QgsNumericFormatContext

    settings = _legend_settings(most, "g/kg")
    assert settings.numericFormat().formatDouble(most, QgsNumericFormatContext()) == shown


def test_range_of_a_style_file_counts_for_an_estimate(plugin, scene_path):
    from hyperkd.hyperkd_qgis.layers import ramp_renderer, style_values
    from qgis.core import QgsRasterLayer

    layer = QgsRasterLayer(scene_path, "scene")
    layer.setRenderer(ramp_renderer(layer, -2.0, 7.0))
    style_values(layer)
    renderer = layer.renderer()
    assert (renderer.classificationMin(), renderer.classificationMax()) == (-2.0, 7.0)
    assert renderer.shader().rasterShaderFunction().legendSettings().suffix() == ""


def test_an_estimate_of_one_value_everywhere_keeps_qgis_own_style(plugin, scene_path):
    from hyperkd.hyperkd_qgis.layers import style_values
    from qgis.core import QgsRasterLayer

    layer = QgsRasterLayer(scene_path, "scene")  # each band is filled with one value
    kind = layer.renderer().type()
    style_values(layer)
    assert layer.renderer().type() == kind


def test_a_file_that_is_gone_has_no_quantity(plugin, tmp_path):
    from hyperkd.hyperkd_qgis.layers import Quantity, read_quantity

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
    from hyperkd.hyperkd_qgis.layers import style_share
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

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
    QgsProcessingParameterRasterLayer,
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

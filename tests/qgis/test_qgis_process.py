"""The command line: the plugin in the real qgis_process, with a profile of its own."""

import json
import os
import re
import shutil
import subprocess
import time

import pytest

NAMES = (
    "adaptbackbone",
    "assessaccuracy",
    "assessfusion",
    "checkengine",
    "classify",
    "describemodel",
    "distillbackbone",
    "estimate",
    "fuse",
    "pretrainteacher",
    "segment",
    "trainclassifier",
    "trainfusion",
    "trainregression",
    "trainsegmentation",
)

# Debian 12's qgis_process hands an option to the program that it does not know (qgis/QGIS#57683)
PROGRAM = shutil.which("qgis_process.bin") or shutil.which("qgis_process")

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="qgis_process is not installed")


@pytest.fixture(scope="module")
def environment(tmp_path_factory, plugins_folder, fake_python):
    """What qgis_process starts with: our plugin folder, an empty profile, the fake engine."""
    work = tmp_path_factory.mktemp("process")
    runtime = work / "run"
    runtime.mkdir(mode=0o700)
    model = work / "models" / "tiny"
    model.mkdir(parents=True)
    (model / "model.json").write_text('{"properties": {"title": "Tiny"}}')
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    variables = {
        **kept,
        "QGIS_PLUGINPATH": str(plugins_folder),
        "QGIS_CUSTOM_CONFIG_PATH": str(work / "profile"),
        "XDG_RUNTIME_DIR": str(runtime),
        "QT_QPA_PLATFORM": "offscreen",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HYPERKD_ENGINE_PYTHON": str(fake_python),
        "HYPERKD_MODELS": str(model.parent),
    }
    subprocess.run([PROGRAM, "plugins", "enable", "hyperkd"], env=variables, check=True)
    return variables


@pytest.fixture
def call(environment):
    def run(*arguments, given=None, **variables):
        return subprocess.run(
            [PROGRAM, *arguments],
            env={**environment, **variables},
            input=given,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def results_of(answer):
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)["results"]


def test_all_algorithms_are_listed(call):
    listed = json.loads(call("list", "--json").stdout)["providers"]["hyperkd"]["algorithms"]
    assert sorted(listed) == [f"hyperkd:{name}" for name in NAMES]


def test_help_explains_every_parameter(call):
    described = json.loads(call("help", "hyperkd:classify", "--json").stdout)
    assert {"INPUT", "MODEL", "DEVICE", "OUTPUT"} <= set(described["parameters"])
    text = call("help", "hyperkd:classify").stdout
    assert "matched to the scene's by wavelength" in text
    assert "<p>" not in text
    assert "Name of an installed model" in text


def test_classify(call, scene_path, tmp_path):
    output = tmp_path / "map.tif"
    answer = call(
        *("run", "hyperkd:classify", "--json", f"--INPUT={scene_path}", "--MODEL=tiny"),
        *("--DEVICE=cpu", f"--OUTPUT={output}"),
    )
    assert results_of(answer) == {"OUTPUT": str(output)}
    assert output.is_file()


def test_scores_are_numbers(call, scene_path):
    answer = call(
        *("run", "hyperkd:assessaccuracy", "--json", f"--INPUT={scene_path}"),
        f"--REFERENCE={scene_path}",
    )
    assert results_of(answer)["OVERALL_ACCURACY"] == 0.5


def test_several_scenes(call, scene_path, tiny, tmp_path):
    labels = tiny.write(tmp_path / "labels.tif", bands=1)
    answer = call(
        *("run", "hyperkd:trainclassifier", "--json", f"--INPUT={scene_path}"),
        *(f"--INPUT={labels}", f"--TRAINING={labels}", f"--OUTPUT={tmp_path / 'mine.zip'}"),
    )
    assert results_of(answer)["OUTPUT"] == str(tmp_path / "mine.zip")


def test_check_engine_prints_its_report(call):
    answer = call("run", "hyperkd:checkengine", "--json")
    results = results_of(answer)
    assert results["TEXT"].endswith("All is well.\n")
    assert "All is well." in answer.stdout


def test_a_wrong_model_ends_with_a_sentence(call, scene_path, tmp_path):
    answer = call(
        *("run", "hyperkd:classify", f"--INPUT={scene_path}", "--MODEL=nonsense"),
        f"--OUTPUT={tmp_path / 'map.tif'}",
    )
    assert answer.returncode != 0
    assert "There is no model package 'nonsense'" in answer.stdout + answer.stderr


def test_a_missing_engine_ends_with_the_commands_that_help(call, scene_path, tmp_path):
    answer = call(
        *("run", "hyperkd:classify", f"--INPUT={scene_path}", "--MODEL=tiny"),
        f"--OUTPUT={tmp_path / 'map.tif'}",
        HYPERKD_ENGINE_PYTHON="/nowhere/python",
    )
    assert answer.returncode != 0
    assert "-m venv" in answer.stdout + answer.stderr


def is_running(process_id):
    try:
        with open(f"/proc/{process_id}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks at /proc")
def test_the_engine_ends_with_qgis_process(call):
    answer = call("run", "hyperkd:checkengine", "--json")
    engine_id = re.search(r"no GPU wanted, process (\d+)", answer.stdout)[1]
    for _ in range(50):
        if not is_running(engine_id):
            return
        time.sleep(0.1)
    pytest.fail(f"the engine {engine_id} outlives qgis_process")


def test_layers_of_a_geopackage_are_taken(call, scene_path, tmp_path, labels):
    from qgis.core import QgsCoordinateTransformContext, QgsVectorFileWriter

    path = str(tmp_path / "labels.gpkg")
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.layerName = "places"
    options.layerOptions = ["FID=id"]
    QgsVectorFileWriter.writeAsVectorFormatV3(
        labels, path, QgsCoordinateTransformContext(), options
    )
    answer = call(
        *("run", "hyperkd:assessaccuracy", "--json", f"--INPUT={scene_path}"),
        *(f"--REFERENCE={path}|layername=places", "--CLASS_FIELD=class"),
    )
    assert "KAPPA" in results_of(answer)


@pytest.fixture
def teacher(tmp_path):
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(b"weights")
    return path


def test_distil_a_backbone(call, scene_path, tmp_path, teacher):
    answer = call(
        *("run", "hyperkd:distillbackbone", "--json", f"--INPUT={scene_path}"),
        *(f"--TEACHER={teacher}", "--PRESET=small64", f"--OUTPUT={tmp_path / 'mine.zip'}"),
    )
    results = results_of(answer)
    assert results["PSNR_DB"] == 30.5
    assert results["OUTPUT"] == str(tmp_path / "mine.zip")


def test_pretrain_a_teacher_from_several_scenes(call, scene_path, tiny, tmp_path):
    other = tiny.write(tmp_path / "other.tif")
    answer = call(
        *("run", "hyperkd:pretrainteacher", "--json", f"--INPUT={scene_path}"),
        *(f"--INPUT={other}", "--PRESET=prithvi-100m", f"--OUTPUT={tmp_path / 'mine.zip'}"),
    )
    assert results_of(answer)["SPECTRAL_ANGLE_DEG_WHOLE"] == 2.5


def test_train_a_regression_and_estimate(call, scene_path, tiny, tmp_path):
    values = tiny.write(tmp_path / "values.tif", bands=1)
    answer = call(
        *("run", "hyperkd:trainregression", "--json", f"--INPUT={scene_path}"),
        *(f"--TRAINING={values}", "--UNIT=g/kg", f"--OUTPUT={tmp_path / 'carbon.zip'}"),
    )
    assert results_of(answer)["R2"] == -0.5
    answer = call(
        *("run", "hyperkd:estimate", "--json", f"--INPUT={scene_path}"),
        *(f"--MODEL={tmp_path / 'carbon.zip'}", f"--OUTPUT={tmp_path / 'carbon.tif'}"),
    )
    assert results_of(answer) == {"OUTPUT": str(tmp_path / "carbon.tif")}


def test_adapt_train_and_segment(call, scene_path, tiny, tmp_path, teacher):
    """The three steps, each with what the one before has made."""
    adapted, model = tmp_path / "adapted.zip", tmp_path / "model.zip"
    answer = call(
        *("run", "hyperkd:adaptbackbone", "--json", f"--INPUT={scene_path}"),
        *(f"--BACKBONE={teacher}", "--MASK_INPUT=yes", f"--OUTPUT={adapted}"),
    )
    assert results_of(answer)["TRAINABLE_PARAMETERS"] == 123_456
    labels = tiny.write(tmp_path / "labels.tif", bands=1)
    answer = call(
        *("run", "hyperkd:trainsegmentation", "--json", f"--INPUT={scene_path}"),
        *(f"--TRAINING={labels}", f"--ADAPTED={adapted}", f"--BACKBONE={teacher}"),
        *("--ADAPTATION=lora", f"--OUTPUT={model}"),
    )
    assert results_of(answer)["ECE"] == 0.03
    made = {"OUTPUT": str(tmp_path / "map.tif"), "POLYGONS": str(tmp_path / "map.gpkg")}
    answer = call(
        *("run", "hyperkd:segment", "--json", f"--INPUT={scene_path}", f"--MODEL={model}"),
        *("--OVERLAP=8", "--MIN_AREA=2700", *(f"--{key}={path}" for key, path in made.items())),
    )
    assert results_of(answer) == made


def test_train_a_fusion_of_two_pairs_fuse_and_assess(call, scene_path, tiny, tmp_path):
    other, fine = (tiny.write(tmp_path / f"{name}.tif") for name in ("other", "fine"))
    answer = call(
        *("run", "hyperkd:trainfusion", "--json"),
        *(f"--HYPERSPECTRAL={scene_path}", f"--HYPERSPECTRAL={other}"),
        *(f"--MULTISPECTRAL={fine}", f"--MULTISPECTRAL={fine}"),
        f"--OUTPUT={tmp_path / 'mine.zip'}",
    )
    assert results_of(answer)["TEACHER_PSNR_DB"] == 33.75
    answer = call(
        *("run", "hyperkd:fuse", "--json", f"--HYPERSPECTRAL={scene_path}"),
        *(f"--MULTISPECTRAL={fine}", "--METHOD=glphs", "--SHIFT=-0.5,1"),
        f"--OUTPUT={tmp_path / 'fused.tif'}",
    )
    fused = results_of(answer)
    assert fused["SHIFT_X"] == 1.02
    assert "CONSISTENCY" not in fused
    answer = call(
        *("run", "hyperkd:assessfusion", "--json", f"--INPUT={fused['OUTPUT']}"),
        *(f"--HYPERSPECTRAL={scene_path}", f"--MULTISPECTRAL={fine}"),
    )
    assert results_of(answer)["CONSISTENCY_MSI"] == 0.02


def test_an_unknown_word_ends_with_a_sentence(call, scene_path, tmp_path, teacher):
    answer = call(
        *("run", "hyperkd:distillbackbone", f"--INPUT={scene_path}", "--PRESET=huge"),
        *(f"--TEACHER={teacher}", f"--OUTPUT={tmp_path / 'mine.zip'}"),
    )
    assert answer.returncode != 0
    assert "PRESET" in answer.stdout + answer.stderr


def test_parameters_as_json(call, scene_path, tmp_path, teacher):
    """Numbers, words and switches as they are in JSON; QGIS reads it from 3.24 on."""
    from qgis.core import Qgis

    if Qgis.QGIS_VERSION_INT < 32400:
        pytest.skip("this qgis_process takes no parameters as JSON")
    inputs = {
        "INPUT": [scene_path],
        "TEACHER": str(teacher),
        "PRESET": "laptop",
        "EPOCHS": 3,
        "LEARNING_RATE": 0.0001,
        "COPY_TEACHER": True,
        "OUTPUT": str(tmp_path / "mine.zip"),
    }
    answer = call("run", "hyperkd:distillbackbone", "-", given=json.dumps({"inputs": inputs}))
    assert results_of(answer)["OUTPUT"] == str(tmp_path / "mine.zip")

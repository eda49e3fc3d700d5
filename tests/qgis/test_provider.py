"""The toolbox: ids and names are an API, every parameter has help, and all goes when it must."""

import os
import sys
from pathlib import Path

import pytest
from qgis.core import (
    Qgis,
    QgsApplication,
    QgsProcessingParameterDefinition,
    QgsProcessingUtils,
)

ROOT = Path(__file__).resolve().parents[2]

ALIGNMENT = (
    "RATIO:number?+ SHIFT:string?+ MAX_SHIFT:number+ RESPONSE:string?+ BANDS:file?+ "
    "MULTISPECTRAL_BANDS:file?+"
)
# Fixed for ever: name, type, "?" optional, "+" advanced.
PARAMETERS = {
    "adaptbackbone": (
        "INPUT:multilayer BACKBONE:string PRESET:enum EPOCHS:number RESUME:boolean+ "
        "MASK_RATIO:number+ TARGETS:multilayer?+ MASK_INPUT:enum?+ TRAIN_TOKENIZER:enum?+ "
        "SCALING:enum?+ LOAD_BALANCING:number+ BATCH_SIZE:number?+ LEARNING_RATE:number?+ "
        "VALIDATION:number+ SEED:number+ BANDS:file?+ DEVICE:enum+ REQUIRE_GPU:boolean+ "
        "GPUS:number+ PRECISION:enum+ TITLE:string?+ DESCRIPTION:string?+ LICENCE:string?+ "
        "ATTRIBUTION:string?+ OUTPUT:fileDestination REPORT:fileDestination?"
    ),
    "assessaccuracy": "INPUT:raster REFERENCE:layer CLASS_FIELD:field? REPORT:fileDestination?",
    "assessfusion": (
        "INPUT:raster REFERENCE:raster? HYPERSPECTRAL:raster? MULTISPECTRAL:raster? "
        f"{ALIGNMENT} REPORT:fileDestination?"
    ),
    "checkengine": "REPORT:fileDestination?",
    "classify": (
        "INPUT:raster MODEL:string MASK:source? EXTENT:extent? BANDS:file?+ DEVICE:enum+ "
        "REQUIRE_GPU:boolean+ TILE_SIZE:number?+ PRECISION:enum+ OUTPUT:rasterDestination "
        "CONFIDENCE:rasterDestination? PROBABILITIES:rasterDestination? "
        "SUPPORT:rasterDestination?"
    ),
    "distillbackbone": (
        "INPUT:multilayer TEACHER:string PRESET:enum EPOCHS:number RESUME:boolean+ "
        "MASK_RATIO:number+ GUIDED_SHARE:number+ HIDE:enum+ MSE_WEIGHT:number+ "
        "SSIM_WEIGHT:number+ FEATURE_WEIGHT:number+ SPECTRAL_WEIGHT:number+ TEMPERATURE:number+ "
        "FEATURE_LOSS:enum+ FEATURE_LAYERS:enum+ ALIGNMENT:enum+ RESPONSES:file?+ "
        "DROP_RANGES:string?+ COPY_TEACHER:boolean+ BATCH_SIZE:number?+ LEARNING_RATE:number?+ "
        "VALIDATION:number+ SEED:number+ BANDS:file?+ DEVICE:enum+ REQUIRE_GPU:boolean+ "
        "GPUS:number+ PRECISION:enum+ TITLE:string?+ DESCRIPTION:string?+ LICENCE:string?+ "
        "ATTRIBUTION:string?+ OUTPUT:fileDestination REPORT:fileDestination?"
    ),
    "describemodel": "MODEL:string INPUT:raster? REPORT:fileDestination?",
    "estimate": (
        "INPUT:raster MODEL:string MASK:source? EXTENT:extent? BANDS:file?+ DEVICE:enum+ "
        "REQUIRE_GPU:boolean+ TILE_SIZE:number?+ PRECISION:enum+ OUTPUT:rasterDestination"
    ),
    "fuse": (
        "HYPERSPECTRAL:raster MULTISPECTRAL:raster METHOD:enum MODEL:string EXTENT:extent? "
        f"BACK_PROJECTION:boolean {ALIGNMENT} DATA_TYPE:enum+ TILE_SIZE:number?+ DEVICE:enum+ "
        "REQUIRE_GPU:boolean+ PRECISION:enum+ OUTPUT:rasterDestination "
        "CONSISTENCY:rasterDestination? REPORT:fileDestination?"
    ),
    "pretrainteacher": (
        "INPUT:multilayer PRESET:enum EPOCHS:number RESUME:boolean+ MASK_RATIO:number+ "
        "BATCH_SIZE:number?+ LEARNING_RATE:number?+ VALIDATION:number+ SEED:number+ BANDS:file?+ "
        "DEVICE:enum+ REQUIRE_GPU:boolean+ GPUS:number+ PRECISION:enum+ TITLE:string?+ "
        "DESCRIPTION:string?+ LICENCE:string?+ ATTRIBUTION:string?+ OUTPUT:fileDestination "
        "REPORT:fileDestination?"
    ),
    "segment": (
        "INPUT:raster MODEL:string MASK:source? EXTENT:extent? BANDS:file?+ DEVICE:enum+ "
        "REQUIRE_GPU:boolean+ TILE_SIZE:number?+ PRECISION:enum+ OVERLAP:number?+ "
        "MIN_AREA:number+ OUTPUT:rasterDestination CONFIDENCE:rasterDestination? "
        "PROBABILITIES:rasterDestination? SUPPORT:rasterDestination? "
        "POLYGONS:vectorDestination?"
    ),
    "trainclassifier": (
        "INPUT:multilayer TRAINING:layer CLASS_FIELD:field? BACKBONE:string? EPOCHS:number "
        "VALIDATION:number FREEZE_BACKBONE:boolean+ SEED:number+ DEVICE:enum+ "
        "OUTPUT:fileDestination REPORT:fileDestination?"
    ),
    "trainfusion": (
        "HYPERSPECTRAL:multilayer MULTISPECTRAL:multilayer PRESET:enum EPOCHS:number? "
        f"VALIDATION:number RESUME:boolean+ {ALIGNMENT} START:enum?+ DISTILLATION:enum?+ "
        "FUSION:enum?+ SEED:number+ DEVICE:enum+ REQUIRE_GPU:boolean+ PRECISION:enum+ "
        "TITLE:string?+ DESCRIPTION:string?+ LICENCE:string?+ ATTRIBUTION:string?+ "
        "OUTPUT:fileDestination REPORT:fileDestination?"
    ),
    "trainregression": (
        "INPUT:multilayer TRAINING:layer VALUE_FIELD:field? QUANTITY:string? UNIT:string? "
        "BACKBONE:string? EPOCHS:number VALIDATION:number FREEZE_BACKBONE:boolean+ "
        "BLOCK_SIZE:number+ BANDS:file?+ TITLE:string?+ DESCRIPTION:string?+ LICENCE:string?+ "
        "ATTRIBUTION:string?+ SEED:number+ DEVICE:enum+ OUTPUT:fileDestination "
        "REPORT:fileDestination?"
    ),
    "trainsegmentation": (
        "INPUT:multilayer TRAINING:layer CLASS_FIELD:field? ADAPTED:string? BACKBONE:string "
        "PRESET:enum EPOCHS:number VALIDATION:number ADAPTATION:enum+ TRAIN_TOKENIZER:enum?+ "
        "SCALING:enum?+ LOAD_BALANCING:number+ REFINE:enum?+ MATCH:enum?+ SPECTRAL_PATH:enum?+ "
        "BLOCK_SIZE:number+ BATCH_SIZE:number?+ LEARNING_RATE:number?+ BANDS:file?+ "
        "TITLE:string?+ DESCRIPTION:string?+ LICENCE:string?+ ATTRIBUTION:string?+ SEED:number+ "
        "DEVICE:enum+ REQUIRE_GPU:boolean+ PRECISION:enum+ OUTPUT:fileDestination "
        "REPORT:fileDestination?"
    ),
}
SCORES = ["OVERALL_ACCURACY", "BALANCED_ACCURACY", "KAPPA", "F1_MACRO", "IOU_MACRO"]
RECONSTRUCTION = [
    f"{name}{part}" for part in ("", "_WHOLE") for name in ("PSNR_DB", "SSIM", "SPECTRAL_ANGLE_DEG")
]
SHIFT, CONSISTENCY = ["SHIFT_X", "SHIFT_Y"], ["CONSISTENCY_HSI", "CONSISTENCY_MSI"]
FUSION = ["PSNR_DB", "SAM_DEG", "ERGAS"]
OUTPUTS = {
    "adaptbackbone": ["OUTPUT", "REPORT", *RECONSTRUCTION, "TRAINABLE_PARAMETERS"],
    "assessaccuracy": ["REPORT", *SCORES],
    "assessfusion": ["REPORT", *FUSION, "RMSE", "UIQI", "Q2N", *CONSISTENCY],
    "checkengine": ["REPORT", "TEXT"],
    "classify": ["OUTPUT", "CONFIDENCE", "PROBABILITIES", "SUPPORT"],
    "describemodel": ["REPORT"],
    "distillbackbone": ["OUTPUT", "REPORT", *RECONSTRUCTION],
    "estimate": ["OUTPUT"],
    "fuse": ["OUTPUT", "CONSISTENCY", "REPORT", *SHIFT, *CONSISTENCY],
    "pretrainteacher": ["OUTPUT", "REPORT", *RECONSTRUCTION],
    "segment": ["OUTPUT", "CONFIDENCE", "PROBABILITIES", "SUPPORT", "POLYGONS"],
    "trainclassifier": ["OUTPUT", "REPORT", *SCORES],
    "trainfusion": [
        *("OUTPUT", "REPORT"),
        *FUSION,
        *("TEACHER_PSNR_DB", "BEST_CLASSICAL_PSNR_DB"),
        *SHIFT,
        "PARAMETERS",
    ],
    "trainregression": ["OUTPUT", "REPORT", "RMSE", "MAE", "R2"],
    "trainsegmentation": ["OUTPUT", "REPORT", *SCORES, "ECE", "TRAINABLE_PARAMETERS"],
}
NAMES = sorted(PARAMETERS)


def describe(definition):
    flags = definition.flags()
    optional = "?" if flags & QgsProcessingParameterDefinition.FlagOptional else ""
    advanced = "+" if flags & QgsProcessingParameterDefinition.FlagAdvanced else ""
    return f"{definition.name()}:{definition.type()}{optional}{advanced}"


def test_ids(plugin):
    provider = QgsApplication.processingRegistry().providerById("hyperkd")
    assert sorted(algorithm.name() for algorithm in provider.algorithms()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_parameters(algorithm, name):
    described = " ".join(describe(item) for item in algorithm(name).parameterDefinitions())
    assert described == PARAMETERS[name]


@pytest.mark.parametrize("name", NAMES)
def test_outputs(algorithm, name):
    assert [output.name() for output in algorithm(name).outputDefinitions()] == OUTPUTS[name]


@pytest.mark.parametrize(
    ("parameter", "choices"),
    [("DEVICE", ["auto", "cpu", "cuda"]), ("PRECISION", ["auto", "float32", "bfloat16"])],
)
def test_choices_are_given_by_name(algorithm, parameter, choices):
    definition = algorithm("classify").parameterDefinition(parameter)
    assert definition.usesStaticStrings()
    assert definition.options() == choices
    assert definition.defaultValue() == "auto"


WORDS = {
    "PRESET": ["laptop", "small64", "base128", "d512", "vit_b"],
    "HIDE": ["informative", "plain"],
    "FEATURE_LOSS": ["kl", "mse"],
    "FEATURE_LAYERS": ["last", "quarters"],
    "ALIGNMENT": ["mean", "response", "nearest"],
}


@pytest.mark.parametrize("parameter", sorted(WORDS))
def test_choices_of_distillation_begin_with_the_default(algorithm, parameter):
    definition = algorithm("distillbackbone").parameterDefinition(parameter)
    assert definition.usesStaticStrings()
    assert definition.options() == WORDS[parameter]
    assert definition.defaultValue() == WORDS[parameter][0]


def test_most_people_need_six_parameters_to_distil(algorithm):
    definitions = algorithm("distillbackbone").parameterDefinitions()
    plain = [item.name() for item in definitions if "+" not in describe(item)]
    assert plain == ["INPUT", "TEACHER", "PRESET", "EPOCHS", "OUTPUT", "REPORT"]


FUSING = {
    "METHOD": ["csakd", "bicubic", "gsa", "glphs", "cnmf"],
    "DATA_TYPE": ["int16", "float32"],
}


@pytest.mark.parametrize("parameter", sorted(FUSING))
def test_choices_of_fusing_begin_with_the_default(algorithm, parameter):
    definition = algorithm("fuse").parameterDefinition(parameter)
    assert definition.usesStaticStrings()
    assert definition.options() == FUSING[parameter]
    assert definition.defaultValue() == FUSING[parameter][0]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("fuse", "HYPERSPECTRAL MULTISPECTRAL METHOD MODEL EXTENT BACK_PROJECTION"),
        ("trainfusion", "HYPERSPECTRAL MULTISPECTRAL PRESET EPOCHS VALIDATION"),
        ("assessfusion", "INPUT REFERENCE HYPERSPECTRAL MULTISPECTRAL"),
    ],
)
def test_how_images_fit_is_folded_away(algorithm, name, wanted):
    definitions = algorithm(name).parameterDefinitions()
    plain = [item for item in definitions if "+" not in describe(item)]
    assert [item.name() for item in plain if not item.isDestination()] == wanted.split()


@pytest.mark.parametrize("name", NAMES)
def test_numbers_begin_within_their_range(algorithm, name):
    for item in algorithm(name).parameterDefinitions():
        if item.type() == "number" and item.defaultValue() is not None:
            assert item.minimum() <= item.defaultValue() <= item.maximum(), item.name()


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_help(algorithm, name):
    for definition in algorithm(name).parameterDefinitions():
        assert len(definition.help()) > 10, definition.name()


@pytest.mark.parametrize("name", NAMES)
def test_every_number_is_explained(algorithm, name):
    made = algorithm(name)
    entries = made.help_page().entries()
    assert [
        output.name() for output in made.outputDefinitions() if output.name() not in entries
    ] == []


@pytest.mark.parametrize("name", NAMES)
def test_help_speaks_of_nothing_that_is_not_there(algorithm, name):
    made = algorithm(name)
    known = {item.name() for item in made.parameterDefinitions()} | set(OUTPUTS[name])
    assert set(made.help_page().entries()) <= known


@pytest.mark.parametrize("name", NAMES)
def test_help_has_its_sections(algorithm, name):
    text = algorithm(name).shortHelpString()
    for section in ("What it does", "Parameters", "Outputs", "Example"):
        assert f"<h3>{section}</h3>" in text
    assert f"qgis_process run hyperkd:{name}" in text


def test_help_calls_parameters_as_the_dialog_does(algorithm):
    text = algorithm("classify").shortHelpString()
    assert "<li><b>Band table (CSV)</b>: A CSV" in text
    assert "BANDS" not in text


@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_can_be_found(algorithm, name):
    made = algorithm(name)
    assert made.displayName()
    assert made.group()
    assert made.shortDescription().endswith(".")
    assert "hyperspectral" in made.tags()
    assert made.helpUrl().startswith("https://")


@pytest.mark.parametrize("name", [*NAMES, "hyperkd"])
def test_icons_are_drawn(plugin, name):
    from qgis.PyQt.QtGui import QIcon

    path = ROOT / "resources" / "icons" / f"{name}.svg"
    image = QIcon(str(path)).pixmap(24, 24).toImage()
    colors = {image.pixel(x, y) for x in range(image.width()) for y in range(image.height())}
    assert len(colors) > 20


def test_icons_differ(plugin):
    texts = [path.read_text() for path in (ROOT / "resources" / "icons").glob("*.svg")]
    assert len(set(texts)) == len(texts) == len(NAMES) + 1


def test_every_file_of_the_folder_is_an_algorithm(plugin):
    from hyperkd.hyperkd_qgis.algorithms import algorithm_classes

    shared = {"pairs", "prediction", "pretraining", "resumable", "training"}
    helpers = {"__init__", "base", "parameters", "values", *shared}
    files = {path.stem for path in (ROOT / "hyperkd_qgis" / "algorithms").glob("*.py")}
    assert {found.command for found in algorithm_classes()} == files - helpers


def test_each_run_has_its_own_instance(algorithm):
    made = algorithm("classify")
    assert made.createInstance() is not made.createInstance()


def test_loading_brings_nothing_of_the_engine_into_qgis(plugin):
    for name in ("engine", "torch", "rasterio"):
        assert name not in sys.modules


def test_nothing_is_put_on_the_path(plugin):
    assert str(ROOT / "hyperkd_qgis") not in sys.path


# The engine is missing


@pytest.fixture
def no_engine(monkeypatch, tmp_path):
    monkeypatch.delenv("HYPERKD_ENGINE_PYTHON", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


@pytest.mark.skipif((ROOT / ".venv").exists(), reason="this checkout has an engine")
@pytest.mark.parametrize("name", sorted(set(NAMES) - {"checkengine"}))
def test_algorithms_say_what_is_missing(algorithm, no_engine, name):
    possible, message = algorithm(name).canExecute()
    assert not possible
    assert "python3.11 -m venv" in message
    assert "pip install --require-hashes" in message


def test_algorithms_can_run_with_an_engine(algorithm):
    assert algorithm("classify").canExecute() == (True, "")


def test_looking_for_the_engine_starts_nothing(algorithm, session):
    algorithm("classify").canExecute()
    assert not session.client.is_warm


@pytest.mark.skipif((ROOT / ".venv").exists(), reason="this checkout has an engine")
def test_check_engine_runs_without_one_and_tells_how_to_get_it(plugin, no_engine):
    import processing

    result = processing.run("hyperkd:checkengine", {})
    assert "-m venv" in result["TEXT"]
    assert Path(result["REPORT"]).read_text(encoding="utf-8") == result["TEXT"]


# Options


def test_options_are_shown_and_read(plugin, session, fake_python):
    from processing.core.ProcessingConfig import ProcessingConfig

    ProcessingConfig.setSettingValue("hyperkd/engine_python", str(fake_python))
    ProcessingConfig.setSettingValue("hyperkd/device", 1)
    ProcessingConfig.setSettingValue("hyperkd/idle_minutes", 3)
    try:
        settings = session.settings()
        assert (settings.engine_python, settings.device, settings.idle_minutes) == (
            str(fake_python),
            "cpu",
            3,
        )
        assert session.command().arguments[-2:] == ("--idle-minutes", "3")
    finally:
        for name, value in (("engine_python", ""), ("device", 0), ("idle_minutes", 10)):
            ProcessingConfig.setSettingValue(f"hyperkd/{name}", value)


def test_an_interpreter_of_the_options_that_is_gone_is_named(plugin, algorithm):
    from qgis.core import QgsSettings

    key = "Processing/Configuration/hyperkd/engine_python"
    QgsSettings().setValue(key, "/nowhere/python")
    try:
        possible, message = algorithm("classify").canExecute()
        assert not possible
        assert "/nowhere/python" in message
    finally:
        QgsSettings().remove(key)


# Load and unload


def test_unload_takes_everything_away(qgis_app, qgis_processing, plugins_folder, qgis_iface):
    from hyperkd import classFactory
    from processing.core.ProcessingConfig import ProcessingConfig

    plugin = classFactory(qgis_iface)
    plugin.initGui()
    assert "hyperkd/device" in ProcessingConfig.settings
    plugin.unload()
    assert QgsApplication.processingRegistry().providerById("hyperkd") is None
    assert "hyperkd/device" not in ProcessingConfig.settings


def test_unload_ends_the_engine(
    qgis_app, qgis_processing, plugins_folder, fake_python, monkeypatch
):
    import processing
    from hyperkd import classFactory

    monkeypatch.setenv("HYPERKD_ENGINE_PYTHON", str(fake_python))
    plugin = classFactory(None)
    plugin.initProcessing()
    processing.run("hyperkd:checkengine", {})
    process = plugin._session.client._engine[0]._process
    assert process.poll() is None
    plugin.unload()
    assert process.poll() is not None


def test_unload_twice_and_before_loading(plugins_folder):
    from hyperkd import classFactory

    plugin = classFactory(None)
    plugin.unload()
    plugin.unload()


def test_a_second_plugin_of_the_same_id_breaks_nothing(plugin, algorithm):
    from hyperkd import classFactory

    second = classFactory(None)
    second.initProcessing()
    second.unload()
    assert algorithm("classify").canExecute() == (True, "")


def test_metadata_has_what_the_plugin_site_asks_for():
    import configparser

    metadata = configparser.ConfigParser(interpolation=None)
    metadata.read(ROOT / "metadata.txt", encoding="utf-8")
    general = metadata["general"]
    required = "name description version qgisMinimumVersion author email about tracker repository"
    assert [key for key in required.split() if not general.get(key)] == []
    assert general["name"] == "HyperKD"
    assert general["category"] in ("Raster", "Vector", "Database", "Mesh", "Web")
    assert general["hasProcessingProvider"] == "yes"
    assert (general["qgisMinimumVersion"], general["qgisMaximumVersion"]) == ("3.22", "4.99")
    assert (ROOT / general["icon"]).is_file()
    assert Qgis.QGIS_VERSION_INT >= 32200


def test_temporary_files_of_exports_are_in_qgis_own_folder(plugin, session, labels):
    from hyperkd.hyperkd_qgis.sources import Exports
    from qgis.core import QgsCoordinateTransformContext

    exports = Exports(QgsCoordinateTransformContext())
    path = exports._new_path("ä/b", ".gpkg")
    assert os.path.commonpath([str(path), QgsProcessingUtils.tempFolder()]) == os.path.normpath(
        QgsProcessingUtils.tempFolder()
    )
    exports.remove()
    assert not path.parent.exists()

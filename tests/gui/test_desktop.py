"""The real QGIS desktop, started as a user starts it, and driven from inside.

The plugin is installed from its zip where HYPERKD_PLUGIN_ZIP names one, else linked. Pictures go
to HYPERKD_SCREENSHOTS, else to build/desktop.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from osgeo import gdal

gdal.UseExceptions()

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
SCENE = ROOT / "resources" / "sample" / "EnMAP_BerlinUrbanGradient.bsq"
LIMIT_S = 240
FINE_M = 3.0  # of labels that are counted in a scene's pixels
UNKNOWN = -1.0
PICTURES = Path(os.environ.get("HYPERKD_SCREENSHOTS") or ROOT / "build" / "desktop")

# Debian's wrapper script hands on options of its own
PROGRAM = shutil.which("qgis.bin") or shutil.which("qgis")

SETTINGS = """
[General]
locale\\overrideFlag=true
locale\\userLocale=en_US

[PythonPlugins]
processing=true
hyperkd=true

[app]
projections\\unknownCrsBehavior=NoAction

[qgis]
checkVersion=false
showTips=false
askToSaveMemoryLayers=false

[locale]
overrideFlag=true
userLocale=en_US

[migration]
fileVersion=2
settings=true
firstRunVersionFlag=99999
"""

pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="the QGIS desktop is not installed"),
    pytest.mark.skipif(
        sys.platform.startswith("linux") and not os.environ.get("DISPLAY"),
        reason="there is no screen: run build_tools/with_display.sh",
    ),
    pytest.mark.skipif(
        not os.environ.get("HYPERKD_ENGINE_PYTHON"), reason="HYPERKD_ENGINE_PYTHON names no engine"
    ),
    pytest.mark.skipif(not SCENE.is_file(), reason="the packaged scene is not in this checkout"),
]


def install(plugins):
    plugins.mkdir(parents=True)
    archive = os.environ.get("HYPERKD_PLUGIN_ZIP", "")
    if os.path.isfile(archive):
        with zipfile.ZipFile(archive) as files:
            files.extractall(plugins)
    else:
        (plugins / "hyperkd").symlink_to(ROOT)


def copy_scene(folder):
    """A copy, as QGIS writes its statistics beside a scene."""
    folder.mkdir()
    for path in SCENE.parent.glob(f"{SCENE.stem}.*"):
        if not path.name.endswith(".aux.xml"):
            shutil.copy(path, folder)
    return folder / SCENE.name


def copy_fine_image(folder):
    """A copy, as QGIS writes its statistics beside an image."""
    path = SCENE.with_name("HighResolution_BerlinUrbanGradient.tif")
    for found in path.parent.glob(f"{path.name}*"):  # its band table lies beside it
        shutil.copy(found, folder)
    return folder / path.name


def copy_labels(folder):
    """A copy, as SQLite writes beside a GeoPackage that is only read."""
    return shutil.copy(SCENE.with_name("LandCov_BerlinUrbanGradient.gpkg"), folder)


def write_vegetation(labels, folder):
    """Make a raster of the share of vegetation in each labelled pixel of the scene, in percent."""
    scene = gdal.Open(str(SCENE))
    fine = gdal.Rasterize(
        "",
        labels,
        format="MEM",
        layers=["land_cover"],
        burnValues=[0],
        initValues=[UNKNOWN],
        noData=UNKNOWN,
        outputType=gdal.GDT_Float32,
        outputBounds=bounds_of(scene),
        xRes=FINE_M,
        yRes=FINE_M,
    )
    plants = "class_name IN ('Low vegetation', 'Tree')"
    gdal.Rasterize(fine, labels, layers=["land_cover"], where=plants, burnValues=[100])
    path = folder / "vegetation.tif"
    size = {"width": scene.RasterXSize, "height": scene.RasterYSize}
    gdal.Warp(str(path), fine, outputBounds=bounds_of(scene), resampleAlg="average", **size)
    return path


def bounds_of(raster):
    left, width, _, top, _, height = raster.GetGeoTransform()
    return left, top + height * raster.RasterYSize, left + width * raster.RasterXSize, top


def play(scenario, pictures, tmp_path):
    """Start QGIS, have it play a scenario, and read how that went."""
    pictures.mkdir(parents=True, exist_ok=True)
    for old in (*pictures.glob("[0-9][0-9]-*.png"), *pictures.glob("outcome.json")):
        old.unlink()
    install(tmp_path / "plugins")
    settings = tmp_path / "profiles" / "profiles" / "default" / "QGIS" / "QGIS3.ini"
    settings.parent.mkdir(parents=True)
    settings.write_text(SETTINGS, encoding="utf-8")
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    scene, labels = copy_scene(tmp_path / "data"), copy_labels(tmp_path / "data")
    environment = {
        **kept,
        "QT_QPA_PLATFORM": "xcb",
        "QGIS_PLUGINPATH": str(tmp_path / "plugins"),
        "XDG_RUNTIME_DIR": str(runtime),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HYPERKD_SCENARIO": str(HERE / scenario),
        "HYPERKD_SCREENSHOTS": str(pictures),
        "HYPERKD_SCENE": str(scene),
        "HYPERKD_FINE_IMAGE": str(copy_fine_image(tmp_path / "data")),
        "HYPERKD_LABELS": str(labels),
        "HYPERKD_VALUES": str(write_vegetation(str(labels), tmp_path)),
        "HYPERKD_WORK": str(tmp_path),
        "HYPERKD_GUI_LIMIT_S": str(LIMIT_S - 60),
    }
    arguments = [PROGRAM, "--profiles-path", str(tmp_path / "profiles"), "--profile", "default"]
    arguments += ["--nologo", "--noversioncheck", "--code", str(HERE / "driver.py")]
    log = pictures / "qgis.log"
    with log.open("wb") as stream:
        try:
            code = subprocess.run(
                arguments,
                env=environment,
                stdout=stream,
                stderr=stream,
                timeout=LIMIT_S,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            # a message box at the start keeps --code from running at all
            pytest.fail(f"QGIS hangs:\n{log.read_text(errors='replace')[-3000:]}")
    told = pictures / "outcome.json"
    if not told.is_file():
        words = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        pytest.fail(f"QGIS ended with {code} before the scenario did:\n{words}")
    return {**json.loads(told.read_text(encoding="utf-8")), "code": code, "pictures": pictures}


def test_from_the_toolbox_to_a_styled_map(tmp_path):
    outcome = play("scenario_classify.py", PICTURES, tmp_path)
    assert outcome["failure"] == ""
    assert outcome["code"] == 0
    assert outcome["unloaded"] is True
    assert len(outcome["classes"]) >= 3
    assert outcome["batch"] == ["batch0.tif", "batch1.tif"]
    assert outcome["complaints"] == 0
    # the engine stays warm: no second start, no second import of torch
    assert outcome["warm_s"] < outcome["cold_s"]
    names = {path.stem[3:] for path in outcome["pictures"].glob("*.png")}
    assert {"toolbox", "cold-dialog", "cold-log", "landcover", "confidence", "batch"} <= names


def test_from_a_raster_of_values_to_a_map_of_the_quantity(tmp_path):
    outcome = play("scenario_backbones.py", PICTURES / "backbones", tmp_path)
    assert outcome["failure"] == ""
    assert outcome["code"] == 0
    assert outcome["unloaded"] is True
    least, most = outcome["range"]
    assert -50 < least < most < 150
    assert outcome["complaints"] == 0
    names = {path.stem[3:] for path in outcome["pictures"].glob("*.png")}
    wanted = {"distillation-dialog", "distillation-advanced", "pretraining-dialog"}
    assert wanted | {"regression-dialog", "regression-log", "estimate-dialog", "estimate"} <= names


def test_from_a_backbone_to_polygons_on_the_map(tmp_path):
    outcome = play("scenario_segmentation.py", PICTURES / "segmentation", tmp_path)
    assert outcome["failure"] == ""
    assert outcome["code"] == 0
    assert outcome["unloaded"] is True
    assert outcome["polygons"] > 1
    assert outcome["complaints"] == 0
    names = {path.stem[3:] for path in outcome["pictures"].glob("*.png")}
    dialogs = {"adapting-dialog", "segmentation-training-dialog", "segmentation-dialog"}
    assert dialogs | {"polygons", "land-cover", "confidence", "support"} <= names


def test_from_two_images_to_a_fused_one_on_the_map(tmp_path):
    outcome = play("scenario_fusion.py", PICTURES / "fusion", tmp_path)
    assert outcome["failure"] == ""
    assert outcome["code"] == 0
    assert outcome["unloaded"] is True
    assert outcome["bands"] > 100
    assert 0 < outcome["reflectance"] < 1  # the scale of whole numbers is read
    assert outcome["complaints"] == 0
    names = {path.stem[3:] for path in outcome["pictures"].glob("*.png")}
    dialogs = {"training-dialog", "training-log", "fusing-dialog", "fusing-log", "assessing-log"}
    assert dialogs | {"fused-image", "consistency"} <= names

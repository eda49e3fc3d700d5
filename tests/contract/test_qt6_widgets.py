"""The plugin's widgets under a real Qt 6, without QGIS 4: ``qgis.PyQt`` is PyQt6 here.

It finds enums without their scope, classes that moved, and ``exec_``. The Qt 6 of qgis.core and
qgis.gui cannot be had yet, so this is "ready for Qt 6", not "tested on QGIS 4".
"""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("QtCore", "QtGui", "QtWidgets")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("PyQt6") is None, reason="PyQt6 is not installed"
)

PLAY = """
import sys
from pathlib import Path
from PyQt6.QtCore import QT_VERSION_STR
from PyQt6.QtTest import QTest
from PyQt6.QtWidgets import QApplication, QFileDialog

application = QApplication([])
from hyperkd_qgis.gui.model_box import ModelBox
from hyperkd_qgis.model_catalogue import InstalledModel

assert QT_VERSION_STR.startswith("6.")
models = [InstalledModel("alps", "Alps", Path("a")), InstalledModel("berlin", "Berlin", Path("b"))]
box = ModelBox(models, optional=True)
changes = []
box.changed.connect(lambda: changes.append(box.value()))
box.show()
assert box.value() == ""
box.set_value("berlin")
assert (box.value(), box.combo.currentText()) == ("berlin", "Berlin")
box.combo.lineEdit().clear()
QTest.keyClicks(box.combo.lineEdit(), "/data/mine.zip")
assert box.value() == "/data/mine.zip"
box.combo.lineEdit().clear()
QTest.keyClicks(box.combo.lineEdit(), "alps")
assert box.value() == "alps"
QFileDialog.getOpenFileName = lambda *_: ("/data/other.zip", "")
box.button.menu().actions()[0].trigger()
assert changes[-1] == "/data/other.zip"
assert box.grab().save(sys.argv[1])
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A package ``qgis.PyQt`` that is nothing but PyQt6."""
    folder = tmp_path_factory.mktemp("qt6")
    package = folder / "qgis" / "PyQt"
    package.mkdir(parents=True)
    for name in MODULES:
        (package / f"{name}.py").write_text(f"from PyQt6.{name} import *\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QT_")}
    path = os.pathsep.join((str(folder), str(ROOT)))
    variables = {**kept, "PYTHONPATH": path, "QT_QPA_PLATFORM": "offscreen"}
    probe = [sys.executable, "-c", "import PyQt6.QtWidgets, PyQt6.QtTest"]
    answer = subprocess.run(probe, env=variables, capture_output=True, text=True, check=False)
    if answer.returncode:
        pytest.skip(f"PyQt6 does not start here: {answer.stderr.strip().splitlines()[-1]}")
    return variables


def test_choice_of_a_model(environment, tmp_path):
    picture = tmp_path / "box.png"
    play = [sys.executable, "-c", PLAY, str(picture)]
    answer = subprocess.run(
        play, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert picture.stat().st_size > 100


def qt_names(path):
    """List what a file takes from Qt: ``Module.Class`` and every dotted name that begins so."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qgis.PyQt."):
            modules.update({alias.name: node.module.rpartition(".")[2] for alias in node.names})
    names = {f"{module}.{name}" for name, module in modules.items()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, dot, rest = ast.unparse(node).partition(".")
            if first in modules and rest.replace(".", "").isidentifier():
                names.add(f"{modules[first]}.{first}{dot}{rest}")
    return sorted(names)


LOOK_UP = """
import sys
from functools import reduce
from importlib import import_module

for name in sys.argv[1:]:
    module, *parts = name.split(".")
    try:
        reduce(getattr, parts, import_module(f"PyQt6.{module}"))
    except AttributeError:
        print(name)
"""


def test_every_name_of_qt_is_there_in_qt6(environment):
    files = (ROOT / "hyperkd_qgis").rglob("*.py")
    used = sorted({name for path in files for name in qt_names(path)})
    assert "QtWidgets.QComboBox.InsertPolicy.NoInsert" in used
    look_up = [sys.executable, "-c", LOOK_UP, *used]
    answer = subprocess.run(look_up, env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == []


def test_a_name_without_its_scope_would_be_found(environment):
    look_up = [
        sys.executable,
        "-c",
        LOOK_UP,
        "QtWidgets.QComboBox.NoInsert",
        "QtCore.Qt.LeftButton",
    ]
    answer = subprocess.run(look_up, env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == look_up[3:]

"""Who may import whom: the table in DESIGN.md, read off the syntax trees of the product.

A row says what the files of a place may import beside the standard library and their own package.
The first row that a file matches is its row; a file that matches none has no place in the house.
"""

import ast
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Small files that every room of the engine may use, and that use nothing themselves.
EVERYWHERE = ("engine.errors", "engine.feedback", "engine.version", "engine.textfile")
QGIS = ("qgis", "osgeo", "processing", "hyperkd_qgis")


class Row(NamedTuple):
    """What the files at a place may import, beside the standard library."""

    place: str
    may_import: tuple[str, ...]


ROWS = (
    Row("__init__.py", ("hyperkd_qgis.plugin",)),
    Row("run_engine.py", ("engine.__main__",)),
    Row("hyperkd_qgis/request.py", ()),
    Row("hyperkd_qgis/events.py", ()),
    Row("hyperkd_qgis/*", QGIS),
    Row("engine/protocol.py", ()),
    Row("engine/errors.py", ()),
    Row("engine/feedback.py", ()),
    Row("engine/version.py", ()),
    Row("engine/textfile.py", ("engine.errors",)),
    Row("engine/device.py", ("engine.errors", "torch")),
    Row("engine/report.py", (*EVERYWHERE, "jinja2", "matplotlib", "numpy")),
    Row("engine/__init__.py", ()),
    Row("engine/__main__.py", (*EVERYWHERE, "engine.protocol", "engine.worker")),
    Row("engine/worker.py", (*EVERYWHERE, "engine.protocol", "engine.jobs", "engine.device")),
    Row(
        "engine/jobs/*",
        (*EVERYWHERE, "engine.jobs", "engine.training", "engine.packages", "engine.models",
         "engine.raster", "engine.device", "engine.report", "lightning_fabric", "matplotlib",
         "numpy", "pydantic", "rasterio", "sklearn", "torch"),
    ),
    Row(
        "engine/training/*",
        (*EVERYWHERE, "engine.training", "engine.packages", "engine.models", "engine.raster",
         "engine.report", "matplotlib", "numpy", "safetensors", "torch", "torchmetrics", "sklearn",
         "lightning_fabric", "einops"),
    ),
    Row(
        "engine/packages/*",
        (*EVERYWHERE, "engine.packages", "engine.models", "engine.raster.alignment",
         "engine.raster.spectra", "engine.raster.style", "engine.raster.tiles",
         "numpy", "pydantic", "safetensors", "torch"),
    ),
    Row("engine/models/*", ("engine.models", "einops", "torch")),
    Row("engine/raster/tiles.py", ()),
    Row("engine/raster/stream.py", (*EVERYWHERE, "engine.raster", "numpy", "rasterio", "torch")),
    Row(
        "engine/raster/pair_s*.py",  # pair_sample and pair_stream hand an ImagePair on
        (*EVERYWHERE, "engine.raster", "engine.models.fusion.method", "numpy", "rasterio", "torch"),
    ),
    Row("engine/raster/model_threads.py", (*EVERYWHERE, "engine.raster", "torch")),
    Row("engine/raster/blend.py", (*EVERYWHERE, "engine.raster", "numpy", "torch")),
    Row("engine/raster/reflectance.py", (*EVERYWHERE, "engine.raster", "numpy", "torch")),
    Row(
        "engine/raster/*",
        (*EVERYWHERE, "engine.raster", "affine", "numpy", "pyogrio", "rasterio", "shapely"),
    ),
)  # fmt: skip
# No file of a place may do this, whatever its row says.
AT_MODULE_LEVEL_NOTHING = ("__init__.py",)


def row_of(file: str) -> Row:
    """Return the first row that the file matches."""
    for row in ROWS:
        if fnmatch(file, row.place):
            return row
    raise LookupError(f"{file} matches no row: which room does it belong to?")


def package_of(file: str, level: int) -> str:
    """Return the package that a relative import of this many dots starts from."""
    parts = Path(file).parent.parts
    return ".".join(parts[: len(parts) - (level - 1)])


def imported_by(node: ast.AST, file: str) -> list[str]:
    """Return the dotted names that one statement or call imports, relative ones made absolute."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            base = ".".join(filter(None, (package_of(file, node.level), base)))
        # `from engine import raster` imports engine.raster.
        bare = base in ("", "engine", "hyperkd_qgis")
        return [f"{base}.{alias.name}".strip(".") if bare else base for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        function = ast.unparse(node.func).rpartition(".")[2]
        if function in ("import_module", "__import__"):
            return [str(node.args[0].value)]
    return []


def is_allowed(name: str, row: Row) -> bool:
    """Tell whether a row, or the standard library, has the name."""
    if name.partition(".")[0] in sys.stdlib_module_names:
        return True
    return any(name == allowed or name.startswith(f"{allowed}.") for allowed in row.may_import)


def violations(file: str, source: str) -> list[str]:
    """Name what a file imports against the table."""
    row = row_of(file)
    tree = ast.parse(source)
    found = [
        f"{file}:{node.lineno} imports {name}"
        for node in ast.walk(tree)
        for name in imported_by(node, file)
        if not is_allowed(name, row)
    ]
    if file in AT_MODULE_LEVEL_NOTHING:
        found += [
            f"{file}:{node.lineno} imports at module level"
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
    if file.startswith("hyperkd_qgis/"):
        found += [
            f"{file}:{node.lineno} imports its own package by its full name"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            and node.level == 0
            and str(node.module).startswith("hyperkd_qgis")
        ]
    return found


def product_files() -> list[str]:
    """Return the product's Python files: those at the root, the plugin's and the engine's."""
    found = [*ROOT.glob("*.py"), *ROOT.glob("hyperkd_qgis/**/*.py"), *ROOT.glob("engine/**/*.py")]
    return sorted(str(path.relative_to(ROOT).as_posix()) for path in found)


@pytest.mark.parametrize("file", product_files())
def test_imports_follow_the_table(file):
    assert violations(file, (ROOT / file).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "statement"),
    [
        ("__init__.py", "from .hyperkd_qgis.plugin import HyperKDPlugin"),
        ("__init__.py", "def classFactory(iface):\n    import torch"),
        ("run_engine.py", "import engine.worker"),
        ("hyperkd_qgis/request.py", "from qgis.core import QgsProject"),
        ("hyperkd_qgis/events.py", "from .settings import Settings"),
        ("hyperkd_qgis/layers.py", "import numpy"),
        ("hyperkd_qgis/layers.py", "import torch"),
        ("hyperkd_qgis/layers.py", "from PyQt5 import QtCore"),
        ("hyperkd_qgis/layers.py", "from engine.raster import style"),
        ("hyperkd_qgis/layers.py", "from hyperkd_qgis.settings import Settings"),
        ("hyperkd_qgis/algorithms/classify.py", "from ...engine import raster"),
        ("engine/protocol.py", "import numpy"),
        ("engine/errors.py", "import pydantic"),
        ("engine/feedback.py", "from engine import jobs"),
        ("engine/device.py", "from engine.raster.scene import Scene"),
        ("engine/worker.py", "import torch"),
        ("engine/jobs/classify.py", "import qgis"),
        ("engine/jobs/classify.py", "import osgeo.gdal"),
        ("engine/jobs/classify.py", "from engine.worker import Worker"),
        ("engine/training/fit.py", "from engine.jobs.request import JobRequest"),
        ("engine/training/fit.py", "import rasterio"),
        ("engine/packages/package.py", "import rasterio"),
        ("engine/packages/package.py", "from engine.raster.scene import Scene"),
        ("engine/packages/package.py", "from engine.training import metrics"),
        ("engine/models/hyperkd.py", "import numpy as np"),
        ("engine/models/hyperkd.py", "from engine.raster.tiles import Tiling"),
        ("engine/models/hyperkd.py", "def late():\n    import rasterio"),
        ("engine/models/hyperkd.py", "from importlib import import_module\n"
                                     "import_module('engine.raster.tiles')"),
        ("engine/raster/tiles.py", "import numpy"),
        ("engine/raster/scene.py", "import torch"),
        ("engine/raster/scene.py", "from ..models import hyperkd"),
        ("engine/raster/blend.py", "import rasterio"),
    ],
)  # fmt: skip
def test_a_forbidden_import_is_found(file, statement):
    assert violations(file, statement) != []


@pytest.mark.parametrize(
    ("file", "statement"),
    [
        ("__init__.py", "def classFactory(iface):\n    from .hyperkd_qgis.plugin import HyperKD"),
        ("hyperkd_qgis/algorithms/classify.py", "from ..layers import style\nimport json"),
        ("engine/raster/stream.py", "import torch\nfrom . import tiles"),
        ("engine/jobs/classify.py", "from engine.models import hyperkd"),
    ],
)
def test_an_allowed_import_is_not_reported(file, statement):
    assert violations(file, statement) == []


def test_a_file_outside_every_room_is_reported():
    with pytest.raises(LookupError, match=r"engine/utils\.py matches no row"):
        violations("engine/utils.py", "import os")


def test_every_row_has_a_file():
    rows = {row_of(file) for file in product_files()}
    assert [row.place for row in ROWS if row not in rows] == []


def test_the_engine_imports_no_qgis_when_it_starts():
    """What the syntax trees cannot show: the modules that are there after the start."""
    script = (
        "import sys, engine.worker, engine.jobs\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}\n"
        "             & {'qgis', 'PyQt5', 'osgeo', 'torch', 'rasterio'}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"

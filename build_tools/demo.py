"""The main job on the packaged scene, from the zip to the map, with nothing but the real programs.

``demo.py --zip ZIP --engine PYTHON FOLDER`` installs the plugin's zip into a QGIS profile of its
own, runs ``hyperkd:classify`` and ``hyperkd:assessaccuracy`` with ``qgis_process``, lets QGIS draw
the result, and says where everything is.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SCORES = {
    "OVERALL_ACCURACY": "overall accuracy",
    "BALANCED_ACCURACY": "balanced accuracy",
    "KAPPA": "kappa",
    "F1_MACRO": "macro F1",
    "IOU_MACRO": "mean IoU",
}


def say(message: str) -> None:
    """Tell the user what is being done."""
    print(f"[demo] {message}", flush=True)


def find_qgis_process() -> str:
    """Find the program.

    Debian 12's ``qgis_process`` is a wrapper that hands over an option which the program does not
    know (https://github.com/qgis/QGIS/issues/57683); the program itself is the one with ``.bin``.
    """
    for name in ("qgis_process.bin", "qgis_process"):
        path = shutil.which(name)
        if path:
            return path
    raise SystemExit("qgis_process is not on the path; it comes with the package qgis.")


class Qgis:
    """QGIS without a screen, with a profile of its own.

    Args:
        folder: for the profile and the log.
        engine: the engine's interpreter.
    """

    def __init__(self, folder: Path, engine: Path) -> None:
        self.profiles = folder / "profile" / "profiles"
        self._program = find_qgis_process()
        self._log = folder / "qgis.log"
        run = folder / "run"
        run.mkdir(mode=0o700, parents=True)
        strays = ("PYTHON", "QGIS", "QT_", "XDG_")
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(strays)},
            "HYPERKD_ENGINE_PYTHON": str(engine),
            "PYTHONDONTWRITEBYTECODE": "1",
            "QGIS_CUSTOM_CONFIG_PATH": str(folder / "profile"),
            "QT_QPA_PLATFORM": "offscreen",
            "XDG_RUNTIME_DIR": str(run),
        }

    def call(self, *command: str) -> str:
        """Run a program of QGIS's; return what it prints.

        Raises:
            SystemExit: it failed; with the end of its log.
        """
        with self._log.open("a", encoding="utf-8") as log:
            result = subprocess.run(
                command, env=self._environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        if result.returncode != 0:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
            raise SystemExit("\n".join([f"{command[0]} failed:", *lines[-20:], result.stdout]))
        return result.stdout

    def algorithms(self) -> list[str]:
        """Return the ids of HyperKD's algorithms; none when the plugin does not load."""
        answer = json.loads(self.call(self._program, "list", "--json"))
        provider = answer["providers"].get("hyperkd", {"algorithms": {}})
        return sorted(provider["algorithms"])

    def run(self, algorithm: str, **parameters: Path | str) -> dict[str, Any]:
        """Run an algorithm; return its results."""
        arguments = [f"--{name}={value}" for name, value in parameters.items()]
        started_s = time.monotonic()
        answer = json.loads(self.call(self._program, "run", algorithm, "--json", *arguments))
        say(f"{algorithm} took {time.monotonic() - started_s:.1f} s")
        results: dict[str, Any] = answer["results"]
        return results


def find_one(folder: Path, *patterns: str) -> Path:
    """Return the one file of the packaged sample that a pattern finds.

    Raises:
        SystemExit: there is none.
    """
    for pattern in patterns:
        found = sorted(folder.glob(pattern))
        if found:
            return found[0]
    raise SystemExit(f"{folder} has no {' or '.join(patterns)}; is the checkout complete?")


def install(archive: Path, profiles: Path) -> Path:
    """Install the zip into the profile; return the plugin's folder."""
    script = ROOT / "build_tools" / "install.py"
    command = [sys.executable, str(script), "--zip", str(archive), "--profiles", str(profiles)]
    subprocess.run(command, check=True)
    return profiles / "default" / "python" / "plugins" / "hyperkd"


def model_properties(plugin: Path) -> dict[str, Any]:
    """Return what is known about the packaged classifier."""
    item = find_one(plugin / "resources" / "models", "*-landcover/model.json")
    properties: dict[str, Any] = json.loads(item.read_text(encoding="utf-8"))["properties"]
    return properties


def in_percent(value: float) -> str:
    """Write a share for people."""
    return f"{100 * value:.1f} %"


def print_accuracy(results: dict[str, Any], model: dict[str, Any]) -> None:
    """Print the scores on all labels, and those on the places that training did not see."""
    held_out = model.get("hyperkd:scores") or {}
    training = model.get("hyperkd:training") or {}
    say(f"{'accuracy':20}{'held-out places':>18}{'all labels':>18}")
    for key, name in SCORES.items():
        scores = (held_out.get(key.lower()), results.get(key))
        columns = "".join(f"{'-' if value is None else f'{value:.3f}':>18}" for value in scores)
        say(f"{name:20}{columns}")
    say(
        f"Held-out places: {training.get('held_out_pixels')} pixels in "
        f"{training.get('held_out_blocks')} of {training.get('blocks')} blocks, which training "
        "did not see. All labels: with the places of training, and with classes that the model "
        "does not know, which count as 0 in the means."
    )


def draw(qgis: Qgis, folder: Path, sample: Path, model: dict[str, Any]) -> None:
    """Let QGIS draw the maps on a page."""
    images = sorted(path for path in sample.glob("*.tif") if "high" in path.name.lower())
    balanced = (model.get("hyperkd:scores") or {}).get("balanced_accuracy")
    subtitle = "HyperKD classifier on an EnMAP scene, 30 m"
    if balanced is not None:
        subtitle += f"; balanced accuracy on places kept from training: {in_percent(balanced)}"
    qgis.call(
        "/usr/bin/python3",
        str(ROOT / "build_tools" / "render_map.py"),
        "--classes",
        str(folder / "landcover.tif"),
        "--confidence",
        str(folder / "confidence.tif"),
        *[argument for path in images[:1] for argument in ("--image", str(path))],
        "--title",
        "Land cover of Berlin",
        "--subtitle",
        subtitle,
        "--source",
        "Berlin-Urban-Gradient dataset 2009, Okujeni, van der Linden and Hostert (2016), "
        "CC BY-SA 4.0",
        "--output",
        str(folder / "landcover.png"),
    )


def main() -> None:
    """Read the command line and show the main job."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zip", type=Path, required=True)
    parser.add_argument("--engine", type=Path, required=True, help="the engine's interpreter")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    folder = options.folder.absolute()
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)

    say("1/5 installing the plugin into a QGIS profile of its own")
    qgis = Qgis(folder, options.engine.absolute())
    plugin = install(options.zip.absolute(), qgis.profiles)
    algorithms = qgis.algorithms()
    if "hyperkd:classify" not in algorithms:
        raise SystemExit(f"The plugin does not load in QGIS; the reason is in {folder}/qgis.log.")
    say(f"2/5 qgis_process knows {', '.join(algorithms)}")

    sample = plugin / "resources" / "sample"
    scene = find_one(sample, "*[Ee]n[Mm][Aa][Pp]*.tif", "*[Ee]n[Mm][Aa][Pp]*.bsq")
    say(f"3/5 classifying {scene.name} with the packaged model")
    qgis.run(
        "hyperkd:classify",
        INPUT=scene,
        OUTPUT=folder / "landcover.tif",
        CONFIDENCE=folder / "confidence.tif",
    )
    labels = find_one(sample, "*.gpkg")
    training = json.loads(find_one(sample, "train_*.json").read_text(encoding="utf-8"))
    say(f"4/5 comparing the map with {labels.name}")
    results = qgis.run(
        "hyperkd:assessaccuracy",
        INPUT=folder / "landcover.tif",
        REFERENCE=labels,
        CLASS_FIELD=training["parameters"]["class_field"],
        REPORT=folder / "accuracy.html",
    )
    say("5/5 drawing the map")
    model = model_properties(plugin)
    draw(qgis, folder, sample, model)

    print_accuracy(results, model)
    for name, meaning in (
        ("landcover.tif", "class map"),
        ("confidence.tif", "confidence"),
        ("accuracy.html", "accuracy report"),
        ("landcover.png", "the map as QGIS draws it"),
    ):
        if not (folder / name).is_file():
            raise SystemExit(f"{folder / name} is missing.")
        say(f"{folder / name}  ({meaning})")


if __name__ == "__main__":
    main()

"""Both sides of the wall agree: what the toolbox offers is what the engine's requests take.

The engine is asked in its own interpreter, as the two share no code.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
from qgis.core import QgsProcessingParameterDefinition, QgsProcessingParameterNumber

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "adaptbackbone": "adapt_backbone",
    "assessaccuracy": "assess_accuracy",
    "assessfusion": "assess_fusion",
    "checkengine": "check_engine",
    "classify": "classify",
    "describemodel": "describe_model",
    "distillbackbone": "distill_backbone",
    "estimate": "estimate",
    "fuse": "fuse",
    "pretrainteacher": "pretrain_teacher",
    "segment": "segment",
    "trainclassifier": "train_classifier",
    "trainfusion": "train_fusion",
    "trainregression": "train_regression",
    "trainsegmentation": "train_segmentation",
}
ENGINE_PYTHON = os.environ.get("HYPERKD_ENGINE_PYTHON")  # the plugin's fixture names another
ASK = """
import json, sys
from importlib import import_module
from engine.errors import RequestError

answers = {}
for command, requests in json.load(sys.stdin).items():
    request_class = import_module(f"engine.jobs.{command}").Request
    problems = []
    for request in requests:
        try:
            request_class.parse(request)
        except RequestError as error:
            problems.append([request, error.sentence])
    schema = request_class.model_json_schema()["properties"]
    defaults = {name: part.get("default") for name, part in schema.items()}
    answers[command] = {"problems": problems, "defaults": defaults}
print(json.dumps(answers))
"""


def ask_engine(requests):
    foreign = ("PYTHON", "PROJ_", "GDAL_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    environment["PYTHONPATH"] = str(ROOT)
    answer = subprocess.run(
        [ENGINE_PYTHON, "-s", "-c", ASK],
        input=json.dumps(requests),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


_answers = {}


@pytest.fixture
def answers(algorithm):
    """What the engine says of all requests; asked once, as it takes a while to start."""
    if not ENGINE_PYTHON:
        pytest.skip("HYPERKD_ENGINE_PYTHON names no engine")
    if not _answers:
        requests = {
            command: requests_of(name, algorithm(name).parameterDefinitions())
            for name, command in COMMANDS.items()
        }
        _answers.update(ask_engine(requests))
    return _answers


def is_optional(definition):
    return bool(definition.flags() & QgsProcessingParameterDefinition.FlagOptional)


def choices(definition):
    """List values that the dialog lets through: ends of ranges, all words, both switches."""
    kind = definition.type()
    if kind == "number":
        is_whole = definition.dataType() == QgsProcessingParameterNumber.Integer
        ends = definition.minimum(), definition.maximum()
        return [int(end) if is_whole else end for end in ends]
    if kind == "enum":
        words = definition.options()
        return [True, False] if words == ["yes", "no"] else words
    if kind == "boolean":
        return [False, True]
    if kind == "multilayer":
        return [["a.tif"], ["a.tif", "b.tif"]]
    if kind == "extent":
        return [[0.0, 0.0, 1.0, 1.0]]
    return [definition.defaultValue() or "x"]


def requests_of(name, definitions):
    """Make a request for each value that can be chosen, and one with no more than is needed."""
    values = {item.name().lower(): choices(item) for item in definitions}
    whole = {name: chosen[0] for name, chosen in values.items()}
    varied = [{**whole, name: value} for name, chosen in values.items() for value in chosen]
    needed = {item.name().lower() for item in definitions if not is_optional(item)}
    if name in ("assessfusion", "checkengine", "describemodel"):
        needed.add("report")  # which has a place of its own when none is chosen
    return [*varied, {name: value for name, value in whole.items() if name in needed}]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_what_the_dialog_offers_is_what_the_engine_takes(answers, name):
    assert answers[COMMANDS[name]]["problems"] == []


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_both_sides_have_the_same_defaults(answers, algorithm, name):
    engine = answers[COMMANDS[name]]["defaults"]
    ours = {
        item.name().lower(): item.defaultValue()
        for item in algorithm(name).parameterDefinitions()
        if item.defaultValue() is not None and not item.isDestination()
    }
    both = {key for key in ours if engine[key] is not None}
    assert {key: ours[key] for key in both} == {key: engine[key] for key in both}


def test_both_sides_look_for_the_checkpoint_at_one_place(plugin):
    from hyperkd.hyperkd_qgis.algorithms.resumable import CHECKPOINT_SUFFIX

    source = (ROOT / "engine" / "training" / "run_checkpoint.py").read_text(encoding="utf-8")
    assert f'SUFFIX = "{CHECKPOINT_SUFFIX}"' in source

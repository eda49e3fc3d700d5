"""The toolbox's values to the engine's, and back: upper case there, lower case here."""

import json

import pytest

from hyperkd_qgis import request


def test_names_become_lower_case_and_nothing_else_changes():
    values = {"INPUT": "a.tif", "TILE_SIZE": 64, "EXTENT": [0.0, 1.0, 2.0, 3.0]}
    assert request.request_parameters(values) == {
        "input": "a.tif",
        "tile_size": 64,
        "extent": [0.0, 1.0, 2.0, 3.0],
    }


def test_what_was_not_given_is_left_out():
    values = {"MASK": None, "CONFIDENCE": "", "SEED": 0, "REQUIRE_GPU": False}
    assert request.request_parameters(values) == {"seed": 0, "require_gpu": False}


def test_results_become_upper_case():
    result = {"overall_accuracy": 0.9, "report": "a.html"}
    declared = {"OVERALL_ACCURACY", "REPORT", "OUTPUT"}
    expected = {"OVERALL_ACCURACY": 0.9, "REPORT": "a.html"}
    assert request.toolbox_results(result, declared) == expected


def test_results_that_are_no_outputs_and_empty_ones_are_left_out():
    result = {"seconds": 3, "report": None, "kappa": 0.0}
    assert request.toolbox_results(result, {"REPORT", "KAPPA"}) == {"KAPPA": 0.0}


def test_messages_are_those_of_the_contract():
    messages = [
        request.hello_message(),
        request.run_message("7", "classify", {"input": "ä.tif"}),
        request.cancel_message("7"),
        request.shutdown_message(),
    ]
    assert [json.loads(message) for message in messages] == [
        {"type": "hello", "protocol": 1},
        {"type": "run", "job": "7", "command": "classify", "parameters": {"input": "ä.tif"}},
        {"type": "cancel", "job": "7"},
        {"type": "shutdown"},
    ]


def test_messages_are_one_line_of_ascii():
    message = request.run_message("1", "classify", {"input": "a\nb \udcff ü"})
    assert message.endswith(b"\n")
    assert message.count(b"\n") == 1
    assert message.isascii()


def test_numbers_that_json_does_not_have_are_refused():
    with pytest.raises(ValueError, match="JSON"):
        request.run_message("1", "classify", {"extent": [float("nan")]})


def test_the_engine_speaks_the_same_protocol():
    protocol = pytest.importorskip("engine.protocol")
    assert protocol.PROTOCOL_VERSION == request.PROTOCOL_VERSION


def test_the_engine_understands_the_messages():
    protocol = pytest.importorskip("engine.protocol")
    assert protocol.parse_message(request.run_message("7", "classify", {"a": 1})) == protocol.Run(
        "7", "classify", {"a": 1}
    )
    assert protocol.parse_message(request.cancel_message("7")) == protocol.Cancel("7")
    assert protocol.parse_message(request.shutdown_message()) == protocol.Shutdown()
    assert protocol.parse_message(request.hello_message()) == protocol.Hello(1)

import errno
import json
import math
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from engine.protocol import (
    Cancel,
    EventWriter,
    Hello,
    ProtocolError,
    Run,
    Shutdown,
    encode_event,
    parse_message,
    parse_request_file,
    read_lines,
)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"type": "hello", "protocol": 1}', Hello(1)),
        (
            b'{"type": "run", "job": "7", "command": "classify", "parameters": {"a": [1]}}',
            Run("7", "classify", {"a": [1]}),
        ),
        (b'{"type": "cancel", "job": "7"}\r\n', Cancel("7")),
        (b'{"type": "shutdown", "later": "fields are ignored"}', Shutdown()),
    ],
)
def test_messages(line, message):
    assert parse_message(line) == message


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "not JSON"),
        (b'"hello"', "not a JSON object"),
        (b"{}", "'type' is missing; found: none"),
        (b'{"type": "hello", "protocol": true}', "'protocol' must be of type int, not bool"),
        (b'{"type": "run", "job": "1", "command": "x"}', "'parameters' is missing"),
        (b"x" * 1000, "'x{80}' …"),
    ],
)
def test_what_is_no_message_is_refused(line, problem):
    with pytest.raises(ProtocolError, match=problem):
        parse_message(line)


def test_request_file_becomes_job_1():
    assert parse_request_file(b'{"command": "classify", "parameters": {}}') == Run(
        "1", "classify", {}
    )


def test_event_is_one_ascii_line():
    line = encode_event("info", job="1", message="Straße\nline two \udcff")
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "event": "info",
        "job": "1",
        "message": "Straße\nline two \udcff",
    }


def test_event_has_no_numbers_that_json_has_not():
    line = encode_event("result", result={"kappa": math.nan, "scores": (math.inf, np.float32(0.5))})
    assert json.loads(line)["result"] == {"kappa": None, "scores": [None, 0.5]}


@pytest.mark.parametrize(
    ("value", "plain"),
    [(np.int64(3), 3), (np.float64("nan"), None), (np.bool_(True), True), (Path("a"), "a")],
)
def test_event_takes_values_of_libraries(value, plain):
    assert json.loads(encode_event("result", value=value))["value"] == plain


def test_event_refuses_what_it_cannot_say():
    with pytest.raises(TypeError, match="object cannot be sent"):
        encode_event("result", value=object())


def test_lines_are_put_together_wherever_the_pipe_split_them():
    text = b'{"a": 1}\n\n{"b": 2}\nlast'
    for position in range(len(text)):
        reading, writing = os.pipe()
        os.write(writing, text[:position] or text[:1])
        lines = read_lines(reading)

        def write_rest(rest=text[position or 1 :], writing=writing):
            os.write(writing, rest)
            os.close(writing)

        threading.Timer(0.002, write_rest).start()
        assert list(lines) == [b'{"a": 1}', b"", b'{"b": 2}', b"last"]
        os.close(reading)


class BrokenPipe:
    def __init__(self):
        self.attempts = 0

    def write(self, line):
        self.attempts += 1
        raise OSError(errno.EPIPE, "gone")


def test_events_for_a_client_that_has_gone_are_dropped():
    stream = BrokenPipe()
    writer = EventWriter(stream)
    writer.send("info", message="one")
    writer.send("info", message="two")
    assert stream.attempts == 1


class SlowStream:
    """Gives other threads every chance to write in between."""

    def __init__(self):
        self.content = b""

    def write(self, line):
        for byte in line:
            self.content += bytes([byte])
            threading.Event().wait(0)

    def flush(self):
        pass


def test_lines_of_several_threads_do_not_mix():
    stream = SlowStream()
    writer = EventWriter(stream)
    threads = [
        threading.Thread(target=writer.send, args=("info",), kwargs={"message": str(number) * 50})
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    messages = [json.loads(line)["message"] for line in stream.content.splitlines()]
    assert sorted(messages) == [str(number) * 50 for number in range(8)]

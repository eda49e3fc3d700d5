"""Bytes to events: however the pipe cuts them, and whatever else comes out of it."""

import json

import pytest

from hyperkd_qgis.events import MAX_LINE_BYTES, NOISE, Event, EventStream, parse_event

LINES = (
    b'{"event": "hello", "protocol": 1, "device": "cpu"}\n'
    b'{"event": "progress", "job": "1", "fraction": 0.5, "message": "Gr\xc3\xbcn \xe2\x86\x92"}\n'
    b'{"event": "result", "job": "1", "result": {"output": "a.tif"}}\n'
)
EXPECTED = [
    Event("hello", None, {"protocol": 1, "device": "cpu"}),
    Event("progress", "1", {"fraction": 0.5, "message": "Grün →"}),
    Event("result", "1", {"result": {"output": "a.tif"}}),
]


def read(*chunks):
    stream = EventStream()
    return [event for chunk in chunks for event in stream.feed(chunk)] + stream.close()


@pytest.mark.parametrize("cut", range(len(LINES) + 1))
def test_split_at_every_byte(cut):
    assert read(LINES[:cut], LINES[cut:]) == EXPECTED


def test_one_byte_at_a_time():
    assert read(*(LINES[index : index + 1] for index in range(len(LINES)))) == EXPECTED


def test_empty_chunks_say_nothing():
    assert read(b"", LINES, b"", b"") == EXPECTED


def test_events_come_as_soon_as_their_line_is_whole():
    stream = EventStream()
    assert stream.feed(LINES[:10]) == []
    assert stream.feed(LINES[10:]) == EXPECTED


def test_last_line_without_a_break_is_read_at_the_end():
    assert read(LINES.rstrip(b"\n")) == EXPECTED


def test_windows_line_ends():
    assert read(LINES.replace(b"\n", b"\r\n")) == EXPECTED


@pytest.mark.parametrize(
    "line",
    [
        b"a library prints",
        b'{"event": "progr',
        b'["event", "result"]',
        b'{"job": "1"}',
        b'{"event": 3}',
        b"\xff\xfe\x00",
        b"[" * 5000,
    ],
)
def test_what_is_no_event_is_noise(line):
    [event, *rest] = read(line + b"\n" + LINES)
    assert event.name == NOISE
    assert rest == EXPECTED


def test_noise_keeps_its_text():
    assert parse_event(b"Warning: \xc3\xa4h").text("message") == "Warning: äh"


def test_an_endless_line_does_not_fill_the_memory():
    stream = EventStream()
    events = [event for _ in range(20) for event in stream.feed(b"x" * (MAX_LINE_BYTES // 8))]
    assert [event.name for event in events] == [NOISE, NOISE]
    assert stream.feed(b"\n") != []
    assert stream.feed(LINES) == EXPECTED


def test_job_is_text_whatever_the_engine_sends():
    assert parse_event(b'{"event": "result", "job": 7}').job == "7"


@pytest.mark.parametrize("name", ["error", "result"])
def test_final_events_end_a_job(name):
    assert Event(name).is_final


@pytest.mark.parametrize("name", ["hello", "progress", "info", "warning", NOISE])
def test_other_events_do_not(name):
    assert not Event(name).is_final


@pytest.mark.parametrize(
    ("value", "number"), [(0.25, 0.25), (1, 1.0), (True, 0.0), ("0.5", 0.0), (None, 0.0)]
)
def test_a_field_that_is_no_number_counts_as_none(value, number):
    line = json.dumps({"event": "progress", "fraction": value}).encode()
    assert parse_event(line).number("fraction") == number

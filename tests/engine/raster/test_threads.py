"""Lanes: work side by side whose results come in order, and which ends when the run is stopped."""

import threading
import time

import pytest

from engine.errors import CancelledError
from engine.raster.threads import Lanes


def nothing():
    """Nothing to prepare in a thread."""


@pytest.mark.parametrize("count", [1, 3])
def test_results_come_in_the_order_of_the_items(count):
    def work(number):
        time.sleep(0.02 * (number % 3 == 0))  # later items are done before
        return number * number

    with Lanes(count, threading.Event(), nothing) as lanes:
        assert list(lanes.map(work, range(20))) == [number * number for number in range(20)]


def test_as_many_items_are_worked_on_at_a_time_as_there_are_lanes():
    together = threading.Barrier(3)
    with Lanes(3, threading.Event(), nothing) as lanes:
        list(lanes.map(lambda _: together.wait(5), range(6)))


def test_one_lane_is_the_thread_of_the_caller():
    with Lanes(1, threading.Event(), nothing) as lanes:
        threads = set(lanes.map(lambda _: threading.get_ident(), range(3)))
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_item_is_taken_only_when_there_is_room(count):
    taken = []

    def items():
        for number in range(20):
            taken.append(number)
            yield number

    with Lanes(count, threading.Event(), nothing) as lanes:
        for number in lanes.map(lambda number: number, items()):
            assert len(taken) - number <= lanes.in_hand


def test_each_thread_is_prepared_once():
    prepared = []
    with Lanes(2, threading.Event(), lambda: prepared.append(threading.get_ident())) as lanes:
        used = set(lanes.map(lambda _: threading.get_ident(), range(20)))
    assert used <= set(prepared) and len(prepared) == len(set(prepared)) <= 2


@pytest.mark.parametrize("count", [1, 3])
def test_the_first_exception_is_raised_and_later_items_are_left(count):
    begun = []

    def work(number):
        begun.append(number)
        if number == 4:
            raise ArithmeticError("broken item")
        return number

    with (
        pytest.raises(ArithmeticError, match="broken item"),
        Lanes(count, threading.Event(), nothing) as lanes,
    ):
        list(lanes.map(work, range(1000)))
    assert max(begun) < 4 + lanes.in_hand


def test_a_cancel_stops_work_that_looks_at_the_stop():
    stop, begun = threading.Event(), threading.Event()

    def work(_number):
        begun.set()
        assert stop.wait(5)

    def watch():
        if begun.is_set():
            raise CancelledError

    with pytest.raises(CancelledError), Lanes(2, stop, nothing) as lanes:
        list(lanes.map(work, range(5), watch))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane")]

"""Threads that work side by side and fall together: bounded relays, one stop for all."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Generic, Self, TypeVar

log = logging.getLogger(__name__)

S = TypeVar("S")
T = TypeVar("T")

# How often a waiting thread looks whether the run was stopped: well under the second in which a
# cancel has to be answered.
_LOOK_S = 0.05
# How long an ended run waits for a thread that sits in a slow read; the thread is a daemon and
# ends by itself when the read returns.
_PATIENCE_S = 0.5


class Stopped(Exception):
    """The run was stopped by another thread."""


def _do_nothing() -> None:
    """Watch for nothing."""


class Relay(Generic[T]):
    """A bounded queue between two threads of a crew; waiting ends when the run is stopped."""

    def __init__(self, size: int, stop: threading.Event) -> None:
        self._queue: queue.Queue[T] = queue.Queue(size)
        self._stop = stop

    def put(self, item: T, watch: Callable[[], None] = _do_nothing) -> None:
        """Hand an item on; ``watch`` is called while there is no room, and may raise."""
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=_LOOK_S)
            except queue.Full:
                watch()
        raise Stopped

    def get(self, watch: Callable[[], None] = _do_nothing) -> T:
        """Wait for an item; ``watch`` is called while there is none, and may raise."""
        while not self._stop.is_set():
            try:
                return self._queue.get(timeout=_LOOK_S)
            except queue.Empty:
                watch()
        raise Stopped


class Crew:
    """The threads of one run: the first exception of any of them stops all and is raised here.

    Use as a context manager around the work of the calling thread, which ends with `wait`.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._abandoned: set[threading.Thread] = set()
        self._error: BaseException | None = None
        self._lock = threading.Lock()

    def relay(self, size: int) -> Relay[T]:
        """Make a queue that ends with this crew."""
        return Relay(size, self.stop)

    def start(self, name: str, work: Callable[[], None], *, abandon: bool = False) -> None:
        """Start a thread.

        Args:
            name: for the log.
            work: what it does.
            abandon: a stopped run need not wait for it, because it only reads.
        """
        thread = threading.Thread(target=self._guard, args=(work,), name=name, daemon=True)
        self._threads.append(thread)
        if abandon:
            self._abandoned.add(thread)
        thread.start()

    def _guard(self, work: Callable[[], None]) -> None:
        """Run the work of a thread; its first exception stops the crew."""
        try:
            work()
        except Stopped:
            return
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self._error is None:
                self._error = error
        self.stop.set()

    def wait(self, watch: Callable[[], None] = _do_nothing) -> None:
        """Wait until all threads have ended by themselves; ``watch`` may raise."""
        for thread in self._threads:
            while thread.is_alive():
                watch()
                thread.join(_LOOK_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(_PATIENCE_S if thread in self._abandoned else None)
            if thread.is_alive():
                log.warning(
                    "The %s still waits for a file, and ends when that answers.", thread.name
                )
        if self._error is not None and (error is None or isinstance(error, Stopped)):
            raise self._error from None


class Lanes:
    """Threads that do the same kind of work side by side; its results come in order.

    Use as a context manager. Its end sets ``stop``, for the work that is under way to look at, and
    waits for that.

    Args:
        count: of threads; a single one is that of the caller.
        stop: of the run.
        prepare: called once in each new thread.
    """

    def __init__(self, count: int, stop: threading.Event, prepare: Callable[[], None]) -> None:
        self._stop = stop
        self._pool = ThreadPoolExecutor(count, "lane", prepare) if count > 1 else None
        # One more than lanes, so that none is idle while the caller uses a result.
        self.in_hand = count + 1 if count > 1 else 1

    def map(
        self, work: Callable[[S], T], items: Iterable[S], watch: Callable[[], None] = _do_nothing
    ) -> Iterator[T]:
        """Give the result of each item; the first exception is raised.

        Items are taken when there is room: at any time, at most ``in_hand`` of them wait, are
        worked on, or have the result that the caller got last. ``watch`` is called before each
        item and while waiting, and may raise.
        """
        begun: deque[Future[T]] = deque()
        for item in items:
            watch()
            if self._pool is None:
                yield work(item)
                continue
            begun.append(self._pool.submit(work, item))
            if len(begun) == self.in_hand:
                yield _result(begun.popleft(), watch)
        while begun:
            yield _result(begun.popleft(), watch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _result(future: Future[T], watch: Callable[[], None]) -> T:
    """Wait for a result; ``watch`` is called meanwhile, and may raise."""
    while not wait([future], _LOOK_S).done:
        watch()
    return future.result()

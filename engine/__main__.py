"""The engine's two commands: ``serve`` for the plugin, ``run`` for one job without a client."""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from engine.protocol import EventWriter, claim_pipes, read_lines
from engine.version import engine_version
from engine.worker import Worker, run_request

DEFAULT_IDLE_MINUTES = 10.0
SPINS = "200000"  # of GNU's OpenMP, which torch's wheels for Linux bring: below a millisecond
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says.

    Returns:
        exit code; 0 is success.
    """
    options = _parser().parse_args(arguments)
    prepare_process()
    _log_to_standard_error()
    if options.command == "serve":
        return serve(options.idle_minutes)
    return run(options.request)


def prepare_process() -> None:
    """Make the settings of the process that torch and rasterio must find when they are imported."""
    # torch's threads sleep when they have waited for each other for long. Spinning for ever, they
    # would take the core that reads the scene; sleeping at once, they would have to be woken for
    # each of the thousands of short steps of a training, which took a fifth longer on two cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    # Memory for tensors comes in pages of 2 MB where the system has them: finding as much in pages
    # of 4 KB takes longer than filling it, a third of the time of fusing 177 bands.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if sys.platform == "linux":
        # glibc learns to keep large blocks once some were freed, and then the peak grows with the
        # scene (by an eighth from 1,000 to 4,000 px). These keep what models need again and again:
        # a network that fuses writes tensors of up to tens of MB thousands of times, and took twice
        # as long while the system had to find memory for each. An arena of its own for each thread
        # would give them back all the same.
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the largest that glibc takes
            mallopt(_M_TRIM_THRESHOLD, 128 * 2**20)
            mallopt(_M_ARENA_MAX, 1)


def serve(idle_minutes: float) -> int:
    """Serve the client at the other end of standard input and output until it goes."""
    messages, events = claim_pipes()
    worker = Worker(EventWriter(events), idle_s=idle_minutes * 60)
    for number in (signal.SIGINT, signal.SIGTERM):
        # In a thread, because the main thread may hold the very locks that the end needs.
        signal.signal(number, lambda *_: threading.Thread(target=worker.end).start())
    worker.serve(read_lines(messages))
    return 0


def run(request: str) -> int:
    """Do the job of a request file, or of standard input when the file is called ``-``."""
    messages, events = claim_pipes()
    try:
        content = b"\n".join(read_lines(messages)) if request == "-" else Path(request).read_bytes()
    except OSError as error:
        logging.getLogger(__name__).error("The request file cannot be read: %s", error)
        return 2
    return run_request(content, EventWriter(events))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine", description=__doc__)
    parser.add_argument("--version", action="version", version=engine_version())
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser("serve", help="take jobs from standard input until it closes")
    serving.add_argument(
        "--idle-minutes",
        type=float,
        default=DEFAULT_IDLE_MINUTES,
        help="end after this long without a job (default: %(default)s)",
    )
    running = commands.add_parser("run", help="do one job")
    running.add_argument("request", help="JSON file with command and parameters, or - for input")
    return parser


def _log_to_standard_error() -> None:
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=form)
    logging.captureWarnings(True)
    # GDAL tells of every file that is not what it first tried, vectors among them.
    logging.getLogger("rasterio").setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())

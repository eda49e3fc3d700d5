"""Cold and warm: the first classification of a fresh worker, and the next one of the same."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "resources" / "sample" / "EnMAP_BerlinUrbanGradient.bsq"


def measure_startup(folder: Path, model: str, repeats: int) -> dict[str, Any]:
    """Classify the packaged scene twice in each of several fresh workers."""
    runs = [_cold_and_warm(folder, model) for _ in range(repeats)]
    medians = {
        name: statistics.median(run[name] for run in runs)
        for name in ("hello_s", "cold_s", "warm_s")
    }
    return medians | {
        "ratio": statistics.median(run["cold_s"] / run["warm_s"] for run in runs),
        "runs": runs,
    }


def _cold_and_warm(folder: Path, model: str) -> dict[str, float]:
    output = folder / "startup_map.tif"
    command = [sys.executable, "-E", "-s", str(ROOT / "run_engine.py"), "serve"]
    start_s = time.perf_counter()
    worker = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert worker.stdin is not None and worker.stdout is not None
        _send(worker.stdin, {"type": "hello", "protocol": 1})
        _wait(worker.stdout, "hello")
        hello_s = time.perf_counter() - start_s
        parameters = {"input": str(SAMPLE), "model": model, "output": str(output)}
        ends_s = []
        for job in ("1", "2"):
            message = {
                "type": "run", "job": job, "command": "classify", "parameters": parameters,
            }  # fmt: skip
            _send(worker.stdin, message)
            _wait(worker.stdout, "result")
            ends_s.append(time.perf_counter() - start_s)
    finally:
        worker.kill()
        worker.communicate()
        for file in folder.glob("startup_map.*"):
            file.unlink()
    return {"hello_s": hello_s, "cold_s": ends_s[0], "warm_s": ends_s[1] - ends_s[0]}


def _send(pipe: IO[bytes], message: dict[str, Any]) -> None:
    pipe.write(json.dumps(message).encode() + b"\n")
    pipe.flush()


def _wait(pipe: IO[bytes], name: str) -> None:
    """Read events up to the one of this name."""
    for line in pipe:
        event = json.loads(line)
        if event["event"] == name:
            return
        if event["event"] == "error":
            raise RuntimeError(f"The engine says: {event['message']} {event['remedy']}")
    raise RuntimeError(f"The engine ended before its {name!r}.")

"""The engine as a process of its own: real pipes, real signals, real ends."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT / "run_engine.py"
WITH_TEST_JOBS = Path(__file__).with_name("engine_with_test_jobs.py")
START_S = 60.0  # torch and sklearn from a cold disk on a busy machine


class Client:
    """The other end of the pipes."""

    def __init__(self, script, *arguments, environment=None):
        self.process = subprocess.Popen(
            [sys.executable, "-E", "-s", str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
        )
        self.lines = queue.Queue()
        self.log = b""
        threading.Thread(target=self._read_out, daemon=True).start()
        self._log_thread = threading.Thread(target=self._read_log, daemon=True)
        self._log_thread.start()

    def _read_out(self):
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def _read_log(self):
        self.log = self.process.stderr.read()

    def send(self, **message):
        self.send_bytes(json.dumps(message).encode() + b"\n")

    def send_bytes(self, line):
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def run(self, job, command, **parameters):
        self.send(type="run", job=job, command=command, parameters=parameters)

    def next_event(self, timeout_s=START_S):
        line = self.lines.get(timeout=timeout_s)
        return None if line is None else json.loads(line)

    def wait_for(self, *names, job=None, timeout_s=START_S):
        """Take events until one has one of the names; of the job, if one is given."""
        end_s = time.monotonic() + timeout_s
        while (left_s := end_s - time.monotonic()) > 0:
            event = self.next_event(left_s)
            assert event is not None, f"the engine ended; its log: {self.read_log()}"
            if event["event"] in names and (job is None or event["job"] == job):
                return event
        raise AssertionError(f"no {names} within {timeout_s} s")

    def wait_for_end(self, timeout_s=10.0):
        code = self.process.wait(timeout_s)
        self._log_thread.join(5)
        return code

    def read_log(self):
        self._log_thread.join(5)
        return self.log.decode()


@pytest.fixture
def start():
    clients = []

    def start_client(*arguments, script=WITH_TEST_JOBS, environment=None):
        clients.append(Client(script, *(arguments or ("serve",)), environment=environment))
        return clients[-1]

    yield start_client
    for client in clients:
        client.process.kill()
        client.process.wait()


def test_hello_says_who_and_where_and_why(start):
    client = start(script=REAL)
    client.send(type="hello", protocol=1)
    hello = client.wait_for("hello")
    assert hello["protocol"] == 1
    assert hello["python"] == sys.version.split()[0]
    assert hello["device"].split(":")[0] in ("cpu", "cuda")
    assert len(hello["device_reason"]) > 10


def test_engine_survives_the_variables_of_qgis(start, tmp_path):
    (tmp_path / "json.py").write_text("raise RuntimeError('poisoned')")
    client = start(
        script=REAL,
        environment={
            "PROJ_DATA": "/nonexistent",
            "PROJ_LIB": "/nonexistent",
            "GDAL_DATA": "/nonexistent",
            "GDAL_DRIVER_PATH": str(tmp_path),
            "PYTHONPATH": str(tmp_path),
            "PYTHONHOME": "/nonexistent",
            "QT_PLUGIN_PATH": str(tmp_path),
        },
    )
    client.run("1", "check_engine")
    result = client.wait_for("result", "error", job="1")
    assert result["event"] == "result", result
    assert result["result"]["ok"]  # a CRS is among what the self-test writes and reads


def test_every_job_gets_one_end_in_order(start):
    client = start()
    for number in range(3):
        client.run(str(number), "nap", seconds=0.05)
    ends = [client.wait_for("result", "error") for _ in range(3)]
    assert [(end["event"], end["job"]) for end in ends] == [("result", str(n)) for n in range(3)]


def test_progress_moves_and_names_the_step(start):
    client = start()
    client.run("1", "nap", seconds=0.5)
    fractions = []
    while (event := client.next_event())["event"] != "result":
        if event["event"] == "progress":
            assert event["message"] == "Napping"
            fractions.append(event["fraction"])
    assert fractions == sorted(fractions)
    assert 3 <= len(fractions) <= 8  # of 25, at most one every 0.1 s


def test_running_job_is_cancelled_within_a_second(start):
    client = start()
    client.run("1", "nap")
    client.wait_for("progress", job="1")
    client.send(type="cancel", job="1")
    error = client.wait_for("result", "error", job="1", timeout_s=1)
    assert error["error"] == "CancelledError"


def test_waiting_job_is_cancelled_while_another_works(start):
    client = start()
    client.run("1", "nap")
    client.run("2", "nap")
    client.wait_for("progress", job="1")
    client.send(type="cancel", job="2")
    assert client.wait_for("error", "result", timeout_s=1)["job"] == "2"
    assert client.wait_for("progress", timeout_s=1)["job"] == "1"


def test_cancel_of_an_unknown_job_is_harmless(start):
    client = start()
    client.send(type="cancel", job="9")
    client.run("1", "nap", seconds=0)
    assert client.wait_for("error", "result")["job"] == "1"


def test_closed_input_ends_an_idle_engine(start):
    client = start()
    client.process.stdin.close()
    assert client.wait_for_end() == 0


def test_closed_input_cancels_the_running_job_and_ends(start):
    client = start()
    client.run("1", "nap")
    client.wait_for("progress")
    client.process.stdin.close()
    assert client.wait_for("error")["error"] == "CancelledError"
    assert client.wait_for_end() == 0


def test_closed_input_ends_even_a_job_that_does_not_listen(start):
    client = start()
    client.run("1", "deaf")
    client.run("2", "nap")
    client.wait_for("info", job="1")
    while client.next_event()["message"] != "started":
        pass
    client.process.stdin.close()
    assert client.wait_for("error")["job"] == "2"
    assert client.wait_for_end(timeout_s=8) == 1
    assert "ending it hard" in client.read_log()


def test_hard_end_leaves_no_file(start, tmp_path):
    client = start()
    client.run("1", "scribble", output=str(tmp_path / "map.tif"))
    while client.wait_for("info", job="1")["message"] != "started":
        pass
    assert list(tmp_path.iterdir())  # it is at work
    client.process.stdin.close()
    assert client.wait_for_end(timeout_s=8) == 1
    assert list(tmp_path.iterdir()) == []


def test_shutdown_ends(start):
    client = start()
    client.run("1", "nap")
    client.wait_for("progress")
    client.send(type="shutdown")
    assert client.wait_for("error", job="1")["error"] == "CancelledError"
    assert client.wait_for_end() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no termination signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_served_job(start, number):
    client = start()
    client.run("1", "nap")
    client.wait_for("progress")
    client.process.send_signal(number)
    assert client.wait_for("error", job="1")["error"] == "CancelledError"
    assert client.wait_for_end() == 0


def test_idle_engine_ends_itself(start):
    client = start("serve", "--idle-minutes", "0.01")
    client.run("1", "nap", seconds=1.0)  # longer than the idle time: work is not idleness
    assert client.wait_for("result")
    assert client.wait_for_end() == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"garbage\n", "This is not JSON: 'garbage'."),
        (b"\xff\xfe\n", "This is not JSON"),
        (b"[" * 100_000 + b"\n", "This is not JSON"),
        (b"[1]\n", "This is not a JSON object"),
        (b'{"type": "dance"}\n', "There is no message of type 'dance'."),
        (b'{"type": "run", "job": 7}\n', "The field 'job' must be of type str, not int."),
        (b'{"type": "cancel"}\n', "The field 'job' is missing"),
    ],
)
def test_garbage_is_answered_and_survived(start, line, message):
    client = start()
    client.send_bytes(line)
    error = client.wait_for("error")
    assert error["job"] is None
    assert message in error["message"]
    client.run("1", "nap", seconds=0)
    assert client.wait_for("result")["job"] == "1"


def test_job_id_in_use_is_refused_without_ending_the_job(start):
    client = start()
    client.run("1", "nap", seconds=0.3)
    client.run("1", "nap")
    assert client.wait_for("error")["message"] == "There is already a job '1'."
    assert client.wait_for("result")["job"] == "1"


@pytest.mark.parametrize(
    ("command", "parameters", "error", "message"),
    [
        ("dance", {}, "RequestError", "There is no command 'dance'."),
        ("../nap", {}, "RequestError", "There is no command '../nap'."),
        ("nap", {"minutes": 1}, "RequestError", "minutes: Extra inputs are not permitted"),
        ("nap", {"seconds": "soon"}, "RequestError", "seconds: Input should be a valid number"),
        ("fail", {"how": "known"}, "SceneError", "The scene is upside down."),
        ("fail", {"how": "memory"}, "MemoryError", "not enough free memory"),
        ("fail", {"how": "exit"}, "SystemExit", "failed unexpectedly"),
        ("fail", {"how": "bug"}, "KeyError", "The engine failed unexpectedly (KeyError: 'a bug')."),
    ],
)
def test_failures_have_a_class_a_sentence_and_a_remedy(start, command, parameters, error, message):
    client = start()
    client.run("1", command, **parameters)
    event = client.wait_for("error", "result", job="1")
    assert event["error"] == error
    assert message in event["message"]
    client.send(type="shutdown")
    assert client.wait_for_end() == 0


def test_traceback_of_a_bug_is_in_the_log(start):
    client = start()
    client.run("1", "fail", how="bug")
    assert "report it" in client.wait_for("error")["remedy"]
    client.process.stdin.close()
    assert "Traceback (most recent call last)" in client.read_log()


def test_prints_of_libraries_do_not_break_the_protocol(start):
    client = start()
    client.run("1", "shout")
    assert client.wait_for("result")["result"] == {"swallowed": 0}
    client.run("2", "nap", seconds=0)  # its message was not eaten by the program either
    assert client.wait_for("result")["job"] == "2"
    client.process.stdin.close()
    log = client.read_log()
    for text in ("a library prints", "a C library prints", "a program prints"):
        assert text in log


def write_request(tmp_path, command, **parameters):
    path = tmp_path / "request.json"
    path.write_text(json.dumps({"command": command, "parameters": parameters}))
    return str(path)


def test_run_exits_0_after_a_result_which_comes_last(start, tmp_path):
    client = start("run", write_request(tmp_path, "nap", seconds=0.01))
    assert client.wait_for_end(START_S) == 0
    events = [json.loads(line) for line in iter(client.lines.get, None)]
    assert events[-1] == {"event": "result", "job": "1", "result": {"seconds": 0.01}}


def test_run_logs_the_request_that_repeats_it(start, tmp_path):
    client = start("run", write_request(tmp_path, "nap", seconds=0.01))
    message = client.wait_for("info")["message"]
    again = tmp_path / "again.json"
    again.write_text(message[message.index("{") :])
    assert start("run", str(again)).wait_for("result")["result"] == {"seconds": 0.01}


def test_run_exits_1_after_an_error(start, tmp_path):
    client = start("run", write_request(tmp_path, "fail", how="known"))
    assert client.wait_for("error")["remedy"] == "Turn it round."
    assert client.wait_for_end(START_S) == 1


def test_run_exits_1_when_the_request_is_none(start, tmp_path):
    path = tmp_path / "request.json"
    path.write_text("[]")
    client = start("run", str(path))
    assert client.wait_for("error")["error"] == "RequestError"
    assert client.wait_for_end(START_S) == 1


def test_run_exits_2_without_a_request_file(start, tmp_path):
    client = start("run", str(tmp_path / "missing.json"))
    assert client.wait_for_end(START_S) == 2
    assert "missing.json" in client.read_log()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no interrupt signals for pipes")
def test_interrupted_run_is_cancelled(start, tmp_path):
    client = start("run", write_request(tmp_path, "nap"))
    client.wait_for("progress")
    client.process.send_signal(signal.SIGINT)
    assert client.wait_for("error", timeout_s=1)["error"] == "CancelledError"
    assert client.wait_for_end() == 130


def test_run_takes_a_request_from_standard_input(start):
    client = start("run", "-")
    client.send_bytes(b'{"command": "nap", "parameters": {"seconds": 0.01}}')
    client.process.stdin.close()
    assert client.wait_for("result")["result"] == {"seconds": 0.01}

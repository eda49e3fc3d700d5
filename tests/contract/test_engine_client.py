"""The client of the warm engine, with engines that finish, fail, crash, nap and go deaf."""

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from hyperkd_qgis.engine_client import (
    EngineClient,
    EngineCrashError,
    EngineJobError,
    EngineStartError,
    JobCancelledError,
    JobListener,
)
from hyperkd_qgis.engine_process import EngineCommand, EngineProcess, open_log
from hyperkd_qgis.environment import clean_environment
from hyperkd_qgis.request import run_message

FAKE = Path(__file__).with_name("fake_engine.py")


class Listener(JobListener):
    """Writes down what it hears; cancels after some polls when asked to."""

    def __init__(self, cancel_after_polls=None):
        self.heard = []
        self.polls = 0
        self.cancel_after_polls = cancel_after_polls
        self.first_progress = threading.Event()

    def is_cancelled(self):
        self.polls += 1
        return self.cancel_after_polls is not None and self.polls > self.cancel_after_polls

    def started(self, hello):
        self.heard.append(("started", hello.text("device")))

    def progress(self, fraction, message):
        if message != "Starting the engine":
            self.heard.append(("progress", fraction, message))
            self.first_progress.set()

    def info(self, message):
        self.heard.append(("info", message))

    def warning(self, message):
        self.heard.append(("warning", message))


def fake(start="well", version="0.1.0", python=sys.executable):
    arguments = (python, "-E", "-s", str(FAKE), start, "serve")
    return EngineCommand(arguments, clean_environment(), version)


@pytest.fixture
def make_client(tmp_path):
    clients = []

    def make(start="well", **options):
        command = fake(start, **options)
        clients.append(EngineClient(lambda: command, tmp_path / "log" / "engine.log"))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def wait_until(condition, limit_s=5.0):
    end_s = time.monotonic() + limit_s
    while not condition() and time.monotonic() < end_s:
        time.sleep(0.02)
    return condition()


# A job


def test_result_comes_back(make_client):
    result = make_client().run("echo", {"input": "ä.tif"}, JobListener())
    assert result["parameters"] == {"input": "ä.tif"}


def test_listener_hears_the_engine_then_the_job(make_client):
    listener = Listener()
    make_client().run("echo", {}, listener)
    assert listener.heard == [
        ("started", "cpu"),
        ("info", "Here I am"),
        ("warning", "Mind the gap"),
        ("progress", 1.0, "Done"),
    ]


def test_second_job_finds_the_engine_warm(make_client):
    client = make_client()
    first = client.run("echo", {}, JobListener())
    assert client.is_warm
    assert client.run("echo", {}, JobListener())["pid"] == first["pid"]


def test_nothing_starts_before_the_first_job(make_client):
    assert not make_client().is_warm


def test_noise_on_standard_output_goes_to_the_log(make_client):
    client = make_client("chatty")
    client.run("echo", {}, JobListener())
    assert "a library says hello" in client.log_path.read_text()


# Three failures, told apart


def test_error_of_a_job_has_its_kind_sentence_and_remedy(make_client):
    with pytest.raises(EngineJobError, match=r"^The scene is empty\. Take another\.$") as caught:
        make_client().run("refuse", {}, JobListener())
    assert caught.value.kind == "SceneError"


def test_engine_survives_the_error_of_a_job(make_client):
    client = make_client()
    before = client.run("echo", {}, JobListener())
    with pytest.raises(EngineJobError):
        client.run("refuse", {}, JobListener())
    assert client.run("echo", {}, JobListener())["pid"] == before["pid"]


@pytest.mark.parametrize(
    ("command", "words"), [("crash", "7.*terrible thing"), ("crash_at_once", "9.*out of luck")]
)
def test_crash_tells_exit_code_and_last_words(make_client, command, words):
    with pytest.raises(EngineCrashError, match=f"(?s)crashed.*exit code {words}"):
        make_client().run(command, {}, JobListener())


def test_after_a_crash_the_next_job_has_a_fresh_engine(make_client):
    client = make_client()
    with pytest.raises(EngineCrashError):
        client.run("crash", {}, JobListener())
    assert client.run("echo", {"a": 1}, JobListener())["parameters"] == {"a": 1}


def test_interpreter_that_is_none_cannot_be_started(make_client, tmp_path):
    client = make_client(python=str(tmp_path / "no-python"))
    with pytest.raises(EngineStartError, match=r"could not be started with .*no-python"):
        client.run("echo", {}, JobListener())


def test_engine_that_dies_at_its_start_tells_why(make_client):
    with pytest.raises(EngineStartError, match=r"(?s)exit code 3.*no torch today"):
        make_client("dies").run("echo", {}, JobListener())


def test_engine_that_never_answers_is_given_up(make_client, monkeypatch):
    monkeypatch.setattr("hyperkd_qgis.engine_client.START_LIMIT_S", 0.3)
    with pytest.raises(EngineStartError, match="did not answer"):
        make_client("silent").run("echo", {}, JobListener())


def test_another_protocol_is_refused(make_client):
    with pytest.raises(EngineStartError, match="protocol 99, the plugin 1"):
        make_client("other_protocol").run("echo", {}, JobListener())


def test_another_version_is_refused(make_client):
    with pytest.raises(EngineStartError, match=r"version 0\.0\.1, the plugin 0\.1\.0"):
        make_client("other_version").run("echo", {}, JobListener())


# Cancel


def test_cancel_is_answered_within_a_second_and_leaves_nothing(make_client, tmp_path):
    client = make_client()
    client.run("echo", {}, JobListener())
    output = tmp_path / "map.tif"
    start_s = time.monotonic()
    with pytest.raises(JobCancelledError):
        client.run("nap", {"seconds": 20, "output": str(output)}, Listener(cancel_after_polls=5))
    assert time.monotonic() - start_s < 1.0
    assert list(tmp_path.glob("map*")) == []


def test_cancelled_engine_stays_warm(make_client):
    client = make_client()
    before = client.run("echo", {}, JobListener())
    with pytest.raises(JobCancelledError):
        client.run("sleep_in", {}, Listener(cancel_after_polls=2))
    assert client.run("echo", {}, JobListener())["pid"] == before["pid"]


@pytest.mark.skipif(sys.platform == "win32", reason="looks at /proc")
def test_deaf_engine_is_killed_with_its_children(make_client, tmp_path, monkeypatch):
    monkeypatch.setattr("hyperkd_qgis.engine_client.CANCEL_LIMIT_S", 0.3)
    monkeypatch.setattr("hyperkd_qgis.engine_process.SHUTDOWN_S", 0.3)
    client = make_client()
    engine_pid = client.run("echo", {}, JobListener())["pid"]
    child = tmp_path / "child"
    with pytest.raises(JobCancelledError):
        client.run("deaf", {"child": str(child)}, Listener(cancel_after_polls=10))
    assert wait_until(lambda: not is_running(int(child.read_text())))
    assert wait_until(lambda: not is_running(engine_pid))
    assert client.run("echo", {}, JobListener())["pid"] != engine_pid


def test_cancel_works_while_the_engine_starts(make_client):
    with pytest.raises(JobCancelledError):
        make_client("silent").run("echo", {}, Listener(cancel_after_polls=3))


# Several jobs at a time


def run_in_thread(client, command, parameters, listener=None):
    outcome = {}

    def work():
        try:
            outcome["result"] = client.run(command, parameters, listener or JobListener())
        except Exception as error:
            outcome["error"] = error

    thread = threading.Thread(target=work)
    thread.start()
    return thread, outcome


def test_jobs_of_several_threads_share_one_engine(make_client):
    client = make_client()
    runs = [run_in_thread(client, "echo", {"number": number}) for number in range(6)]
    for thread, _ in runs:
        thread.join(20)
    results = [outcome["result"] for _, outcome in runs]
    assert [result["parameters"]["number"] for result in results] == list(range(6))
    assert len({result["pid"] for result in results}) == 1


def test_a_waiting_job_can_be_cancelled_while_another_works(make_client):
    client = make_client()
    listener = Listener()
    thread, outcome = run_in_thread(client, "nap", {"seconds": 1.0}, listener)
    assert listener.first_progress.wait(20)
    with pytest.raises(JobCancelledError):
        client.run("echo", {}, Listener(cancel_after_polls=2))
    thread.join(20)
    assert outcome["result"] == {"seconds": 1.0}


def test_a_waiting_job_survives_the_kill_of_a_deaf_one(make_client, tmp_path, monkeypatch):
    monkeypatch.setattr("hyperkd_qgis.engine_client.CANCEL_LIMIT_S", 0.3)
    client = make_client()
    listener = Listener(cancel_after_polls=20)
    deaf, deaf_outcome = run_in_thread(client, "deaf", {"child": str(tmp_path / "c")}, listener)
    assert listener.first_progress.wait(20)
    waiting, outcome = run_in_thread(client, "echo", {"a": 1})
    deaf.join(20)
    waiting.join(20)
    assert isinstance(deaf_outcome["error"], JobCancelledError)
    assert outcome["result"]["parameters"] == {"a": 1}


def test_a_waiting_job_survives_the_crash_of_another(make_client):
    client = make_client()
    client.run("echo", {}, JobListener())
    listener = Listener()
    working, _ = run_in_thread(client, "nap", {"seconds": 0.5}, listener)
    assert listener.first_progress.wait(20)
    crashing, crash_outcome = run_in_thread(client, "crash", {})
    wait_until(lambda: len(client._engine[0]._mailboxes) == 2)
    waiting, outcome = run_in_thread(client, "echo", {"a": 1})
    for thread in (working, crashing, waiting):
        thread.join(20)
    assert isinstance(crash_outcome["error"], EngineCrashError)
    assert outcome["result"]["parameters"] == {"a": 1}


# The end


def test_engine_that_fell_asleep_is_replaced_without_a_word(make_client, tmp_path):
    client = make_client()
    result = client.run("end_idle", {"marker": str(tmp_path / "marker")}, JobListener())
    assert result["pid"]


@pytest.mark.skipif(sys.platform == "win32", reason="looks at /proc")
def test_close_ends_the_engine(make_client):
    client = make_client()
    pid = client.run("echo", {}, JobListener())["pid"]
    client.close()
    assert wait_until(lambda: not is_running(pid))


def test_close_ends_a_job_too_and_nothing_starts_again(make_client):
    client = make_client()
    listener = Listener()
    thread, outcome = run_in_thread(client, "nap", {"seconds": 20}, listener)
    assert listener.first_progress.wait(20)
    client.close()
    thread.join(10)
    assert isinstance(outcome["error"], JobCancelledError)
    assert not client.is_warm


def test_other_variables_do_not_replace_a_warm_engine(make_client, monkeypatch, tmp_path):
    client = EngineClient(fake, tmp_path / "engine.log")
    try:
        before = client.run("echo", {}, JobListener())["pid"]
        monkeypatch.setenv("SET_BY_ANOTHER_PLUGIN", "1")
        assert client.run("echo", {}, JobListener())["pid"] == before
    finally:
        client.close()


def test_changed_settings_start_another_engine(tmp_path):
    commands = [fake()]
    client = EngineClient(lambda: commands[-1], tmp_path / "engine.log")
    try:
        before = client.run("echo", {}, JobListener())["pid"]
        commands.append(fake("chatty"))
        assert client.run("echo", {}, JobListener())["pid"] != before
        assert wait_until(lambda: not is_running(before))
    finally:
        client.close()


def test_log_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "log").write_text("a file where the folder should be")
    command = fake()
    client = EngineClient(lambda: command, tmp_path / "log" / "engine.log")
    try:
        assert client.run("echo", {"a": 1}, JobListener())["parameters"] == {"a": 1}
    finally:
        client.close()


def test_log_starts_anew_when_it_is_large(tmp_path, monkeypatch):
    monkeypatch.setattr("hyperkd_qgis.engine_process.LOG_BYTES", 200)
    command = fake("chatty")
    for _ in range(4):
        client = EngineClient(lambda: command, tmp_path / "engine.log")
        client.run("echo", {}, JobListener())
        client.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["engine.log", "engine.log.1", "engine.log.2"]


def test_a_job_that_is_answered_was_not_at_work_at_the_end(tmp_path):
    process = EngineProcess(fake(), open_log(tmp_path / "engine.log"))
    answered = process.open_mailbox("1")
    process.send(run_message("1", "echo", {}))
    while not answered.get(timeout=20).is_final:
        pass
    crashing = process.open_mailbox("2")  # while nobody has closed the first one yet
    process.send(run_message("2", "crash_at_once", {}))
    while crashing.get(timeout=20) is not None:
        pass
    process.kill()
    assert process.job_at_end == "2"

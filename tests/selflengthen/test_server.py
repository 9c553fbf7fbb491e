"""A server that is started here: used, ended, and nothing else with it."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lengthen.common.errors import LengthenError
from lengthen.recipe.stages.self_lengthen import SelfLengthenStage
from lengthen.selflengthen.serve import Serving
from lengthen.selflengthen.served import served_models
from lengthen.selflengthen.server import PID_FILE, Server, end_orphan
from tests.conftest import make_model
from tests.selflengthen.endpoints import ALONE, KEY, ROOT, RUN, connect, endpoint, lines, names, settings


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"), window=8192)


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def a_vllm(folder: Path, monkeypatch, body: str) -> None:
    """An executable called vllm."""
    folder.mkdir()
    (folder / "vllm").write_text(f"#!/bin/sh\n{body}\n")
    (folder / "vllm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def scripted(folder: Path, *more: str) -> str:
    """What it runs: the scripted server, for the model and at the port of `serve MODEL ... --port N`."""
    log = folder / "log.jsonl"
    return (
        f'cd {ROOT}; exec {sys.executable} -m tests.selflengthen.server --root "$2" --port "$6" --log {log} '
        + " ".join(more)
    )


def own_server(model: Path, folder: Path) -> tuple[SelfLengthenStage, str]:
    """A stage that starts its server, and the server's address."""
    port = free_port()
    serve = {"start_vllm": True, "port": port, "start_minutes": 1}
    return settings("", model, folder, serve=serve), f"http://127.0.0.1:{port}/v1"


@contextlib.contextmanager
def a_process(*more: str) -> Iterator[subprocess.Popen]:
    """A process that is none of ours."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", *more], start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_started_server_is_used_and_ended_and_nothing_else(tmp_path, model, monkeypatch):
    a_vllm(tmp_path / "bin", monkeypatch, scripted(tmp_path))
    stage, url = own_server(model, tmp_path)
    serving = Serving(stage, tmp_path, RUN)
    with a_process("vllm") as other:
        try:
            serving.engines(0, ("generator",))
            assert names(url) == ["base"] and serving.window == 65536
            row = json.loads((tmp_path / PID_FILE).read_text())
            assert alive(row["pid"]) and row["command"][:2] == ["vllm", "serve"] and row["started"] <= time.time()
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        finally:
            serving.stop()
        assert not alive(row["pid"]) and other.poll() is None and not (tmp_path / PID_FILE).exists()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        with pytest.raises(LengthenError, match="No endpoint answers"):
            served_models(url, KEY)


def test_a_server_without_the_adapters_is_not_used(tmp_path, model, monkeypatch):
    a_vllm(tmp_path / "bin", monkeypatch, scripted(tmp_path, "--no-runtime-adapters"))
    stage, _ = own_server(model, tmp_path)
    with pytest.raises(LengthenError, match=f"does not serve extender-1-{RUN}, generator-1-{RUN}"):
        connect(stage, tmp_path, after=1)
    assert not (tmp_path / PID_FILE).exists()


def test_a_server_that_dies_while_starting_says_why(tmp_path, model, monkeypatch):
    a_vllm(tmp_path / "bin", monkeypatch, "echo 'out of memory on device 0'; exit 3")
    stage, url = own_server(model, tmp_path)
    with pytest.raises(LengthenError, match="exit code 3") as caught:
        Server.start(["vllm", "serve"], url, tmp_path / "serve.log", stage.serve)
    assert "out of memory on device 0" in str(caught.value) and not (tmp_path / PID_FILE).exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LengthenError, match="not installed"):
        Server.start(["vllm", "serve"], url, tmp_path / "serve.log", stage.serve)


def test_a_port_that_is_taken_is_refused_before_anything_starts(tmp_path, model, monkeypatch):
    """The server there answers well, and is not ours."""
    a_vllm(tmp_path / "bin", monkeypatch, f"touch {tmp_path / 'started'}; sleep 60")
    with endpoint(tmp_path, model) as (url, log):
        port = int(url.split(":")[2].split("/")[0])
        stage = settings("", model, tmp_path, serve={"start_vllm": True, "port": port})
        with pytest.raises(LengthenError, match=f"serve.port {port} cannot be used"):
            connect(stage, tmp_path)
        assert not (tmp_path / "started").exists() and not lines(log, "listed")


SCRIPT = """
import pathlib, sys, time
from lengthen.recipe.stages.self_lengthen import SelfLengthenStage
from lengthen.selflengthen.serve import Serving
stage = SelfLengthenStage.model_validate_json(pathlib.Path(sys.argv[1], "stage.json").read_text())
serving = Serving(stage, pathlib.Path(sys.argv[1]), sys.argv[2])
try:
    serving.engines(0, ())
    print("up", flush=True)
    time.sleep(100)
finally:
    serving.stop()
"""


def a_run_with_a_server(folder: Path, stage: SelfLengthenStage) -> tuple[subprocess.Popen, int]:
    """A process that has started its server and waits, and the server's process id."""
    (folder / "stage.json").write_text(stage.model_dump_json())
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), RUN], cwd=ROOT, env={**ALONE, "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    return process, json.loads((folder / PID_FILE).read_text())["pid"]


def test_a_polite_end_of_the_run_ends_its_server(tmp_path, model, monkeypatch):
    a_vllm(tmp_path / "bin", monkeypatch, scripted(tmp_path))
    process, pid = a_run_with_a_server(tmp_path, own_server(model, tmp_path)[0])
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=40) == 128 + signal.SIGTERM
    assert not alive(pid) and not (tmp_path / PID_FILE).exists()


def test_a_server_that_a_killed_run_left_is_ended_by_the_next_one(tmp_path, model, monkeypatch):
    a_vllm(tmp_path / "bin", monkeypatch, scripted(tmp_path))
    stage, _ = own_server(model, tmp_path)
    process, pid = a_run_with_a_server(tmp_path, stage)
    process.kill()
    process.wait()
    assert alive(pid)
    notes = Serving(stage, tmp_path, RUN).notes
    assert notes == ["A server that an earlier process of this run had left behind was ended."]
    assert not alive(pid) and not (tmp_path / PID_FILE).exists()
    assert Serving(stage, tmp_path, RUN).notes == []


def a_server_with_an_engine(folder: Path) -> str:
    """What a vllm runs that has started a process of its own; the number of that is in the file `engine`."""
    return f"sleep 60 & echo $! > {folder / 'engine'}.part; mv {folder / 'engine'}.part {folder / 'engine'}"


def the_engine(folder: Path) -> int:
    for _ in range(100):
        if (folder / "engine").exists():
            break
        time.sleep(0.05)
    return int((folder / "engine").read_text())


def test_what_a_server_that_died_leaves_is_ended(tmp_path, model, monkeypatch):
    a_vllm(tmp_path / "bin", monkeypatch, f"{a_server_with_an_engine(tmp_path)}; exit 3")
    stage, url = own_server(model, tmp_path)
    with pytest.raises(LengthenError, match="exit code 3"):
        Server.start(["vllm", "serve"], url, tmp_path / "serve.log", stage.serve)
    assert not alive(the_engine(tmp_path)) and not (tmp_path / PID_FILE).exists()


def test_what_a_dead_server_of_a_killed_run_left_is_ended_by_the_next_one(tmp_path):
    script = f"{a_server_with_an_engine(tmp_path)}; sleep 60"
    process = subprocess.Popen(["sh", "-c", script], start_new_session=True)
    engine = the_engine(tmp_path)
    row = {"pid": process.pid, "started": psutil.Process(process.pid).create_time(), "command": []}
    (tmp_path / PID_FILE).write_text(json.dumps(row))
    process.kill()
    process.wait()
    assert alive(engine)
    assert end_orphan(tmp_path) is True and not alive(engine) and not (tmp_path / PID_FILE).exists()


def test_only_the_very_process_that_was_written_down_is_ended(tmp_path):
    with a_process() as other:
        for text in (
            json.dumps({"pid": other.pid, "started": psutil.Process(other.pid).create_time() - 60, "command": []}),
            json.dumps({"pid": 2**22 + 1, "started": time.time(), "command": []}),
            json.dumps({"pid": os.getpid(), "started": psutil.Process().create_time() + 5, "command": []}),
            "half a li",
        ):
            (tmp_path / PID_FILE).write_text(text)
            assert end_orphan(tmp_path) is False and not (tmp_path / PID_FILE).exists()
        assert other.poll() is None


def test_memory_is_given_back_before_a_server_starts(tmp_path, model, monkeypatch):
    a_vllm(tmp_path / "bin", monkeypatch, "exit 3")
    stage, _ = own_server(model, tmp_path)

    class Trained: ...

    trained = Trained()
    trained.itself = trained  # type: ignore[attr-defined]  # as a model and its hooks
    left = weakref.ref(trained)
    gc.disable()
    try:
        del trained
        assert left() is not None
        with pytest.raises(LengthenError, match="exit code 3"):
            connect(stage, tmp_path)
        assert left() is None
    finally:
        gc.enable()

"""The loop against a scripted HTTP endpoint in another process: faults, kills at random moments, adapters by name."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from lengthen.common.errors import LengthenError
from lengthen.common.manifest import StageContext
from lengthen.recipe.stages.self_lengthen import SelfLengthenStage
from lengthen.selflengthen.loop import self_lengthen
from lengthen.selflengthen.serve import Server, serve_command, served_models
from tests.conftest import make_model
from tests.selflengthen.parts import prose

ROOT = Path(__file__).parents[2]
ALONE = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@contextlib.contextmanager
def endpoint(folder: Path, *arguments: str) -> Iterator[tuple[str, Path]]:
    """A scripted server: its address and its log."""
    log = folder / f"server-{time.monotonic_ns()}.jsonl"
    command = [sys.executable, "-m", "tests.selflengthen.server", "--log", str(log), *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env=ALONE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), log
    finally:
        process.kill()
        process.wait()


def lines(log: Path, event: str) -> list[dict]:
    return [row for line in log.read_text().splitlines() if (row := json.loads(line))["event"] == event]


def start(folder: Path, url: str, model: Path, count: int, in_flight: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.selflengthen.run_phases", str(folder), url, str(model)]
    return subprocess.Popen(
        [*command, str(count), str(in_flight), "6"], cwd=ROOT, env=ALONE, stdout=subprocess.DEVNULL,
        stderr=open(folder.parent / f"{folder.name}.err", "ab"),
    )  # fmt: skip


def rows(folder: Path, sql: str) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(f"file:{folder / 'state.sqlite'}?mode=ro", uri=True, timeout=10)) as db:
        return db.execute(sql).fetchall()


def answered(folder: Path) -> set[str]:
    """Keys of the answered requests, as the server names them."""
    if not (folder / "state.sqlite").exists():
        return set()
    with contextlib.suppress(sqlite3.OperationalError):  # killed before the tables were made
        found = rows(folder, "SELECT request FROM requests WHERE finish_reason IS NOT NULL")
        requests = [json.loads(text) for (text,) in found]
        return {f"{r['seed'] % 2**31}/{r['max_new_tokens']}" for r in requests}
    return set()


OUTCOMES = "SELECT iteration, role, item, sample, text, kept FROM outcomes ORDER BY 1, 2, 3, 4"
VERDICTS = "SELECT * FROM verdicts ORDER BY 1, 2, 3, 4, 5, 6"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"), window=8192)


def test_killed_at_random_moments_nothing_is_lost_and_nothing_asked_twice(tmp_path, model):
    faults = ["--latency", "0.05", "--limited", "0.05", "--broken", "0.05", "--dropped", "0.03", "--hanging", "0.01"]
    with endpoint(tmp_path, "--latency", "0.02") as (url, _):
        assert start(tmp_path / "plain", url, model, 20, 16).wait(timeout=120) == 0
    draws, killed = random.Random(4), tmp_path / "killed"
    with endpoint(tmp_path, *faults) as (url, log):
        moments: list[tuple[float, set[str]]] = []
        while len(moments) < 4:
            process = start(killed, url, model, 20, 16)
            goal = len(answered(killed)) + draws.randint(8, 40)
            while process.poll() is None and len(answered(killed)) < goal:
                time.sleep(0.02)
            if process.poll() is not None:
                break
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            moments.append((time.time(), answered(killed)))
        code = start(killed, url, model, 20, 16).wait(timeout=180)
        assert code == 0, (tmp_path / "killed.err").read_text()[-3000:]
        asked = lines(log, "asked")
        assert {line["event"] for line in map(json.loads, log.read_text().splitlines())} >= {"limited", "broken"}
    assert len(moments) >= 3 and len(moments[-1][1]) > len(moments[0][1])
    for at, known in moments:
        again = [line["key"] for line in asked if line["at"] > at and line["key"] in known]
        assert again == [], "asked again after its answer was stored"
    # The faults and the kills changed no result at all.
    assert rows(killed, OUTCOMES) == rows(tmp_path / "plain", OUTCOMES)
    assert rows(killed, VERDICTS) == rows(tmp_path / "plain", VERDICTS)
    assert rows(killed, "SELECT COUNT(*) FROM requests WHERE finish_reason IS NULL") == [(0,)]


def settings(url: str, model: Path, folder: Path, **changes) -> SelfLengthenStage:
    """A small stage on an endpoint, with instructions from a file."""
    file = folder / "instructions.jsonl"
    if not file.exists():
        texts = [f"Write a story about {prose(8, i).split('.')[0][3:].lower()}." for i in range(40)]
        file.write_text("".join(json.dumps({"instruction": t}) + "\n" for t in texts))
    plain = {
        "name": "loop", "model": str(model), "window": 65536, "iterations": 1,
        "instruct": {"source": "file", "file": str(file), "count": 8, "near_duplicate": 1.0},
        "respond": {"samples": 1, "tries": 6}, "extend": {"tries": 3, "rounds": 1},
        "sampling": {"max_new_tokens": 4096}, "constraints": {"low": "auto", "high": "auto", "step": "auto"},
        "training": {"epochs": 1, "lora_rank": 2, "lora_alpha": 4, "row_length": 8192, "rows_per_step": 8},
        "final": {"count": 6, "train": False}, "held_out": {"count": 3},
        "serve": {"endpoint": url, "in_flight": 16, "base_seconds": 3, "slowest_tokens_per_second": 4096},
    }  # fmt: skip
    return SelfLengthenStage.model_validate({**plain, **changes})


def test_a_macro_iteration_is_trained_and_its_adapters_are_served_by_name(tmp_path, model):
    with endpoint(tmp_path, "--latency", "0.01", "--size", "0.3", "--no-runtime-adapters") as (url, _):
        with pytest.raises(LengthenError, match="does not serve extender-1, generator-1") as caught:
            self_lengthen(settings(url, model, tmp_path), StageContext(tmp_path / "run", seed=1, stage="loop"))
        assert "--lora-modules generator-1=" in str(caught.value) and "goes on from here" in str(caught.value)
    command = (tmp_path / "run" / "serve-2.sh").read_text()
    assert command.startswith("vllm serve ") and "--max-lora-rank 8 " in command
    adapters = [Path(part.split("=", 1)[1]) for part in command.split() if part.startswith(("generator-", "extender-"))]
    assert len(adapters) == 2 and all(p.is_absolute() and (p / "adapter_config.json").exists() for p in adapters)
    # The same command again, with a server that takes adapters at run time (another address is no other setting).
    with endpoint(tmp_path, "--latency", "0.01", "--size", "0.3") as (url, log):
        result = self_lengthen(settings(url, model, tmp_path), StageContext(tmp_path / "run", seed=1, stage="loop"))
        models = {line["model"] for line in lines(log, "asked") if line["seed"] is not None}
        assert models == {"generator-1", "base"}  # fresh texts and held-out prompts; length demands
        assert set(served_models(url)) == {"base", "generator-1", "extender-1"}
    chat = [json.loads(line) for line in (tmp_path / "run" / "chat.jsonl").read_text().splitlines()]
    assert chat and result.counts["rows"] == len(chat) and not (tmp_path / "run" / "model").exists()
    assert "model" in {row["meta"]["how"] for row in chat}
    for row in chat:
        low, high = row["meta"]["low"], row["meta"]["high"] or row["meta"]["low"]
        numbers = row["messages"][0]["content"].replace(",", "")
        assert str(low) in numbers and str(high) in numbers


def test_a_hanging_request_delays_nothing_else(tmp_path, model):
    stuck = {"endpoint": "", "in_flight": 16, "base_seconds": 600, "slowest_tokens_per_second": 1}
    with endpoint(tmp_path, "--latency", "0.02", "--hanging", "0.04") as (url, log):
        stage = settings(url, model, tmp_path, serve={**stuck, "endpoint": url})
        stage = stage.model_copy(update={"instruct": stage.instruct.model_copy(update={"count": 40})})
        (tmp_path / "stage.json").write_text(stage.model_dump_json())
        script = (
            "import sys, pathlib; from lengthen.common.manifest import StageContext\n"
            "from lengthen.recipe.stages.self_lengthen import SelfLengthenStage\n"
            "from lengthen.selflengthen.loop import self_lengthen\n"
            "stage = SelfLengthenStage.model_validate_json(pathlib.Path(sys.argv[1]).read_text())\n"
            "self_lengthen(stage, StageContext(pathlib.Path(sys.argv[2]), seed=8))\n"
        )
        stage = stage.model_copy(update={"held_out": stage.held_out.model_copy(update={"count": 0})})
        (tmp_path / "stage.json").write_text(stage.model_dump_json())
        run = tmp_path / "run"
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "stage.json"), str(run)], cwd=ROOT, env=ALONE
        )
        try:
            hung, end, still = 0, time.monotonic() + 90, 0
            count = -1
            while time.monotonic() < end and still < 8:  # until nothing has moved for four seconds
                time.sleep(0.5)
                hung = len(lines(log, "hanging"))
                now = len(lines(log, "answered"))
                still, count = (still + 1 if now == count and now > 0 else 0), now
            assert hung > 0 and process.poll() is None
            tasks = rows(run, "SELECT role, COUNT(*) FROM outcomes GROUP BY role")
            open_requests = rows(run, "SELECT COUNT(*) FROM requests WHERE finish_reason IS NULL")[0][0]
        finally:
            process.kill()
            process.wait()
    done = dict(tasks)
    assert open_requests == hung
    # Responses that hang cost only themselves; texts whose selection is certain were extended meanwhile.
    assert done["response"] >= 40 - hung and done["extension"] >= 0.6 * 0.5 * done["response"]


def test_an_endpoint_that_cannot_continue_a_beginning_is_refused(tmp_path, model):
    with (
        endpoint(tmp_path, "--no-prefill") as (url, log),
        pytest.raises(LengthenError, match="cannot continue a given beginning"),
    ):
        self_lengthen(settings(url, model, tmp_path), StageContext(tmp_path / "run", seed=1, stage="loop"))
    assert [line for line in lines(log, "asked") if line["seed"] is not None] == []


def test_an_endpoint_that_is_not_there_is_named(tmp_path, model):
    stage = settings("http://127.0.0.1:9/v1", model, tmp_path)
    with pytest.raises(LengthenError, match=r"No endpoint answers at http://127.0.0.1:9/v1"):
        self_lengthen(stage, StageContext(tmp_path / "run", seed=1, stage="loop"))


def script_named_vllm(folder: Path, body: str) -> None:
    folder.mkdir()
    (folder / "vllm").write_text(f"#!/bin/sh\n{body}\n")
    (folder / "vllm").chmod(0o755)


def test_the_first_server_can_take_every_adapter_of_the_run(tmp_path, model):
    """A server that is left running must have room for the rank that the last macro-iteration will have."""
    plain = {"lora_rank": 8, "lora_alpha": 16}
    stage = settings("http://h:1/v1", model, tmp_path, iterations=3, training=plain)
    command = serve_command(stage, tmp_path, 0)
    assert command[command.index("--enable-lora") :][:5] == [
        "--enable-lora",
        "--max-lora-rank",
        "32",
        "--max-loras",
        "2",
    ]
    huge = settings("http://h:1/v1", model, tmp_path, iterations=9, training={"lora_rank": 64, "lora_alpha": 64})
    with pytest.raises(LengthenError, match="rank 576"):
        serve_command(huge, tmp_path, 0)
    with pytest.raises(ValidationError, match="lora_rank 0"):
        settings("http://h:1/v1", model, tmp_path, training={"lora_rank": 0})


def test_a_started_server_is_used_and_ended_and_nothing_else(tmp_path, model, monkeypatch):
    """An executable called vllm, with vLLM's arguments, that serves the script."""
    run = f"cd {ROOT}; exec {sys.executable} -m tests.selflengthen.server --port 18765 --log {tmp_path / 'log.jsonl'}"
    script_named_vllm(tmp_path / "bin", run)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    stage = settings("", model, tmp_path, serve={"start_vllm": True, "port": 18765, "start_minutes": 1})
    command = serve_command(stage, tmp_path, 0)
    assert command[:3] == ["vllm", "serve", str(model)] and "--lora-modules" not in command
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "vllm"])
    try:
        server = Server.start(command, "http://127.0.0.1:18765/v1", tmp_path / "serve.log", stage)
        assert served_models("http://127.0.0.1:18765/v1") == ["base"]
        server.stop()
        assert server.process.poll() is not None and other.poll() is None
        with pytest.raises(LengthenError, match="No endpoint answers"):
            served_models("http://127.0.0.1:18765/v1")
    finally:
        other.kill()
        other.wait()


def test_a_server_that_dies_while_starting_says_why(tmp_path, model, monkeypatch):
    script_named_vllm(tmp_path / "bin", "echo 'out of memory on device 0'; exit 3")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    stage = settings("", model, tmp_path, serve={"start_vllm": True, "port": 18766})
    with pytest.raises(LengthenError, match="exit code 3") as caught:
        Server.start(["vllm", "serve"], "http://127.0.0.1:18766/v1", tmp_path / "serve.log", stage)
    assert "out of memory on device 0" in str(caught.value)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LengthenError, match="not installed"):
        Server.start(["vllm", "serve"], "http://127.0.0.1:18766/v1", tmp_path / "serve.log", stage)

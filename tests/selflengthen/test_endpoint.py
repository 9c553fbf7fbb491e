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
from pathlib import Path

import pytest

from lengthen.common.errors import LengthenError
from lengthen.common.manifest import StageContext
from lengthen.selflengthen.loop import self_lengthen
from lengthen.selflengthen.served import served_models
from tests.conftest import make_model
from tests.selflengthen.endpoints import ALONE, ROOT, endpoint, lines, rows, settings


def start(folder: Path, url: str, model: Path, count: int, in_flight: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.selflengthen.run_phases", str(folder), url, str(model)]
    return subprocess.Popen(
        [*command, str(count), str(in_flight), "6"], cwd=ROOT, env=ALONE, stdout=subprocess.DEVNULL,
        stderr=open(folder.parent / f"{folder.name}.err", "ab"),
    )  # fmt: skip


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
    with endpoint(tmp_path, model, "--latency", "0.02") as (url, _):
        assert start(tmp_path / "plain", url, model, 20, 16).wait(timeout=120) == 0
    draws, killed = random.Random(4), tmp_path / "killed"
    with endpoint(tmp_path, model, *faults) as (url, log):
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


def test_a_macro_iteration_is_trained_and_its_adapters_are_served_by_name(tmp_path, model):
    with endpoint(tmp_path, model, "--latency", "0.01", "--size", "0.3", "--no-runtime-adapters") as (url, _):
        with pytest.raises(LengthenError, match=r"does not serve extender-1-\w{8}, generator-1-\w{8}") as caught:
            self_lengthen(settings(url, model, tmp_path), StageContext(tmp_path / "run", seed=1, stage="loop"))
        run = rows(tmp_path / "run", "SELECT value FROM meta WHERE key='run'")[0][0]
        assert f"--lora-modules generator-1-{run}=" in str(caught.value) and "goes on from here" in str(caught.value)
        assert "404" in str(caught.value) and "runtime adapters are switched off" in str(caught.value)
    command = (tmp_path / "run" / "serve-2.sh").read_text()
    assert command.startswith("vllm serve ") and "--max-lora-rank 8 " in command and "--max-model-len 65536 " in command
    adapters = [Path(part.split("=", 1)[1]) for part in command.split() if part.startswith(("generator-", "extender-"))]
    assert len(adapters) == 2 and all(p.is_absolute() and (p / "adapter_config.json").exists() for p in adapters)
    # The same command again, with a server that takes adapters at run time (another address is no other setting).
    with endpoint(tmp_path, model, "--latency", "0.01", "--size", "0.3") as (url, log):
        result = self_lengthen(settings(url, model, tmp_path), StageContext(tmp_path / "run", seed=1, stage="loop"))
        models = {line["model"] for line in lines(log, "asked") if line["seed"] is not None}
        # fresh texts and held-out prompts; length demands. A resumed run has the same names.
        assert models == {f"generator-1-{run}", "base"}
        served = [row.name for row in served_models(url, "OPENAI_API_KEY") or []]
        assert sorted(served) == ["base", f"extender-1-{run}", f"generator-1-{run}"]
    chat = [json.loads(line) for line in (tmp_path / "run" / "chat.jsonl").read_text().splitlines()]
    assert chat and result.counts["rows"] == len(chat) and not (tmp_path / "run" / "model").exists()
    assert "model" in {row["meta"]["how"] for row in chat}
    for row in chat:
        low, high = row["meta"]["low"], row["meta"]["high"] or row["meta"]["low"]
        numbers = row["messages"][0]["content"].replace(",", "")
        assert str(low) in numbers and str(high) in numbers


def test_a_hanging_request_delays_nothing_else(tmp_path, model):
    stuck = {"endpoint": "", "in_flight": 16, "base_seconds": 600, "slowest_tokens_per_second": 1}
    with endpoint(tmp_path, model, "--latency", "0.02", "--hanging", "0.04") as (url, log):
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
        endpoint(tmp_path, model, "--no-prefill") as (url, log),
        pytest.raises(LengthenError, match="cannot continue a given beginning"),
    ):
        self_lengthen(settings(url, model, tmp_path), StageContext(tmp_path / "run", seed=1, stage="loop"))
    assert [line for line in lines(log, "asked") if line["seed"] is not None] == []


def test_an_endpoint_that_is_not_there_is_named(tmp_path, model):
    stage = settings("http://127.0.0.1:9/v1", model, tmp_path)
    with pytest.raises(LengthenError, match=r"No endpoint answers at http://127.0.0.1:9/v1"):
        self_lengthen(stage, StageContext(tmp_path / "run", seed=1, stage="loop"))

"""A recipe through the command line: killed while it asks and while it trains, evaluated after each training, inspected
while it runs, reported at the end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lengthen.commands import inspect_text
from lengthen.common.errors import LengthenError
from lengthen.common.manifest import StageContext
from lengthen.recipe.stages.self_lengthen import SelfLengthenStage
from lengthen.selflengthen.loop import self_lengthen
from tests.selflengthen.parts import TINY, prose
from tests.selflengthen.test_endpoint import ALONE, ROOT, rows


def write_recipe(folder: Path, model: Path) -> Path:
    for name in ("held", "prompts"):
        lines = [json.dumps({"prompt": f"Write about {name} number {i}."}) + "\n" for i in range(5)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    longform = {"suite": "longform", "tasks": ["prompts"], "options": {"prompts": str(folder / "prompts.jsonl")},
                "max_new_tokens": 48}  # fmt: skip
    stage = {
        **TINY, "kind": "self-lengthen", "name": "self-lengthen", "iterations": 1,
        "instruct": {"source": "templates", "count": 5}, "final": {"count": 4},
        "held_out": {"file": str(folder / "held.jsonl"), "count": 3}, "evaluate": {"suites": [longform]},
    }  # fmt: skip
    report = {"kind": "report", "model": "@self-lengthen", "self_lengthen": ["@self-lengthen"]}
    recipe = folder / "small.yaml"
    recipe.write_text(json.dumps({"name": "small", "model": str(model), "stages": [stage, report]}))
    return recipe


def run_until(recipe: Path, out: Path, reached: Callable[[], bool] | None) -> int:
    """Run the recipe; SIGKILL as soon as `reached`. Returns the exit code."""
    command = [sys.executable, "-m", "lengthen", "run", str(recipe), "--out", str(out)]
    with open(out.parent / "log", "ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=ALONE, stdout=log, stderr=log)
        deadline = time.monotonic() + 900
        while process.poll() is None and time.monotonic() < deadline:
            if reached is not None and reached():
                break
            time.sleep(0.05)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
    return process.wait()


def answers(stage: Path) -> dict[tuple, tuple]:
    """When each stored answer came, by its key."""
    if not (stage / "state.sqlite").exists():
        return {}
    try:
        found = rows(stage, "SELECT iteration, role, item, sample, attempt, step, answered_at, sends FROM requests "
                            "WHERE finish_reason IS NOT NULL")  # fmt: skip
    except Exception:  # killed before the tables were made
        return {}
    return {row[:6]: row[6:] for row in found}


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """(run folder, answers at each kill, page of `inspect` at the last kill)"""
    folder = tmp_path_factory.mktemp("recipe")
    recipe, out = write_recipe(folder, tiny), folder / "run"
    stage = out / "stages" / "self-lengthen"
    metrics = stage / "iterations" / "1-generator" / "metrics.jsonl"
    known = []
    for reached in (
        lambda: any(key[1] == "response" for key in answers(stage)),
        lambda: metrics.exists() and metrics.stat().st_size > 0,
    ):
        assert run_until(recipe, out, reached) == -signal.SIGKILL, (folder / "log").read_text()[-3000:]
        known.append(answers(stage))
    page = inspect_text(out, 5, None)
    assert run_until(recipe, out, None) == 0, (folder / "log").read_text()[-3000:]
    return out, known, page


def test_what_was_answered_before_a_kill_is_not_asked_again(run):
    out, known, _ = run
    at_end = answers(out / "stages" / "self-lengthen")
    assert 0 < len(known[0]) < len(known[1]) < len(at_end)
    for before in known:
        assert {key: at_end[key] for key in before} == before
    chat = (out / "stages" / "self-lengthen" / "chat.jsonl").read_text().splitlines()
    assert chat and (out / "stages" / "self-lengthen" / "model" / "config.json").exists()


def test_longform_is_measured_at_the_start_and_after_each_training(run):
    out, _, _ = run
    growth = json.loads((out / "stages" / "self-lengthen" / "growth.json").read_text())["rows"]
    found = {(row["name"], row["iteration"]): row for row in growth}
    for after in (0, 1, 2):  # the starting model, the Generator, the final model
        words = found["longform/prompts:median words", after]
        assert words["unit"] == "words" and words["value"] > 0 and words["n"] == 5
        score = found["longform/prompts", after]
        assert 0 < score["value"] <= 1 and score["low"] <= score["value"] <= score["high"]
        assert found["clean words, median", after]["n"] == 3
    folders = out / "stages" / "self-lengthen" / "iterations"
    models = [json.loads((folders / f"{i}-evaluate" / "scores.json").read_text())["model"] for i in (0, 1, 2)]
    assert len(set(models)) == 3


def test_the_curves_stand_in_the_report(run):
    out, _, _ = run
    page = next((out / "stages" / "report").rglob("report.html")).read_text()
    table = next((out / "stages" / "report").rglob("growth-self-lengthen-words.csv")).read_text()
    assert "longform/prompts:median words" in page and "clean words, median" in page
    assert {line.split(",")[0] for line in table.splitlines() if "longform/prompts:median words" in line} == set("012")
    assert "cut_by_limit" in page


def test_inspect_shows_a_run_also_before_its_end(run):
    out, _, page = run
    assert "write" in page and "not finished" in page and "cut_by_limit" in page
    whole = inspect_text(out, 5, None)
    assert "not finished" not in whole and "self-lengthen: done" in whole and "longform/prompts" in whole
    assert inspect_text(out / "stages" / "self-lengthen", 5, None) in whole


def test_a_baseline_is_measured_beside_its_start(tiny, tmp_path):
    recipe = json.loads(write_recipe(tmp_path, tiny).read_text())
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": prose(200, i)}) + "\n" for i in range(3)))
    plain = {key: recipe["stages"][0][key] for key in ("sampling", "checks", "retry", "training", "held_out")}
    # No file is named: longform asks the held-out prompts.
    longform = {"suite": "longform", "tasks": ["prompts"], "max_new_tokens": 48}
    changes = {"model": str(tiny), "method": "back-translation", "texts": str(texts), "final": {"train": False},
               "evaluate": {"suites": [longform]}}  # fmt: skip
    settings = SelfLengthenStage.model_validate({"name": "loop", **plain, **changes})
    with contextlib.suppress(LengthenError):  # whether a tiny model finds an instruction for a text is not the point
        self_lengthen(settings, StageContext(tmp_path / "stage", seed=1))
    found = dict(rows(tmp_path / "stage", "SELECT name, n FROM measures WHERE iteration=0"))
    assert found["longform/prompts"] == found["clean words, median"] == found["pass rate"] == 3
    asked = [json.loads(line) for line in (tmp_path / "stage" / "held-out.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in asked] == [f"Write about held number {i}." for i in (0, 1, 3)]


def test_the_laptop_preset_has_the_size_of_the_experiment():
    from lengthen.recipe.load import load_recipe

    stage = load_recipe("self-lengthen-laptop").stages[0]
    assert isinstance(stage, SelfLengthenStage)
    assert (stage.iterations, stage.instruct.count, stage.respond.tries, stage.extend.tries) == (2, 64, 3, 3)
    assert (stage.serve.batch, stage.held_out.count, stage.respond.samples) == (32, 40, 1)
    assert stage.serve.in_flight >= 32 and stage.constraints.low == "auto"

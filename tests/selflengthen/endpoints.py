"""A scripted endpoint in another process, a stage that uses it, and looks into the state that it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from lengthen.recipe.stages.self_lengthen import SelfLengthenStage
from lengthen.selflengthen.serve import Serving
from lengthen.selflengthen.served import served_models
from tests.selflengthen.parts import prose

ROOT = Path(__file__).parents[2]
RUN = "0123abcd"
KEY = "OPENAI_API_KEY"
ALONE = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@contextlib.contextmanager
def endpoint(folder: Path, model: Path, *arguments: str) -> Iterator[tuple[str, Path]]:
    """A scripted server that plays this model: its address and its log. It counts words, and with `--model` tokens."""
    if "--model" not in arguments and "--root" not in arguments:
        arguments = ("--root", str(model), *arguments)
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


def rows(folder: Path, sql: str) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(f"file:{folder / 'state.sqlite'}?mode=ro", uri=True, timeout=10)) as db:
        return db.execute(sql).fetchall()


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


def names(url: str) -> list[str]:
    return [row.name for row in served_models(url, KEY) or []]


def connect(stage: SelfLengthenStage, folder: Path, after: int = 0, run: str = RUN) -> Serving:
    """Everything that a macro-iteration does before it asks its endpoint."""
    serving = Serving(stage, folder, run)
    try:
        serving.engines(after, ("base", "generator", "extender"))
    finally:
        serving.stop()
    return serving

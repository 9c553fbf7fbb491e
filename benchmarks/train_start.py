"""Rows start and dp2 of `python -m benchmarks.train`: whole commands, timed from outside."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks.common import ROOT, alternate, launch, process_environment, row
from benchmarks.train_rows import document_lengths
from benchmarks.train_worker import STEPS, stage_settings

if TYPE_CHECKING:
    from benchmarks.train import Bench


def start(bench: Bench) -> dict[str, Any]:
    """Seconds from typing the command to the end of the first optimizer step."""
    tokens = bench.tokens(2048)
    spec = bench.spec("start", [document_lengths(tokens, 4)], length=None, packed=True)

    def ours(number: int) -> float:
        with tempfile.TemporaryDirectory(dir=bench.folder) as name:
            recipe = _recipe(Path(name), {**spec, "rows": spec["files"]["ours"]})
            run = Path(name, "run")
            command = [sys.executable, "-m", "lengthen", "run", str(recipe), "--out", str(run)]
            return _until(command, run / "stages" / "train" / "metrics.jsonl")

    def theirs(number: int) -> float:
        with tempfile.TemporaryDirectory(dir=bench.folder) as name:
            folder, given = Path(name, "trl"), Path(name, "spec.json")
            told = {k: v for k, v in spec.items() if k != "files"}
            given.write_text(json.dumps({**told, "side": "trl", "rows": spec["files"]["trl"], "folder": str(folder)}))
            command = [sys.executable, "-m", "benchmarks.train_worker", str(given), str(Path(name, "out.json"))]
            return _until(command, folder / STEPS)

    # Neither side shall pay for cold files.
    ours(0), theirs(0)
    found = alternate(bench.runs, ours, theirs)
    work = f"from the command to the end of the first step, a packed row of {tokens:,} tokens, everything in the cache"
    peer = "a script with TRL SFTTrainer, sdpa, on rows that are packed already"
    return row("start", work, peer, *found, "s", better="lower")


def dp2(bench: Bench) -> dict[str, Any]:
    """Tokens/s of the same two rows a step: two processes with half of the cores each, one process with all."""
    tokens, per_step, steps = bench.tokens(4096), 2, bench.steps + 2
    rows = [document_lengths(tokens, 8, seed) for seed in range(per_step * steps)]
    spec = {**bench.spec("dp2", rows, length=None, packed=True), "batch_rows": per_step, "steps": steps}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 2)

    def measure(processes: int) -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=bench.folder) as name:
            recipe = _recipe(Path(name), {**spec, "rows": spec["files"]["ours"]})
            run = Path(name, "run")
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
            command = [sys.executable, *(launcher if processes > 1 else []), "-m", "lengthen", "run", str(recipe)]
            launch([*command, "--out", str(run)], environment={"OMP_NUM_THREADS": str(max(1, cores // processes))})
            metrics = (run / "stages" / "train" / "metrics.jsonl").read_text().splitlines()
            lines = [json.loads(line) for line in metrics]
            return {"speed": statistics.median(one["tokens_per_second"] for one in lines[1:]), "loss": lines[0]["loss"]}

    two, one = alternate(bench.runs, lambda _: measure(2), lambda _: measure(1))
    if abs(two[0]["loss"] - one[0]["loss"]) > 0.01 * abs(one[0]["loss"]):
        raise RuntimeError(f"the first losses differ: two processes {two[0]['loss']}, one {one[0]['loss']}")
    threads = max(1, cores // 2)
    work = f"training steps of {per_step} packed rows of {tokens:,} tokens, two processes with {threads} thread(s) each"
    peer = f"lengthen in one process with {cores} threads"
    speeds = [[run["speed"] for run in side] for side in (two, one)]
    return row("dp2", work, peer, *speeds, "tokens/s", better="higher", details={"first_loss": one[0]["loss"]})


def _recipe(folder: Path, spec: dict[str, Any]) -> Path:
    settings = stage_settings(spec)
    recipe = {"name": "benchmark", "model": settings["model"], "stages": [settings]}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def _until(command: list[str], sign: Path) -> float:
    """Seconds until the file `sign` has a line; the process then ends in its own time."""
    with tempfile.TemporaryFile("w+") as said:
        begin = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, env=process_environment(), stdout=said, stderr=said)
        while process.poll() is None and not (sign.exists() and sign.stat().st_size):
            time.sleep(0.005)
        seconds = time.perf_counter() - begin
        if process.wait() or not sign.exists():
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{said.read()[-6000:]}")
    return seconds

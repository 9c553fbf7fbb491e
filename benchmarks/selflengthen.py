"""Self-Lengthen's mechanics at size: `python -m benchmarks.selflengthen [INSTRUCTIONS]`. Rows in
results/benchmarks/selflengthen.json.

2,000 instructions go through instruct, respond and extend against a scripted HTTP endpoint in another process that is
slow (two seconds an answer on average; `--answer-seconds 16` is nearer to what a server that writes thousands of words
takes), limits, breaks, drops and hangs some requests. The loop is killed three times at random moments. Counted: what
was lost, what was asked again after its answer had been stored, and how busy the endpoint was kept, which its own log
tells; beside it what the process that ended a phase recorded of it (`phases`): requests a second, its own count of
places in use, processor seconds. The comparison is the same loop with the steps one after the other, each waiting for
all of the one before it (as the original's scripts do), on an equal endpoint without kills.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, process_environment, row, store

IN_FLIGHT = 256
ANSWER_SECONDS = 2.0
FAULTS = ("--limited", "0.02", "--broken", "0.02", "--dropped", "0.01", "--hanging", "0.002")
FAULT_NAMES = ("limited", "broken", "dropped", "hanging")
KILLS = 3
PROGRESS_SECONDS = 30.0


def measured(count: int, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
    """The row: ours with kills, the stepwise loop without."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = _tokenizer_model(folder / "model")
        ours = measure(folder / "flow", model, count, seconds, kills=KILLS, steps=False)
        theirs = measure(folder / "steps", model, count, seconds, kills=0, steps=True)
    return row(
        "selflengthen-busy" if seconds == ANSWER_SECONDS else f"selflengthen-busy-{seconds:g}s",
        f"{count:,} instructions: instruct, respond, extend at an endpoint with faults, {IN_FLIGHT} in flight, "
        f"{seconds:g} s an answer; "
        f"{ours['requests']:,} requests, {ours['kills']} kills",
        "the same steps one after the other, each waiting for all of the one before",
        [ours["busy"]], [theirs["busy"]], "share of the endpoint's places in use", better="higher",
        details={"ours": ours, "theirs": theirs},
    )  # fmt: skip


def measure(folder: Path, model: Path, count: int, seconds: float, *, kills: int, steps: bool) -> dict[str, Any]:
    """One whole run of the three steps. busy: mean share of places in use at the server while the loop ran."""
    folder.mkdir()
    log = folder / "server.jsonl"
    # The server draws from half to twice its latency: on average a quarter more.
    slow = ("--latency", str(seconds / 1.25), "--hang-seconds", str(10 * seconds))
    script = ("--root", str(model), *slow, *FAULTS)
    server = _start(["tests.selflengthen.server", "--log", str(log), *script], stdout=subprocess.PIPE)
    assert server.stdout is not None
    url = server.stdout.readline().decode().strip()
    run = folder / "run"
    command = ["tests.selflengthen.run_phases", str(run), url, str(model), str(count), str(IN_FLIGHT), str(3 * seconds)]
    command += ["steps"] * steps
    draws, spans, stored = random.Random(1), [], []
    progress = Progress(folder.name, run)
    try:
        for number in range(kills + 1):
            began = time.time()
            process = _start(command, stdout=subprocess.DEVNULL)
            goal = stored_answers(run) + draws.randint(count // 2, 2 * count)
            while process.poll() is None and (number == kills or stored_answers(run) < goal):
                time.sleep(2)
                progress.show(number)
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                stored.append((time.time(), stored_keys(run)))
            elif process.returncode:
                raise RuntimeError(f"the loop ended with {process.returncode}")
            spans.append((began, time.time()))
            if process.returncode == 0:
                break
    finally:
        server.kill()
        server.wait()
    return {**_from_log(log, spans, stored), **_counts(run), "kills": len(stored)}


class Progress:
    """A line on stderr every half minute: what the state file holds."""

    def __init__(self, name: str, run: Path) -> None:
        self.name, self.run = name, run
        self.began = self.last = time.monotonic()

    def show(self, kills: int) -> None:
        now = time.monotonic()
        if now - self.last < PROGRESS_SECONDS:
            return
        self.last = now
        texts = ", ".join(f"{count:,} {role}s" for role, count in _ended_tasks(self.run).items())
        told = f"{stored_answers(self.run):,} answers stored, ended: {texts or 'none'}, {kills} kills"
        print(f"{self.name}: {now - self.began:.0f} s, {told}", file=sys.stderr, flush=True)


def stored_answers(run: Path) -> int:
    from tests.selflengthen.test_endpoint import rows

    try:
        return rows(run, "SELECT COUNT(*) FROM requests WHERE finish_reason IS NOT NULL")[0][0]
    except sqlite3.OperationalError:  # no state file yet
        return 0


def stored_keys(run: Path) -> set[str]:
    from tests.selflengthen.test_endpoint import answered

    return answered(run)


def _from_log(log: Path, spans: list[tuple[float, float]], stored: list[tuple[float, set[str]]]) -> dict[str, Any]:
    found = [json.loads(line) for line in log.read_text().splitlines()]
    # The probe at the beginning has no seed; what is loaded after it is not the endpoint's time.
    lines = [line for line in found if not line["key"].startswith("None/")]
    asked = [line for line in lines if line["event"] == "asked"]
    again = sum(line["key"] in known for at, known in stored for line in asked if line["at"] > at)
    area = seconds = 0.0
    for begin, end in spans:
        inside = [line for line in lines if begin <= line["at"] <= end and line["event"] in ("asked", "answered")]
        for one, two in itertools.pairwise(inside):
            area += one["in_flight"] * (two["at"] - one["at"])
        seconds += inside[-1]["at"] - inside[0]["at"] if inside else 0.0
    return {
        "requests": len(asked), "asked_again_after_stored": again, "seconds": round(seconds, 1),
        "requests_per_second": round(len(asked) / seconds, 1), "busy": round(area / (seconds * IN_FLIGHT), 4),
        "faults": {name: sum(line["event"] == name for line in lines) for name in FAULT_NAMES},
    }  # fmt: skip


def _counts(run: Path) -> dict[str, Any]:
    from tests.selflengthen.test_endpoint import rows

    tasks = _ended_tasks(run)
    made = rows(run, "SELECT COUNT(*) FROM instructions")[0][0]
    selected = rows(run, "SELECT COUNT(*) FROM outcomes WHERE role='response' AND kept=1")[0][0]
    lost = (made - tasks.get("response", 0)) + (selected - tasks.get("extension", 0))
    lost += rows(run, "SELECT COUNT(*) FROM requests WHERE finish_reason IS NULL AND errors=0")[0][0]
    return {
        "instructions": made,
        "responses": tasks.get("response", 0),
        "extensions": tasks.get("extension", 0),
        "lost": lost,
        "phases": _phases(run),
    }


def _phases(run: Path) -> dict[str, dict[str, Any]]:
    from tests.selflengthen.test_endpoint import rows

    wanted = ("requests", "requests_per_second", "busy", "processor_seconds")
    found = {phase: json.loads(info) for phase, info in rows(run, "SELECT phase, info FROM phases ORDER BY began_at")}
    return {phase: {key: info[key] for key in wanted if key in info} for phase, info in found.items()}


def _ended_tasks(run: Path) -> dict[str, int]:
    from tests.selflengthen.test_endpoint import rows

    try:
        return dict(rows(run, "SELECT role, COUNT(*) FROM outcomes GROUP BY role"))
    except sqlite3.OperationalError:  # no state file yet
        return {}


def _tokenizer_model(folder: Path) -> Path:
    from tests.conftest import make_model

    folder.mkdir()
    return make_model(folder, window=65536)


def _start(module: list[str], stdout: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", *module], cwd=ROOT, env=process_environment({"OMP_NUM_THREADS": "1"}), stdout=stdout
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("instructions", nargs="?", type=int, default=2000, help="instructions of the loop")
    parser.add_argument("--answer-seconds", type=float, default=ANSWER_SECONDS, help="mean time of an answer")
    parser.add_argument("--out", type=Path, help="file of the row (default: results/benchmarks/selflengthen.json)")
    given = parser.parse_args(arguments)
    store("selflengthen", [measured(given.instructions, given.answer_seconds)], given.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

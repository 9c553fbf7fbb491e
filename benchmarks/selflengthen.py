"""Self-Lengthen's mechanics at size: `python -m benchmarks.selflengthen [INSTRUCTIONS]`, written to
results/benchmarks/selflengthen.json.

2,000 instructions go through instruct, respond and extend against a scripted HTTP endpoint in another process that is
slow (two seconds an answer on average), limits, breaks, drops and hangs some requests. The loop is killed three times
at random moments. Counted: what was lost, what was asked again after its answer had been stored, and how busy the
endpoint was kept, which its own log tells. The comparison is the same loop with the steps one after the other, each
waiting for all of the one before it (as the original's scripts do), on an equal endpoint without kills.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

IN_FLIGHT = 256
FAULTS = ("--latency", "1.6", "--limited", "0.02", "--broken", "0.02", "--dropped", "0.01", "--hanging", "0.002",
          "--hang-seconds", "20")  # fmt: skip
FAULT_NAMES = ("limited", "broken", "dropped", "hanging")
KILLS = 3
ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def main(count: int) -> None:
    from lengthen.common.files import write_json
    from lengthen.common.manifest import commit, machine, versions

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = _tokenizer_model(folder / "model")
        ours = measure(folder / "flow", model, count, kills=KILLS, steps=False)
        theirs = measure(folder / "steps", model, count, kills=0, steps=True)
    row = {
        "id": "selflengthen-busy",
        "work": f"{count} instructions: instruct, respond, extend at an endpoint with faults, {IN_FLIGHT} in flight; "
        f"{ours['requests']:,} requests, {ours['kills']} kills",
        "peer": "the same steps one after the other, each waiting for all of the one before",
        "ours": ours["busy"], "theirs": theirs["busy"], "unit": "share of the endpoint's places in use",
        "ratio": round(ours["busy"] / theirs["busy"], 2), "runs": 1, "spread": 0.0,
        "details": {"ours": ours, "theirs": theirs},
    }  # fmt: skip
    write_json(
        ROOT / "results" / "benchmarks" / "selflengthen.json",
        {
            "machine": machine(),
            "versions": versions(),
            "date": time.strftime("%Y-%m-%d"),
            "commit": commit(),
            "rows": [row],
        },
    )
    print(json.dumps(row, indent=2))


def measure(folder: Path, model: Path, count: int, *, kills: int, steps: bool) -> dict[str, Any]:
    """One whole run of the three steps. busy: mean share of places in use at the server while the loop ran."""
    folder.mkdir()
    log = folder / "server.jsonl"
    server = _start(["tests.selflengthen.server", "--log", str(log), *FAULTS], stdout=subprocess.PIPE)
    assert server.stdout is not None
    url = server.stdout.readline().decode().strip()
    run = folder / "run"
    command = [
        "tests.selflengthen.run_phases",
        str(run),
        url,
        str(model),
        str(count),
        str(IN_FLIGHT),
        *["steps"] * steps,
    ]
    draws, spans, stored = random.Random(1), [], []
    try:
        for number in range(kills + 1):
            began = time.time()
            process = _start(command, stdout=subprocess.DEVNULL)
            goal = len(stored_keys(run)) + draws.randint(count // 2, 2 * count)
            while process.poll() is None and (number == kills or len(stored_keys(run)) < goal):
                time.sleep(2)
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
    return {**_from_log(log, spans, stored), **_from_state(run), "kills": len(stored)}


def stored_keys(run: Path) -> set[str]:
    from tests.selflengthen.test_endpoint import answered

    return answered(run)


def _from_log(log: Path, spans: list[tuple[float, float]], stored: list[tuple[float, set[str]]]) -> dict[str, Any]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    asked = [line for line in lines if line["event"] == "asked" and line["seed"] is not None]
    again = sum(line["key"] in known for at, known in stored for line in asked if line["at"] > at)
    area = seconds = 0.0
    for begin, end in spans:
        inside = [line for line in lines if begin <= line["at"] <= end and line["event"] in ("asked", "answered")]
        # From the first request to the last answer: loading the tokenizer is not the endpoint's time.
        for one, two in itertools.pairwise(inside):
            area += one["in_flight"] * (two["at"] - one["at"])
        seconds += inside[-1]["at"] - inside[0]["at"] if inside else 0.0
    return {
        "requests": len(asked), "asked_again_after_stored": again, "seconds": round(seconds, 1),
        "requests_per_second": round(len(asked) / seconds, 1), "busy": round(area / (seconds * IN_FLIGHT), 4),
        "faults": {name: sum(line["event"] == name for line in lines) for name in FAULT_NAMES},
    }  # fmt: skip


def _from_state(run: Path) -> dict[str, Any]:
    from tests.selflengthen.test_endpoint import rows

    tasks = dict(rows(run, "SELECT role, COUNT(*) FROM outcomes GROUP BY role"))
    made = rows(run, "SELECT COUNT(*) FROM instructions")[0][0]
    selected = rows(run, "SELECT COUNT(*) FROM outcomes WHERE role='response' AND kept=1")[0][0]
    lost = (made - tasks.get("response", 0)) + (selected - tasks.get("extension", 0))
    lost += rows(run, "SELECT COUNT(*) FROM requests WHERE finish_reason IS NULL AND errors=0")[0][0]
    return {
        "instructions": made,
        "responses": tasks.get("response", 0),
        "extensions": tasks.get("extension", 0),
        "lost": lost,
    }


def _tokenizer_model(folder: Path) -> Path:
    from tests.conftest import make_model

    folder.mkdir()
    return make_model(folder, window=65536)


def _start(module: list[str], stdout: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", *module], cwd=ROOT, env=ENVIRONMENT, stdout=stdout)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)

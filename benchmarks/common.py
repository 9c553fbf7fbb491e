"""What all benchmarks share: fresh processes, runs that alternate with the peer's, rows, and the file they end in.

A row of results/benchmarks/NAME.json is `{"id", "work", "peer", "ours", "theirs", "unit", "ratio", "runs", "spread"}`:
`ours` and `theirs` are medians over the runs; `ratio` says how many times better we are (above 1 is better, whatever
the unit): the median of the ratios of each pair of runs; `spread` is the largest minus the smallest of those ratios.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from lengthen.common.errors import LengthenError
from lengthen.common.files import read_json, write_json
from lengthen.common.manifest import commit, machine, versions

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "benchmarks"
Run = TypeVar("Run")


def row(
    id: str, work: str, peer: str, ours: Sequence[float], theirs: Sequence[float], unit: str, *,
    better: Literal["lower", "higher"], details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One row of a benchmark's file.

    Args:
        id: the figure's name.
        ours, theirs: one number for each run, in the order of the runs, in `unit`; a peer that takes hours may have
            run once, and then stands beside each of our runs.
        better: whether a lower or a higher number is better.
        details: further facts of the measurement, stored beside the rest.
    """
    theirs = list(theirs) * len(ours) if len(theirs) == 1 else theirs
    if not ours or len(ours) != len(theirs):
        raise ValueError(f"{id}: {len(ours)} runs of ours, {len(theirs)} of the peer")
    ratios = [b / a if better == "lower" else a / b for a, b in zip(ours, theirs)]
    found: dict[str, Any] = {
        "id": id, "work": work, "peer": peer, "ours": _short(statistics.median(ours)),
        "theirs": _short(statistics.median(theirs)), "unit": unit, "ratio": round(statistics.median(ratios), 3),
        "runs": len(ours), "spread": round(max(ratios) - min(ratios), 3),
    }  # fmt: skip
    return {**found, "details": dict(details)} if details else found


def alternate(runs: int, ours: Callable[[int], Run], theirs: Callable[[int], Run]) -> tuple[list[Run], list[Run]]:
    """`runs` pairs, one after the other; who goes first changes with each pair, so that a machine that slows down or
    warms up does so for both. Each function gets the number of its run."""
    found: tuple[list[Run], list[Run]] = ([], [])
    for number in range(runs):
        sides = ((found[0], ours), (found[1], theirs))
        for into, measure in sides if number % 2 == 0 else sides[::-1]:
            into.append(measure(number))
    return found


def fresh(module: str, spec: Mapping[str, Any], *, timeout: float = 6 * 3600) -> dict[str, Any]:
    """What `python -m module SPEC OUT` writes to OUT, in a process of its own.

    Peak memory, allocator state, warm caches and patched libraries of one measurement never reach the next.
    """
    with tempfile.TemporaryDirectory() as name:
        given, out = Path(name, "spec.json"), Path(name, "out.json")
        given.write_text(json.dumps(spec))
        launch([sys.executable, "-m", module, str(given), str(out)], timeout=timeout)
        return read_json(out)


def launch(command: Sequence[str], *, timeout: float = 6 * 3600, environment: Mapping[str, str] | None = None) -> None:
    """Run a command from the repository's root, offline; its output is shown only when it fails."""
    done = subprocess.run(
        list(command), cwd=ROOT, env=process_environment(environment), capture_output=True, text=True, timeout=timeout
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-6000:]}")


def process_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables of a measured process: nobody asks the Hub, nobody draws bars."""
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return {**os.environ, **quiet, "PYTHONPATH": str(ROOT), **(extra or {})}


def peak_memory() -> int:
    """Most bytes of main memory that this process has held so far.

    From /proc: `ru_maxrss` would start with the parent's peak, which it carries over fork and exec.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def store(name: str, rows: Iterable[Mapping[str, Any]], out: Path | None = None) -> Path:
    """Write rows to results/benchmarks/NAME.json as they come; rows with other ids stay as they are.

    Every row keeps the date and the commit that measured it; the head names the newest.

    Raises:
        LengthenError: the file holds rows of another machine, which cannot stand beside new ones.
    """
    path = out or RESULTS / f"{name}.json"
    here = machine()
    known: dict[str, Any] = {}
    if path.exists():
        old = read_json(path)
        if any(old["machine"].get(k) != here[k] for k in ("processor", "instructions", "cores")):
            raise LengthenError(
                f"{path} was measured on another machine ({old['machine']}).",
                why="one table must not mix machines",
                fix="write elsewhere with --out, or move that file away and measure all rows again",
            )
        # Rows of files that had one date for all keep it.
        known = {one["id"]: {"date": old["date"], "commit": old["commit"], **one} for one in old["rows"]}
    for one in rows:
        stamp = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "commit": commit()}
        known[one["id"]] = {**one, **stamp}
        write_json(path, {"machine": here, "versions": versions(), **stamp, "rows": list(known.values())})
        print(json.dumps(known[one["id"]], indent=2))
    return path


def _short(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")

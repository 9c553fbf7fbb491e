"""Row end-to-end of `python -m benchmarks.evaluate`: a whole RULER evaluation, lm-evaluation-harness beside us.

Both run as processes of their own and are timed from outside, from the command to the scores: the same model folder,
number format and chat template, both greedy. They draw different samples of the same tasks, so their scores agree only
within noise; both are stored.

The harness makes 500 samples of each task whatever its limit, and then asks as many as the limit says. The times of
making samples and of everything else stand apart in `details`, so that one can see what comes from where.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import alternate, launch, row
from benchmarks.evaluate_make import TASKS, no_essays

LENGTH = 4096
SAMPLES = 20


@dataclass(frozen=True)
class Evaluated:
    """seconds: the whole process. making: until the last sample was made (ours, with the process's start: its files
    tell), or inside the call that makes them (the peer's). scores: by task, 0..1."""

    seconds: float
    making: float
    scores: dict[str, float] = field(default_factory=dict)


def rows(
    model: str, *, samples: int = SAMPLES, length: int = LENGTH, tasks: Sequence[str] = TASKS, runs: int = 1
) -> Iterator[dict[str, Any]]:
    """The row, in the form of results/benchmarks.

    Args:
        length: one of those that the harness has a score for: 4096, 8192, ... 131072.
    """
    from lengthen.models import pick_dtype, resolve_model

    folder, dtype = resolve_model(model), pick_dtype("auto")[0]
    ours, theirs = alternate(
        runs,
        lambda _: _ours(folder, dtype, samples, length, tasks),
        lambda _: _theirs(folder, dtype, samples, length, tasks),
    )
    work = (
        f"{samples} samples at {length} tokens of {len(tasks)} RULER tasks ({', '.join(tasks)}), {folder.name}, "
        f"{dtype}, whole processes; the peer makes 500 samples of each task whatever its limit, which its time includes"
    )
    peer = f"lm-evaluation-harness, hf model, chat template, limit {samples}, batches of one as by default"
    seconds = ([one.seconds for one in ours], [one.seconds for one in theirs])
    yield row("end-to-end", work, peer, *seconds, "s", better="lower", details=_details(ours[-1], theirs[-1], samples))


def _details(ours: Evaluated, theirs: Evaluated, samples: int) -> dict[str, Any]:
    """Times of the last run of each and the scores of both."""

    def mean(scores: dict[str, float]) -> float:
        return round(sum(scores.values()) / len(scores), 4)

    rest, their_rest = ours.seconds - ours.making, theirs.seconds - theirs.making
    return {
        "making_seconds": round(ours.making, 2),
        "rest_seconds": round(rest, 2),
        "theirs_making_seconds": round(theirs.making, 2),
        "theirs_rest_seconds": round(their_rest, 2),
        "ratio_without_making": round(their_rest / rest, 2),
        "mean_score": mean(ours.scores),
        "theirs_mean_score": mean(theirs.scores),
        "scores": ours.scores,
        "theirs_scores": theirs.scores,
        "samples_of_a_task": samples,
    }


# ---------------------------------------------------------------------------------------------------------------- ours
def _ours(folder: Path, dtype: str, samples: int, length: int, tasks: Sequence[str]) -> Evaluated:
    """`lengthen evaluate` with an empty cache: samples, answers, scores, n-gram files, report."""
    from lengthen.common.files import read_json

    with tempfile.TemporaryDirectory() as name:
        out, begin, clock = Path(name, "run"), time.time(), time.perf_counter()
        launch(
            [
                sys.executable, "-m", "lengthen", "evaluate", str(folder), "--suite", ",".join(tasks),
                "--lengths", str(length), "--samples", str(samples), "--set", f"dtype={dtype}",
                "--out", str(out),
            ],
            environment={"LENGTHEN_CACHE": str(Path(name, "cache"))},
        )  # fmt: skip
        seconds = time.perf_counter() - clock
        stage = out / "stages" / "evaluate"  # its links to sample files have the time at which those were written
        made = max(path.stat().st_mtime for path in (stage / "samples").glob("ruler-*.jsonl"))
        found = read_json(stage / "scores.json")["rows"]
        scores = {one["task"]: round(one["score"], 4) for one in found if one["n"] == samples}
    _complete(scores, tasks, "lengthen")
    return Evaluated(seconds, made - begin, scores)


def _complete(scores: dict[str, float], tasks: Sequence[str], who: str) -> None:
    if set(scores) != set(tasks):
        raise RuntimeError(f"{who} scored {sorted(scores)}, not {sorted(tasks)}: nothing to compare")


# ---------------------------------------------------------------------------------------------------------------- peer
def _theirs(folder: Path, dtype: str, samples: int, length: int, tasks: Sequence[str]) -> Evaluated:
    from lengthen.common.files import read_json

    spec = {"model": str(folder), "dtype": dtype, "samples": samples, "length": length, "tasks": list(tasks)}
    with tempfile.TemporaryDirectory() as name:
        out, clock = Path(name, "out.json"), time.perf_counter()
        launch([sys.executable, "-m", "benchmarks.evaluate_end", json.dumps(spec), str(out)])
        seconds = time.perf_counter() - clock
        found = read_json(out)
    _complete(found["scores"], tasks, "lm-evaluation-harness")
    return Evaluated(seconds, found["making"], found["scores"])


def _name(task: str) -> str:
    """The harness's name of a task."""
    return task if task.startswith("niah") else f"ruler_{task}"


def harness(spec: dict[str, Any]) -> dict[str, Any]:
    """lm-evaluation-harness through its Python API: seconds inside the making of samples, scores by task.

    Nothing of it is replaced: only the look for NLTK data of tasks that do not run is answered while it is imported.
    """
    with no_essays():
        import lm_eval.tasks.ruler.prepare_niah  # noqa: F401
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    class Timed(TaskManager):
        making = 0.0

        def load(self, *args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            found = super().load(*args, **kwargs)
            self.making += time.perf_counter() - begin
            return found

    settings: Any = {"pretrained": spec["model"], "max_seq_lengths": [spec["length"]]}
    manager = Timed(metadata=settings)
    found: Any = simple_evaluate(
        model="hf", model_args={"pretrained": spec["model"], "dtype": spec["dtype"]}, device="cpu", batch_size=1,
        tasks=[_name(task) for task in spec["tasks"]], limit=spec["samples"], apply_chat_template=True,
        task_manager=manager,
    )  # fmt: skip
    results = found["results"]
    scores = {task: round(float(results[_name(task)][f"{spec['length']},none"]), 4) for task in spec["tasks"]}
    return {"making": manager.making, "scores": scores}


if __name__ == "__main__":
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    Path(sys.argv[2]).write_text(json.dumps(harness(json.loads(sys.argv[1]))))

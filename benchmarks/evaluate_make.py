"""Rows make-8k and make-128k of `python -m benchmarks.evaluate`: making RULER's samples, the peer beside us.

Both make the tasks that need no download in either (noise, needles of needles, variables, words): six of RULER's 13.
lm-evaluation-harness always makes 500 samples of a task; here its own functions are asked for as many as
ours, which flatters it. Imports are not timed (it sorts six million word pairs when imported, about ten seconds).
"""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import row

TASKS = ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe")
SAMPLES = 100
LENGTHS = {"make-8k": 8192, "make-128k": 131072}
RUNS = 3


def rows(model: str, ids: tuple[str, ...] = tuple(LENGTHS), samples: int = SAMPLES, runs: int = RUNS) -> Iterator[dict]:
    """One row for each id, in the form of results/benchmarks.

    Args:
        model: whose tokenizer (and chat template, for ours) is used: a folder, a Hub name or `default`.
    """
    from lengthen.models import load_tokenizer

    tokenizer = load_tokenizer(model)
    theirs = _peer(tokenizer)
    for name in ids:
        length = LENGTHS[name]
        ours_s, cached_s, tokens = [], [], 0
        for _ in range(runs):
            made, again, tokens = _ours(tokenizer, length, samples)
            ours_s.append(made)
            cached_s.append(again)
        peer_runs = runs if length < 2**16 else 1
        theirs_s = [sum(_timed(partial(make, length, samples)) for make in theirs) for _ in range(peer_runs)]
        details = {
            "tokens_per_second": round(tokens / statistics.median(ours_s)),
            "cached_seconds": round(statistics.median(cached_s), 4),
        }
        work = f"{samples} samples at {length} tokens of {len(TASKS)} RULER tasks ({', '.join(TASKS)})"
        peer = "lm-evaluation-harness, its generators asked for the same number"
        yield row(name, work, peer, ours_s, theirs_s, "s", better="lower", details=details)


def _timed(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        work()
    return time.perf_counter() - begin


# ---------------------------------------------------------------------------------------------------------------- ours
def _ours(tokenizer: Any, length: int, samples: int) -> tuple[float, float, int]:
    """(seconds to make and keep them, seconds to read them back, their tokens); nothing is remembered between runs."""
    from lengthen.common.manifest import StageContext
    from lengthen.evaluate.prompts import Prompts
    from lengthen.evaluate.ruler.suite import SUITE
    from lengthen.evaluate.samples import SampleKey, cached_samples
    from lengthen.evaluate.suites import Job
    from lengthen.recipe.stages.evaluate import EvaluateStage

    stage = EvaluateStage(suites=[{"suite": "ruler"}])  # type: ignore[list-item]
    prompts = Prompts(tokenizer, "on")
    identity = prompts.identity
    with tempfile.TemporaryDirectory() as folder:
        context = StageContext(Path(folder))
        job = Job(stage, stage.suites[0], prompts, SUITE.options(), SUITE.tasks, context)

        def all_tasks() -> int:
            tokens = 0
            for task in TASKS:
                key = SampleKey("ruler", task, SUITE.version, length, 0, *identity, SUITE.parameters(job, task))
                found, _ = cached_samples(key, samples, partial(SUITE.make, job, task, length), Path(folder))
                tokens += sum(s.tokens for s in found)
            return tokens

        made = _timed(all_tasks)
        again = _timed(all_tasks)
        return made, again, all_tasks()


# ---------------------------------------------------------------------------------------------------------------- peer
def _peer(tokenizer: Any) -> list[Callable[[int, int], Any]]:
    """The harness's generators of the six tasks, as functions of (length, samples)."""
    import nltk

    # Its module looks for a sentence splitter that only its essay tasks use, and would fetch it.
    found = nltk.data.find
    nltk.data.find = lambda *args, **kwargs: True
    try:
        from lm_eval.tasks.ruler import cwe_utils, fwe_utils, prepare_niah, vt_utils
        from lm_eval.tasks.ruler.niah_utils import TEMPLATE
    finally:
        nltk.data.find = found

    def niah(haystack: str, keys: str, values: str, length: int, samples: int) -> Any:
        return prepare_niah.generate_samples(
            prepare_niah.get_haystack(haystack), max_seq_length=length, template=TEMPLATE, type_haystack=haystack,
            type_needle_k=keys, type_needle_v=values, num_samples=samples, TOKENIZER=tokenizer,
        )  # fmt: skip

    def vt(length: int, samples: int) -> Any:
        make = partial(vt_utils.sys_vartrack_w_noise_random, tokenizer=tokenizer)
        example = make(num_samples=1, max_seq_length=500, incremental=5)[0]
        return make(num_samples=samples, max_seq_length=length, icl_example=example)

    def cwe(length: int, samples: int) -> Any:
        return cwe_utils.sys_word_pair_random(num_samples=samples, max_seq_length=length, tokenizer=tokenizer)

    def fwe(length: int, samples: int) -> Any:
        return fwe_utils.sys_kwext(tokenizer=tokenizer, max_seq_length=length, num_samples=samples)

    return [
        partial(niah, "repeat", "words", "numbers"),
        partial(niah, "needle", "words", "numbers"),
        partial(niah, "needle", "uuids", "uuids"),
        vt,
        cwe,
        fwe,
    ]

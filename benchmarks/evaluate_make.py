"""Rows make-8k and make-128k of `python -m benchmarks.evaluate`: making RULER's samples, the peer beside us.

Both make the tasks that need no download in either (noise, needles of needles, variables, words): six of RULER's 13.
lm-evaluation-harness always makes 500 samples of a task; here its own functions are asked for as many as
ours, which flatters it. Imports are not timed (it sorts six million word pairs when imported, about ten seconds).
Before its first sample of a task it looks for the prompt's size by making and counting ever longer ones: seconds that
grow with the square of the length and not with the number of samples, stored as `theirs_search_seconds`.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import alternate, row

TASKS = ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe")
LENGTHS = {"make-8k": 8192, "make-128k": 131072}
RUNS = 3


def rows(model: str, samples: Mapping[str, int], runs: int = RUNS) -> Iterator[dict[str, Any]]:
    """One row for each id, in the form of results/benchmarks.

    Args:
        samples: of each task, by id.
        model: whose tokenizer (and chat template, for ours) is used: a folder, a Hub name or `default`.
    """
    from lengthen.models import load_tokenizer

    tokenizer = load_tokenizer(model)
    peer = _peer(tokenizer)
    for name, count in samples.items():
        ours, theirs, details = _measure(tokenizer, peer, LENGTHS[name], count, runs)
        work = f"{count} samples at {LENGTHS[name]} tokens of {len(TASKS)} RULER tasks ({', '.join(TASKS)})"
        who = "lm-evaluation-harness, its generators asked for the same number"
        yield row(name, work, who, ours, theirs, "s", better="lower", details=details)


def _measure(
    tokenizer: Any, peer: list[Callable[[int, int], Any]], length: int, samples: int, runs: int
) -> tuple[list[float], list[float], dict[str, Any]]:
    """(our seconds, the peer's seconds, further facts)."""
    long = length >= 2**16
    pairs = 1 if long else runs  # the peer takes minutes at 128K and runs once there
    ours, theirs = alternate(
        pairs, lambda _: _ours(tokenizer, length, samples), lambda _: _theirs(peer, length, samples)
    )
    ours += [_ours(tokenizer, length, samples) for _ in range(runs - pairs)]
    details = _details(ours, theirs)
    if long:  # is the cost linear in tokens?
        short = _ours(tokenizer, LENGTHS["make-8k"], samples)
        details["tokens_per_second_8k"] = round(short.tokens / short.seconds)
    return [one.seconds for one in ours], [one.seconds for one in theirs], details


@dataclass(frozen=True)
class Made:
    """What making the samples took, and the tokens of their prompts (for the peer with the room for the answers).

    again: ours, seconds to read them back. search: the peer's, seconds before its first samples (part of `seconds`).
    """

    seconds: float
    tokens: int
    again: float = 0.0
    search: float = 0.0


def _details(ours: list[Made], theirs: list[Made]) -> dict[str, Any]:
    search = statistics.median(one.search for one in theirs)
    alone = statistics.median(one.seconds for one in theirs) - search
    seconds = statistics.median(one.seconds for one in ours)
    return {
        "tokens": ours[0].tokens,
        "tokens_per_second": round(ours[0].tokens / seconds),
        "cached_seconds": round(statistics.median(one.again for one in ours), 4),
        "theirs_tokens": theirs[0].tokens,
        "theirs_search_seconds": round(search, 3),
        "ratio_without_their_search": round(alone / seconds, 2),
    }


def _timed(work: Callable[[], Any]) -> float:
    """Processor seconds: neither side uses a second process, and other programs do not count."""
    begin = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        work()
    return time.process_time() - begin


# ---------------------------------------------------------------------------------------------------------------- ours
def _ours(tokenizer: Any, length: int, samples: int) -> Made:
    """Seconds to make and keep them; no token count and no sample is remembered between runs."""
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

        made, again = _timed(all_tasks), _timed(all_tasks)
        return Made(made, all_tasks(), again)


# ---------------------------------------------------------------------------------------------------------------- peer
_marks: list[float] = []  # when the peer began with the samples of a task, its search for their size done


def _mark(items: Iterable[Any], **_: Any) -> Iterable[Any]:
    """Stands in for the bars that the harness draws around its loops over samples."""
    _marks.append(time.process_time())
    return items


def _theirs(makers: list[Callable[[int, int], Any]], length: int, samples: int) -> Made:
    seconds = search = 0.0
    tokens = 0
    for make in makers:
        found: list[Any] = []
        begin = time.process_time()
        seconds += _timed(lambda make=make, found=found: found.extend(make(length, samples)))
        search += _marks[-1] - begin
        tokens += sum(sample["length"] for sample in found)
    return Made(seconds, tokens, search=search)


@contextlib.contextmanager
def no_essays() -> Iterator[None]:
    """Lets the harness's needle tasks be imported offline.

    The module looks for a sentence splitter when it is imported, which only its essay tasks use, and would fetch it.
    """
    import nltk

    found = nltk.data.find
    nltk.data.find = lambda *args, **kwargs: True
    try:
        yield
    finally:
        nltk.data.find = found


def _peer(tokenizer: Any) -> list[Callable[[int, int], Any]]:
    """The harness's generators of the six tasks, as functions of (length, samples)."""
    with no_essays():
        from lm_eval.tasks.ruler import cwe_utils, fwe_utils, prepare_niah, vt_utils
        from lm_eval.tasks.ruler.niah_utils import TEMPLATE
    for module in (cwe_utils, fwe_utils, prepare_niah, vt_utils):
        setattr(module, "tqdm", _mark)  # noqa: B010

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

"""RULER as a suite: 13 tasks, of which eleven need no data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from pydantic import Field

from lengthen.evaluate.cells import cell_samples, text_sha256
from lengthen.evaluate.counting import Counter
from lengthen.evaluate.fit import Maker
from lengthen.evaluate.haystack import haystack_text, repeat_note
from lengthen.evaluate.ruler.niah import Essay, NiahMaker
from lengthen.evaluate.ruler.qa import HUB, QaMaker, QuestionSet, load_questions
from lengthen.evaluate.ruler.templates import TASKS
from lengthen.evaluate.ruler.vt import VtMaker
from lengthen.evaluate.ruler.words import CweMaker, FweMaker, pairs_note
from lengthen.evaluate.samples import Sample
from lengthen.evaluate.scorers import any_found, share_found
from lengthen.evaluate.suites import Job, Suite
from lengthen.recipe.base import Settings

NAME = "ruler"


class RulerOptions(Settings):
    """Options of the ruler suite."""

    squad: str | None = Field(
        default=None, description="File with SQuAD v2's validation rows, for qa_1. Default: from the Hub, by name."
    )
    hotpotqa: str | None = Field(
        default=None, description="File with HotpotQA's validation rows, for qa_2. Default: from the Hub, by name."
    )


def maker(job: Job, task: str, length: int) -> Maker:
    """The maker of a task at a length."""
    settings, counter, frame = TASKS[task], job.prompts.counter, job.prompts.frame
    if settings.family == "vt":
        return VtMaker(counter, frame, length, job.seed)
    if settings.family == "cwe":
        return CweMaker(counter, frame, length, job.seed)
    if settings.family == "fwe":
        return FweMaker(counter, frame, length, job.seed)
    if settings.family == "qa":
        questions = _questions(settings.data, _source(job, settings.data))
        return QaMaker(settings, counter, frame, length, job.seed, questions)
    essay = _essay(haystack_text(job.settings.haystack), counter) if settings.haystack == "essay" else None
    return NiahMaker(settings, counter, frame, length, job.seed, essay)


@lru_cache(maxsize=4)
def _essay(text: str, counter: Counter) -> Essay:
    return Essay.of(text, counter)


@lru_cache(maxsize=2)
def _questions(data: str, source: str | None) -> QuestionSet:
    return load_questions(data, source)


def _source(job: Job, data: str) -> str | None:
    return job.options.squad if data == "squad" else job.options.hotpotqa


def make(job: Job, task: str, length: int, contexts: range) -> Iterator[Sample]:
    yield from cell_samples(maker(job, task, length), NAME, task, length, job.new_tokens(task), contexts)


def parameters(job: Job, task: str) -> dict[str, Any]:
    """What a cell's samples depend on besides the task, its length, the seed and the tokenizer."""
    settings = TASKS[task]
    found: dict[str, Any] = {"new_tokens": job.new_tokens(task)}
    if settings.haystack == "essay":
        found["haystack"] = text_sha256(haystack_text(job.settings.haystack))
    if settings.data:
        source = _source(job, settings.data)
        found["data"] = _sha256(source) if source else HUB[settings.data][0]
    if settings.family in ("niah", "cwe"):
        from importlib.metadata import version

        found["wonderwords"] = version("wonderwords")
    return found


def notes(job: Job, task: str, length: int, samples: Sequence[Sample]) -> list[str]:
    """Where the haystack goes round, and where cwe goes on with pairs of words."""
    if TASKS[task].family == "cwe":
        return pairs_note(length)
    if TASKS[task].haystack != "essay" or not samples:
        return []
    return repeat_note(NAME, job.settings.haystack, length, max(s.meta["units"] for s in samples))


def _sha256(source: str) -> str:
    from pathlib import Path

    from lengthen.common.errors import LengthenError
    from lengthen.common.files import sha256_file

    path = Path(source).expanduser()
    if not path.is_file():
        raise LengthenError(f"There is no file {path}.", fix="correct the suite's option, or leave the task out")
    return sha256_file(path)


def score(sample: Sample, output: str) -> float:
    """RULER's own: share of the references found; for qa, 1 if one is."""
    if TASKS[sample.task].family == "qa":
        return any_found(output, sample.refs)
    return share_found(output, sample.refs)


SUITE = Suite(
    NAME,
    tasks={name: task.new_tokens for name, task in TASKS.items()},
    make=make,
    score=score,
    options=RulerOptions,
    default=tuple(name for name, task in TASKS.items() if not task.data),
    parameters=parameters,
    notes=notes,
)

"""The own suite: JSON pairs, planted facts, re-ranking and many-shot classification on texts at hand."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from pydantic import Field

from lengthen.common.errors import LengthenError
from lengthen.evaluate.cells import cell_samples, line_frame, text_sha256
from lengthen.evaluate.counting import Frame
from lengthen.evaluate.fit import Maker
from lengthen.evaluate.haystack import haystack_text
from lengthen.evaluate.own import icl, json_kv, planted
from lengthen.evaluate.own.labelled import labelled
from lengthen.evaluate.own.passages import passages_of
from lengthen.evaluate.samples import Sample
from lengthen.evaluate.scorers import best_of_raw_and_parsed, ndcg, parse_answer, parse_ranking, substring_match
from lengthen.evaluate.suites import Job, Suite
from lengthen.recipe.base import Settings

NAME = "own"
ICL = {"icl_bbc": "bbc", "icl_20newsgroups": "20newsgroups", "icl_r52": "r52"}


class OwnOptions(Settings):
    """Options of the own suite."""

    questions: int = Field(default=4, ge=1, le=20, description="Questions over one context; they share its beginning.")
    labelled: str | None = Field(
        default=None, description="JSON-lines file with text and label in each row, for the task icl_file."
    )
    words: int = Field(default=40, ge=5, le=2000, description="Words that are kept of each labelled text.")


def maker(job: Job, task: str, length: int, frame: Frame) -> Maker:
    counter, questions = job.prompts.counter, job.options.questions
    if task == "json_kv":
        return json_kv.JsonKvMaker(counter, frame, length, job.seed, questions, job.new_tokens(task))
    if task in ("planted_qa", "planted_rerank"):
        passages = _passages(haystack_text(job.settings.haystack))
        return planted.PlantedMaker(task, counter, frame, length, job.seed, passages, questions)  # type: ignore[arg-type]
    data = labelled(_set(job, task), job.options.words)
    return icl.IclMaker(data, counter, frame, length, job.seed, questions, job.new_tokens(task))


def _set(job: Job, task: str) -> str:
    if task != "icl_file":
        return ICL[task]
    if job.options.labelled is None:
        raise LengthenError(
            "The task icl_file needs labelled texts.", fix="name a file in the suite's options: {labelled: texts.jsonl}"
        )
    return job.options.labelled


@lru_cache(maxsize=2)
def _passages(text: str) -> list[str]:
    return passages_of(text)


def make(job: Job, task: str, length: int, contexts: range) -> Iterator[Sample]:
    frame, lead = line_frame(job.prompts)
    yield from cell_samples(maker(job, task, length, frame), NAME, task, length, job.new_tokens(task), contexts, lead)


def parameters(job: Job, task: str) -> dict[str, Any]:
    found: dict[str, Any] = {"questions": job.options.questions, "new_tokens": job.new_tokens(task)}
    if task.startswith("planted"):
        found["haystack"] = text_sha256(haystack_text(job.settings.haystack))
    if task.startswith("icl"):
        found["words"] = job.options.words
    if task == "icl_file":
        from pathlib import Path

        from lengthen.common.files import sha256_file

        path = Path(_set(job, task)).expanduser()
        if not path.is_file():
            raise LengthenError(f"There is no file {path}.", fix="correct the suite's option `labelled`")
        found["file"] = sha256_file(path)
    return found


def score(sample: Sample, output: str) -> float:
    """Substring match for values and answers, NDCG@10 for rankings, the first number for classes."""
    if sample.task == "json_kv":
        return best_of_raw_and_parsed(substring_match, output, sample.refs, "Corresponding value:")
    if sample.task == "planted_qa":
        return substring_match(parse_answer(output), sample.refs)
    if sample.task == "planted_rerank":
        return ndcg(parse_ranking(output), sample.meta["labels"])
    return icl.score_label(output, sample.refs[0])


SUITE = Suite(
    NAME,
    tasks={
        "json_kv": json_kv.NEW_TOKENS,
        "planted_qa": planted.QA_TOKENS,
        "planted_rerank": planted.RANK_TOKENS,
        **dict.fromkeys(ICL, icl.NEW_TOKENS),
        "icl_file": icl.NEW_TOKENS,
    },
    make=make,
    score=score,
    options=OwnOptions,
    default=("json_kv", "planted_qa", "planted_rerank", "icl_bbc"),
    parameters=parameters,
)

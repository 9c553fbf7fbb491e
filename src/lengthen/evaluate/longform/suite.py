"""The longform suite: writing prompts, scored by length, repetition and, where one is named, a judge."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field

from lengthen.common.errors import LengthenError
from lengthen.evaluate.draws import Draws
from lengthen.evaluate.judge import LONGBENCH_WRITE, LONGEN, Rubric, quality
from lengthen.evaluate.longform.prompts import HUB, WritingPrompt, load_prompts
from lengthen.evaluate.longform.scores import TextMeasures, length_score, measure_text
from lengthen.evaluate.samples import Sample
from lengthen.evaluate.suites import Job, Row, Scored, Suite, cell_context
from lengthen.evaluate.verdicts import UNREADABLE, judged
from lengthen.recipe.base import Settings

NAME = "longform"
NEW_TOKENS = 16384


class LongformOptions(Settings):
    """Options of the longform suite."""

    longen: str | None = Field(default=None, description="File with LonGen's rows. Default: from the Hub.")
    longbench_write: str | None = Field(
        default=None, description="File with LongBench-Write's rows. Default: from the Hub."
    )
    prompts: str | None = Field(default=None, description="File with prompts of your own, for the task `prompts`.")
    language: str | None = Field(
        default=None, description="Only prompts of this language (en, zh); by their script where rows name none."
    )
    judge: str | None = Field(
        default=None, description="Judge of quality: an endpoint (http://host:port/v1#model), a folder or a Hub name."
    )


def _source(job: Job, task: str) -> str:
    given = getattr(job.options, task)
    if given is None and task == "prompts":
        raise LengthenError(
            "The task `prompts` needs a file of prompts.", fix="name it in the suite's options: {prompts: mine.jsonl}"
        )
    return given or task


@lru_cache(maxsize=4)
def _load(source: str) -> tuple[WritingPrompt, ...]:
    return tuple(load_prompts(source))


def prompts(job: Job, task: str) -> list[WritingPrompt]:
    """The task's prompts in a fixed random order, so that any first part of them is a fair one."""
    found = [p for p in _load(_source(job, task)) if job.options.language in (None, "", p.language)]
    if not found:
        raise LengthenError(
            f"{_source(job, task)} has no prompt of the language '{job.options.language}'.", fix="leave `language` out"
        )
    return Draws(job.seed, NAME, task).shuffled(found)


def make(job: Job, task: str, length: int, contexts: range) -> Iterator[Sample]:
    """One sample a prompt; fewer than asked for where the prompts end."""
    found, room = prompts(job, task), job.new_tokens(task)
    for index in contexts:
        if index >= len(found):
            return
        prompt = found[index]
        # Texts of several times the asked length score zero whatever follows: 6 tokens a word is room for them.
        enough = int(6 * prompt.words) + 64 if prompt.words else room
        context = cell_context(NAME, task, length, index)
        yield Sample(
            id=context,
            suite=NAME,
            task=task,
            length=length,
            context=context,
            user=prompt.text,
            refs=(),
            new_tokens=min(room, enough),
            tokens=job.prompts.count(prompt.text),
            meta={"prompt": prompt.id, "family": prompt.family, "kind": prompt.kind, "low": prompt.low,
                  "high": prompt.high, "language": prompt.language},
        )  # fmt: skip


def parameters(job: Job, task: str) -> dict[str, Any]:
    from lengthen.common.files import sha256_file

    source = _source(job, task)
    path = Path(source).expanduser()
    if source not in HUB and not path.is_file():
        raise LengthenError(f"There is no file {path}.", fix="correct the suite's options")
    return {
        "source": HUB[source][0] if source in HUB else sha256_file(path),
        "language": job.options.language,
        "new_tokens": job.new_tokens(task),
    }


def prompt_of(sample: Sample) -> WritingPrompt:
    meta = sample.meta
    return WritingPrompt(
        meta["prompt"], sample.user, meta["family"], meta["kind"], meta["low"], meta["high"], meta["language"]
    )


def score(sample: Sample, output: str) -> float:
    """The benchmark's own length score, 0..1; without a demand, the share of the text before it repeats itself."""
    prompt = prompt_of(sample)
    found = length_score(prompt, output)
    if found is not None:
        return found
    measures = measure_text(prompt, output)
    return measures.clean_words / measures.words if measures.words else 0.0


def summary(job: Job, scored: Sequence[Scored]) -> list[Row]:
    """Means of the other measures, length scores by kind of demand, and the judge's scores."""
    measures = [measure_text(prompt_of(s.sample), s.output, s.finish_reason) for s in scored]
    rows = _measure_rows(scored, measures)
    rows += _kind_rows(scored)
    if job.options.judge:
        rows += _quality_rows(job, scored)
    return rows


def _measure_rows(scored: Sequence[Scored], measures: Sequence[TextMeasures]) -> list[Row]:
    task, n = scored[0].sample.task, len(measures)
    clean = [m.clean_length_score for m in measures if m.clean_length_score is not None]

    def value(name: str, number: float, unit: str, count: int = n) -> Row:
        return {"task": f"{task}:{name}", "value": round(number, 4), "unit": unit, "n": count}

    rows = [
        value("median words", statistics.median(m.words for m in measures), "words"),
        value("median words up to the first repetition", statistics.median(m.clean_words for m in measures), "words"),
        value("repeated 10-grams", statistics.fmean(m.repeated for m in measures), "share"),
        value("median longest copy", statistics.median(m.longest_copy for m in measures), "words"),
        value("finished", statistics.fmean(m.finished for m in measures), "share"),
        value("empty", sum(m.empty for m in measures), "texts"),
    ]
    if clean:
        rows.append(value("length score up to the first repetition", statistics.fmean(clean), "score", len(clean)))
    return rows


def _kind_rows(scored: Sequence[Scored]) -> list[Row]:
    kinds: dict[str, list[float]] = {}
    for s in scored:
        if s.sample.meta["kind"]:
            kinds.setdefault(s.sample.meta["kind"], []).append(s.score)
    task = scored[0].sample.task
    return [
        {"task": f"{task}:length score ({kind})", "value": round(statistics.fmean(found), 4), "unit": "score",
         "n": len(found)}
        for kind, found in sorted(kinds.items())
    ]  # fmt: skip


def rubric_of(sample: Sample) -> Rubric:
    return LONGBENCH_WRITE if sample.meta["family"] == "longbench-write" else LONGEN


def _quality_rows(job: Job, scored: Sequence[Scored]) -> list[Row]:
    task, rubric = scored[0].sample.task, rubric_of(scored[0].sample)
    slots = {s.sample.id: {"query": s.sample.user, "response": s.output} for s in scored if s.output.strip()}
    verdicts = judged(job, job.options.judge, rubric, slots)
    good = [v.scores for v in verdicts.values() if v.scores is not None]
    by = f"judge {job.options.judge.rsplit('#', 1)[-1]}, prompt {rubric.sha256[:8]}"
    rows: list[Row] = [
        {"task": f"{task}:{UNREADABLE}", "value": len(verdicts) - len(good), "unit": "texts", "n": len(scored)}
    ]
    if good:
        mean = statistics.fmean(quality(rubric, scores) for scores in good)
        rows.append({"task": f"{task}:quality ({by})", "value": round(mean, 4), "unit": "score", "n": len(good)})
        for name in rubric.scales:
            mean = statistics.fmean(scores[name] for scores in good)
            top = f"{rubric.scales[name][0]:g}-{rubric.scales[name][1]:g}"
            rows.append({"task": f"{task}:{name}", "value": round(mean, 3), "unit": top, "n": len(good)})
    return rows


SUITE = Suite(
    NAME,
    tasks=dict.fromkeys(("longen", "longbench_write", "prompts"), NEW_TOKENS),
    make=make,
    score=score,
    options=LongformOptions,
    default=("longen", "longbench_write"),
    parameters=parameters,
    summary=summary,
    version=2,
    sized=False,
)

"""HELMET as a suite."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field

from lengthen.common.errors import LengthenError
from lengthen.common.files import sha256_file
from lengthen.evaluate.cells import as_samples, cell_samples, line_frame, text_sha256
from lengthen.evaluate.counting import Counter
from lengthen.evaluate.haystack import haystack_text, repeat_note
from lengthen.evaluate.helmet import data as d
from lengthen.evaluate.helmet import judging, prompts
from lengthen.evaluate.helmet.prompts import SHOTS
from lengthen.evaluate.helmet.tasks import LENGTHS, RULER_NAMES, TASKS, HelmetTask
from lengthen.evaluate.own.json_kv import JsonKvMaker
from lengthen.evaluate.ruler.niah import Essay, NiahMaker
from lengthen.evaluate.ruler.templates import TASKS as RULER_TASKS
from lengthen.evaluate.samples import Sample
from lengthen.evaluate.scorers import (
    answers_present,
    best_of_raw_and_parsed,
    exact_match,
    list_recall_top5,
    ndcg,
    parse_answer,
    parse_ranking,
    rouge_l,
    share_found,
    substring_match,
    without_citations,
)
from lengthen.evaluate.suites import Job, Row, Scored, Suite, cell_context
from lengthen.evaluate.verdicts import UNREADABLE
from lengthen.recipe.base import Settings, size_text

NAME = "helmet"
OFFLINE = ("json_kv", "ruler_niah_mk_2", "ruler_niah_mk_3", "ruler_niah_mv")


class HelmetOptions(Settings):
    """Options of the helmet suite."""

    data: dict[str, str] = Field(
        default_factory=dict,
        description="Files of HELMET's data by task; {k} stands for the number of items at a length. See the docs for "
        "each category's schema. Tasks without one are read from the Hub, where they are there.",
    )
    demos: dict[str, str] = Field(default_factory=dict, description="Files of the worked examples by task.")
    prompts: dict[str, str] = Field(
        default_factory=dict,
        description="HELMET's prompt files of alce_asqa and alce_qampari (instruction and examples).",
    )
    shots: int = Field(default=SHOTS, ge=0, le=10, description="Worked examples; HELMET has 2.")
    judge: str | None = Field(
        default=None,
        description="Judge of answers and summaries: http://host:port/v1#model, a folder or a Hub name.",
    )
    nli: str | None = Field(
        default=None,
        description="Model that checks citations (HELMET: google/t5_xxl_true_nli_mixture). Default: the judge.",
    )


def source(job: Job, task: str) -> prompts.Source:
    options = job.options
    for name in ("data", "demos", "prompts"):
        for key in getattr(options, name):
            if key not in TASKS:
                from lengthen.common.errors import nearest

                raise LengthenError(f"helmet: the option {name}.{key} names no task.", fix=nearest(key, TASKS))
    return prompts.Source(options.data.get(task), options.demos.get(task), options.prompts.get(task), options.shots)


def make(job: Job, task: str, length: int, contexts: range) -> Iterator[Sample]:
    """Samples of a task; HELMET's item counts are fixed, so a prompt is as long as its tokenizer makes it."""
    if length not in LENGTHS:
        raise LengthenError(
            f"helmet: {task} has no items for {size_text(length)}.",
            fix=f"HELMET's lengths are {', '.join(size_text(n) for n in LENGTHS)}",
        )
    settings = TASKS[task]
    if settings.category == "recall":
        yield from _recall(job, settings, length, contexts)
        return
    questions = _questions(job.prompts.counter, settings, source(job, task), length)
    for index in contexts:
        if index >= len(questions):
            return
        orders = questions[index]()
        for number, asked in enumerate(orders):
            yield _sample(job, settings, length, index, number, asked, len(orders))


@lru_cache(maxsize=2)
def _questions(counter: Counter, task: HelmetTask, where: prompts.Source, length: int) -> list[prompts.Question]:
    if task.category == "longqa":
        return prompts.longqa(task, where, length, counter)
    if task.category == "summ":
        return prompts.summ(task, where, length, counter)
    makers = {"rag": prompts.rag, "rerank": prompts.rerank, "cite": prompts.cite, "icl": prompts.icl}
    return makers[task.category](task, where, length)


def _sample(job: Job, task: HelmetTask, length: int, index: int, number: int, asked: prompts.Asked, of: int) -> Sample:
    context = cell_context(NAME, task.name, length, index)
    user = asked.user + ("" if job.prompts.template == "on" else asked.lead)
    return Sample(
        id=context if of == 1 else f"{context}/{number}",
        suite=NAME,
        task=task.name,
        length=length,
        context=context,
        user=user,
        prefix=asked.prefix,
        refs=asked.refs,
        new_tokens=job.new_tokens(task.name),
        tokens=job.prompts.count(user, asked.prefix),
        depth=asked.depth,
        meta=asked.meta,
    )


def _recall(job: Job, task: HelmetTask, length: int, contexts: range) -> Iterator[Sample]:
    """JSON pairs by HELMET's counts (its own generator is not public; six depths in turn), and RULER's needles."""
    new_tokens = job.new_tokens(task.name)
    if task.name == "json_kv":
        frame, lead = line_frame(job.prompts)
        maker = JsonKvMaker(job.prompts.counter, frame, 2 * length, job.seed, 1, new_tokens)
        for index in contexts:
            drafts = maker.plan(index).build(task.count(length))
            for sample in as_samples(drafts, NAME, task.name, length, new_tokens, index, lead):
                yield _counted(job, sample)
        return
    ruler = RULER_TASKS[RULER_NAMES[task.name]]
    counter = job.prompts.counter
    essay = Essay.of(haystack_text(job.settings.haystack), counter) if ruler.haystack == "essay" else None
    # HELMET puts RULER's beginning of the answer on a line of its own.
    frame, lead = line_frame(job.prompts)
    maker = NiahMaker(ruler, counter, frame, length, job.seed, essay, own_line=True)
    yield from cell_samples(maker, NAME, task.name, length, new_tokens, contexts, lead)


def _counted(job: Job, sample: Sample) -> Sample:
    from dataclasses import replace

    return replace(sample, tokens=job.prompts.count(sample.user, sample.prefix))


def parameters(job: Job, task: str) -> dict[str, Any]:
    where = source(job, task)
    found: dict[str, Any] = {"new_tokens": job.new_tokens(task), "shots": where.shots}
    for name, file in (("rows", where.rows), ("demos", where.demos), ("prompt", where.prompt)):
        if file is not None:
            found[name] = {p.name: sha256_file(p) for p in _files(file)}
    if where.rows is None and task in d.HUB:
        found["rows"] = d.HUB[task]
    if task == "ruler_niah_mv":
        found["haystack"] = text_sha256(haystack_text(job.settings.haystack))
    return found


def notes(job: Job, task: str, length: int, samples: Sequence[Sample]) -> list[str]:
    """Where the haystack goes round."""
    if task != "ruler_niah_mv" or not samples:
        return []
    return repeat_note(NAME, job.settings.haystack, length, max(s.meta["units"] for s in samples))


def _files(name: str) -> list[Path]:
    path = Path(name).expanduser()
    return sorted(path.parent.glob(path.name.replace("{k}", "*"))) if "{k}" in name else [path] if path.exists() else []


def score(sample: Sample, output: str) -> float:
    """HELMET's metric; for tasks that a judge scores, ROUGE-L, which needs none (and which HELMET finds poor)."""
    task = TASKS[sample.task]
    if task.name == "json_kv":
        return best_of_raw_and_parsed(substring_match, output, sample.refs, "Corresponding value:")
    if task.category == "recall":
        return share_found(output, sample.refs)
    if task.category == "rag":
        return best_of_raw_and_parsed(substring_match, output, sample.refs)
    if task.category == "rerank":
        return ndcg(parse_ranking(output), sample.meta["labels"])
    if task.category == "cite":
        text = without_citations(judging.one_line(output))
        measure = answers_present if task.name == "alce_asqa" else list_recall_top5
        return measure(text, sample.meta["groups"])
    if task.category == "icl":
        return exact_match(parse_answer(output, "label:"), sample.refs)
    if task.name == "infbench_choice":
        letter = best_of_raw_and_parsed(exact_match, output, sample.refs)
        return max(letter, float(sample.refs[1].lower() in output.lower()))
    label = "Summary:" if task.category == "summ" else "Answer:"
    return best_of_raw_and_parsed(rouge_l, output, sample.refs, label)


def summary(job: Job, scored: Sequence[Scored]) -> list[Row]:
    """What needs a judge: long answers, summaries, citations."""
    task = TASKS[scored[0].sample.task]
    if task.category == "cite":
        return _citation_rows(job, task, scored)
    if "judged" not in task.metrics or job.options.judge is None:
        return []
    judge = judging.long_answers if task.category == "longqa" else judging.summaries
    good, unreadable = judge(job, job.options.judge, scored)
    rows = [_row(task, UNREADABLE, unreadable, "texts", len(scored))]
    if good:
        rows.append(_row(task, "judged", statistics.fmean(good), "score", len(good)))
    return rows


def _citation_rows(job: Job, task: HelmetTask, scored: Sequence[Scored]) -> list[Row]:
    if job.options.nli:
        checks: judging.Checks = judging.ModelChecks(job.options.nli)
    elif job.options.judge:
        checks = judging.JudgeChecks(job, job.options.judge)
    else:
        return []
    rows = d.rows_of(task.name, source(job, task.name).rows, None)
    answers = []
    for s in scored:
        row = rows[s.sample.meta["row"]]
        answers.append((row["question"], s.output, row["docs"][: s.sample.meta["documents"]]))
    found = judging.citations(task.name, answers, checks)
    if found is None:
        return []
    rows = [_row(task, UNREADABLE, found.left_out, "texts", len(scored))]
    if found.answers:
        rows.append(_row(task, "citation recall", found.recall, "score", found.answers))
        rows.append(_row(task, "citation precision", found.precision, "score", found.answers))
    return rows


def _row(task: HelmetTask, name: str, value: float, unit: str, n: int) -> Row:
    return {"task": f"{task.name}:{name}", "value": round(value, 4), "unit": unit, "n": n}


SUITE = Suite(
    NAME,
    tasks={name: task.new_tokens for name, task in TASKS.items()},
    make=make,
    score=score,
    options=HelmetOptions,
    default=OFFLINE,
    parameters=parameters,
    summary=summary,
    notes=notes,
    version=2,
    fixed=True,
)

"""One conversation about one table: as long as its target allows, never longer."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter as Tally
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from lengthen.common.errors import LengthenError
from lengthen.common.seeds import named_random
from lengthen.recipe.stages.tables import Family, TablesStage
from lengthen.synthesize.ask import Asker, draw_query
from lengthen.synthesize.check import recompute
from lengthen.synthesize.frame import Frame
from lengthen.synthesize.lengths import decile_of, log_uniform
from lengthen.synthesize.parse import parse, without_question
from lengthen.synthesize.plan import Plan, draw_plan
from lengthen.synthesize.query import Answer, Query, Redraw
from lengthen.synthesize.render import Rendered, render
from lengthen.synthesize.schema import Table, draw_table
from lengthen.synthesize.solve import solve
from lengthen.synthesize.tokens import Counter, Message
from lengthen.synthesize.vocabulary import vocabulary
from lengthen.synthesize.wording import Speaker

ATTEMPTS = 60
FEWEST_ROWS = 3
_PROBE = 48
"""Rows drawn and counted to foretell how many are needed."""


@dataclass(frozen=True)
class Turn:
    """A question in words, its plain form, and a sentence with `{answer}` open."""

    query: Query
    family: Family
    question: str
    sentence: str
    decile: int | None


@dataclass(frozen=True)
class Draft:
    """A drawn table, written row by row, with the tokens of its first n rows in `ends[n]`."""

    plan: Plan
    table: Table
    rendered: Rendered
    before: str
    after: str
    ends: list[int]

    def context(self, rows: int) -> str:
        return f"{self.before}{self.rendered.text(rows).rstrip()}{self.after}"


def build(
    settings: TablesStage, counter: Counter, seed: int, index: int, *, target: int | None = None
) -> dict[str, Any]:
    """Conversation number `index`, the same for the same settings, tokenizer and seed.

    Raises:
        LengthenError: none of many attempts fits the length, or has a question with one right answer.
    """
    target = log_uniform(settings.min_tokens, settings.max_tokens, seed, index) if target is None else target
    family = named_random(seed, "family", index).choice(settings.families)
    redrawn: Tally[str] = Tally()
    for attempt in range(ATTEMPTS):
        rng = named_random(seed, "table", index, attempt)
        try:
            return _attempt(settings, counter, rng, index, target, family, decile_of(seed, index), redrawn)
        except Redraw as reason:
            redrawn[reason.rule] += 1
    raise _hopeless(settings, target, redrawn)


def _hopeless(settings: TablesStage, target: int, redrawn: Tally[str]) -> LengthenError:
    rule, times = redrawn.most_common(1)[0]
    if rule == "length_below_smallest_table":
        return LengthenError(
            f"A table of {settings.min_columns} columns and {FEWEST_ROWS} rows with one question does not fit into "
            f"{target:,} tokens of this tokenizer (min_tokens is {settings.min_tokens:,}).",
            fix="raise min_tokens, or lower min_columns",
        )
    if rule in ("too_few_columns_for_task", "no_task_possible"):
        return LengthenError(
            f"The tasks that are left need more than max_columns={settings.max_columns} columns"
            + (" or a second table (joins is 0)." if settings.joins == 0 else "."),
            fix="raise max_columns (and joins above 0), or allow more tasks or families",
        )
    return LengthenError(
        f"No conversation of {target:,} tokens came out in {ATTEMPTS} attempts; most often ({times} times) by the rule "
        f"'{rule}'.",
        fix="allow more tasks, columns or length; docs/tables.md lists the rules",
    )


def _attempt(
    settings: TablesStage,
    counter: Counter,
    rng: random.Random,
    index: int,
    target: int,
    family: Family,
    decile: int,
    redrawn: Tally[str],
) -> dict[str, Any]:
    shrink = redrawn["length_below_smallest_table"]
    plan = draw_plan(settings, rng, index, target, shrink, family)
    speaker = Speaker(plan.language, settings.split, rng, plan.noun, plan.columns[0].title)
    draft = _draft(settings, counter, rng, plan, speaker)
    rows = _rows_that_fit(draft, target - _overhead(counter, draft, ["?" * 60] * len(plan.tasks)))
    frame = Frame(draft.table, plan.side)
    turns = _ask(settings, rng, draft, frame, rows, speaker, decile, redrawn)
    rows, answers, total = _fit(settings, counter, draft, frame, turns, rows, speaker, target)
    messages = _messages(settings, draft.context(rows), turns, answers, speaker, plan.question_first)
    for turn, answer in zip(turns, answers):
        if turn.decile is not None and not any(10 * row // rows == turn.decile for row in answer.rows):
            raise Redraw("depth_moved")
    tables = parse(without_question(messages[0]["content"], turns[0].question), plan.rendering)
    for turn, answer in zip(turns, answers):
        if not answer.same(recompute(tables, turn.query)):
            raise Redraw("check_disagreed")
    return _sample(settings, plan, index, target, total, rows, turns, answers, messages, redrawn)


def _draft(settings: TablesStage, counter: Counter, rng: random.Random, plan: Plan, speaker: Speaker) -> Draft:
    words = vocabulary(plan.language, settings.split)

    def drawn(rows: int) -> tuple[Table, Rendered]:
        table = draw_table(rng, words, settings.split, plan.noun, plan.columns, rows, style=plan.style, near=plan.near,
                           linked=plan.linked)  # fmt: skip
        return table, render(table, plan.rendering, plan.language, rng, repeat=plan.repeat)

    probe = drawn(_PROBE)[1]
    per_row = max(1.0, counter.text("".join(probe.rows)) / _PROBE)
    table, rendered = drawn(max(FEWEST_ROWS + 1, int(1.05 * plan.target / per_row) + 6))
    before, after = speaker.introduction(), ""
    if plan.side is not None:
        second = render(plan.side, plan.rendering, plan.language, rng)
        other = speaker.caption(2, plan.side.noun.many) + second.text(plan.side.rows).rstrip()
        first = speaker.caption(1, plan.noun.many)
        before += f"{other}\n\n{first}" if plan.side_first else first
        after = "" if plan.side_first else f"\n\n{other}"
    ends = [0, *accumulate(counter.each(rendered.rows))]
    return Draft(plan, table, rendered, before, after, ends)


def _overhead(counter: Counter, draft: Draft, texts: Sequence[str]) -> int:
    """Tokens of everything but the rows: template, head, second table, questions and answers."""
    messages: list[Message] = []
    for number, text in enumerate(texts):
        context = f"{draft.before}{draft.rendered.head}{draft.rendered.tail}{draft.after}\n\n" if number == 0 else ""
        messages += [{"role": "user", "content": context + text}, {"role": "assistant", "content": ""}]
    return counter.conversation(messages)


def _rows_that_fit(draft: Draft, room: int) -> int:
    rows = bisect_right(draft.ends, room) - 1
    if rows < FEWEST_ROWS:
        raise Redraw("length_below_smallest_table")
    if rows >= draft.table.rows:
        raise Redraw("table_drawn_too_small")
    return rows


def _ask(
    settings: TablesStage,
    rng: random.Random,
    draft: Draft,
    frame: Frame,
    rows: int,
    speaker: Speaker,
    decile: int,
    redrawn: Tally[str],
) -> list[Turn]:
    plan, words = draft.plan, vocabulary(draft.plan.language, settings.split)
    table, short = draft.table.head(rows), frame.head(rows)
    turns: list[Turn] = []
    for family, task in plan.tasks:
        for attempt in range(12):
            aimed = decile if not turns else rng.randrange(10)
            asker = Asker(rng, table, plan.side, words, settings.split, plan.style, _row_in(rng, aimed, rows))
            aimed = 10 * asker.row // rows
            try:
                query = draw_query(asker, task)
                if any(turn.query == query for turn in turns):
                    raise Redraw("asked_before")
                answer = solve(short, query)
                turns.append(_turn(settings, plan, speaker, query, family, answer, asker.row, aimed))
                break
            except Redraw as reason:
                redrawn[reason.rule] += 1
                if attempt == 11 and not turns:
                    raise Redraw("no_question_found") from None
    return turns


def _row_in(rng: random.Random, decile: int, rows: int) -> int:
    """A row (from 0) whose depth, row / rows, lies in the decile; of fewer than ten rows the one nearest to it."""
    low, high = -(-decile * rows // 10), -(-(decile + 1) * rows // 10) - 1
    return rng.randint(low, high) if low <= high else decile * rows // 10


def _turn(
    settings: TablesStage,
    plan: Plan,
    speaker: Speaker,
    query: Query,
    family: Family,
    answer: Answer,
    row: int,
    aimed: int,
) -> Turn:
    empty = {column.title for column in plan.columns if column.empty}
    counted = query.by if query.task == "filter_lookup" else query.column if family == "global" else ""
    instruct = "" if settings.answers == "sentence" else "bare" if family == "retrieval" else "worked"
    question, sentence = speaker.ask(query, leave_out=counted if counted in empty else "", instruct=instruct)
    decile = aimed if family == "retrieval" and answer.rows else None
    return Turn(query, family, question, sentence, decile)


def _fit(
    settings: TablesStage,
    counter: Counter,
    draft: Draft,
    frame: Frame,
    turns: Sequence[Turn],
    rows: int,
    speaker: Speaker,
    target: int,
) -> tuple[int, list[Answer], int]:
    """Answer, count, and move the number of rows until one row more would be over the target."""
    worked, plan = settings.answers == "worked", draft.plan
    # Rows were counted one by one; tokens that span two pieces make the whole differ a little from the sum.
    error = 0
    for _ in range(6):
        short = frame.head(rows)
        answers = [solve(short, turn.query) for turn in turns]
        said = [turn.question + speaker.answer(answer, turn.sentence, worked=worked)
                for turn, answer in zip(turns, answers)]  # fmt: skip
        better = _rows_that_fit(draft, target - _overhead(counter, draft, said) - error)
        if better == rows:
            messages = _messages(settings, draft.context(rows), turns, answers, speaker, plan.question_first)
            total = counter.conversation(messages)
            if total <= target < total + draft.ends[rows + 1] - draft.ends[rows]:
                return rows, answers, total
            error += total - (_overhead(counter, draft, said) + draft.ends[rows] + error)
            better = _rows_that_fit(draft, target - _overhead(counter, draft, said) - error)
            if better == rows:
                break
        rows = better
    raise Redraw("length_not_met")


def _messages(
    settings: TablesStage,
    context: str,
    turns: Sequence[Turn],
    answers: Sequence[Answer],
    speaker: Speaker,
    question_first: bool,
) -> list[Message]:
    messages: list[Message] = []
    for turn, answer in zip(turns, answers):
        question = turn.question
        if not messages:
            question = f"{question}\n\n{context}" if question_first else f"{context}\n\n{question}"
        text = speaker.answer(answer, turn.sentence, worked=settings.answers == "worked")
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
    return messages


def _sample(
    settings: TablesStage,
    plan: Plan,
    index: int,
    target: int,
    total: int,
    rows: int,
    turns: Sequence[Turn],
    answers: Sequence[Answer],
    messages: list[Message],
    redrawn: Tally[str],
) -> dict[str, Any]:
    asked = []
    for turn, answer in zip(turns, answers):
        asked.append({
            "family": turn.family, "task": turn.query.task, "query": turn.query.to_json(),
            "answer": list(answer.values), "ordered": answer.ordered, "rows": list(answer.rows),
            "decile": turn.decile,
        })  # fmt: skip
    meta = {
        "split": settings.split, "language": plan.language, "rendering": plan.rendering, "titles": [c.title for c in
        plan.columns], "rows": rows, "joined": plan.side is not None, "question_first": plan.question_first,
        "near_keys": plan.near, "target": target, "tokens": total, "turns": asked, "redrawn": dict(sorted(redrawn.items())),
    }  # fmt: skip
    return {"id": f"tables-{settings.split}-{index:06d}", "messages": messages, "source": "tables", "meta": meta}

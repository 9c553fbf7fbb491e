"""One conversation about one table: as long as its target allows, never longer."""

from __future__ import annotations

import random
from collections import Counter as Tally
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lengthen.common.errors import LengthenError
from lengthen.common.seeds import named_random
from lengthen.recipe.stages.tables import Family, TablesStage
from lengthen.synthesize.ask import Asker, draw_query
from lengthen.synthesize.check import recompute
from lengthen.synthesize.fit import FEWEST_ROWS, Draft, Fit, probe
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
_ASKED_AGAIN = 3
_PROBE = 24
"""Rows drawn and counted to foretell how many are needed."""


@dataclass(frozen=True)
class Turn:
    """A question in words, its plain form, and a sentence with `{answer}` open. decile: depth of the row asked for."""

    query: Query
    family: Family
    question: str
    sentence: str
    decile: int | None


def build(
    settings: TablesStage, counter: Counter, seed: int, index: int, *, target: int | None = None
) -> dict[str, Any]:
    """Conversation number `index`, the same for the same settings, tokenizer and seed.

    Raises:
        LengthenError: none of many attempts fits the length, or has a question with one right answer.
    """
    if target is None:
        target = log_uniform(settings.min_tokens, settings.max_tokens, seed, index)
    family = named_random(seed, "family", index).choice(settings.families)
    redrawn: Tally[str] = Tally()
    ended: Tally[str] = Tally()
    for attempt in range(ATTEMPTS):
        rng = named_random(seed, "table", index, attempt)
        try:
            plan = draw_plan(settings, rng, index, target, redrawn["length_below_smallest_table"], family)
            return _Conversation(settings, counter, rng, plan, redrawn).build(index, decile_of(seed, index))
        except Redraw as reason:
            redrawn[reason.rule] += 1
            ended[reason.rule] += 1
    raise _hopeless(settings, target, ended)


def _hopeless(settings: TablesStage, target: int, ended: Tally[str]) -> LengthenError:
    rule, times = ended.most_common(1)[0]
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


class _Conversation:
    """One attempt at one conversation. Every draw comes from `rng`, in a fixed order."""

    def __init__(
        self, settings: TablesStage, counter: Counter, rng: random.Random, plan: Plan, redrawn: Tally[str]
    ) -> None:
        self.settings, self.counter, self.rng, self.plan, self.redrawn = settings, counter, rng, plan, redrawn
        self.worked = settings.answers == "worked"
        self.words = vocabulary(plan.language, settings.split)
        self.speaker = Speaker(plan.language, settings.split, rng, plan.noun, plan.columns[0].title)
        self.turns: list[Turn] = []
        self.answers: list[Answer] = []

    def build(self, index: int, decile: int) -> dict[str, Any]:
        per_row, additive = probe(self.counter, self._drawn(_PROBE)[1].rows)
        before, after = self._around()
        table, rendered = self._drawn(FEWEST_ROWS + 1)
        overhead = self._overhead(Draft(rendered, before, after))
        guess = int((self.plan.target - overhead) / per_row)
        if guess < FEWEST_ROWS:
            raise Redraw("length_below_smallest_table")
        table, rendered = self._drawn(int(1.05 * guess) + 8)
        draft, frame = Draft(rendered, before, after), Frame(table, self.plan.side)
        fit = Fit(self.counter, draft, additive, guess)
        for again in range(_ASKED_AGAIN, -1, -1):
            try:
                self._ask(table.head(fit.rows), frame.head(fit.rows), decile)
                rows, total, messages = self._fitted(fit, draft, frame)
                self._check(messages, rows)
                return self._sample(index, rows, total, messages)
            except Redraw as reason:
                # Mostly a row that was asked for and then did not fit: the number of rows is better known now.
                if not again or reason.rule in ("length_below_smallest_table", "table_drawn_too_small"):
                    raise
                self.redrawn[reason.rule] += 1
        raise AssertionError("unreachable")

    def _fitted(self, fit: Fit, draft: Draft, frame: Frame) -> tuple[int, int, list[Message]]:
        def write(context: str, rows: int) -> list[Message]:
            short = frame.head(rows)
            self.answers = [solve(short, turn.query) for turn in self.turns]
            return self._messages(context)

        rows, total = fit.fitting(write, self.plan.target)
        return rows, total, write(draft.context(rows), rows)

    def _drawn(self, rows: int) -> tuple[Table, Rendered]:
        plan = self.plan
        table = draw_table(self.rng, self.words, self.settings.split, plan.noun, plan.columns, rows, style=plan.style,
                           near=plan.near, linked=plan.linked)  # fmt: skip
        return table, render(table, plan.rendering, plan.language, self.rng, repeat=plan.repeat)

    def _around(self) -> tuple[str, str]:
        """What stands before and after the table: an introduction, and the second table on one of the sides."""
        before, side = self.speaker.introduction(), self.plan.side
        if side is None:
            return before, ""
        second = render(side, self.plan.rendering, self.plan.language, self.rng)
        other = self.speaker.caption(2, side.noun.many) + second.text(side.rows).rstrip()
        first = self.speaker.caption(1, self.plan.noun.many)
        return (f"{before}{other}\n\n{first}", "") if self.plan.side_first else (before + first, f"\n\n{other}")

    def _overhead(self, draft: Draft) -> int:
        """About the tokens of everything but the rows, with questions and answers of ordinary length."""
        messages: list[Message] = []
        for _ in self.plan.tasks:
            context = draft.frame() if not messages else ""
            messages += [{"role": "user", "content": context + "?" * 30}, {"role": "assistant", "content": "." * 30}]
        return self.counter.conversation(messages)

    def _ask(self, table: Table, frame: Frame, decile: int) -> None:
        self.turns = []
        for family, task in self.plan.tasks:
            for _ in range(12):
                row = _row_in(self.rng, decile if not self.turns else self.rng.randrange(10), table.rows)
                asker = Asker(self.rng, table, self.plan.side, self.words, self.settings.split, self.plan.style, row)
                try:
                    query = draw_query(asker, task)
                    if any(turn.query == query for turn in self.turns):
                        raise Redraw("asked_before")
                    self.turns.append(self._turn(query, family, solve(frame, query), 10 * row // table.rows))
                    break
                except Redraw as reason:
                    self.redrawn[reason.rule] += 1
            if not self.turns:
                raise Redraw("no_question_found")

    def _turn(self, query: Query, family: Family, answer: Answer, decile: int) -> Turn:
        empty = {column.title for column in self.plan.columns if column.empty}
        counted = query.by if query.task == "filter_lookup" else query.column if family == "global" else ""
        instruct = "" if not self.worked else "bare" if family == "retrieval" else "worked"
        question, sentence = self.speaker.ask(query, leave_out=counted if counted in empty else "", instruct=instruct)
        return Turn(query, family, question, sentence, decile if family == "retrieval" and answer.rows else None)

    def _messages(self, context: str) -> list[Message]:
        messages: list[Message] = []
        for turn, answer in zip(self.turns, self.answers):
            asked = turn.question
            if not messages:
                asked = f"{asked}\n\n{context}" if self.plan.question_first else f"{context}\n\n{asked}"
            text = self.speaker.answer(answer, turn.sentence, worked=self.worked)
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": text}]
        return messages

    def _check(self, messages: Sequence[Message], rows: int) -> None:
        """Every answer once more, from the text of the message alone."""
        for turn, answer in zip(self.turns, self.answers):
            if turn.decile is not None and not any(10 * row // rows == turn.decile for row in answer.rows):
                raise Redraw("depth_moved")
        tables = parse(without_question(messages[0]["content"], self.turns[0].question), self.plan.rendering)
        for turn, answer in zip(self.turns, self.answers):
            if not answer.same(recompute(tables, turn.query)):
                raise Redraw("check_disagreed")

    def _sample(self, index: int, rows: int, total: int, messages: list[Message]) -> dict[str, Any]:
        plan, split = self.plan, self.settings.split
        asked = [
            {
                "family": turn.family, "task": turn.query.task, "query": turn.query.to_json(),
                "answer": list(answer.values), "ordered": answer.ordered, "rows": list(answer.rows),
                "decile": turn.decile,
            }
            for turn, answer in zip(self.turns, self.answers)
        ]  # fmt: skip
        meta = {
            "split": split, "language": plan.language, "rendering": plan.rendering,
            "titles": [column.title for column in plan.columns], "rows": rows, "joined": plan.side is not None,
            "question_first": plan.question_first, "near_keys": plan.near, "target": plan.target, "tokens": total,
            "turns": asked, "redrawn": dict(sorted(self.redrawn.items())),
        }  # fmt: skip
        return {"id": f"tables-{split}-{index:06d}", "messages": messages, "source": "tables", "meta": meta}


def _row_in(rng: random.Random, decile: int, rows: int) -> int:
    """A row (from 0) whose depth, row / rows, lies in the decile; of fewer than ten rows the one nearest to it."""
    low, high = -(-decile * rows // 10), -(-(decile + 1) * rows // 10) - 1
    return rng.randint(low, high) if low <= high else decile * rows // 10

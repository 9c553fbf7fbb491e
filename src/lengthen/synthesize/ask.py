"""Draw a question for a table: which task, which rows, which columns."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lengthen.synthesize.keys import Style, another_key
from lengthen.synthesize.query import Condition, Query, Redraw
from lengthen.synthesize.schema import NUMERIC, Column, Kind, Table, cents_text
from lengthen.synthesize.vocabulary import Split, Vocabulary

NAMED: tuple[Kind, ...] = ("category", "person", "place")
NEEDS: dict[str, tuple[tuple[Kind, ...], ...]] = {
    "difference": (NUMERIC,), "sum": (NUMERIC,), "ratio": (NUMERIC,), "compare": (NUMERIC,),
    "two_hop": (("reference",),), "filter_lookup": (("category",), NUMERIC), "date_difference": (("date",),),
    "join": (("link",),), "count": (("category",),), "total": (NUMERIC,), "mean": (NUMERIC,), "extreme": (NUMERIC,),
    "mode": (("category",),), "group_best": (("category",), NUMERIC), "top_k": (NUMERIC,), "distinct": (NAMED,),
    "duplicates": (("integer",),), "sorted": (NUMERIC,), "join_count": (("link",),), "join_total": (("link",), NUMERIC),
}  # fmt: skip
"""Kinds of column that a task cannot do without; a task that is not here takes any."""
FEWEST = {"two_hop": 3, "filter_lookup": 3, "group_best": 3, "join_total": 3}
"""Fewest columns, the key among them, where more than two are needed."""
JOINED = ("join", "join_count", "join_total")


@dataclass(frozen=True)
class Asker:
    """Everything that a question is drawn from. `row` is the row (from 0) that a retrieval question aims at."""

    rng: random.Random
    table: Table
    side: Table | None
    words: Vocabulary
    split: Split
    style: Style
    row: int

    def one(self, *kinds: Kind, but: Sequence[str] = ()) -> Column:
        """A random column of these kinds (of any kind but the key when none is given)."""
        columns = [c for c in self.table.columns[1:] if (not kinds or c.kind in kinds) and c.title not in but]
        if not columns:
            raise Redraw("no_such_column")
        return self.rng.choice(columns)

    def number(self, shape: str | None = None) -> Column:
        shaped = [c for c in self.table.columns if c.kind in NUMERIC and c.shape == shape]
        return self.rng.choice(shaped) if shaped else self.one(*NUMERIC)

    def index(self, column: Column) -> int:
        return self.table.columns.index(column)

    def text(self, column: Column, row: int) -> str:
        text = self.table.texts[self.index(column)][row]
        if not text:
            raise Redraw("cell_missing")
        return text

    @property
    def key(self) -> str:
        return self.table.keys[self.row]

    def others(self, count: int) -> list[str]:
        """Keys of other rows."""
        if self.table.rows <= count:
            raise Redraw("too_few_rows")
        picked = self.rng.sample(range(self.table.rows - 1), count)
        return [self.table.keys[row + (row >= self.row)] for row in picked]

    def equal(self, column: Column) -> Condition:
        return Condition(column.title, "=", self.text(column, self.row))

    def beyond(self, column: Column) -> Condition:
        """A number column above or below a round value near the aimed row's."""
        values = self.table.numbers[self.index(column)]
        assert values is not None
        value = values[self.row]
        if value is None:
            raise Redraw("cell_missing")
        op: Literal[">", "<"] = self.rng.choice((">", "<"))
        step = 10 ** max(0, len(str(value)) - 2)
        bound = value // step * step - (step if op == ">" and value % step == 0 else 0)
        bound = bound if op == ">" else bound + step
        if bound <= 0:
            raise Redraw("no_round_bound")
        return Condition(column.title, op, cents_text(bound) if column.kind == "decimal" else str(bound))


def draw_query(asker: Asker, task: str) -> Query:
    """A question of this task.

    Raises:
        Redraw: this table does not allow it with what was drawn.
    """
    return _DRAW[task](asker, task)


def possible(task: str, columns: Sequence[Column]) -> bool:
    """Whether a table with these columns can be asked this."""
    kinds = [column.kind for column in columns]
    return len(columns) >= FEWEST.get(task, 2) and all(any(k in kinds for k in need) for need in NEEDS.get(task, ()))


def _cell(a: Asker, task: str) -> Query:
    column = a.one()
    a.text(column, a.row)
    return Query(task, (a.key,), column.title)


def _plain(a: Asker, task: str) -> Query:
    return Query(task, (a.key,))


def _match(a: Asker, task: str) -> Query:
    selective = [c for c in a.table.columns[1:] if c.kind not in ("category", "reference") and c.shape == "free"]
    first = a.rng.choice(selective) if selective and a.table.rows > 30 else a.one(but=[])
    second = [c for c in a.table.columns[1:] if c is not first and c.kind != "reference"]
    where = [a.equal(first)]
    if second and a.rng.random() < 0.5:
        other = a.rng.choice(second)
        where.append(a.beyond(other) if other.kind in NUMERIC else a.equal(other))
    return Query(task, where=tuple(where))


def _kth(a: Asker, task: str) -> Query:
    return Query(task, k=a.row + 1)


def _neighbour(a: Asker, task: str) -> Query:
    # The answer's row is the one whose depth is aimed at, so the row that is named lies beside it.
    after = a.rng.random() < 0.5
    named = a.row - 1 if after else a.row + 1
    if not 0 <= named < a.table.rows:
        raise Redraw("no_neighbour")
    return Query(task, (a.table.keys[named],), most=after)


def _absent(a: Asker, task: str) -> Query:
    key = another_key(a.rng, a.words, a.split, a.style, a.table.keys, a.key)
    if key is None:
        raise Redraw("no_absent_key")
    return Query(task, (key,), a.one().title)


def _two_numbers(a: Asker, task: str) -> Query:
    return Query(task, (a.key, *a.others(1)), a.number().title, most=a.rng.random() < 0.5)


def _sum(a: Asker, task: str) -> Query:
    return Query(task, (a.key, *a.others(a.rng.randint(1, 4))), a.number().title)


def _two_hop(a: Asker, task: str) -> Query:
    by = a.one("reference")
    return Query(task, (a.key,), a.one(but=(by.title,)).title, by.title)


def _filter_lookup(a: Asker, task: str) -> Query:
    group, number = a.one("category"), a.number()
    column = a.one(but=(group.title, number.title)) if len(a.table.columns) > 3 else number
    return Query(task, column=column.title, by=number.title, where=(a.equal(group),), most=a.rng.random() < 0.5)


def _dates(a: Asker, task: str) -> Query:
    return Query(task, (a.key, *a.others(1)), a.one("date").title)


def _join(a: Asker, task: str) -> Query:
    assert a.side is not None
    linked = a.rng.choice(a.side.columns[1:])
    return Query(task, (a.key,), by=a.one("link").title, linked=linked.title)


def _count(a: Asker, task: str) -> Query:
    group = a.one("category")
    numbers = [c for c in a.table.columns if c.kind in NUMERIC]
    where = [a.equal(group)]
    if numbers and a.rng.random() < 0.5:
        where.append(a.beyond(a.rng.choice(numbers)))
    return Query(task, where=tuple(where))


def _aggregate(a: Asker, task: str) -> Query:
    groups = [c for c in a.table.columns if c.kind == "category"]
    where = (a.equal(a.rng.choice(groups)),) if groups and a.rng.random() < 0.5 else ()
    return Query(task, column=a.number().title, where=where)


def _extreme(a: Asker, task: str) -> Query:
    return Query(task, column=a.number("free").title, most=a.rng.random() < 0.5)


def _mode(a: Asker, task: str) -> Query:
    return Query(task, column=a.one("category").title)


def _group_best(a: Asker, task: str) -> Query:
    group = a.one("category")
    return Query(task, column=a.number("free").title, by=group.title, most=a.rng.random() < 0.5)


def _top_k(a: Asker, task: str) -> Query:
    return Query(task, column=a.number("free").title, k=a.rng.randint(2, 5), most=a.rng.random() < 0.5)


def _distinct(a: Asker, task: str) -> Query:
    return Query(task, column=a.one(*NAMED).title)


def _duplicates(a: Asker, task: str) -> Query:
    return Query(task, column=a.number("repeats").title)


def _sorted(a: Asker, task: str) -> Query:
    column = a.number(a.rng.choice(("ascending", "descending", "almost")))
    values = [v for v in a.table.numbers[a.index(column)] or [] if v is not None]
    rising = bool(values) and values[0] < values[-1]
    # Mostly the order in which the column really runs, so that the first and last row do not give the answer away.
    return Query(task, column=column.title, most=rising if a.rng.random() < 0.8 else not rising)


def _joined(a: Asker, task: str) -> Query:
    assert a.side is not None
    groups = [c for c in a.side.columns if c.kind == "category"]
    if not groups:
        raise Redraw("no_such_column")
    group = a.rng.choice(groups)
    value = a.rng.choice(a.side.texts[a.side.columns.index(group)])
    column = a.number().title if task == "join_total" else ""
    return Query(task, column=column, by=a.one("link").title, where=(Condition(group.title, "=", value),))


_DRAW: dict[str, Callable[[Asker, str], Query]] = {
    "cell": _cell, "row": _plain, "match": _match, "kth": _kth, "neighbour": _neighbour, "absent": _absent,
    "difference": _two_numbers, "sum": _sum, "ratio": _two_numbers, "compare": _two_numbers, "two_hop": _two_hop,
    "filter_lookup": _filter_lookup, "date_difference": _dates, "join": _join, "count": _count, "total": _aggregate,
    "mean": _aggregate, "extreme": _extreme, "mode": _mode, "group_best": _group_best, "top_k": _top_k,
    "distinct": _distinct, "duplicates": _duplicates, "sorted": _sorted, "join_count": _joined, "join_total": _joined,
}  # fmt: skip

"""Answers about single rows, computed with polars: retrieval and reasoning."""

from __future__ import annotations

import datetime
from collections.abc import Callable

import polars as pl

from lengthen.synthesize.frame import LONGEST_LIST, ROW, Frame, hundredths
from lengthen.synthesize.query import ABSENT, Answer, Query, Redraw, Step
from lengthen.synthesize.solve_global import GLOBAL


def solve(frame: Frame, query: Query) -> Answer:
    """The answer of a query.

    Raises:
        Redraw: the question has no single right answer here (a tie, a missing cell, too many matches ...).
    """
    return SOLVERS[query.task](frame, query)


def _look(frame: Frame, key: str, title: str, value: int | str) -> Step:
    return Step("look", (key, title, frame.text(title, value)))


def _cell(frame: Frame, query: Query) -> Answer:
    row = frame.row(query.keys[0])
    return Answer((frame.text(query.column, frame.cell(row, query.column)),), rows=(_at(row),))


def _at(row: dict[str, int | str | None]) -> int:
    return int(row[ROW] or 0)


def _row(frame: Frame, query: Query) -> Answer:
    row = frame.row(query.keys[0])
    return Answer(tuple(frame.text(t, frame.cell(row, t)) for t in frame.titles[1:]), rows=(_at(row),))


def _match(frame: Frame, query: Query) -> Answer:
    found = frame.where(query)
    if not 1 <= found.height <= LONGEST_LIST:
        raise Redraw("too_many_matches" if found.height else "no_match")
    keys = tuple(str(key) for key in found[frame.key].to_list())
    return Answer(keys, ordered=False, rows=tuple(found[ROW].to_list()))


def _kth(frame: Frame, query: Query) -> Answer:
    if not 1 <= query.k <= frame.frame.height:
        raise Redraw("row_number_outside")
    return Answer((str(frame.frame[frame.key][query.k - 1]),), rows=(query.k - 1,))


def _neighbour(frame: Frame, query: Query) -> Answer:
    place = _at(frame.row(query.keys[0])) + (1 if query.most else -1)
    if not 0 <= place < frame.frame.height:
        raise Redraw("no_neighbour")
    return Answer((str(frame.frame[frame.key][place]),), rows=(place,))


def _absent(frame: Frame, query: Query) -> Answer:
    if frame.frame.filter(pl.col(frame.key) == query.keys[0]).height:
        raise Redraw("absent_key_present")
    return Answer((ABSENT,))


def _numbers(frame: Frame, query: Query) -> tuple[list[int], list[str], tuple[Step, ...], tuple[int, ...]]:
    rows = [frame.row(key) for key in query.keys]
    values = [frame.number(row, query.column) for row in rows]
    texts = [frame.text(query.column, value) for value in values]
    steps = tuple(_look(frame, key, query.column, value) for key, value in zip(query.keys, values))
    return values, texts, steps, tuple(_at(row) for row in rows)


def _difference(frame: Frame, query: Query) -> Answer:
    values, texts, steps, rows = _numbers(frame, query)
    large, small = (0, 1) if values[0] >= values[1] else (1, 0)
    answer = frame.text(query.column, values[large] - values[small])
    return Answer((answer,), steps=(*steps, Step("calc", (f"{texts[large]} - {texts[small]} = {answer}",))), rows=rows)


def _sum(frame: Frame, query: Query) -> Answer:
    values, texts, steps, rows = _numbers(frame, query)
    answer = frame.text(query.column, sum(values))
    return Answer((answer,), steps=(*steps, Step("calc", (f"{' + '.join(texts)} = {answer}",))), rows=rows)


def _ratio(frame: Frame, query: Query) -> Answer:
    values, texts, steps, rows = _numbers(frame, query)
    if values[1] == 0:
        raise Redraw("division_by_zero")
    answer = hundredths(values[0], values[1])
    sign = "=" if values[0] * 100 % values[1] == 0 else "≈"
    return Answer((answer,), steps=(*steps, Step("calc", (f"{texts[0]} / {texts[1]} {sign} {answer}",))), rows=rows)


def _compare(frame: Frame, query: Query) -> Answer:
    values, texts, steps, rows = _numbers(frame, query)
    if values[0] == values[1]:
        raise Redraw("tie")
    sign = ">" if values[0] > values[1] else "<"
    best = query.keys[int((values[0] > values[1]) != query.most)]
    return Answer((best,), steps=(*steps, Step("calc", (f"{texts[0]} {sign} {texts[1]}",))), rows=rows)


def _two_hop(frame: Frame, query: Query) -> Answer:
    first = frame.row(query.keys[0])
    middle = str(frame.cell(first, query.by))
    second = frame.row(middle)
    if middle == query.keys[0]:
        raise Redraw("reference_to_itself")
    value = frame.cell(second, query.column)
    steps = (_look(frame, query.keys[0], query.by, middle), _look(frame, middle, query.column, value))
    return Answer((frame.text(query.column, value),), steps=steps, rows=(_at(first), _at(second)))


def _filter_lookup(frame: Frame, query: Query) -> Answer:
    found = frame.where(query).filter(pl.col(query.by).is_not_null())
    if found.height < 2:
        raise Redraw("too_few_matches")
    best = found.filter(pl.col(query.by) == (pl.col(query.by).max() if query.most else pl.col(query.by).min()))
    if best.height != 1:
        raise Redraw("tie")
    row = best.row(0, named=True)
    key, value = str(row[frame.key]), frame.cell(row, query.column)
    steps = (Step("counted", (str(found.height),)), _look(frame, key, query.by, frame.cell(row, query.by)),
             _look(frame, key, query.column, value))  # fmt: skip
    return Answer((frame.text(query.column, value),), steps=steps, rows=(_at(row),))


def _date_difference(frame: Frame, query: Query) -> Answer:
    rows = [frame.row(key) for key in query.keys]
    texts = [str(frame.cell(row, query.column)) for row in rows]
    one, other = (datetime.date.fromisoformat(text) for text in texts)
    if one == other:
        raise Redraw("tie")
    answer = str(abs((one - other).days))
    steps = tuple(_look(frame, key, query.column, text) for key, text in zip(query.keys, texts))
    calc = Step("calc", (f"{max(texts)} - {min(texts)} = {answer}",))
    return Answer((answer,), steps=(*steps, calc), rows=tuple(_at(row) for row in rows))


def _join(frame: Frame, query: Query) -> Answer:
    assert frame.side is not None
    row = frame.row(query.keys[0])
    middle = str(frame.cell(row, query.by))
    value = frame.side.cell(frame.side.row(middle), query.linked)
    text = frame.side.text(query.linked, value)
    steps = (_look(frame, query.keys[0], query.by, middle), Step("look", (middle, query.linked, text)))
    return Answer((text,), steps=steps, rows=(_at(row),))


SOLVERS: dict[str, Callable[[Frame, Query], Answer]] = {
    "cell": _cell, "row": _row, "match": _match, "kth": _kth, "neighbour": _neighbour, "absent": _absent,
    "difference": _difference, "sum": _sum, "ratio": _ratio, "compare": _compare, "two_hop": _two_hop,
    "filter_lookup": _filter_lookup, "date_difference": _date_difference, "join": _join, **GLOBAL,
}  # fmt: skip

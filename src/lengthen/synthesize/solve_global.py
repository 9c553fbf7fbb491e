"""Answers about whole tables, computed with polars."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from lengthen.synthesize.frame import LONGEST_LIST, ROW, Frame, hundredths
from lengthen.synthesize.query import NO, YES, Answer, Query, Redraw, Step


def _found(frame: Frame, found: pl.DataFrame) -> Step:
    """The matching rows by key where they are few; otherwise their number."""
    if found.height <= LONGEST_LIST:
        return Step("found", (", ".join(str(key) for key in found[frame.key].to_list()), str(found.height)))
    return Step("counted", (str(found.height),))


def _count(frame: Frame, query: Query) -> Answer:
    found = frame.where(query)
    if not found.height:
        raise Redraw("no_match")
    return Answer((str(found.height),), steps=(_found(frame, found),))


def _values(frame: Frame, query: Query) -> pl.DataFrame:
    found = frame.where(query).filter(pl.col(query.column).is_not_null())
    if not found.height:
        raise Redraw("no_match")
    return found


def _summed(frame: Frame, query: Query, found: pl.DataFrame) -> tuple[int, str, tuple[Step, ...]]:
    total = int(found[query.column].sum())
    text = frame.text(query.column, total)
    parts = [frame.text(query.column, value) for value in found[query.column].to_list()[: LONGEST_LIST + 1]]
    if found.height == 1:
        return total, text, (_found(frame, found),)
    line = " + ".join(parts) if found.height <= LONGEST_LIST else f"{' + '.join(parts[:2])} + ... "
    calc = Step("calc", (f"{line.strip()} = {text}",))
    return total, text, (_found(frame, found), calc)


def _total(frame: Frame, query: Query) -> Answer:
    _, text, steps = _summed(frame, query, _values(frame, query))
    return Answer((text,), steps=steps)


def _mean(frame: Frame, query: Query) -> Answer:
    found = _values(frame, query)
    total, text, steps = _summed(frame, query, found)
    scale = 100 if frame.kind(query.column) == "decimal" else 1
    answer = hundredths(total, found.height * scale)
    sign = "=" if total * 100 % (found.height * scale) == 0 else "≈"
    return Answer((answer,), steps=(*steps, Step("calc", (f"{text} / {found.height} {sign} {answer}",))))


def _extreme(frame: Frame, query: Query) -> Answer:
    found = _values(frame, query)
    value = found[query.column].max() if query.most else found[query.column].min()
    best = found.filter(pl.col(query.column) == value)
    if best.height != 1:
        raise Redraw("tie")
    row = best.row(0, named=True)
    key, text = str(row[frame.key]), frame.text(query.column, row[query.column])
    return Answer((text, key), steps=(Step("look", (key, query.column, text)),), rows=(int(row[ROW]),))


def _mode(frame: Frame, query: Query) -> Answer:
    counts = _values(frame, query)[query.column].value_counts().sort("count", query.column, descending=[True, False])
    if counts.height > 1 and counts["count"][0] == counts["count"][1]:
        raise Redraw("tie")
    shown = counts.head(3).rows()
    steps = tuple(Step("group", (str(value), str(count))) for value, count in shown)
    return Answer((str(counts[query.column][0]),), steps=steps)


def _group_best(frame: Frame, query: Query) -> Answer:
    found = _values(frame, query).filter(pl.col(query.by).is_not_null())
    sums = found.group_by(query.by).agg(pl.col(query.column).sum()).sort(query.column, query.by, descending=query.most)
    if sums.height < 2 or sums[query.column][0] == sums[query.column][1]:
        raise Redraw("tie" if sums.height > 1 else "one_group")
    groups = [(str(value), frame.text(query.column, total)) for value, total in sums.rows()]
    return Answer(groups[0], steps=tuple(Step("group", pair) for pair in sorted(groups)))


def _top_k(frame: Frame, query: Query) -> Answer:
    ranked = _values(frame, query).sort(query.column, descending=query.most)
    if ranked.height <= query.k:
        raise Redraw("too_few_matches")
    values = ranked[query.column].to_list()[: query.k + 1]
    if len(set(values)) != len(values):
        raise Redraw("tie")
    keys = [str(key) for key in ranked[frame.key].to_list()[: query.k]]
    steps = tuple(Step("look", (key, query.column, frame.text(query.column, v))) for key, v in zip(keys, values))
    return Answer(tuple(keys), steps=steps)


def _distinct(frame: Frame, query: Query) -> Answer:
    values = sorted(str(value) for value in _values(frame, query)[query.column].unique().to_list())
    steps = (Step("found", (", ".join(values), str(len(values)))),) if len(values) <= 12 else ()
    return Answer((str(len(values)),), steps=steps)


def _duplicates(frame: Frame, query: Query) -> Answer:
    found = _values(frame, query)
    repeated = found.filter(pl.col(query.column).is_duplicated()).sort(query.column, ROW)
    values = repeated[query.column].unique(maintain_order=True).to_list()
    if not 1 <= len(values) <= LONGEST_LIST:
        raise Redraw("too_many_matches" if values else "no_match")
    steps = tuple(
        Step("look", (str(key), query.column, frame.text(query.column, value)))
        for key, value in repeated.select(frame.key, query.column).head(3 * LONGEST_LIST).rows()
    )
    return Answer(tuple(frame.text(query.column, v) for v in values), ordered=False, steps=steps)


def _sorted(frame: Frame, query: Query) -> Answer:
    column = frame.frame[query.column]
    if column.null_count() or column.n_unique() != len(column):
        raise Redraw("cell_missing" if column.null_count() else "tie")
    steps_ = column.diff().slice(1)
    breaks = (steps_ < 0 if query.most else steps_ > 0).arg_true().to_list()
    if not breaks:
        return Answer((YES,))
    keys, place = frame.frame[frame.key], breaks[0]
    parts: list[str] = []
    for row in (place, place + 1):
        parts += [str(keys[row]), frame.text(query.column, column[row])]
    return Answer((NO,), steps=(Step("break", tuple(parts)),), rows=(place + 1,))


def _join_count(frame: Frame, query: Query) -> Answer:
    found, matching = _linked(frame, query)
    return Answer((str(found.height),), steps=(matching, _found(frame, found)))


def _linked(frame: Frame, query: Query) -> tuple[pl.DataFrame, Step]:
    assert frame.side is not None
    side = frame.side.where(query)
    found = frame.joined(query).sort(ROW)
    if not found.height:
        raise Redraw("no_match")
    return found, Step("found", (", ".join(side[frame.side.key].to_list()), str(side.height)))


def _join_total(frame: Frame, query: Query) -> Answer:
    found, matching = _linked(frame, query)
    found = found.filter(pl.col(query.column).is_not_null())
    if not found.height:
        raise Redraw("no_match")
    _, text, steps = _summed(frame, query, found)
    return Answer((text,), steps=(matching, *steps))


GLOBAL: dict[str, Callable[[Frame, Query], Answer]] = {
    "count": _count, "total": _total, "mean": _mean, "extreme": _extreme, "mode": _mode, "group_best": _group_best,
    "top_k": _top_k, "distinct": _distinct, "duplicates": _duplicates, "sorted": _sorted, "join_count": _join_count,
    "join_total": _join_total,
}  # fmt: skip

"""The second computation: every answer once more, with plain Python and exact fractions, from the parsed text."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction

from lengthen.synthesize.parse import Parsed
from lengthen.synthesize.query import ABSENT, NO, YES, Condition, Query

_NUMBER = re.compile(r"\d+(\.\d+)?$")
Values = tuple[str, ...]


class Unanswerable(Exception):
    """The text alone does not give one answer."""


def recompute(tables: Sequence[Parsed], query: Query) -> Values | None:
    """The bare answer by a second way, or None where the text gives no single one.

    Args:
        tables: what `parse` read: one table, or two of which the second is the one referred to.
    """
    try:
        return _CHECKS[query.task](tables, query)
    except (Unanswerable, ValueError, KeyError, IndexError):
        return None


def _only(rows: Sequence[int]) -> int:
    if len(rows) != 1:
        raise Unanswerable
    return rows[0]


def _row(table: Parsed, key: str) -> list[str]:
    return table.rows[_only(table.by_key.get(key, []))]


def _get(table: Parsed, key: str, title: str) -> str:
    cell = _row(table, key)[table.titles.index(title)]
    if not cell:
        raise Unanswerable
    return cell


def _places(texts: Sequence[str]) -> int:
    return max((len(text.partition(".")[2]) for text in texts), default=0)


def _write(value: Fraction, places: int) -> str:
    """Exactly `places` decimals; a value that lies exactly between two has no single rounding."""
    scaled = value * 10**places
    whole = scaled.numerator // scaled.denominator
    rest = scaled - whole
    if rest == Fraction(1, 2):
        raise Unanswerable
    digits = str(whole + (rest > Fraction(1, 2))).rjust(places + 1, "0")
    return f"{digits[:-places]}.{digits[-places:]}" if places else digits


def _holds(cell: str, condition: Condition) -> bool:
    if not cell:
        return False
    if condition.op == "=":
        return cell == condition.value
    left, right = Fraction(cell), Fraction(condition.value)
    return left > right if condition.op == ">" else left < right


def _where(table: Parsed, conditions: Sequence[Condition]) -> list[int]:
    places = [table.titles.index(condition.column) for condition in conditions]
    return [
        number
        for number, row in enumerate(table.rows)
        if all(_holds(row[place], condition) for place, condition in zip(places, conditions))
    ]


def _numbers(table: Parsed, rows: Sequence[int], title: str) -> list[tuple[Fraction, int, str]]:
    """(value, row, text) of the cells that are there."""
    place = table.titles.index(title)
    return [(Fraction(table.rows[r][place]), r, table.rows[r][place]) for r in rows if table.rows[r][place]]


def _some(items: list) -> list:
    if not items:
        raise Unanswerable
    return items


def _cell(tables: Sequence[Parsed], q: Query) -> Values:
    return (_get(tables[0], q.keys[0], q.column),)


def _whole_row(tables: Sequence[Parsed], q: Query) -> Values:
    row = _row(tables[0], q.keys[0])
    if "" in row:
        raise Unanswerable
    return tuple(row[1:])


def _match(tables: Sequence[Parsed], q: Query) -> Values:
    return tuple(tables[0].rows[row][0] for row in _some(_where(tables[0], q.where)))


def _kth(tables: Sequence[Parsed], q: Query) -> Values:
    return (tables[0].rows[q.k - 1][0],)


def _neighbour(tables: Sequence[Parsed], q: Query) -> Values:
    row = _only(tables[0].by_key[q.keys[0]]) + (1 if q.most else -1)
    if row < 0:
        raise Unanswerable
    return (tables[0].rows[row][0],)


def _absent(tables: Sequence[Parsed], q: Query) -> Values:
    if q.keys[0] in tables[0].by_key:
        raise Unanswerable
    return (ABSENT,)


def _asked(tables: Sequence[Parsed], q: Query) -> tuple[list[Fraction], int]:
    texts = [_get(tables[0], key, q.column) for key in q.keys]
    return [Fraction(text) for text in texts], _places(texts)


def _difference(tables: Sequence[Parsed], q: Query) -> Values:
    (one, other), places = _asked(tables, q)
    return (_write(abs(one - other), places),)


def _sum(tables: Sequence[Parsed], q: Query) -> Values:
    values, places = _asked(tables, q)
    return (_write(sum(values, Fraction(0)), places),)


def _ratio(tables: Sequence[Parsed], q: Query) -> Values:
    (one, other), _ = _asked(tables, q)
    if not other:
        raise Unanswerable
    return (_write(one / other, 2),)


def _compare(tables: Sequence[Parsed], q: Query) -> Values:
    (one, other), _ = _asked(tables, q)
    if one == other:
        raise Unanswerable
    return (q.keys[0] if (one > other) == q.most else q.keys[1],)


def _two_hop(tables: Sequence[Parsed], q: Query) -> Values:
    return (_get(tables[0], _get(tables[0], q.keys[0], q.by), q.column),)


def _filter_lookup(tables: Sequence[Parsed], q: Query) -> Values:
    ranked = _ranked(_numbers(tables[0], _where(tables[0], q.where), q.by), q.most)
    if len(ranked) < 2 or ranked[0][0] == ranked[1][0]:
        raise Unanswerable
    return (_get(tables[0], tables[0].rows[ranked[0][1]][0], q.column),)


def _ranked(found: list[tuple[Fraction, int, str]], most: bool) -> list[tuple[Fraction, int, str]]:
    return sorted(found, key=lambda item: item[0], reverse=most)


def _date_difference(tables: Sequence[Parsed], q: Query) -> Values:
    one, other = (datetime.datetime.strptime(_get(tables[0], key, q.column), "%Y-%m-%d") for key in q.keys)
    if one == other:
        raise Unanswerable
    return (str(abs((one - other).days)),)


def _join(tables: Sequence[Parsed], q: Query) -> Values:
    return (_get(tables[1], _get(tables[0], q.keys[0], q.by), q.linked),)


def _count(tables: Sequence[Parsed], q: Query) -> Values:
    return (str(len(_some(_where(tables[0], q.where)))),)


def _figures(tables: Sequence[Parsed], q: Query) -> list[tuple[Fraction, int, str]]:
    return _some(_numbers(tables[0], _where(tables[0], q.where), q.column))


def _added(found: Sequence[tuple[Fraction, int, str]]) -> Values:
    return (_write(sum((value for value, _, _ in found), Fraction(0)), _places([text for _, _, text in found])),)


def _total(tables: Sequence[Parsed], q: Query) -> Values:
    return _added(_figures(tables, q))


def _mean(tables: Sequence[Parsed], q: Query) -> Values:
    found = _figures(tables, q)
    return (_write(sum((value for value, _, _ in found), Fraction(0)) / len(found), 2),)


def _extreme(tables: Sequence[Parsed], q: Query) -> Values:
    ranked = _ranked(_figures(tables, q), q.most)
    if len(ranked) > 1 and ranked[0][0] == ranked[1][0]:
        raise Unanswerable
    return ranked[0][2], tables[0].rows[ranked[0][1]][0]


def _mode(tables: Sequence[Parsed], q: Query) -> Values:
    common = Counter(cell for cell in tables[0].column(q.column) if cell).most_common(2)
    if len(common) > 1 and common[0][1] == common[1][1]:
        raise Unanswerable
    return (common[0][0],)


def _group_best(tables: Sequence[Parsed], q: Query) -> Values:
    groups: dict[str, list[tuple[Fraction, int, str]]] = {}
    names = tables[0].column(q.by)
    for item in _figures(tables, q):
        if names[item[1]]:
            groups.setdefault(names[item[1]], []).append(item)
    sums = sorted(((sum(v for v, _, _ in items), name) for name, items in groups.items()), reverse=q.most)
    if len(sums) < 2 or sums[0][0] == sums[1][0]:
        raise Unanswerable
    return sums[0][1], _added(groups[sums[0][1]])[0]


def _top_k(tables: Sequence[Parsed], q: Query) -> Values:
    ranked = _ranked(_figures(tables, q), q.most)[: q.k + 1]
    if len({value for value, _, _ in ranked}) != q.k + 1:
        raise Unanswerable
    return tuple(tables[0].rows[row][0] for _, row, _ in ranked[: q.k])


def _distinct(tables: Sequence[Parsed], q: Query) -> Values:
    return (str(len({cell for cell in tables[0].column(q.column) if cell})),)


def _duplicates(tables: Sequence[Parsed], q: Query) -> Values:
    counts = Counter(cell for cell in tables[0].column(q.column) if cell)
    return tuple(_some([cell for cell, count in counts.items() if count > 1]))


def _sorted(tables: Sequence[Parsed], q: Query) -> Values:
    cells = tables[0].column(q.column)
    if "" in cells or not all(map(_NUMBER.match, cells)):
        raise Unanswerable
    values = [Fraction(cell) for cell in cells]
    if len(set(values)) != len(values):
        raise Unanswerable
    return (YES if values == sorted(values, reverse=not q.most) else NO,)


def _linked(tables: Sequence[Parsed], q: Query) -> list[int]:
    keys = {tables[1].rows[row][0] for row in _where(tables[1], q.where)}
    return _some([row for row, key in enumerate(tables[0].column(q.by)) if key in keys])


def _join_count(tables: Sequence[Parsed], q: Query) -> Values:
    return (str(len(_linked(tables, q))),)


def _join_total(tables: Sequence[Parsed], q: Query) -> Values:
    return _added(_some(_numbers(tables[0], _linked(tables, q), q.column)))


_CHECKS: dict[str, Callable[[Sequence[Parsed], Query], Values]] = {
    "cell": _cell, "row": _whole_row, "match": _match, "kth": _kth, "neighbour": _neighbour, "absent": _absent,
    "difference": _difference, "sum": _sum, "ratio": _ratio, "compare": _compare, "two_hop": _two_hop,
    "filter_lookup": _filter_lookup, "date_difference": _date_difference, "join": _join, "count": _count,
    "total": _total, "mean": _mean, "extreme": _extreme, "mode": _mode, "group_best": _group_best, "top_k": _top_k,
    "distinct": _distinct, "duplicates": _duplicates, "sorted": _sorted, "join_count": _join_count,
    "join_total": _join_total,
}  # fmt: skip

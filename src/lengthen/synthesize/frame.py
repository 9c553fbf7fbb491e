"""A table as a polars frame, and the small things that every answer needs from it."""

from __future__ import annotations

import copy

import polars as pl

from lengthen.synthesize.query import Condition, Query, Redraw
from lengthen.synthesize.schema import NUMERIC, Kind, Table, cents_text

ROW = "\0row"
"""Name of the row-number column; no title holds this character."""
LONGEST_LIST = 8
"""More values than this make a question no question but a copying exercise; it is redrawn."""


class Frame:
    """Typed columns: integers and cents as Int64, everything else as text; a missing cell is null."""

    def __init__(self, table: Table, side: Table | None = None) -> None:
        columns: dict[str, pl.Series] = {}
        for column, texts, numbers in zip(table.columns, table.texts, table.numbers):
            if numbers is not None:
                columns[column.title] = pl.Series(numbers, dtype=pl.Int64)
            else:
                columns[column.title] = pl.Series(
                    [t or None for t in texts] if column.empty else texts, dtype=pl.String
                )
        self.frame = pl.DataFrame({ROW: pl.int_range(table.rows, eager=True), **columns})
        self.key = table.columns[0].title
        self.kinds: dict[str, Kind] = {column.title: column.kind for column in table.columns}
        self.titles = table.titles
        self.side = Frame(side) if side is not None else None

    def head(self, rows: int) -> Frame:
        """The first rows (and the whole second table)."""
        short = copy.copy(self)
        short.frame = self.frame.head(rows)
        return short

    def kind(self, title: str) -> Kind:
        if title in self.kinds:
            return self.kinds[title]
        assert self.side is not None
        return self.side.kinds[title]

    def text(self, title: str, value: int | str) -> str:
        """A value of a column as it is written in the table."""
        return cents_text(int(value)) if self.kind(title) == "decimal" else str(value)

    def value(self, title: str, text: str) -> int | str:
        """The stored value of a written one."""
        kind = self.kind(title)
        if kind == "decimal":
            whole, _, part = text.partition(".")
            return int(whole) * 100 + int(part)
        return int(text) if kind == "integer" else text

    def test(self, condition: Condition) -> pl.Expr:
        value = self.value(condition.column, condition.value)
        column = pl.col(condition.column)
        return {"=": column == value, ">": column > value, "<": column < value}[condition.op]

    def where(self, query: Query) -> pl.DataFrame:
        """The rows that meet all conditions of a query."""
        frame = self.frame
        for condition in query.where:
            frame = frame.filter(self.test(condition))
        return frame

    def joined(self, query: Query) -> pl.DataFrame:
        """Rows whose linked row of the second table meets the conditions."""
        assert self.side is not None
        side = self.side.frame
        for condition in query.where:
            side = side.filter(self.test(condition))
        return self.frame.join(side.select(self.side.key), left_on=query.by, right_on=self.side.key, how="inner")

    def row(self, key: str) -> dict[str, int | str | None]:
        """The one row of a key."""
        # Series comparison and not a filter: a filter is planned and scheduled, which costs more than it does.
        found = (self.frame[self.key] == key).arg_true()
        if len(found) != 1:
            raise Redraw("key_not_unique" if len(found) else "no_such_key")
        return self.frame.row(found[0], named=True)

    def cell(self, row: dict[str, int | str | None], title: str) -> int | str:
        value = row[title]
        if value is None:
            raise Redraw("cell_missing")
        return value

    def number(self, row: dict[str, int | str | None], title: str) -> int:
        if self.kind(title) not in NUMERIC:
            raise Redraw("column_not_numeric")
        return int(self.cell(row, title))


def hundredths(numerator: int, denominator: int) -> str:
    """numerator / denominator with two decimals; a value exactly between two is redrawn, because rounding rules
    differ there."""
    whole, rest = divmod(numerator * 100, denominator)
    if 2 * rest == denominator:
        raise Redraw("rounding_tie")
    return cents_text(whole + (2 * rest > denominator))

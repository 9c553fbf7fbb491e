"""Random tables: typed columns with titles from a word list, and their cells, column by column."""

from __future__ import annotations

import datetime
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lengthen.synthesize.keys import Style, draw_keys
from lengthen.synthesize.vocabulary import Noun, Split, Vocabulary

Kind = Literal["key", "person", "place", "category", "integer", "decimal", "date", "reference", "link"]
Shape = Literal["free", "ascending", "descending", "almost", "repeats"]
NUMERIC: tuple[Kind, ...] = ("integer", "decimal")
_FIRST_DAY, _DAYS = datetime.date(1990, 1, 1), 14_610
_ISO = [(_FIRST_DAY + datetime.timedelta(day)).isoformat() for day in range(_DAYS)]
_WEIGHTS: dict[Kind, float] = {
    "integer": 3, "decimal": 2.5, "category": 2.5, "person": 1.2, "place": 1.2, "date": 1.6, "reference": 0.4,
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """low, high: range of numbers (cents for decimals). values: of a category. shape: how a number column runs down
    the table. empty: share of its cells that are missing."""

    title: str
    kind: Kind
    low: int = 0
    high: int = 0
    values: tuple[str, ...] = ()
    shape: Shape = "free"
    empty: float = 0.0


@dataclass(frozen=True)
class Table:
    """Cells stored by column. The key is the first column; its values are unique.

    texts: what is written in each cell; "" is a missing cell.
    numbers: for numeric columns the value, cents for decimals, None where missing; None for other columns.
    """

    noun: Noun
    columns: tuple[Column, ...]
    texts: tuple[list[str], ...]
    numbers: tuple[list[int | None] | None, ...]

    @property
    def rows(self) -> int:
        return len(self.texts[0])

    @property
    def keys(self) -> list[str]:
        return self.texts[0]

    @property
    def titles(self) -> tuple[str, ...]:
        return tuple(column.title for column in self.columns)

    def of_kind(self, *kinds: Kind) -> list[int]:
        """Indices of the columns of these kinds."""
        return [index for index, column in enumerate(self.columns) if column.kind in kinds]

    def head(self, rows: int) -> Table:
        """The first rows."""
        return replace(
            self,
            texts=tuple(texts[:rows] for texts in self.texts),
            numbers=tuple(None if numbers is None else numbers[:rows] for numbers in self.numbers),
        )


def draw_columns(
    rng: random.Random, words: Vocabulary, count: int, needed: Sequence[Kind], link: str | None
) -> tuple[Column, ...]:
    """The key and `count - 1` other columns, those of the `needed` kinds among them, in random order.

    Args:
        link: title of the column that refers to a second table, if there is one (it counts as one of `count`).
    """
    kinds: list[Kind] = [kind for kind in needed if kind != "link"]
    room = count - 1 - (link is not None)
    while len(kinds) < room:
        kind = rng.choices(list(_WEIGHTS), weights=list(_WEIGHTS.values()))[0]
        if kinds.count(kind) < (1 if kind in ("reference", "date") else 2 if kind in ("person", "place") else 3):
            kinds.append(kind)
    taken = {link} if link else set()
    columns = []
    for kind in kinds:
        column = _draw_column(rng, words, kind, taken)
        taken.add(column.title)
        columns.append(column)
    if link is not None:
        columns.append(Column(link, "link"))
    rng.shuffle(columns)
    return (Column(words.key_title(rng), "key"), *columns)


def _draw_column(rng: random.Random, words: Vocabulary, kind: Kind, taken: set[str]) -> Column:
    if kind in NUMERIC:
        pool = words.integers if kind == "integer" else words.decimals
        number = rng.choice([n for n in pool if n.title not in taken])
        return Column(number.title, kind, number.low, number.high)
    if kind == "category":
        category = rng.choice([c for c in words.categories if c.title not in taken])
        size = rng.randint(3, min(12, len(category.values)))
        return Column(category.title, kind, values=tuple(sorted(rng.sample(category.values, size))))
    titles = {"person": words.people, "place": words.places, "date": words.dates, "reference": words.references}[kind]
    return Column(rng.choice([title for title in titles if title not in taken]), kind)


def draw_table(
    rng: random.Random,
    words: Vocabulary,
    split: Split,
    noun: Noun,
    columns: tuple[Column, ...],
    rows: int,
    *,
    style: Style,
    near: bool = False,
    linked: Sequence[str] = (),
) -> Table:
    """Fill the columns with `rows` rows.

    Args:
        style: of the keys.
        near: give a third of the rows a key that differs little from another row's.
        linked: keys of the second table, for the column that refers to it.
    """
    keys = draw_keys(rng, words, split, style, rows, near=near)
    texts: list[list[str]] = []
    numbers: list[list[int | None] | None] = []
    for column in columns:
        values: list[int | None] | None = None
        if column.kind == "key":
            cells = keys
        elif column.kind in NUMERIC:
            drawn = _draw_numbers(rng, column, rows)
            cells = [str(v) for v in drawn] if column.kind == "integer" else [cents_text(v) for v in drawn]
            values = list(drawn)
        else:
            cells = _draw_texts(rng, words, column, rows, keys, linked)
        if column.empty:
            for row in [row for row in range(rows) if rng.random() < column.empty]:
                cells[row] = ""
                if values is not None:
                    values[row] = None
        texts.append(cells)
        numbers.append(values)
    return Table(noun, columns, tuple(texts), tuple(numbers))


def _draw_texts(
    rng: random.Random, words: Vocabulary, column: Column, rows: int, keys: list[str], linked: Sequence[str]
) -> list[str]:
    random_ = rng.random
    if column.kind == "date":
        return [_ISO[int(random_() * _DAYS)] for _ in range(rows)]
    if column.kind == "reference":
        # The last rows may be cut off to meet the length; a reference must not dangle.
        safe = max(1, int(0.9 * (rows - 8)))
        return [keys[int(random_() * safe)] for _ in range(rows)]
    pool: Sequence[str]
    if column.kind == "link":
        pool = linked
    elif column.kind == "category":
        pool = column.values
    else:
        pool = words.people_names if column.kind == "person" else words.place_names
    size = len(pool)
    return [pool[int(random_() * size)] for _ in range(rows)]


def _draw_numbers(rng: random.Random, column: Column, rows: int) -> list[int]:
    span = column.high - column.low
    random_ = rng.random
    if column.shape == "free" or span < 2 * rows:
        return [column.low + int(random_() * span) for _ in range(rows)]
    values = [column.low + step for step in rng.sample(range(span), rows)]
    certain = max(2, int(0.9 * (rows - 8)))  # later rows may be cut off to meet the length
    if column.shape == "repeats":
        for _ in range(rng.randint(1, 4)):
            one, other = rng.sample(range(certain), 2) if certain > 1 else (0, 1)
            values[other] = values[one]
        return values
    values.sort(reverse=column.shape == "descending" or (column.shape == "almost" and rng.random() < 0.5))
    if column.shape == "almost":
        one = rng.randrange(certain - 1)
        values[one], values[one + 1] = values[one + 1], values[one]
    return values


def cents_text(cents: int) -> str:
    """1234 -> `12.34`."""
    return f"{cents // 100}.{cents % 100:02d}"

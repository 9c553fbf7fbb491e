"""How many rows fit: the longest table whose whole conversation is not over the target.

Tokenising a 100K-token table costs more than making it, so the whole conversation is tokenised once, at a number of
rows foretold from a few; from there rows are added or taken off by their own counts. That is exact where the count of
rows written together is the sum of their counts, which holds for every tokenizer that splits at line ends and is
checked on the first rows of each table. Where it does not hold, every candidate is tokenised whole, and once more with
the row that comes next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lengthen.synthesize.query import Redraw
from lengthen.synthesize.render import Rendered
from lengthen.synthesize.tokens import Counter, Message

FEWEST_ROWS = 3
_TAIL = 2
"""Rows that are tokenised together with what follows the table, where tokens may span the border."""

Write = Callable[[str, int], list[Message]]
"""(context, rows) -> the conversation about the first `rows` rows, with that context in its first message."""


@dataclass(frozen=True)
class Draft:
    """A table written row by row, between what stands before and after it in the message."""

    rendered: Rendered
    before: str
    after: str

    def context(self, rows: int, begin: int = 0) -> str:
        """The text of the first rows; with `begin`, only of those from there on, without what stands before."""
        body = "".join(self.rendered.rows[begin:rows]) + self.rendered.tail
        front = self.before + self.rendered.head if begin == 0 else ""
        return f"{front}{body.rstrip()}{self.after}"

    def frame(self) -> str:
        """Everything but the rows."""
        return f"{self.before}{self.rendered.head}{self.rendered.tail}{self.after}"


@dataclass
class Fit:
    """Counts of one draft.

    additive: rows written together have the sum of their counts.
    rows: how many are thought to fit; better known after each try.
    """

    counter: Counter
    draft: Draft
    additive: bool
    rows: int
    counts: dict[int, int] = field(default_factory=dict)

    def fitting(self, write: Write, target: int) -> tuple[int, int]:
        """(rows, tokens): tokens <= target, and the next row would be over it.

        Raises:
            Redraw: fewer than `FEWEST_ROWS` fit; the draft has too few rows; no number of rows meets the target,
                because the answers' lengths change with it.
        """
        exact = self._checked(self.rows)
        total = self._whole(write, exact)
        base = total - self._tail(write, exact) if self.additive else 0
        for _ in range(8):
            if total <= target < self._with_next(write, total):
                return self.rows, total
            moved = self._moved(self.rows, target - total)
            # A row may take fewer tokens in its place than by itself: then the next one fits although it seems not to.
            self.rows = self._checked(moved + (moved == self.rows))
            if self.additive:
                total = base + self._between(exact - _TAIL, self.rows - _TAIL) + self._tail(write, self.rows)
            else:
                total = self._whole(write, self.rows)
        raise Redraw("length_not_met")

    def _whole(self, write: Write, rows: int) -> int:
        return self.counter.conversation(write(self.draft.context(rows), rows))

    def _with_next(self, write: Write, total: int) -> int:
        """Tokens of the same conversation with one more row."""
        if self.additive:
            return total + self._count(self.rows)
        return self.counter.conversation(write(self.draft.context(self.rows + 1), self.rows))

    def _checked(self, rows: int) -> int:
        if rows < FEWEST_ROWS:
            raise Redraw("length_below_smallest_table")
        if rows >= len(self.draft.rendered.rows):
            raise Redraw("table_drawn_too_small")
        return rows

    def _tail(self, write: Write, rows: int) -> int:
        """Tokens of the conversation with the table's last rows alone."""
        return self.counter.conversation(write(self.draft.context(rows, rows - _TAIL), rows))

    def _moved(self, rows: int, room: int) -> int:
        """The number of rows after adding rows while they fit into `room`, or taking rows off while it is below 0."""
        while room < 0 and rows > 0:
            rows -= 1
            room += self._count(rows)
        while rows < len(self.draft.rendered.rows) and self._count(rows) <= room:
            room -= self._count(rows)
            rows += 1
        return rows

    def _between(self, begin: int, end: int) -> int:
        if end < begin:
            return -self._between(end, begin)
        return sum(self._count(row) for row in range(begin, end))

    def _count(self, row: int) -> int:
        """Tokens of one row by itself; rows around it are counted with it in one call."""
        if row not in self.counts:
            rows = self.draft.rendered.rows
            begin, end = max(0, row - 32), min(len(rows), row + 32)
            self.counts |= dict(zip(range(begin, end), self.counter.each(rows[begin:end])))
        return self.counts.get(row, 0)


def probe(counter: Counter, rows: Sequence[str]) -> tuple[float, bool]:
    """(tokens per row, whether the counts of rows add up when they are written together)."""
    each, few = counter.each(rows), rows[:8]
    return max(1.0, sum(each) / len(rows)), counter.text("".join(few)) == sum(each[:8])

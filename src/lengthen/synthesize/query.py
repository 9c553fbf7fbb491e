"""What is asked of a table, and what comes out: plain records without any wording."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


class Redraw(Exception):
    """This question has no single right answer on this table; draw another. `rule` says why."""

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule


@dataclass(frozen=True)
class Condition:
    """column op value, on the text of the table (numbers compared as numbers)."""

    column: str
    op: Literal["=", ">", "<"]
    value: str


@dataclass(frozen=True)
class Query:
    """A question in terms of titles, keys and values, so that it can be answered from the rendered text alone.

    task: name of the task. keys: rows asked for. column: what is asked. by: the second column (extremes, groups,
    the reference, the link). linked: a column of the second table. where: conditions, all of which must hold.
    k: a row number or how many. most: largest rather than smallest; after rather than before; ascending.
    """

    task: str
    keys: tuple[str, ...] = ()
    column: str = ""
    by: str = ""
    linked: str = ""
    where: tuple[Condition, ...] = ()
    k: int = 0
    most: bool = True

    def to_json(self) -> dict[str, Any]:
        """Plain data; what is as in an empty query is left out."""
        plain = asdict(Query(""))
        return {name: value for name, value in asdict(self).items() if value != plain[name]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Query:
        plain = dict(data)
        plain["keys"] = tuple(plain.get("keys", ()))
        plain["where"] = tuple(Condition(**condition) for condition in plain.get("where", ()))
        return cls(**plain)


@dataclass(frozen=True)
class Step:
    """One step of the way to an answer. kind: look (key, title, value), calc (text), found (keys or values, count),
    counted (count), group (value, figure), place (row number, key), note (a code for the wording)."""

    kind: Literal["look", "calc", "found", "counted", "group", "place", "break"]
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """values: the bare answer. ordered: whether their order matters. steps: how it came about. rows: row numbers (from
    0) that decide it, for the depth."""

    values: tuple[str, ...]
    ordered: bool = True
    steps: tuple[Step, ...] = ()
    rows: tuple[int, ...] = ()

    def same(self, other: tuple[str, ...] | None) -> bool:
        """Whether another computation found the same; None is one that found no single answer."""
        if other is None:
            return False
        if self.ordered:
            return self.values == tuple(other)
        return sorted(self.values) == sorted(other)


YES, NO, ABSENT = "yes", "no", "absent"
"""Language-neutral answers; wordings put words in their place."""

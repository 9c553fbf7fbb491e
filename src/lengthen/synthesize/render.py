"""Six ways to write a table as text, one string per row, so that rows can be counted and cut singly."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from lengthen.synthesize.schema import NUMERIC, Table

Rendering = Literal["pipe", "csv", "jsonl", "records", "html", "prose"]
EMPTY: dict[Rendering, tuple[str, ...]] = {
    "pipe": ("", "-", "n/a"), "csv": ("", "n/a"), "jsonl": ("null",), "records": ("", "-", "n/a"), "html": ("", "-"),
    "prose": (),
}  # fmt: skip
NOT_RECORDED = {"en": "not recorded", "zh": "未记录"}
_CLAUSES = {"en": ("For {key}, ", "the {title} is %s", ", ", " and ", "."),
            "zh": ("{key}的记录如下：", "{title}为%s", "，", "，", "。")}  # fmt: skip


@dataclass(frozen=True)
class Rendered:
    """head + rows + tail is the text of a table; a row string ends with its line break and may begin with a repeated
    header."""

    head: str
    rows: list[str]
    tail: str

    def text(self, rows: int) -> str:
        return self.head + "".join(self.rows[:rows]) + self.tail


def render(table: Table, rendering: Rendering, language: str, rng: random.Random, *, repeat: bool = False) -> Rendered:
    """Write a table.

    Args:
        repeat: put the header again before every k-th row, k drawn from 50-200 (pipe, CSV and HTML only).
    """
    head, row_format, tail = _frame(table, rendering, language)
    rows = [row_format % cells for cells in zip(*_cells(table, rendering, language, rng))]
    if repeat and rendering in ("pipe", "csv", "html"):
        header = head.removeprefix("<table>\n")
        for row in range(rng.randint(50, 200), len(rows), rng.randint(50, 200)):
            rows[row] = header + rows[row]
    return Rendered(head, rows, tail)


def _cells(table: Table, rendering: Rendering, language: str, rng: random.Random) -> list[list[str]]:
    empty = NOT_RECORDED[language] if rendering == "prose" else rng.choice(EMPTY[rendering])
    columns = []
    for column, texts in zip(table.columns, table.texts):
        if rendering == "jsonl" and column.kind not in NUMERIC:
            columns.append([f'"{text}"' if text else empty for text in texts])
        elif column.empty and empty:
            columns.append([text or empty for text in texts])
        else:
            columns.append(texts)
    return columns


def _frame(table: Table, rendering: Rendering, language: str) -> tuple[str, str, str]:
    """(head, %-format of one row, tail). Titles and cells hold no separator of any rendering (tested)."""
    titles, count = table.titles, len(table.columns)
    if rendering == "pipe":
        return f"| {' | '.join(titles)} |\n|{'---|' * count}\n", f"| {' | '.join(['%s'] * count)} |\n", ""
    if rendering == "csv":
        return ",".join(titles) + "\n", ",".join(["%s"] * count) + "\n", ""
    if rendering == "jsonl":
        return "", "{" + ", ".join(f'"{title}": %s' for title in titles) + "}\n", ""
    if rendering == "records":
        return "", "\n".join(f"{title}: %s" for title in titles) + "\n\n", ""
    if rendering == "html":
        header = "<tr>" + "".join(f"<th>{title}</th>" for title in titles) + "</tr>\n"
        return f"<table>\n{header}", "<tr>" + "<td>%s</td>" * count + "</tr>\n", "</table>\n"
    begin, clause, comma, last, end = _CLAUSES[language]
    clauses = [clause.format(title=title) for title in titles[1:]]
    body = comma.join(clauses[:-1]) + (last if len(clauses) > 1 else "") + clauses[-1]
    return _opening(table, language), begin.format(key="%s") + body + end + "\n", ""


def _opening(table: Table, language: str) -> str:
    """Prose has no header, so a first sentence names the key's title and what is listed."""
    if language == "zh":
        return f"以下逐条记录{table.noun.many}，每条以{table.columns[0].title}开头。\n"
    return f"What follows describes {table.noun.many.lower()} one by one, each by its {table.columns[0].title}.\n"

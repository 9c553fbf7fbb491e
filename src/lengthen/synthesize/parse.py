"""Read rendered tables back from a message: the second, independent way to every answer.

Nothing here knows how tables are drawn or written; it reads what stands in the text.
"""

from __future__ import annotations

import csv
import html
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

_CAPTION = re.compile(r"^(?:Table (\d+): |表(\d+)：).*$", re.MULTILINE)
_EMPTY = frozenset(("", "-", "n/a", "null", "not recorded", "未记录"))
_PROSE = (
    (re.compile(r"^For (.+?), (the .+)\.$"), re.compile(r"(?:, | and )?the (.+?) is (.+?)(?=, the | and the |$)"),
     re.compile(r" by its (.+)\.$")),
    (re.compile(r"^(.+?)的记录如下：(.+)。$"), re.compile(r"，?(.+?)为(.+?)(?=，|$)"),
     re.compile(r"每条以(.+)开头。$")),
)  # fmt: skip


@dataclass(frozen=True)
class Parsed:
    """Titles and cells as text; "" is a missing cell. The key is the first column."""

    titles: list[str]
    rows: list[list[str]]

    @cached_property
    def by_key(self) -> dict[str, list[int]]:
        """Row numbers of each key."""
        found: dict[str, list[int]] = {}
        for number, row in enumerate(self.rows):
            found.setdefault(row[0], []).append(number)
        return found

    def column(self, title: str) -> list[str]:
        place = self.titles.index(title)
        return [row[place] for row in self.rows]


def without_question(message: str, question: str) -> str:
    """The message before or after its question."""
    if message.startswith(question):
        return message[len(question) :]
    return message.removesuffix(question)


def parse(text: str, rendering: str) -> list[Parsed]:
    """The tables in a message, first `Table 1`, then `Table 2` if there is one."""
    captions = list(_CAPTION.finditer(text))
    if not captions:
        return [PARSERS[rendering](text)]
    ends = [caption.start() for caption in captions[1:]] + [len(text)]
    pieces = {int(c[1] or c[2]): text[c.end() : end] for c, end in zip(captions, ends)}
    return [PARSERS[rendering](pieces[number]) for number in sorted(pieces)]


def _clean(cells: list[str]) -> list[str]:
    return ["" if cell in _EMPTY else cell for cell in cells]


def _table(lines: list[list[str]]) -> Parsed:
    """The first line holds the titles; a line that repeats them is no row."""
    titles = lines[0]
    return Parsed(titles, [_clean(line) for line in lines[1:] if line != titles])


def _pipe(text: str) -> Parsed:
    lines = [line for line in text.split("\n") if line.startswith("|") and not line.startswith("|---")]
    return _table([[cell.strip() for cell in line[1:-1].split("|")] for line in lines])


def _csv(text: str) -> Parsed:
    blocks = [block for block in text.strip().split("\n\n") if "," in block.split("\n", 1)[-1]]
    return _table([line for line in csv.reader(blocks[-1].split("\n")) if line])


def _jsonl(text: str) -> Parsed:
    lines = [line for line in text.split("\n") if line.startswith("{")]
    rows = [json.loads(line, parse_int=str, parse_float=str) for line in lines]
    return Parsed(list(rows[0]), [_clean(["" if cell is None else cell for cell in row.values()]) for row in rows])


def _records(text: str) -> Parsed:
    titles: list[str] = []
    rows = []
    for block in text.strip().split("\n\n"):
        pairs = [line.partition(":") for line in block.split("\n")]
        names = [name for name, colon, _ in pairs if colon]
        if len(names) < len(pairs) or (titles and names != titles) or len(names) < 2:
            continue  # an introduction
        titles = names
        rows.append(_clean([value.strip() for _, _, value in pairs]))
    return Parsed(titles, rows)


def _html(text: str) -> Parsed:
    lines = re.findall(r"<tr>(.*?)</tr>", text)
    return _table([[html.unescape(cell) for cell in re.findall(r"<t[hd]>(.*?)</t[hd]>", line)] for line in lines])


def _prose(text: str) -> Parsed:
    lines = text.strip().split("\n")
    for sentence, clause, opening in _PROSE:
        matches = [match for match in map(sentence.match, lines) if match]
        if not matches:
            continue
        key = next(match[1] for match in map(opening.search, lines) if match)
        titles = [key, *(pair[0] for pair in clause.findall(matches[0][2]))]
        return Parsed(titles, [_clean([m[1], *(pair[1] for pair in clause.findall(m[2]))]) for m in matches])
    raise ValueError("no sentence of a known form")


PARSERS: dict[str, Callable[[str], Parsed]] = {
    "pipe": _pipe, "csv": _csv, "jsonl": _jsonl, "records": _records, "html": _html, "prose": _prose,
}  # fmt: skip

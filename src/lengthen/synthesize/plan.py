"""What one conversation about a table will be, before any cell is drawn."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lengthen.recipe.stages.tables import Family, Language, Rendering, TablesStage, Task
from lengthen.synthesize.ask import FEWEST, JOINED, NAMED, NEEDS, possible
from lengthen.synthesize.keys import Style, draw_style
from lengthen.synthesize.query import Redraw
from lengthen.synthesize.schema import NUMERIC, Column, Kind, Table, draw_columns, draw_table
from lengthen.synthesize.vocabulary import Noun, Vocabulary, vocabulary

_FEWEST_ROW_TOKENS = 8
"""No row of any rendering is shorter; bounds the number of rows before a tokenizer has been asked."""


@dataclass(frozen=True)
class Plan:
    """tasks: one per turn, all possible with these columns. near, repeat, question_first: see `TablesStage`."""

    language: Language
    rendering: Rendering
    tasks: tuple[tuple[Family, Task], ...]
    columns: tuple[Column, ...]
    side: Table | None
    side_first: bool
    noun: Noun
    style: Style
    near: bool
    repeat: bool
    question_first: bool
    target: int

    @property
    def linked(self) -> list[str]:
        return self.side.keys if self.side is not None else []


def draw_plan(
    settings: TablesStage, rng: random.Random, index: int, target: int, shrink: int = 0, family: Family | None = None
) -> Plan:
    """Draw language, rendering, tasks and columns.

    Args:
        index: number of the conversation; neighbours never have the same set of column titles.
        shrink: how often this conversation turned out too short for what was drawn; each time it gets fewer columns
            and only one question.
        family: of the first question.
    """
    language = rng.choice(settings.languages)
    words = vocabulary(language, settings.split)
    most = max(settings.min_columns, settings.max_columns - 2 * shrink)
    first = _first_task(settings, rng, family or rng.choice(settings.families))
    joined = first[1] in JOINED or (rng.random() < settings.joins and settings.max_columns > 2 and not shrink)
    needed = _needed(rng, first[1])
    low = max(settings.min_columns, FEWEST.get(first[1], 2), 1 + len(needed) + (joined and "link" not in needed))
    if low > settings.max_columns:
        raise Redraw("too_few_columns_for_task")
    count = rng.randint(low, max(low, most))
    side = _draw_side(rng, words, settings, target) if joined else None
    columns = _columns(rng, words, index, count, needed, side)
    columns = _with_missing(rng, settings, _shaped(rng, columns, first[1]))
    turns = 1 if shrink else rng.randint(1, settings.turns)
    tasks = (first, *_further(settings, rng, columns, turns - 1))
    avoid = "" if side is None else _style_of(side.keys[0])
    return Plan(
        language, rng.choice(settings.renderings), tasks, columns, side, rng.random() < 0.5, rng.choice(words.nouns),
        draw_style(rng, words, target // _FEWEST_ROW_TOKENS, avoid), rng.random() < settings.near_keys,
        rng.random() < settings.repeat_header, rng.random() < settings.question_first, target,
    )  # fmt: skip


def _first_task(settings: TablesStage, rng: random.Random, family: Family) -> tuple[Family, Task]:
    tasks: list[Task] = [task for task in settings.chosen(family) if settings.joins > 0 or task not in JOINED]
    tasks = [task for task in tasks if FEWEST.get(task, 2) <= settings.max_columns]
    if not tasks:
        raise Redraw("no_task_possible")
    if "absent" in tasks and len(tasks) > 1:
        # Five in a hundred retrieval questions ask for a key that is not there; the other tasks share the rest.
        if rng.random() < 0.05:
            return family, "absent"
        tasks.remove("absent")
    return family, rng.choice(tasks)


def _further(
    settings: TablesStage, rng: random.Random, columns: Sequence[Column], turns: int
) -> list[tuple[Family, Task]]:
    found: list[tuple[Family, Task]] = []
    for _ in range(20 * turns):
        if len(found) == turns:
            break
        family, task = _first_task(settings, rng, rng.choice(settings.families))
        if possible(task, columns):
            found.append((family, task))
    return found


def _needed(rng: random.Random, task: Task) -> list[Kind]:
    kinds: list[Kind] = []
    for need in NEEDS.get(task, ()):
        kinds.append(rng.choice(NAMED if need == NAMED else need))
    return kinds


def _columns(
    rng: random.Random, words: Vocabulary, index: int, count: int, needed: list[Kind], side: Table | None
) -> tuple[Column, ...]:
    """Columns whose set of titles has the parity of the index, so that no two neighbours are alike."""
    link = side.noun.one if side is not None else None
    taken = set(side.titles) if side is not None else set()
    for _ in range(200):
        columns = draw_columns(rng, words, count, needed, link)
        titles = sorted(column.title for column in columns)
        if zlib.crc32("\n".join(titles).encode()) % 2 == index % 2 and not taken & set(titles):
            return columns
    raise Redraw("no_new_titles")


def _draw_side(rng: random.Random, words: Vocabulary, settings: TablesStage, target: int) -> Table:
    """The second table: a key, a category and one to three more columns."""
    noun = rng.choice(words.linked)
    rows = max(3, min(24, target // 400))
    needed: list[Kind] = ["category", *rng.choices(("place", "person", "integer", "decimal"), k=rng.randint(1, 2))]
    columns = draw_columns(rng, words, 1 + len(needed), needed, None)
    style = draw_style(rng, words, rows)
    return draw_table(rng, words, settings.split, noun, columns, rows, style=style)


def _style_of(key: str) -> Style:
    return "number" if key.isdigit() else "code" if key[-1].isdigit() else "pair"


def _shaped(rng: random.Random, columns: tuple[Column, ...], task: Task) -> tuple[Column, ...]:
    """Give one number column an order or a few repeated values, always where the first question is about that."""
    numbers = [c for c in columns if c.kind in NUMERIC and (c.kind == "integer" or task != "duplicates")]
    if not numbers or (task not in ("sorted", "duplicates") and rng.random() > 0.15):
        return columns
    chosen = max(numbers, key=lambda column: column.high - column.low)
    shape = "repeats" if task == "duplicates" else rng.choice(("ascending", "descending", "almost"))
    return tuple(replace(c, shape=shape) if c is chosen else c for c in columns)


def _with_missing(rng: random.Random, settings: TablesStage, columns: tuple[Column, ...]) -> tuple[Column, ...]:
    if rng.random() >= settings.missing:
        return columns
    return tuple(
        replace(column, empty=rng.uniform(0.01, 0.08))
        if column.kind not in ("key", "link", "reference") and column.shape == "free" and rng.random() < 0.5
        else column
        for column in columns
    )

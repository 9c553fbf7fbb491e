"""Numbers that a report derives from the scores: averages, paired differences, depth maps."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lengthen.common.seeds import derive_seed
from lengthen.evaluate import statistics
from lengthen.report.collect import Arm

_AVERAGES = ("average", "mean")
_APART = ("longform", "short")
"""Suites whose tasks are scored by rules of their own: a mean over them says nothing (LonGen's bands and
LongBench-Write's asked lengths, classes and instructions)."""


@dataclass(frozen=True)
class Point:
    """A score in 0..1 with its 95% interval. tasks: names of the tasks that it averages. contexts: texts that the n
    samples ask about (0: not told)."""

    score: float
    low: float | None
    high: float | None
    n: int
    tasks: tuple[str, ...]
    contexts: int = 0


@dataclass(frozen=True)
class Pair:
    """Two arms on the same samples. difference: second minus first, bootstrapped over contexts."""

    first: str
    second: str
    suite: str
    task: str
    length: int
    first_score: float
    second_score: float
    difference: float
    low: float
    high: float
    contexts: int
    better: int
    worse: int


@dataclass(frozen=True)
class DepthMap:
    """Mean score by depth (rows, top = beginning of the text) and length (columns); None = no sample."""

    arm: str
    suite: str
    task: str
    lengths: tuple[int, ...]
    depths: tuple[str, ...]
    scores: tuple[tuple[float | None, ...], ...]
    samples: tuple[tuple[int, ...], ...]


def suite_of(row: Mapping[str, Any]) -> str:
    """The suite under which a score is averaged and shown; `longform: longen` where tasks stand for themselves."""
    suite = str(row.get("suite") or row["task"])
    return f"{suite}: {row['task']}" if suite in _APART else suite


def suites_of(arms: Iterable[Arm]) -> list[str]:
    """Suites with scores, in the order in which they appear."""
    return list(dict.fromkeys(suite_of(row) for arm in arms for row in arm.scores))


def averages(arm: Arm, suite: str) -> dict[int, Point]:
    """Mean over a suite's tasks by length. The interval adds the tasks' half-widths in quadrature: their samples are
    drawn apart."""
    by_length: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in arm.scores:
        if suite_of(row) == suite and row["task"] not in _AVERAGES:
            by_length[int(row["length"])].append(row)
    return {length: mean_of(rows) for length, rows in sorted(by_length.items())}


def mean_of(rows: Sequence[Mapping[str, Any]]) -> Point:
    """Mean of rows with `task`, `score`, `n` and, where there is an interval, `low` and `high`."""
    points = [
        Point(
            float(r["score"]), r.get("low"), r.get("high"), int(r.get("n") or 0), (str(r["task"]),),
            int(r.get("contexts") or 0),
        )
        for r in rows
    ]  # fmt: skip
    return mean_of_points(points, tuple(str(row["task"]) for row in rows))


def mean_of_points(points: Sequence[Point], names: tuple[str, ...]) -> Point:
    """Mean of independent scores; without an interval where one of them has none."""
    count, n, texts = len(points), sum(point.n for point in points), sum(point.contexts for point in points)
    score = sum(point.score for point in points) / count
    down = [p.score - p.low for p in points if p.low is not None]
    up = [p.high - p.score for p in points if p.high is not None]
    if len(down) < count or len(up) < count:
        return Point(score, None, None, n, names, texts)
    low, high = score - math.hypot(*down) / count, score + math.hypot(*up) / count
    return Point(score, max(0.0, low), min(1.0, high), n, names, texts)


def pairs(arms: Sequence[Arm]) -> list[Pair]:
    """Every arm against the last one, on the samples that both answered."""
    found: list[Pair] = []
    for first in arms[:-1]:
        found += paired(first, arms[-1])
    return found


def paired(first: Arm, second: Arm) -> list[Pair]:
    """Paired comparison of two arms by suite, task and length. Cells whose sample files differ (another seed, tokenizer
    or template) were asked other questions under the same names and are left out."""
    own, other = _scored(first), _scored(second)
    places = {key[:3] for key in own.keys() & other.keys()}
    same = {place for place in places if not _differ(first.sample_files(*place), second.sample_files(*place))}
    cells: dict[tuple[str, str, int], list[tuple[str, float, float]]] = defaultdict(list)
    for key in own.keys() & other.keys():
        suite, task, length, identity = key
        if key[:3] not in same:
            continue
        (context, before), (_, after) = own[key], other[key]
        cells[suite, task, length].append((context or identity, before, after))
    return [_pair(first.label, second.label, cell, sorted(rows)) for cell, rows in sorted(cells.items())]


def _differ(first: set[str], second: set[str]) -> bool:
    return bool(first) and bool(second) and first.isdisjoint(second)


def _scored(arm: Arm) -> dict[tuple[str, str, int, str], tuple[str, float]]:
    return {
        (str(a.get("suite")), str(a.get("task")), int(a.get("length") or 0), str(a["id"])): (
            str(a.get("context") or ""),
            float(a["score"]),
        )
        for a in arm.answers
        if a.get("score") is not None
    }


def _pair(first: str, second: str, cell: tuple[str, str, int], rows: Sequence[tuple[str, float, float]]) -> Pair:
    before = {str(at): row[1] for at, row in enumerate(rows)}
    after = {str(at): row[2] for at, row in enumerate(rows)}
    contexts = {str(at): row[0] for at, row in enumerate(rows)}
    found = statistics.paired(before, after, contexts, derive_seed(0, "paired", *cell))
    assert found is not None, "a cell has at least one row"
    return Pair(
        first, second, *cell,
        first_score=sum(before.values()) / len(rows), second_score=sum(after.values()) / len(rows),
        difference=found.mean, low=found.low, high=found.high, contexts=found.contexts,
        better=found.better, worse=found.worse,
    )  # fmt: skip


def depth_maps(arms: Sequence[Arm]) -> dict[tuple[str, str], list[DepthMap]]:
    """(suite, task) -> one map per arm, all with the same rows and columns, where answers carry a depth (0..1)."""
    cells: dict[tuple[str, str], dict[str, list[tuple[int, float, float]]]] = defaultdict(lambda: defaultdict(list))
    for arm in arms:
        for answer in arm.answers:
            if answer.get("depth") is not None and answer.get("score") is not None:
                place = (int(answer["length"]), float(answer["depth"]), float(answer["score"]))
                cells[str(answer.get("suite")), str(answer.get("task"))][arm.label].append(place)
    found: dict[tuple[str, str], list[DepthMap]] = {}
    for (suite, task), by_arm in cells.items():
        places = [place for rows in by_arm.values() for place in rows]
        lengths = tuple(sorted({length for length, _, _ in places}))
        rows = _depth_rows([depth for _, depth, _ in places])
        if len(rows) > 1:
            found[suite, task] = [_depth_map(label, suite, task, by_arm[label], lengths, rows) for label in by_arm]
    return found


def _depth_rows(depths: Iterable[float]) -> list[tuple[str, float, float]]:
    """(name, from, to): the depths themselves where they are few, else tenths."""
    exact = sorted({round(depth, 3) for depth in depths})
    if len(exact) <= 11:
        return [(f"{100 * depth:.0f}%", depth - 0.0006, depth + 0.0006) for depth in exact]
    edges = [index / 10 for index in range(11)]
    return [(f"{100 * a:.0f}–{100 * b:.0f}%", a, b if b < 1 else 1.001) for a, b in itertools.pairwise(edges)]


def _depth_map(
    label: str, suite: str, task: str, places: Sequence[tuple[int, float, float]], lengths: tuple[int, ...],
    rows: Sequence[tuple[str, float, float]],
) -> DepthMap:  # fmt: skip
    inside = [
        [[score for length, depth, score in places if length == column and a <= depth < b] for column in lengths]
        for _, a, b in rows
    ]
    return DepthMap(
        label, suite, task, lengths, tuple(name for name, _, _ in rows),
        tuple(tuple(sum(cell) / len(cell) if cell else None for cell in row) for row in inside),
        tuple(tuple(len(cell) for cell in row) for row in inside),
    )  # fmt: skip

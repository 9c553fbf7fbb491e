"""What a suite's scores say together: effective lengths, RULER's weighted averages, HELMET's categories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lengthen.evaluate.helmet.tasks import HELMET, category_metrics
from lengthen.evaluate.ruler.effective import LengthAverage, effective_length, relative_length, weighted
from lengthen.report.collect import Arm
from lengthen.report.compare import Point, averages, mean_of, mean_of_points

RELATIVE_THRESHOLD = 0.85  # share of the model's own score, as NoLiMa has it (arXiv 2502.05167)


@dataclass(frozen=True)
class Effective:
    """How far an arm reads, by the mean of `tasks` at the lengths at which all of them were measured.

    absolute: longest length up to which the mean exceeds RULER's 85.6; relative: up to which it keeps at least 85% of
    the arm's own mean at `base` (its native length where all arms share it and it was measured, else the
    shortest); None where no length qualifies.
    rising, falling: RULER's wAvg over the lengths, for long and for short use; None for other suites.
    left_out: lengths at which some task was not measured.
    """

    arm: str
    suite: str
    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    left_out: tuple[int, ...]
    absolute: int | None
    relative: int | None
    base: int
    rising: float | None
    falling: float | None

    @property
    def shortest(self) -> int:
        return self.lengths[0]

    @property
    def longest(self) -> int:
        return self.lengths[-1]


def effective(arm: Arm, suite: str) -> Effective | None:
    """Effective lengths of an arm on a suite; None without two lengths to compare."""
    points = averages(arm, suite)
    tasks = tuple(dict.fromkeys(task for point in points.values() for task in point.tasks))
    whole = {length: point for length, point in points.items() if set(point.tasks) == set(tasks)}
    if len(whole) < 2:
        return None
    found = [LengthAverage(length, point.score, tasks) for length, point in whole.items()]
    native = arm.native if arm.native in whole else found[0].length
    ruler = suite == "ruler"
    return Effective(
        arm.label, suite, tasks, tuple(whole), tuple(length for length in points if length not in whole),
        absolute=effective_length(found).length or None,
        relative=relative_length(found, RELATIVE_THRESHOLD, native).length or None,
        base=native,
        rising=weighted(found) if ruler else None,
        falling=weighted(found, rising=False) if ruler else None,
    )  # fmt: skip


@dataclass(frozen=True)
class Category:
    """One of HELMET's categories, or their mean ("helmet"): what it averages, and its average by length. Lengths at
    which one of its numbers is missing have none."""

    name: str
    parts: tuple[str, ...]
    points: dict[int, Point]


def helmet_categories(arm: Arm) -> list[Category]:
    """HELMET's category averages of an arm, and the mean of all seven where each is there."""
    numbers: dict[int, dict[str, dict[str, Any]]] = {}
    for row in [*arm.scores, *arm.values]:
        if row.get("suite") == "helmet" and row.get("length"):
            score = row["score"] if row.get("score") is not None else row["value"]
            numbers.setdefault(int(row["length"]), {})[str(row["task"])] = {**row, "score": float(score)}
    found: list[Category] = []
    for name, parts in category_metrics().items():
        points = {
            length: mean_of([by_name[part] for part in parts])
            for length, by_name in sorted(numbers.items())
            if by_name.keys() >= set(parts)
        }
        if points:
            found.append(Category(name, parts, points))
    return [*found, *_helmet(found)]


def _helmet(categories: Sequence[Category]) -> list[Category]:
    if len(categories) < len(category_metrics()):
        return []
    lengths = [n for n in categories[0].points if all(n in one.points for one in categories)]
    names = tuple(one.name for one in categories)
    points = {n: mean_of_points([one.points[n] for one in categories], names) for n in lengths}
    return [Category(HELMET, names, points)] if points else []


def weighted_of(lengths: Sequence[int], scores: Sequence[float], *, rising: bool) -> float:
    """wAvg of published scores."""
    return weighted([LengthAverage(n, score, ()) for n, score in zip(lengths, scores)], rising)

"""RULER's effective length and weighted averages, from task scores by length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

THRESHOLD = 0.856
"""Llama-2-7B-chat's average at 4K (arXiv 2404.06654, section 4)."""


@dataclass(frozen=True)
class LengthAverage:
    """Plain mean over the tasks at one length. tasks: their names, which belong to every average."""

    length: int
    score: float
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Effective:
    """How long a model reads.

    length: the longest measured length whose average exceeds the threshold, with all shorter ones exceeding it too;
        0 if the shortest one does not. beyond: the longest measured length is still good, so it may read longer.
    """

    length: int
    threshold: float
    beyond: bool


def averages(rows: Iterable[Mapping[str, Any]]) -> list[LengthAverage]:
    """Averages by rising length from rows with `suite`, `task`, `length` and `score` (0..1).

    Only tasks that were measured at every length enter, so that lengths can be compared.
    """
    scores: dict[int, dict[str, float]] = {}
    for row in rows:
        if row.get("suite") == "ruler" and row.get("score") is not None and row.get("length"):
            scores.setdefault(int(row["length"]), {})[str(row["task"])] = float(row["score"])
    if not scores:
        return []
    common = sorted(set.intersection(*(set(found) for found in scores.values())))
    if not common:
        return []
    return [
        LengthAverage(length, sum(found[task] for task in common) / len(common), tuple(common))
        for length, found in sorted(scores.items())
    ]


def effective_length(found: Sequence[LengthAverage], threshold: float = THRESHOLD) -> Effective:
    """RULER's rule. The published table breaks it for rows that others sent in (an average of 85.6 is not above)."""
    length = 0
    for average in found:
        if not average.score > threshold:
            return Effective(length, threshold, False)
        length = average.length
    return Effective(length, threshold, bool(found))


def relative_length(found: Sequence[LengthAverage], share: float = 0.85, native: int | None = None) -> Effective:
    """The longest length whose average keeps at least `share` of the model's own at `native` (default: the shortest
    measured): a threshold for small models, whose averages never reach RULER's."""
    if not found:
        return Effective(0, 0.0, False)
    base = next((a.score for a in found if a.length == native), found[0].score)
    # `effective_length` asks for more than the threshold; equal is enough here.
    effective = effective_length(found, base * share - 1e-12)
    return Effective(effective.length, base * share, effective.beyond)


def weighted(found: Sequence[LengthAverage], rising: bool = True) -> float:
    """RULER's wAvg: linear weights 1..n over the lengths, for long use (rising) or short use (falling)."""
    weights = range(1, len(found) + 1) if rising else range(len(found), 0, -1)
    return sum(w * a.score for w, a in zip(weights, found)) / sum(weights)

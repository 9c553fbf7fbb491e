"""RULER's effective length and weighted averages, from averages by rising length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    if base <= 0:
        return Effective(0, 0.0, False)  # nothing to keep a share of
    # `effective_length` asks for more than the threshold; equal is enough here.
    effective = effective_length(found, base * share - 1e-12)
    return Effective(effective.length, base * share, effective.beyond)


def weighted(found: Sequence[LengthAverage], rising: bool = True) -> float:
    """RULER's wAvg: linear weights 1..n over the lengths, for long use (rising) or short use (falling)."""
    weights = range(1, len(found) + 1) if rising else range(len(found), 0, -1)
    return sum(w * a.score for w, a in zip(weights, found)) / sum(weights)

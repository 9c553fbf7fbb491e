"""Intervals over contexts, and two models on the same samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000
LEVEL = 0.95
FEW = 6
"""Fewer contexts than these never prove a difference; a bootstrap over them is narrower than they allow."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval; n samples in so many contexts."""

    mean: float
    low: float
    high: float
    n: int
    contexts: int


def interval(scores: Sequence[float], contexts: Sequence[str], seed: int = 0) -> Interval:
    """Mean of scores in 0..1; the interval is bootstrapped over contexts, since questions over one text fall together.

    Where all contexts score alike the bootstrap has nothing to draw from and would claim certainty; there a bound over
    the contexts is given (`_free`): 20 of 20 is 0.832 .. 1. Below `FEW` contexts the interval reaches at least as far.
    """
    if len(scores) != len(contexts):
        raise ValueError(f"{len(scores)} scores for {len(contexts)} contexts")
    sums_C, counts_C = _by_context(scores, contexts)
    n, groups = len(scores), len(sums_C)
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0, 0)
    low, high = _bounds(sums_C, counts_C, 0.0, 1.0, seed)
    return Interval(float(sums_C.sum() / n), low, high, n, groups)


@dataclass(frozen=True)
class Difference:
    """How much better `b` is than `a` on the samples that both answered.

    better, worse: samples on which b scores higher, lower. sure: the interval does not hold 0.
    """

    mean: float
    low: float
    high: float
    n: int
    contexts: int
    better: int
    worse: int

    @property
    def sure(self) -> bool:
        return self.low > 0 or self.high < 0


def paired(
    a: Mapping[str, float], b: Mapping[str, float], contexts: Mapping[str, str], seed: int = 0
) -> Difference | None:
    """Difference b - a over common sample ids; None when there are none.

    Args:
        a, b: score by sample id. contexts: context by sample id.
    """
    ids = sorted(a.keys() & b.keys())
    if not ids:
        return None
    gaps = [b[i] - a[i] for i in ids]
    sums_C, counts_C = _by_context(gaps, [contexts[i] for i in ids])
    low, high = _bounds(sums_C, counts_C, -1.0, 1.0, seed)
    return Difference(
        float(np.mean(gaps)), low, high, len(ids), len(sums_C), sum(g > 0 for g in gaps), sum(g < 0 for g in gaps)
    )


def _by_context(values: Sequence[float], contexts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    order = {name: at for at, name in enumerate(dict.fromkeys(contexts))}
    sums, counts = np.zeros(len(order)), np.zeros(len(order))
    for value, name in zip(values, contexts):
        sums[order[name]] += value
        counts[order[name]] += 1
    return sums, counts


def _bounds(sums_C: np.ndarray, counts_C: np.ndarray, least: float, most: float, seed: int) -> tuple[float, float]:
    """95% interval of a mean of values in least..most."""
    means_C = sums_C / counts_C
    free = _free(float(means_C.min()), float(means_C.max()), len(means_C), least, most)
    if np.ptp(means_C) < 1e-12:
        return free
    drawn = _percentiles(sums_C, counts_C, seed)
    return drawn if len(means_C) >= FEW else (min(free[0], drawn[0]), max(free[1], drawn[1]))


def _free(lowest: float, highest: float, groups: int, least: float, most: float) -> tuple[float, float]:
    """Interval that rests on nothing but the lowest and the highest of n contexts.

    With probability 1 - 0.025, at least a share t = 0.025^(1/n) of all contexts is no lower than the lowest that was
    seen (for scores that are all 0 or all 1: Clopper and Pearson, 1934); the others may lie anywhere in least..most. So
    5 of 5 gains are not yet sure, 6 of 6 are, as in a sign test.
    """
    t = ((1 - LEVEL) / 2) ** (1 / groups)
    return t * lowest + (1 - t) * least, t * highest + (1 - t) * most


def _percentiles(sums_C: np.ndarray, counts_C: np.ndarray, seed: int) -> tuple[float, float]:
    groups = len(sums_C)
    draws_RC = np.random.default_rng(seed).integers(0, groups, (RESAMPLES, groups))
    means_R = sums_C[draws_RC].sum(1) / counts_C[draws_RC].sum(1)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(means_R, [tail, 100 - tail])
    return float(low), float(high)

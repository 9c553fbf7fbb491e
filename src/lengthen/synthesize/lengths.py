"""Lengths and depths of conversation number i: drawn so that any run of conversations is even."""

from __future__ import annotations

import math

from lengthen.common.seeds import named_random


def log_uniform(low: int, high: int, seed: int, index: int) -> int:
    """A whole number in [low, high], its logarithm uniform."""
    drawn = math.exp(named_random(seed, "length", index).uniform(math.log(low), math.log(high)))
    return min(high, max(low, int(drawn + 1e-6)))


def decile_of(seed: int, index: int) -> int:
    """Depth of what the first question asks: each ten conversations get the ten deciles in random order."""
    deciles = list(range(10))
    named_random(seed, "deciles", index // 10).shuffle(deciles)
    return deciles[index % 10]

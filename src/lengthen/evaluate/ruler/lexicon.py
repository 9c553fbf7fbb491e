"""Words, numbers and identifiers of RULER's tasks, with their token counts made once per tokenizer."""

from __future__ import annotations

from functools import cache

import numpy as np

from lengthen.evaluate.counting import Counter
from lengthen.evaluate.draws import Draws

SEED = 42  # RULER's; the pools below belong to the benchmark, samples draw from them by their own seeds


@cache
def word_lists() -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """(adjectives, nouns, verbs) of the `wonderwords` package, sorted."""
    from wonderwords import RandomWord

    # RULER reads the same attribute; the package has no public listing. Its search trees take half a second to build.
    categories = RandomWord(enhanced_prefixes=False)._categories
    return tuple(tuple(sorted(set(categories[name]))) for name in ("adjective", "noun", "verb"))  # type: ignore[return-value]


@cache
def all_words() -> tuple[str, ...]:
    """Nouns, adjectives and verbs, each once, in a fixed random order."""
    words = sorted({word for words in word_lists() for word in words})
    return tuple(Draws(SEED, "ruler words").shuffled(words))


@cache
def number_pool(size: int) -> tuple[str, ...]:
    """Different 7-digit numbers."""
    return tuple(str(n) for n in Draws(SEED, "ruler numbers").distinct(10**6, 10**7, size))


@cache
def uuid_pool(size: int, name: str) -> tuple[str, ...]:
    return tuple(Draws(SEED, "ruler uuids", name).uuids(size))


@cache
def code_pool(size: int) -> tuple[str, ...]:
    """Different words of six random letters."""
    found: dict[str, None] = {}
    draws = Draws(SEED, "ruler codes")
    while len(found) < size:
        found.update(dict.fromkeys(draws.letters(size, 6, "abcdefghijklmnopqrstuvwxyz")))
    return tuple(list(found)[:size])


class Identifiers:
    """Needle keys and values of one kind, drawn from a pool, with their token counts.

    A pool of a few times what one sample needs is tokenised instead of every identifier of every sample.
    """

    def __init__(self, kind: str, counter: Counter, need: int, role: str) -> None:
        self.kind = kind
        size = max(2048, 1 << (2 * need - 1).bit_length())
        if kind == "words":
            self.first, self.second, _ = word_lists()
            self.first_counts = counter.counts_of("adjectives", lambda: [f" {w}" for w in self.first])
            self.second_counts = counter.counts_of("nouns", lambda: [f"-{w}" for w in self.second])
            self.size = len(self.first) * len(self.second)
        else:
            self.pool = number_pool(size) if kind == "numbers" else uuid_pool(size, role)
            key = (kind, size, role if kind == "uuids" else "")
            self.pool_counts = counter.counts_of(key, lambda: [f" {item}" for item in self.pool])
            self.size = size

    def draw(self, draws: Draws, n: int) -> np.ndarray:
        """Indices of n different identifiers."""
        if self.kind == "words":
            return draws.distinct(0, self.size, n)
        return draws.sample(self.size, n)

    def counts(self, picks: np.ndarray) -> np.ndarray:
        """Tokens of each identifier with the space before it."""
        if self.kind == "words":
            return self.first_counts[picks // len(self.second)] + self.second_counts[picks % len(self.second)]
        return self.pool_counts[picks]

    def texts(self, picks: np.ndarray) -> list[str]:
        if self.kind == "words":
            n = len(self.second)
            return [f"{self.first[p // n]}-{self.second[p % n]}" for p in picks.tolist()]
        return [self.pool[p] for p in picks.tolist()]

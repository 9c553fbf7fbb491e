"""RULER's common-words and frequent-words tasks: counting over the whole input."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from lengthen.evaluate.counting import Counter, Frame
from lengthen.evaluate.draws import Draws
from lengthen.evaluate.fit import Draft
from lengthen.evaluate.ruler import templates as t
from lengthen.evaluate.ruler.lexicon import SEED, all_words, code_pool, word_lists
from lengthen.recipe.base import size_text

COMMON = 10
ALPHA = 2.0
ZETA = math.pi**2 / 6  # zeta(2)


@cache
def word_supply(size: int) -> tuple[str, ...]:
    """`size` different words: those of the `wonderwords` lists, then pairs of them.

    RULER goes on with a list of 466,000 English words that is not published with it; pairs keep the task (count the
    most frequent entries) at any length, and a cell that needs them says so (`pairs_note`).
    """
    words = all_words()
    if size <= len(words):
        return words
    adjectives, nouns, _ = word_lists()
    picks = Draws(SEED, "ruler pairs").distinct(0, len(adjectives) * len(nouns), size - len(words))
    return words + tuple(f"{adjectives[p // len(nouns)]}-{nouns[p % len(nouns)]}" for p in picks.tolist())


def words_needed(length: int) -> int:
    """Words of which a cwe prompt of so many tokens is made, and a few more."""
    return length // (4 * (1 if length < 4096 else 3)) + 64


def pairs_note(length: int) -> list[str]:
    """A note where cwe needs more words than the lists have."""
    have, need = len(all_words()), words_needed(length)
    if need <= have:
        return []
    return [
        f"ruler cwe at {size_text(length)}: the list of {have:,} words ends; {need - have:,} entries are word pairs"
    ]


@dataclass
class CweMaker:
    """Numbered words, of which ten occur 30 times and the others 3 times (below 4,096 tokens: 6 and 1).

    Below 1,024 tokens RULER's parameters do not fit: there it is 4 and 1, without the solved example.
    """

    counter: Counter
    frame: Frame
    length: int
    seed: int
    task: t.RulerTask = t.TASKS["cwe"]
    short_of: str = "The word list"
    proven: bool = field(init=False)

    def __post_init__(self) -> None:
        short = self.length < 4096
        self.often, self.seldom = (6, 1) if short else (30, 3)
        self.example = (20, 3, 1) if short else (40, 10, 3)
        if self.length < 1024:
            self.often, self.example = 4, (0, 0, 0)
        self.words = word_supply(max(words_needed(self.length), 2048))
        c = self.counter
        self.word_counts = c.counts_of(("words", len(self.words)), lambda: [f" {w}" for w in self.words])
        entries = self.length // 3 + 512
        numbers = c.counts_of(("numbered", entries), lambda: [f" {i}." for i in range(1, entries + 1)])
        self.number_counts = np.concatenate([[0], np.cumsum(numbers)])
        again = f"\n{t.CWE_HEAD}1."  # after the solved example
        joints = [(" 17.", " lamp"), (t.CWE_PREFIX, " 1.")]
        ends = {"lamp", *(f"a{w[-1]}" for w in self.words)}
        self.proven = c.borders(joints + [(f" {e}", x) for e in ends for x in (" 18.", t.CWE_TAIL, again)])
        # The first entry, "1." after a line break, is counted with the head.
        self.fixed = self.frame.added + c.count(f"{self.frame.before}{t.CWE_HEAD}1.")
        self.fixed += c.count(f"{t.CWE_TAIL}{self.frame.after}{t.CWE_PREFIX}")
        if self.example[0]:
            self.fixed += c.count(t.CWE_TAIL + t.CWE_PREFIX) + c.count(again)

    def plan(self, index: int) -> _CwePlan:
        return _CwePlan(self, index)


class _CwePlan:
    def __init__(self, maker: CweMaker, index: int) -> None:
        self.m, self.index = maker, index
        draws = Draws(maker.seed, "ruler", "cwe", maker.length, index)
        order = draws.order(len(maker.words))
        total, often, seldom = maker.example
        shown, self.picks = order[:total], order[total:]  # example and list share no word
        self.example = self._example(draws, shown, often, seldom)
        countable = (len(maker.number_counts) - 1 - COMMON * maker.often) // maker.seldom + COMMON
        self.least, self.most = COMMON + 2, min(len(self.picks), countable)
        counts = maker.word_counts[self.picks]
        self.sums = np.concatenate([[0], np.cumsum(counts)])
        self.common_cost = (maker.often - maker.seldom) * int(self.sums[COMMON])
        self.base = maker.fixed - int(maker.number_counts[1]) + self.common_cost
        if total:
            self.base += self._example_cost(shown, often, seldom)

    def _example(self, draws: Draws, shown: np.ndarray, often: int, seldom: int) -> str:
        if len(shown) == 0:
            return ""
        words = [self.m.words[i] for i in shown.tolist()]
        entries = draws.shuffled(words[:COMMON] * often + words[COMMON:] * seldom)
        answer = " ".join(f"{i}. {w}" for i, w in enumerate(words[:COMMON], 1))
        return f"{t.CWE_HEAD}{_numbered(entries)}{t.CWE_TAIL}{t.CWE_PREFIX} {answer}\n"

    def _example_cost(self, shown: np.ndarray, often: int, seldom: int) -> int:
        """Tokens of the example's entries, the first number left out, and of its answer's."""
        costs, numbers = self.m.word_counts[shown], self.m.number_counts
        entries = COMMON * often + (len(shown) - COMMON) * seldom
        found = (often + 1) * costs[:COMMON].sum() + seldom * costs[COMMON:].sum()
        return int(found + numbers[entries] - numbers[1] + numbers[COMMON])

    def entries(self, units: int) -> int:
        return COMMON * self.m.often + (units - COMMON) * self.m.seldom

    def tokens(self, units: int) -> int:
        m = self.m
        return self.base + m.seldom * int(self.sums[units]) + int(m.number_counts[self.entries(units)])

    def build(self, units: int) -> list[Draft]:
        m = self.m
        words = [m.words[i] for i in self.picks[:units].tolist()]
        entries = words[:COMMON] * m.often + words[COMMON:] * m.seldom
        order = Draws(m.seed, "ruler", "cwe", m.length, self.index, "order").order(len(entries)).tolist()
        user = f"{self.example}{t.CWE_HEAD}{_numbered([entries[i] for i in order])}{t.CWE_TAIL}"
        meta = {"units": units, "entries": len(entries)}
        return [Draft(user, t.CWE_PREFIX, tuple(words[:COMMON]), m.task.new_tokens, str(self.index), None, meta)]


def _numbered(words: list[str]) -> str:
    return " ".join([f"{i}. {word}" for i, word in enumerate(words, 1)])


@dataclass
class FweMaker:
    """Coded words whose counts follow a Zipf law (alpha 2), rank 1 shown as dots; ranks 2 to 4 are asked."""

    counter: Counter
    frame: Frame
    length: int
    seed: int
    task: t.RulerTask = t.TASKS["fwe"]
    short_of: str = "The vocabulary"
    proven: bool = field(init=False)

    def __post_init__(self) -> None:
        self.vocabulary = max(8, self.length // 50)
        self.pool = code_pool(max(2048, 4 * self.vocabulary))
        c = self.counter
        self.pool_counts = c.counts_of(("codes", len(self.pool)), lambda: [f" {w}" for w in self.pool])
        self.dots = c.count(" ...")
        self.shares = np.arange(1, self.vocabulary + 1, dtype=np.float64) ** -ALPHA / ZETA
        word, dots = " abcdef", " ..."
        joints = [(x, y) for x in (word, dots) for y in (word, dots, t.FWE_TAIL)]
        self.proven = c.borders([*joints, (t.FWE_HEAD, word), (t.FWE_HEAD, dots)])
        c = self.counter.count
        self.base = self.frame.added + c(self.frame.before + t.FWE_HEAD)
        self.base += c(f"{t.FWE_TAIL}{self.frame.after}{t.FWE_PREFIX}")

    def counts(self, draws: int) -> np.ndarray:
        """How often each rank occurs: int(n k^-alpha / zeta(alpha)), as in RULER (no randomness)."""
        return (draws * self.shares).astype(np.int64)

    def plan(self, index: int) -> _FwePlan:
        return _FwePlan(self, index)


class _FwePlan:
    def __init__(self, maker: FweMaker, index: int) -> None:
        self.m, self.index = maker, index
        draws = Draws(maker.seed, "ruler", "fwe", maker.length, index)
        self.picks = draws.sample(len(maker.pool), maker.vocabulary - 1)
        self.costs = np.concatenate([[maker.dots], maker.pool_counts[self.picks]])
        # Rank 4 must occur at least once, and less often than rank 3, or the answer would be a tie.
        self.least, self.most = math.ceil(17 * ZETA), maker.length

    def tokens(self, units: int) -> int:
        return self.m.base + int(self.m.counts(units) @ self.costs)

    def build(self, units: int) -> list[Draft]:
        m = self.m
        words = ["...", *(m.pool[i] for i in self.picks.tolist())]
        counts = m.counts(units)
        order = Draws(m.seed, "ruler", "fwe", m.length, self.index, "order").order(int(counts.sum()))
        ranks = np.repeat(np.arange(len(counts)), counts)[order].tolist()
        context = " ".join([words[r] for r in ranks])
        user = f"{t.FWE_HEAD} {context}{t.FWE_TAIL}"
        meta = {"words": len(ranks), "vocabulary": int((counts > 0).sum())}
        return [Draft(user, t.FWE_PREFIX, tuple(words[1:4]), m.task.new_tokens, str(self.index), None, meta)]

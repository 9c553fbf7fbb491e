"""Instructions that differ from one another and from the evaluation prompts.

ROUGE-L as in Self-Instruct (arXiv 2212.10560), exact, but only between pairs that can reach the threshold: the
longest common subsequence is at most the number of shared words, which an inverted index counts. Comparing 5,000
instructions one with another takes seconds instead of the hours of the pairwise original.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from lengthen.common.words import units


def words_of(text: str) -> list[str]:
    return [unit for _, unit in units(text)]


def lcs_length(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyrö 2004): one big-integer step per word of b."""
    places: dict[str, int] = defaultdict(int)
    for i, word in enumerate(a):
        places[word] |= 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(a) - row.bit_count()


def rouge_l(a: list[str], b: list[str]) -> float:
    """ROUGE-L F-measure of two word lists, 0..1."""
    return 2 * lcs_length(a, b) / (len(a) + len(b)) if a and b else 0.0


@dataclass
class Pool:
    """Texts that new ones are compared with.

    Args:
        threshold: ROUGE-L from which two texts are near-duplicates.
        ngram: words in a row that a text may not share with a pooled one; 0 compares by ROUGE-L alone.
    """

    threshold: float
    ngram: int = 0
    texts: list[str] = field(default_factory=list)
    _words: list[list[str]] = field(default_factory=list)
    _index: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    _grams: dict[tuple[str, ...], int] = field(default_factory=dict)

    def add(self, text: str) -> None:
        words, number = words_of(text), len(self.texts)
        self.texts.append(text)
        self._words.append(words)
        for word, count in Counter(words).items():
            self._index[word].append((number, count))
        if self.ngram:
            for i in range(len(words) - self.ngram + 1):
                self._grams.setdefault(tuple(words[i : i + self.ngram]), number)

    def nearest(self, text: str) -> tuple[str, float] | None:
        """The first pooled text that shares an n-gram (score 1.0), or the one with the highest ROUGE-L at or above
        the threshold; None when the text is new."""
        words = words_of(text)
        if self.ngram:
            for i in range(len(words) - self.ngram + 1):
                number = self._grams.get(tuple(words[i : i + self.ngram]))
                if number is not None:
                    return self.texts[number], 1.0
        shared: dict[int, int] = defaultdict(int)
        for word, count in Counter(words).items():
            for number, there in self._index.get(word, ()):
                shared[number] += min(count, there)
        best: tuple[str, float] | None = None
        for number, common in shared.items():
            other = self._words[number]
            if 2 * common < self.threshold * (len(words) + len(other)):
                continue
            score = rouge_l(words, other)
            if score >= self.threshold and (best is None or score > best[1]):
                best = self.texts[number], score
        return best

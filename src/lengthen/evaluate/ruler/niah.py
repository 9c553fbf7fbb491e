"""RULER's eight needle tasks (arXiv 2404.06654, section 3 and appendix B)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from lengthen.common.words import sentence_spans
from lengthen.evaluate.counting import Counter, Frame
from lengthen.evaluate.draws import Draws
from lengthen.evaluate.fit import Draft
from lengthen.evaluate.ruler import templates as t
from lengthen.evaluate.ruler.lexicon import Identifiers

DEPTHS = tuple(round(100 * i / 39) for i in range(40))
_SINGULAR = {"numbers": "number", "uuids": "uuid", "words": "word"}


@dataclass(frozen=True)
class Essay:
    """A long text by words, with the tokens of each word and the space before it; it goes round at its end.

    flat: the text with single spaces. starts, stops: character offsets of the words. counts: tokens of each word.
    sentences: word number of each sentence's first word. additive: the counts add up to the text's own count.
    """

    flat: str
    starts: np.ndarray
    stops: np.ndarray
    counts: np.ndarray
    sentences: np.ndarray
    additive: bool

    @classmethod
    def of(cls, text: str, counter: Counter) -> Essay:
        flat = re.sub(r"\s+", " ", text).strip()
        spans = [m.span() for m in re.finditer(r"\S+", flat)]
        starts, stops = np.array([a for a, _ in spans]), np.array([b for _, b in spans])
        counts = counter.counts([f" {flat[a:b]}" for a, b in spans])
        begins = {0, *(int(np.searchsorted(starts, e)) for _, e in sentence_spans(flat))}
        sentences = np.array(sorted(s for s in begins if s < len(starts)))
        return cls(flat, starts, stops, counts, sentences, int(counts.sum()) == counter.count(f" {flat}"))

    def words(self, begin: int, end: int) -> list[str]:
        """Text of the words [begin, end), which may lie beyond the end (the text goes round), in pieces."""
        n, pieces = len(self.starts), []
        while begin < end:
            stop = min(end, (begin // n + 1) * n)
            first, last = begin % n, (stop - 1) % n
            pieces.append(self.flat[self.starts[first] : self.stops[last]])
            begin = stop
        return pieces

    def border_at(self, word: int) -> int:
        """The last sentence begin at or before a word (which may lie beyond the end)."""
        n = len(self.starts)
        return word - word % n + int(self.sentences[np.searchsorted(self.sentences, word % n, side="right") - 1])


@dataclass
class NiahMaker:
    """One needle task at one length.

    essay: the haystack's text, for the tasks that hide needles in a text. RULER begins every sample at the
        essays' first word, so that samples share their beginning; here each begins at a sentence of its own.
    own_line: the answer begins on a line of its own (HELMET), so without RULER's leading space.
    """

    task: t.RulerTask
    counter: Counter
    frame: Frame
    length: int
    seed: int
    essay: Essay | None = None
    own_line: bool = False
    short_of: str = "The haystack"
    proven: bool = field(init=False)
    _ends: dict[str, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        task, one = self.task, self.task.queries * self.task.values == 1
        self.kind = _SINGULAR[task.value_kind] if one else task.value_kind
        self.head = (t.NIAH_HEAD_ONE if one else t.NIAH_HEAD).format(kind=self.kind)
        self.tail = t.NIAH_TAIL_ONE if one else t.NIAH_TAIL
        prefix = t.NIAH_PREFIX_ONE if one else t.NIAH_PREFIX
        self.prefix = prefix.lstrip() if self.own_line else prefix
        self.sep = " " if task.haystack == "essay" else "\n"
        self.values = Identifiers(task.value_kind, self.counter, self.length // 30 + 8, "value")
        self.keys = Identifiers(task.key_kind, self.counter, self.length // 30 + 8, "key")
        opening = f"One of the special magic {task.value_kind} for"
        # Parts of a needle: "One of ... for" + " key" + " is:" + " value" + "." and the separator.
        before, after = (f" {opening}", ".") if task.haystack == "essay" else (opening, ".\n")
        self.fixed = self.counter.count(before) + self.counter.count(" is:") + self.counter.count(after)
        self.noise = self.counter.count(f"{t.NOISE}\n")
        self.proven = self._prove(before, after)

    def _prove(self, before: str, after: str) -> bool:
        c, noise, needle = self.counter, f"{t.NOISE}\n", f"{before} aged-art is: 1234567{after}"
        key = " aged-art" if self.task.key_kind == "words" else " 0a1b2c3d-0a1b"
        value = " 1234567" if self.task.value_kind == "numbers" else " 0a1b2c3d-0a1b"
        inside = [(before, key), (key, " is:"), (" is:", value), (value, after), (" aged", "-art")]
        inside += [(value[:-1] + x, after) for x in "059af"] + [(key[:-1] + x, " is:") for x in "az"]
        whole = f"{self.frame.before}{self.head}"
        if self.task.haystack == "essay":
            # The text's first unit has no space before it; `_Plan.tokens` counts it together with the head.
            assert self.essay is not None
            joints = [("end.", needle), (needle, " Here"), (needle, needle)]
            return self.essay.additive and c.borders(inside + joints) and c.border(whole, "Here")
        joints = [(noise, needle), (needle, noise), (needle, needle), (needle, "What"), (noise, "What")]
        return c.borders(inside + joints) and c.border(whole, needle) and c.border(whole, noise)

    def line_end(self, word: str) -> int:
        """Tokens that a word and the line break after it take more (or fewer) together than apart: many tokenizers
        join a full stop and a line break."""
        key = word[-8:]
        if key not in self._ends:
            text, rest = f" {key}", "\nWhat"
            both, left, right = self.counter.counts([text + rest, text, rest]).tolist()
            self._ends[key] = both - left - right
        return self._ends[key]

    def plan(self, index: int) -> _Plan:
        return _Plan(self, index)


class _Plan:
    def __init__(self, maker: NiahMaker, index: int) -> None:
        task = maker.task
        self.m, self.index = maker, index
        self.draws = Draws(maker.seed, "ruler", task.name, maker.length, index)
        self.needles = task.keys * task.values
        hay = self._hay_size()
        picks = maker.keys.draw(self.draws, task.keys + (hay if task.haystack == "needle" else 0))
        value_picks = maker.values.draw(self.draws, self.needles + (hay if task.haystack == "needle" else 0))
        self.key_picks, self.value_picks = picks[: task.keys], value_picks[: self.needles]
        self.hay_keys, self.hay_values = picks[task.keys :], value_picks[self.needles :]
        self.asked = self.draws.sample(task.keys, task.queries).tolist()
        self.order = self.draws.order(self.needles).tolist()
        self.start = int(self.draws.pick(maker.essay.sentences.tolist())) if maker.essay is not None else 0
        self.least = self.needles
        self._texts()
        self._sums(hay)

    def _hay_size(self) -> int:
        m = self.m
        if m.task.haystack != "needle":
            return 0
        mean = m.fixed + float(np.mean(m.values.pool_counts))
        mean += float(np.mean(m.keys.first_counts) + np.mean(m.keys.second_counts)) if m.keys.kind == "words" else (
            float(np.mean(m.keys.pool_counts)))  # fmt: skip
        return int(1.15 * m.length / mean) + 16

    def _texts(self) -> None:
        m, task = self.m, self.m.task
        self.keys, self.values = m.keys.texts(self.key_picks), m.values.texts(self.value_picks)
        self.refs = tuple(self.values[k * task.values + v] for k in self.asked for v in range(task.values))
        names = [self.keys[k] for k in self.asked]
        query = ", ".join(names[:-1]) + ", and " + names[-1] if len(names) > 1 else names[0]
        self.tail = m.tail.format(kind=m.kind, query=query)
        self.prefix = m.prefix.format(kind=m.kind, query=query)

    def _sums(self, hay: int) -> None:
        m = self.m
        head = f"{m.frame.before}{m.head}"
        tail = f"{self.tail}{m.frame.after}{self.prefix}"
        c = m.counter.count
        keys = np.repeat(m.keys.counts(self.key_picks), m.task.values)
        self.base = m.frame.added + int(keys.sum() + m.values.counts(self.value_picks).sum()) + m.fixed * self.needles
        if m.task.haystack == "essay":
            assert m.essay is not None
            first = m.essay.words(self.start, self.start + 1)[0]
            self.first = c(head + first)
            self.base += c("\n" + tail)
            draws = Draws(m.seed, "ruler", m.task.name, m.length, self.index, "depths")
            self.depths = sorted(DEPTHS[d] for d in draws.sample(len(DEPTHS), self.needles).tolist())
            counts = m.essay.counts
            self.round = int(counts.sum())
            self.sums = np.concatenate([[0], np.cumsum(np.roll(counts, -self.start))])
            self.first -= int(counts[self.start])  # its place in the sums is with a space before it
            self.most = 1 << 40
        else:
            self.first = c(head)
            self.base += c(tail)
            if m.task.haystack == "noise":
                self.most = 1 << 40
            else:
                units = m.fixed + m.keys.counts(self.hay_keys) + m.values.counts(self.hay_values)
                self.sums = np.concatenate([[0], np.cumsum(units)])
                self.most = hay

    def tokens(self, units: int) -> int:
        fixed = self.base + self.first
        if self.m.task.haystack == "noise":
            return fixed + units * self.m.noise
        rounds, rest = divmod(units, len(self.sums) - 1)
        if self.m.task.haystack == "essay":
            essay = self.m.essay
            assert essay is not None
            word = (self.start + units - 1) % len(essay.starts)
            end = "." if self.depths[-1] == 100 else essay.flat[essay.starts[word] : essay.stops[word]]
            return fixed + rounds * self.round + int(self.sums[rest]) + self.m.line_end(end)
        return fixed + int(self.sums[units])

    def build(self, units: int) -> list[Draft]:
        m, task = self.m, self.m.task
        draws = Draws(m.seed, "ruler", task.name, m.length, self.index, "places")
        needles = [
            t.NEEDLE.format(kind=task.value_kind, key=self.keys[n // task.values], value=self.values[n])
            for n in self.order
        ]
        if task.haystack == "essay":
            places, pieces = self._in_essay(units, needles)
        else:
            lines = [t.NOISE] * units if task.haystack == "noise" else self._other_needles(units)
            places, pieces, last = sorted(draws.sample(units, len(needles)).tolist()), [], 0
            for place, needle in zip(places, needles):
                pieces += [*lines[last:place], needle]
                last = place
            pieces += lines[last:]
        context = m.sep.join(pieces)
        asked = {n for k in self.asked for n in range(k * task.values, (k + 1) * task.values)}
        at = [place / units for place, n in zip(places, self.order) if n in asked]
        user = f"{m.head}{context}\n{self.tail}"
        meta = {"units": units, "depths": [round(d, 4) for d in at]}
        depth = sum(at) / len(at) if len(at) == 1 else None
        return [Draft(user, self.prefix, self.refs, task.new_tokens, str(self.index), depth, meta)]

    def _in_essay(self, units: int, needles: list[str]) -> tuple[list[int], list[str]]:
        """Needles at sentence ends, at distinct draws from RULER's 40 depths. (Words before each needle, pieces.)"""
        m = self.m
        assert m.essay is not None
        places, pieces, last = [], [], self.start
        for depth, needle in zip(self.depths, needles):
            # The first word is counted together with what precedes it, so a needle at depth 0 comes after sentence 1.
            wanted = self.start + max(int(units * depth / 100), 1)
            place = m.essay.border_at(wanted) if wanted < self.start + units else wanted
            if place <= self.start:
                place = self._second_sentence(units)
            place = max(place, last)
            pieces += [*m.essay.words(last, place), needle]
            places.append(place - self.start)
            last = place
        return places, pieces + m.essay.words(last, self.start + units)

    def _second_sentence(self, units: int) -> int:
        assert self.m.essay is not None
        essay, n = self.m.essay, len(self.m.essay.starts)
        after = essay.sentences[np.searchsorted(essay.sentences, self.start, side="right") :]
        return self.start + min(units, int(after[0] if len(after) else n) - self.start)

    def _other_needles(self, units: int) -> list[str]:
        kind = self.m.task.value_kind
        keys, values = self.m.keys.texts(self.hay_keys[:units]), self.m.values.texts(self.hay_values[:units])
        return [f"One of the special magic {kind} for {k} is: {v}." for k, v in zip(keys, values)]

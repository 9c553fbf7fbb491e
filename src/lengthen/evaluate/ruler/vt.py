"""RULER's variable tracking: a chain of assignments between lines of noise, after one solved example."""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from itertools import pairwise

from lengthen.evaluate.counting import Counter, Frame
from lengthen.evaluate.draws import Draws
from lengthen.evaluate.fit import Draft
from lengthen.evaluate.ruler import templates as t

HOPS = 4
EXAMPLE_TOKENS = 500  # RULER's size of the example, with the 30 tokens of an answer
_LINE = f"{t.NOISE}\n"  # RULER joins lines that end in a line break with a space
_ASK, _IN_TEXT = t.VT_TAIL.split(" {query}")
_ANSWER, _THEY = t.VT_PREFIX.replace("{count}", str(HOPS + 1)).split(" {query}")
_AGAIN = f"\n\n\n\n{t.VT_HEAD}"  # after the solved example


@dataclass
class VtMaker:
    """One chain of four hops (five names) at one length.

    RULER draws the example once and gives it new names for each sample; so do we. Below 2,048 tokens the example
    shrinks to a quarter of the length: RULER's begins at 4,096, and its example alone is nearly 500 tokens long.
    """

    counter: Counter
    frame: Frame
    length: int
    seed: int
    task: t.RulerTask = t.TASKS["vt"]
    short_of: str = "The noise"
    proven: bool = field(init=False)

    def __post_init__(self) -> None:
        c = self.counter
        self.line = c.count(f" {_LINE}")
        self.proven = c.borders(self._joints())
        room = min(EXAMPLE_TOKENS, self.length // 4) - self.task.new_tokens
        cost = c.count(_solved(["AAA"] * (HOPS + 1), "12345", [0] * (HOPS + 1), 0))
        self.example_lines = max(2, (room - cost) // max(1, self.line))
        self.example_places = _places(Draws(self.seed, "ruler", "vt", "example"), self.example_lines)
        self.fixed = self._fixed()

    def _joints(self) -> list[tuple[str, str]]:
        chain, last = " VAR ABCDE = VAR FGHIJ ", " VAR ABCDE = 12345"
        joints = [(_LINE, f" {_LINE}"), (_LINE, chain), (chain, f" {_LINE}"), (chain, chain), (_LINE, last)]
        joints += [(last, f" {_LINE}"), (last, chain)]
        # Names and values differ from sample to sample and are counted alone, with the space before them.
        name, value, between = " ABC", " 12345", f"{_IN_TEXT}{_ANSWER}"
        joints += [(" VAR", name), (name, " ="), (" =", " VAR"), (" =", value), (name, " ")]
        joints += [(_ASK, value), (value, between), (value, f"{_IN_TEXT}{self.frame.after}"), (_ANSWER, value)]
        return [*joints, (value, _THEY), (_THEY, name), (name, name), (name, _AGAIN)]

    def _fixed(self) -> int:
        """Tokens of a prompt and its example without names, values and its own noise between first and last line."""
        c = self.counter.count
        chain = (HOPS + 1) * (c(" VAR") + c(" =")) + HOPS * (c(" VAR") + c(" "))
        # A line of noise stands first and one stands last: each is counted with what is next to it.
        both = chain + c(f" {_LINE}{_ASK}") + c(_THEY)
        example = both + c(f"{_IN_TEXT}{_ANSWER}") + (self.example_lines - 2) * self.line
        own = both + c(f"{_IN_TEXT}{self.frame.after}{_ANSWER}")
        heads = c(f"{self.frame.before}{t.VT_HEAD}{_LINE}") + c(f"{_AGAIN}{_LINE}")
        return self.frame.added + heads + example + own

    def plan(self, index: int) -> _Plan:
        return _Plan(self, index)


def _names(draws: Draws, count: int, length: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found.update(dict.fromkeys(draws.letters(count, length, string.ascii_uppercase)))
    return list(found)[:count]


def _places(draws: Draws, lines: int) -> list[int]:
    """Noise lines before each assignment: at least one, never all; different ones where there are enough."""
    if lines > HOPS + 1:
        return sorted((1 + draws.sample(lines - 1, HOPS + 1)).tolist())
    return sorted(draws.integers(1, lines, HOPS + 1).tolist())


def _chain(names: list[str], value: str) -> list[str]:
    return [f"VAR {names[0]} = {value}", *(f"VAR {b} = VAR {a} " for a, b in pairwise(names))]


def _context(names: list[str], value: str, places: list[int], lines: int) -> str:
    """`places`: numbers of noise lines before each assignment, rising."""
    pieces: list[str] = []
    last = 0
    for place, step in zip(places, _chain(names, value)):
        pieces += [_LINE] * (place - last)
        pieces.append(step)
        last = place
    return " ".join(pieces + [_LINE] * (lines - last))


def _solved(names: list[str], value: str, places: list[int], lines: int) -> str:
    text = t.VT_HEAD + _context(names, value, places, lines) + t.VT_TAIL.format(query=value)
    prefix = t.VT_PREFIX.format(count=HOPS + 1, query=value)
    return f"{text}{prefix} {' '.join(names)}\n\n\n\n"


class _Plan:
    least, most = 2, 1 << 40

    def __init__(self, maker: VtMaker, index: int) -> None:
        self.m, self.index = maker, index
        self.draws = Draws(maker.seed, "ruler", "vt", maker.length, index)
        self.names, example = _names(self.draws, HOPS + 1, 5), _names(self.draws, HOPS + 1, 3)
        self.value = str(self.draws.integer(10000, 100000))
        other = str(self.draws.integer(10000, 100000))
        self.example = _solved(example, other, maker.example_places, maker.example_lines)
        self.tail = t.VT_TAIL.format(query=self.value)
        self.prefix = t.VT_PREFIX.format(count=HOPS + 1, query=self.value)
        counts = maker.counter.counts([f" {text}" for text in (*self.names, self.value, *example, other)]).tolist()
        own, shown = counts[: HOPS + 2], counts[HOPS + 2 :]
        # Each name stands in its own assignment, all but the last in the next, the example's once more in its answer;
        # the value in the first, in the question and at the answer's beginning.
        self.base = maker.fixed - 2 * maker.line
        self.base += 2 * sum(own[:-1]) - own[-2] + 3 * own[-1] + 3 * sum(shown[:-1]) - shown[-2] + 3 * shown[-1]

    def tokens(self, units: int) -> int:
        return self.base + units * self.m.line

    def build(self, units: int) -> list[Draft]:
        draws = Draws(self.m.seed, "ruler", "vt", self.m.length, self.index, "places")
        places = _places(draws, units)
        context = _context(self.names, self.value, places, units)
        user = f"{self.example}{t.VT_HEAD}{context}{self.tail}"
        meta = {"units": units, "depths": [round(p / units, 4) for p in places]}
        return [Draft(user, self.prefix, tuple(self.names), self.m.task.new_tokens, str(self.index), None, meta)]

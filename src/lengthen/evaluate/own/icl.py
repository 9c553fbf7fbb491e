"""Many-shot classification of real texts whose labels are replaced by numbers, so that only the examples tell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lengthen.evaluate.counting import Counter, Frame
from lengthen.evaluate.draws import Draws
from lengthen.evaluate.fit import Draft

NEW_TOKENS = 8
HEAD = "Each text below is followed by the number of its class. Learn the classes from the examples.\n\n"
TAIL = "Give the number of the class of the last text, and nothing else.\n\n{text}"
PREFIX = "label:"


@dataclass(frozen=True)
class Labelled:
    """Texts with a class each. shown: for examples. asked: for questions; no text is in both."""

    name: str
    classes: tuple[str, ...]
    shown: tuple[tuple[str, int], ...]
    asked: tuple[tuple[str, int], ...]


@dataclass
class IclMaker:
    """Examples in rounds of one per class, in a new order each round; the classes' numbers are drawn per context.

    Where two rounds of all classes do not fit into the length, fewer classes are used, drawn by the seed; the number
    stands in each sample's `meta`.

    rounds: at most so many examples of a class (None: as many as fit).
    """

    data: Labelled
    counter: Counter
    frame: Frame
    length: int
    seed: int
    questions: int = 4
    new_tokens: int = NEW_TOKENS
    rounds: int | None = None
    short_of: str = "The labelled texts"
    proven: bool = False  # real texts end in anything; these prompts are few

    def __post_init__(self) -> None:
        self.counts = self.counter.counts([f"{text}\nlabel: 17\n\n" for text, _ in self.data.shown])
        room = self.length - self.new_tokens - self.counter.count(self.frame.text(HEAD + TAIL, PREFIX))
        room -= int(self.counts.max())
        fitting = max(2, int(room / (2 * float(self.counts.mean()))))
        order = Draws(self.seed, "own icl", self.data.name, self.length, "classes").order(len(self.data.classes))
        self.classes = sorted(order[:fitting].tolist())
        self.by_class: dict[int, list[int]] = {label: [] for label in self.classes}
        for number, (_, label) in enumerate(self.data.shown):
            if label in self.by_class:
                self.by_class[label].append(number)
        self.questions_of = [item for item in self.data.asked if item[1] in self.by_class]

    def plan(self, index: int) -> _Plan:
        return _Plan(self, index)


class _Plan:
    def __init__(self, maker: IclMaker, index: int) -> None:
        self.m, self.index = maker, index
        data = maker.data
        draws = Draws(maker.seed, "own icl", data.name, maker.length, index)
        self.numbers = dict(zip(maker.classes, draws.order(len(maker.classes)).tolist()))
        self.picks = self._rounds(draws)
        asked = draws.sample(len(maker.questions_of), maker.questions).tolist()
        self.asked = [maker.questions_of[i] for i in asked]
        self.least, self.most = len(maker.classes), len(self.picks)
        self.sums = np.cumsum(maker.counts[self.picks])
        tails = [TAIL.format(text=text) + maker.frame.after + PREFIX for text, _ in self.asked]
        self.base = maker.frame.added + maker.counter.count(maker.frame.before + HEAD)
        self.base += int(maker.counter.counts(tails).max())

    def _rounds(self, draws: Draws) -> list[int]:
        orders = [[texts[i] for i in draws.order(len(texts)).tolist()] for texts in self.m.by_class.values()]
        found = []
        for number in range(min(self.m.rounds or 1 << 40, max(len(texts) for texts in orders))):
            # A class whose texts have ended is left out: no example is shown twice.
            present = [texts[number] for texts in orders if number < len(texts)]
            found += draws.shuffled(present)
        return found

    def tokens(self, units: int) -> int:
        return self.base + int(self.sums[units - 1])

    def build(self, units: int) -> list[Draft]:
        data = self.m.data
        shown = [data.shown[i] for i in self.picks[:units]]
        body = "".join(f"{text}\nlabel: {self.numbers[label]}\n\n" for text, label in shown)
        meta = {"shots": units, "classes": len(self.m.classes)}
        return [
            Draft(f"{HEAD}{body}{TAIL.format(text=text)}", PREFIX, (str(self.numbers[label]),), self.m.new_tokens,
                  str(self.index), None, {**meta, "class": data.classes[label]})
            for text, label in self.asked
        ]  # fmt: skip


def score_label(output: str, number: str) -> float:
    """1 if the first number of the answer is the right one."""
    import re

    match = re.search(r"\d+", output)
    return float(match is not None and match[0] == number)

"""JSON key-value: a JSON object of random UUID pairs, and the value of one key is asked (the layout of arXiv
2307.03172, section 3.2, with several questions over one object)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lengthen.evaluate.counting import Counter, Frame
from lengthen.evaluate.draws import Draws
from lengthen.evaluate.fit import Draft

NEW_TOKENS = 100
INSTRUCTION = "\n\nExtract the value corresponding to the specified key in the JSON object below.\n\n"
PREFIX = "Corresponding value:"
DEMOS = 2


def demo(key: str, value: str) -> str:
    return f"Key: {key}\nCorresponding value: {value}\n\n"


@dataclass
class JsonKvMaker:
    """One object per context, `questions` keys of it at even depths.

    A UUID has about 20 tokens, and every one is drawn from a pool that is tokenised once.
    """

    counter: Counter
    frame: Frame
    length: int
    seed: int
    questions: int = 4
    new_tokens: int = NEW_TOKENS
    name: str = "json_kv"
    short_of: str = "The pairs"
    proven: bool = field(init=False)

    def __post_init__(self) -> None:
        c = self.counter
        size = max(2048, 1 << (self.length // 16).bit_length())
        self.pool = Draws(self.seed, "own json", "pool").uuids(size)
        self.key_counts = c.counts([f'"{u}":' for u in self.pool])
        self.value_counts = c.counts([f' "{u}' for u in self.pool])
        self.end = c.count('",\n')
        joints = [('"0a":', ' "0a'), ('"a0":', ' "a0')]
        joints += [(f' "{x}', y) for x in "0a" for y in ('",\n', '"}' + INSTRUCTION)]
        joints += [('",\n', f'"{x}') for x in "0a"]
        self.proven = c.borders(joints)

    def plan(self, index: int) -> _Plan:
        return _Plan(self, index)


class _Plan:
    def __init__(self, maker: JsonKvMaker, index: int) -> None:
        self.m, self.index = maker, index
        draws = Draws(maker.seed, "own json", maker.length, index)
        most = min(len(maker.pool) // 2 - DEMOS, int(1.1 * maker.length / float(maker.key_counts.mean())) + 8)
        picks = draws.sample(len(maker.pool), 2 * (most + DEMOS))
        pairs = picks.reshape(-1, 2)
        self.demos = "".join(demo(maker.pool[k], maker.pool[v]) for k, v in pairs[:DEMOS].tolist())
        self.pairs = pairs[DEMOS:]
        units = maker.key_counts[self.pairs[:, 0]] + maker.value_counts[self.pairs[:, 1]] + maker.end
        self.sums = np.concatenate([[0], np.cumsum(units)])
        self.least, self.most = max(2, maker.questions), most
        self.places_of: dict[int, list[int]] = {}
        self.first = maker.counter.count(f'{maker.frame.before}{{"') - maker.counter.count('"')

    def places(self, units: int) -> list[int]:
        """Rows that are asked: at even depths, from the first to the last."""
        asked = self.m.questions
        if asked == 1:
            # One question per object: the depths go round over the samples.
            return [round((self.index % 6) / 5 * (units - 1))]
        return [round(i * (units - 1) / (asked - 1)) for i in range(asked)]

    def tail(self, key: str) -> str:
        return f"{INSTRUCTION}{self.demos}Key: {key}"

    def tokens(self, units: int) -> int:
        m = self.m
        tails = [f'"}}{self.tail(m.pool[self.pairs[place, 0]])}{m.frame.after}{PREFIX}' for place in self.places(units)]
        return m.frame.added + self.first + int(self.sums[units]) - m.end + int(m.counter.counts(tails).max())

    def build(self, units: int) -> list[Draft]:
        pool = self.m.pool
        rows = self.pairs[:units].tolist()
        body = ",\n".join([f'"{pool[k]}": "{pool[v]}"' for k, v in rows])
        drafts = []
        for place in self.places(units):
            key, value = (pool[i] for i in rows[place])
            user = f"{{{body}}}{self.tail(key)}"
            depth = place / max(1, units - 1)
            meta = {"pairs": units}
            drafts.append(Draft(user, PREFIX, (value,), self.m.new_tokens, str(self.index), depth, meta))
        return drafts

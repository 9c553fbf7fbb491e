"""Question answering and re-ranking over real text with planted facts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lengthen.evaluate.counting import Counter, Frame
from lengthen.evaluate.draws import Draws
from lengthen.evaluate.fit import Draft
from lengthen.evaluate.own.passages import Quartet, plant, quartets

QA_TOKENS = 32
QA_HEAD = "Below are numbered passages. One of them answers the question that follows them.\n\n"
QA_TAIL = "Answer with a few words taken from the passages.\n\nQuestion: {question}"
QA_PREFIX = "Answer:"
RANK_TOKENS = 64
RANK_HEAD = "Below are numbered passages. Judge how much each of them helps with the question that follows them.\n\n"
RANK_TAIL = (
    "List the ids of the passages that help, from the most helpful to the least, joined by '>', such as 3 > 1 > 2. "
    "The passage with the answer comes first, then passages about the same subject.\n\nQuestion: {question}"
)
RANK_PREFIX = "Ranking:"


@dataclass
class PlantedMaker:
    """Shuffled passages of real text; each question has four planted facts in passages of their own.

    task: `planted_qa` (the answer must be found) or `planted_rerank` (ids by relevance: 2 for the passage with the
        answer, 1 for another fact about the same subject, 0 for the rest).
    """

    task: Literal["planted_qa", "planted_rerank"]
    counter: Counter
    frame: Frame
    length: int
    seed: int
    passages: list[str]
    questions: int = 4
    short_of: str = "The passages"
    proven: bool = False  # labels, punctuation and real text meet in too many ways; these prompts are few

    def __post_init__(self) -> None:
        self.counts = self.counter.counts([f"[{i}] {p}\n\n" for i, p in enumerate(self.passages, 1)])

    @property
    def new_tokens(self) -> int:
        return QA_TOKENS if self.task == "planted_qa" else RANK_TOKENS

    def plan(self, index: int) -> _Plan:
        return _Plan(self, index)


class _Plan:
    def __init__(self, maker: PlantedMaker, index: int) -> None:
        self.m, self.index = maker, index
        draws = Draws(maker.seed, "own", maker.task, maker.length, index)
        self.asked: list[Quartet] = quartets(draws, maker.questions)
        self.order = draws.order(len(maker.passages))
        self.least, self.most = 4 * maker.questions, len(maker.passages)
        head, tail = (QA_HEAD, QA_TAIL) if maker.task == "planted_qa" else (RANK_HEAD, RANK_TAIL)
        facts = maker.counter.counts([f" {f.text}" for q in self.asked for f in q.facts])
        tails = [tail.format(question=q.gold.question) + maker.frame.after for q in self.asked]
        self.base = maker.frame.added + maker.counter.count(maker.frame.before + head) + int(facts.sum())
        self.base += int(maker.counter.counts(tails).max()) + 8
        self.sums = np.cumsum(maker.counts[self.order])

    def tokens(self, units: int) -> int:
        return self.base + int(self.sums[units - 1])

    def build(self, units: int) -> list[Draft]:
        m = self.m
        draws = Draws(m.seed, "own", m.task, m.length, self.index, "places")
        texts = [m.passages[i] for i in self.order[:units].tolist()]
        places = self._places(draws, units)
        flat = [fact for quartet in self.asked for fact in quartet.facts]
        for place, fact in zip(places, flat):
            texts[place] = plant(texts[place], fact, draws)
        body = "".join(f"[{i}] {text}\n\n" for i, text in enumerate(texts, 1))
        return [self._draft(body, q, places[4 * i : 4 * i + 4], units) for i, q in enumerate(self.asked)]

    def _places(self, draws: Draws, units: int) -> list[int]:
        """Passages of the facts: gold ones spread evenly over the depth (shifted by sample), the others anywhere."""
        n = len(self.asked)
        shift = draws.integer(0, units)
        gold = [(shift + round(i * units / n)) % units for i in range(n)]
        rest = [i for i in draws.order(units).tolist() if i not in set(gold)]
        return [place for i in range(n) for place in (gold[i], *rest[3 * i : 3 * i + 3])]

    def _draft(self, body: str, quartet: Quartet, places: list[int], units: int) -> Draft:
        depth = places[0] / max(1, units - 1)
        question = quartet.gold.question
        context = str(self.index)
        if self.m.task == "planted_qa":
            user = f"{QA_HEAD}{body}{QA_TAIL.format(question=question)}"
            meta = {"passages": units, "kind": quartet.gold.kind}
            return Draft(user, QA_PREFIX, (quartet.gold.answer,), QA_TOKENS, context, depth, meta)
        labels = {str(places[0] + 1): 2, str(places[1] + 1): 1}
        user = f"{RANK_HEAD}{body}{RANK_TAIL.format(question=question)}"
        ideal = " > ".join(labels)
        meta = {"passages": units, "labels": labels}
        return Draft(user, RANK_PREFIX, (ideal,), RANK_TOKENS, context, depth, meta)

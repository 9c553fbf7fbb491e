"""Quality by a judge model: pinned prompts, raw answers kept, broken JSON repaired or counted, never scored zero."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lengthen.generate.engine import Engine, Message, Request

ATTEMPTS = 2


@dataclass(frozen=True)
class Rubric:
    """What a judge is asked. prompt: with slots in braces, filled by `str.replace`, so that texts may hold braces.

    scales: each criterion's lowest and highest value; an answer that leaves one out or goes beyond is unparsable.
    """

    name: str
    prompt: str
    scales: Mapping[str, tuple[float, float]]
    max_new_tokens: int = 800

    @property
    def sha256(self) -> str:
        """Stands beside every score, since scores move with the judge's prompt."""
        return hashlib.sha256(self.prompt.encode()).hexdigest()

    def fill(self, slots: Mapping[str, str]) -> str:
        """The prompt with its slots filled, in one pass (a response that contains `{response}` stays as it is)."""
        import re

        return re.sub("|".join(rf"\{{{name}\}}" for name in slots), lambda m: slots[m[0][1:-1]], self.prompt)


@dataclass(frozen=True)
class Verdict:
    """A judge's answer to one text. scores: None when it could not be read, after all attempts. raw: every attempt."""

    id: str
    scores: dict[str, float] | None
    raw: tuple[str, ...]
    error: str | None = None


def judge(engine: Engine, rubric: Rubric, items: Sequence[tuple[str, Mapping[str, str]]]) -> dict[str, Verdict]:
    """Ask a judge about each (id, slots). An unreadable or failed answer is asked for again once.

    Returns:
        id -> Verdict. Unparsable ones have no scores: they are counted and left out of means, never taken as zero.
    """
    found: dict[str, Verdict] = {}
    raw: dict[str, list[str]] = {name: [] for name, _ in items}
    waiting = dict(items)
    for attempt in range(ATTEMPTS):
        requests = [_request(rubric, name, slots, attempt) for name, slots in waiting.items()]
        for answer in engine.generate(requests):
            raw[answer.id].append(answer.text)
            scores = None if answer.error else read_scores(answer.text, rubric.scales)
            error = answer.error or (None if scores else "no readable scores")
            found[answer.id] = Verdict(answer.id, scores, tuple(raw[answer.id]), error)
        waiting = {name: slots for name, slots in waiting.items() if found[name].scores is None}
        if not waiting:
            break
    return found


def _request(rubric: Rubric, name: str, slots: Mapping[str, str], attempt: int) -> Request:
    message: Message = {"role": "user", "content": rubric.fill(slots)}
    # A greedy judge would repeat its broken answer, so a second attempt is sampled.
    temperature = 0.0 if attempt == 0 else 0.7
    return Request(
        id=name,
        messages=(message,),
        max_new_tokens=rubric.max_new_tokens,
        temperature=temperature,
        top_p=0.95 if attempt else 1.0,
        seed=attempt,
    )


def read_scores(text: str, scales: Mapping[str, tuple[float, float]]) -> dict[str, float] | None:
    """The last JSON object of a text that holds all criteria within their scales, repaired where it is broken."""
    for begin in reversed([i for i, c in enumerate(text) if c == "{"]):
        scores = _checked(_repaired(text[begin:]), scales)
        if scores is not None:
            return scores
    return None


def _repaired(text: str) -> Any:
    import json_repair

    return json_repair.loads(text)


def _checked(value: Any, scales: Mapping[str, tuple[float, float]]) -> dict[str, float] | None:
    if isinstance(value, list):
        value = next((v for v in value if isinstance(v, dict)), None)
    if not isinstance(value, dict):
        return None
    lower = {str(k).strip().lower(): v for k, v in value.items()}
    scores: dict[str, float] = {}
    for name, (low, high) in scales.items():
        try:
            score = float(str(lower[name.lower()]).split("/")[0])
        except (KeyError, ValueError):
            return None
        if not low <= score <= high:
            return None
        scores[name] = score
    return scores


# LonGen's seven criteria (arXiv 2410.23933, section 4.1), in our own words.
LONGEN = Rubric(
    name="longen",
    prompt="""You assess a long text that was written for a request. Be strict: most texts deserve a middle score, and \
only outstanding ones more than 8. Pay no attention to any demand about length: another program measures it.

Give each of these seven criteria a whole number from 1 (bad) to 10 (excellent):
- relevance: it does what the request asks, and nothing else;
- coherence: its parts follow from each other and make a whole;
- accuracy: its statements are correct, as far as you can tell;
- consistency: names, facts, style and point of view stay the same from the beginning to the end;
- clarity: a reader understands it at first reading;
- creativity: it has ideas of its own;
- engagement: one wants to read on.

<request>
{query}
</request>

<text>
{response}
</text>

First write two or three sentences about its strengths and weaknesses. Then write one JSON object and nothing after it:
{"relevance": 0, "coherence": 0, "accuracy": 0, "consistency": 0, "clarity": 0, "creativity": 0, "engagement": 0}
with your numbers in place of the zeros.""",
    scales={
        name: (1, 10)
        for name in ("relevance", "coherence", "accuracy", "consistency", "clarity", "creativity", "engagement")
    },
)

# LongBench-Write's six criteria (arXiv 2408.07055, section 2.2), in our own words.
LONGBENCH_WRITE = Rubric(
    name="longbench-write",
    prompt="""You assess the quality of a text that was written for a request. Be strict, and pay no attention to its \
length: another program measures it.

Give each of these six criteria a whole number from 1 (bad) to 5 (excellent):
- relevance: it does what the request asks;
- accuracy: its statements are correct and free of contradictions;
- coherence: it has a clear structure and runs smoothly;
- clarity: its language is clear and precise;
- breadth and depth: it covers its subject widely and in detail;
- reading experience: it is pleasant and interesting to read.

<request>
{query}
</request>

<text>
{response}
</text>

First write two or three sentences about its strengths and weaknesses. Then write one JSON object and nothing after it:
{"relevance": 0, "accuracy": 0, "coherence": 0, "clarity": 0, "breadth and depth": 0, "reading experience": 0}
with your numbers in place of the zeros.""",
    scales={
        name: (1, 5)
        for name in ("relevance", "accuracy", "coherence", "clarity", "breadth and depth", "reading experience")
    },
)


def quality(rubric: Rubric, scores: Mapping[str, float]) -> float:
    """Plain mean of the criteria on 0..1 (LongBench-Write's (mean - 1) x 25 / 100; LonGen states no way of averaging
    its seven, so the plain mean, scaled from 1..10)."""
    low, high = next(iter(rubric.scales.values()))
    return (sum(scores.values()) / len(scores) - low) / (high - low)

"""The needle test: a sentence with a number in a long text, and a question for the number.

A map of depth x length (G. Kamradt's test) with RULER's kinds of needles (arXiv 2404.06654, section 3: several keys,
several values, several queries) in wordings of our own, so that the scores are named after neither. Needles stand at
sentence borders; each sample has its own key, value and piece of text; a right answer holds the number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lengthen.common.errors import LengthenError
from lengthen.evaluate.draws import Draws
from lengthen.evaluate.haystack import Haystack, Piece, haystack
from lengthen.evaluate.samples import Sample
from lengthen.evaluate.scorers import share_found
from lengthen.evaluate.suites import Job, Suite, cell_context
from lengthen.recipe.base import size_text


@dataclass(frozen=True)
class Kind:
    """keys: names with a number; values: numbers of a name; queries: names asked for."""

    keys: int = 1
    values: int = 1
    queries: int = 1


KINDS = {
    "single": Kind(),
    "multikey": Kind(keys=4),
    "multivalue": Kind(values=4),
    "multiquery": Kind(keys=4, queries=4),
}
_PLACES = (
    "Amsterdam Ankara Athens Bangkok Barcelona Beirut Belfast Bergen Berlin Bogota Bordeaux Bremen Brisbane Bristol "
    "Brussels Budapest Cairo Calgary Caracas Casablanca Chicago Cologne Copenhagen Dakar Dallas Damascus Delhi Denver "
    "Detroit Dresden Dublin Durban Edinburgh Florence Frankfurt Geneva Genoa Glasgow Granada Hamburg Hanoi Havana "
    "Helsinki Houston Istanbul Jakarta Kabul Karachi Kiev Kingston Krakow Kyoto Lagos Leeds Leipzig Lima Lisbon "
    "Liverpool London Lyon Madrid Malaga Manchester Manila Marseille Melbourne Memphis Miami Milan Montreal Moscow "
    "Mumbai Munich Nairobi Naples Osaka Oslo Ottawa Oxford Palermo Paris Perth Philadelphia Porto Prague Quebec Quito "
    "Rome Rotterdam Salzburg Santiago Seattle Seoul Seville Shanghai Sofia Stockholm Sydney Tehran Tokyo Toronto "
    "Toulouse Tunis Turin Valencia Vancouver Venice Vienna Warsaw Zurich"
)
PLACES = _PLACES.split()
HEAD = "Numbers are hidden in the following text. Read it with care; a question about them follows it.\n\n"
HEAD_ONE = "A number is hidden in the following text. Read it with care; a question about it follows it.\n\n"
NEEDLE = "The lucky number of {key} is {value}."
ASK_ONE = "\n\nWhat is the lucky number of {keys}, according to the text?"
ASK = "\n\nWhat are all the lucky numbers of {keys}, according to the text?"
PREFIX_ONE = "According to the text, the lucky number of {keys} is"
PREFIX = "According to the text, the lucky numbers of {keys} are"
LEAST_SHARE = 0.98


def spread(index: int) -> float:
    """Depth of sample `index`: 0, 1, 1/2, 1/4, 3/4, 1/8, 5/8 ... (van der Corput's sequence after both ends).

    Any number of samples is spread evenly, and the first ones of a long series are those of a short one.
    """
    if index < 2:
        return float(index)
    number, depth, step = index - 1, 0.0, 0.5
    while number:
        depth += step * (number & 1)
        number, step = number >> 1, step / 2
    return depth


def depth_of(job: Job, index: int) -> float:
    depths = job.settings.depths
    return spread(index) if not depths else depths[index % len(depths)] / 100


def make(job: Job, task: str, length: int, contexts: range) -> Iterator[Sample]:
    """Samples of one cell; sample i is the same in every run with this seed, task, length and tokenizer."""
    hay = haystack(job.settings.haystack, job.prompts.tokenizer)
    for index in contexts:
        yield _sample(job, hay, task, length, index)


def _sample(job: Job, hay: Haystack, task: str, length: int, index: int) -> Sample:
    kind, depth = KINDS[task], depth_of(job, index)
    draws = Draws(job.seed, "needle", task, length, index)
    keys = [PLACES[i] for i in draws.sample(len(PLACES), kind.keys)]
    values = [str(v) for v in draws.distinct(1_000_000, 10_000_000, kind.keys * kind.values)]
    asked = keys[: kind.queries]
    facts = [(key, values[k * kind.values + v]) for k, key in enumerate(keys) for v in range(kind.values)]
    wanted = kind.queries * kind.values
    depths = _depths(kind, depth, len(facts), draws)
    one = wanted == 1
    names = asked[0] if len(asked) == 1 else ", ".join(asked[:-1]) + " and " + asked[-1]
    parts = _Parts(
        (HEAD if len(facts) > 1 else HEAD_ONE),
        tuple(NEEDLE.format(key=key, value=value) for key, value in facts),
        depths,
        (ASK_ONE if one else ASK).format(keys=names),
        (PREFIX_ONE if one else PREFIX).format(keys=names),
    )
    # Depths of one round share their text; the text of a round depends on the round alone.
    rounds = len(job.settings.depths or ()) or 1
    group = index // rounds if job.settings.same_haystack else index
    start = hay.sentence_starts[
        Draws(job.seed, "needle-text", task, length, group).integer(0, len(hay.sentence_starts))
    ]
    user, tokens, true_depth, repeated = _fit(job, hay, start, parts, length, job.new_tokens(task))
    return Sample(
        id=f"needle/{task}/{length}/{index}",
        suite="needle",
        task=task,
        length=length,
        context=cell_context("needle", task, length, index),
        user=user,
        prefix=parts.prefix,
        refs=tuple(value for _, value in facts[:wanted]),
        new_tokens=job.new_tokens(task),
        tokens=tokens,
        depth=depth,
        share=f"needle/{task}/{length}/text-{group}" if job.settings.same_haystack else None,
        meta={"true_depth": round(true_depth, 4), **({"haystack_repeats": True} if repeated else {})},
    )


def _depths(kind: Kind, depth: float, facts: int, draws: Draws) -> tuple[float, ...]:
    """Asked needles: the first at `depth`, further ones evenly between it and the end. Others anywhere."""
    asked = kind.queries * kind.values
    first = [depth + (1 - depth) * i / asked for i in range(asked)]
    return (*first, *(d / 1000 for d in draws.integers(0, 1001, facts - asked).tolist()))


@dataclass(frozen=True)
class _Parts:
    head: str
    needles: tuple[str, ...]
    depths: tuple[float, ...]
    question: str
    prefix: str

    def user(self, piece: Piece) -> tuple[str, float]:
        """The whole message, and the true depth of the first needle, by characters."""
        places = [piece.border_at(depth) for depth in self.depths]
        text = piece.text
        for at, needle in sorted(zip(places, self.needles), key=lambda pair: pair[0], reverse=True):
            before, after = text[:at], text[at:]
            text = f"{before}{'' if not before or before[-1].isspace() else ' '}{needle}{' ' if after else ''}{after}"
        return f"{self.head}{text}{self.question}", places[0] / max(1, len(piece.text))


def _fit(
    job: Job, hay: Haystack, start: int, parts: _Parts, length: int, new_tokens: int
) -> tuple[str, int, float, bool]:
    """(message, prompt tokens, true depth, text repeats); with the answer's room 98% to 100% of the length."""
    limit = length - new_tokens
    bare = job.prompts.count(parts.user(Piece("", ()))[0], parts.prefix)
    budget = limit - bare
    if budget < 16:
        raise LengthenError(
            f"needle: {size_text(length)} tokens are too few: question and answer alone take {bare + new_tokens}.",
            fix="ask for a greater length, or a smaller max_new_tokens",
        )
    for _ in range(8):
        # Cutting back to the end of a sentence may cost one percent of the length; else the cut is between words.
        piece = hay.piece(start, budget).trimmed(most=int(length / 100 * len(hay.text) / hay.tokens))
        user, depth = parts.user(piece)
        tokens = job.prompts.count(user, parts.prefix)
        if tokens <= limit and tokens + new_tokens >= LEAST_SHARE * length:
            return user, tokens, depth, piece.repeated
        budget += min(-1, limit - tokens) if tokens > limit else max(1, limit - tokens)
    raise LengthenError(
        f"needle: no prompt of {size_text(length)} tokens could be made from the haystack '{job.settings.haystack}'.",
        why="its words are so long in tokens that no cut falls between 98% and 100% of the length",
        fix="use another haystack, or another length",
    )


def score(sample: Sample, output: str) -> float:
    """Share of the numbers that stand in the answer."""
    return share_found(output, sample.refs)


def parameters(job: Job, task: str) -> dict[str, Any]:
    hay = haystack(job.settings.haystack, job.prompts.tokenizer)
    return {
        "haystack": hay.sha256,
        "depths": job.settings.depths,
        "same_haystack": job.settings.same_haystack,
        "new_tokens": job.new_tokens(task),
    }


SUITE = Suite(
    "needle",
    tasks={"single": 16, "multikey": 16, "multivalue": 64, "multiquery": 64},
    default=("single",),
    make=make,
    score=score,
    parameters=parameters,
)

"""The needle test: a sentence with a number in a long text, and a question for the number.

A map of depth x length (G. Kamradt's test) with RULER's kinds of needles (arXiv 2404.06654, section 3: several keys,
several values, several queries) in wordings of our own, so that the scores are named after neither. Needles stand at
sentence borders; each sample has its own key, value and piece of text; a right answer holds the number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from lengthen.common.errors import LengthenError
from lengthen.evaluate.draws import Draws
from lengthen.evaluate.haystack import Haystack, Piece, haystack
from lengthen.evaluate.samples import Sample
from lengthen.evaluate.scorers import share_found
from lengthen.evaluate.suites import Job, Suite, cell_context
from lengthen.recipe.base import Settings, size_text


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


class NeedleOptions(Settings):
    """Options of the needle suite."""

    questions: int = Field(
        default=1,
        ge=1,
        le=20,
        description="Questions over one text, each for needles of its own; `samples` counts texts. The "
        "text is read once, so four questions cost little more than one; intervals are drawn over texts.",
    )


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
    """Samples of one cell; text i is the same in every run with this seed, task, length, number of questions and
    tokenizer."""
    hay = haystack(job.settings.haystack, job.prompts.tokenizer)
    for index in contexts:
        yield from _samples(job, hay, task, length, index)


def _samples(job: Job, hay: Haystack, task: str, length: int, index: int) -> list[Sample]:
    """The questions about text number `index`. Each has needles of its own; those of the others are distractors."""
    kind, questions = KINDS[task], job.options.questions
    draws = Draws(job.seed, "needle", task, length, index)
    keys = [PLACES[i] for i in draws.sample(len(PLACES), questions * kind.keys)]
    values = [str(v) for v in draws.distinct(1_000_000, 10_000_000, len(keys) * kind.values)]
    facts = [(key, values[k * kind.values + v]) for k, key in enumerate(keys) for v in range(kind.values)]
    each = kind.keys * kind.values
    starts = [depth_of(job, index * questions + question) for question in range(questions)]
    depths = [place for start in starts for place in _depths(kind, start, each, draws)]
    tails = [_ask(kind, keys[q * kind.keys :][: kind.queries]) for q in range(questions)]
    needles = tuple(NEEDLE.format(key=key, value=value) for key, value in facts)
    parts = _Parts(HEAD if len(facts) > 1 else HEAD_ONE, needles, tuple(depths), tails)
    # Depths of one round share their text; the text of a round depends on the round alone.
    rounds = len(job.settings.depths or ()) or 1
    group = index // rounds if job.settings.same_haystack else index
    start = hay.sentence_starts[
        Draws(job.seed, "needle-text", task, length, group).integer(0, len(hay.sentence_starts))
    ]
    fitted = _fit(job, hay, start, parts, length, job.new_tokens(task))
    context = cell_context("needle", task, length, index)
    shared = f"needle/{task}/{length}/text-{group}" if job.settings.same_haystack else None
    return [
        Sample(
            id=context if questions == 1 else f"{context}/{question}",
            suite="needle",
            task=task,
            length=length,
            context=context,
            user=fitted.text + ask,
            prefix=prefix,
            refs=tuple(value for _, value in facts[question * each :][: kind.queries * kind.values]),
            new_tokens=job.new_tokens(task),
            tokens=fitted.tokens[question],
            depth=starts[question],
            share=context if questions > 1 else shared,
            meta={
                "true_depth": round(fitted.depths[question * each], 4),
                **({"haystack_repeats": True} if fitted.repeated else {}),
            },
        )
        for question, (ask, prefix) in enumerate(tails)
    ]


def _ask(kind: Kind, names: list[str]) -> tuple[str, str]:
    """(question, beginning of the answer)."""
    one = kind.queries * kind.values == 1
    keys = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    return (ASK_ONE if one else ASK).format(keys=keys), (PREFIX_ONE if one else PREFIX).format(keys=keys)


def _depths(kind: Kind, depth: float, facts: int, draws: Draws) -> tuple[float, ...]:
    """Asked needles: the first at `depth`, further ones evenly between it and the end. Others anywhere."""
    asked = kind.queries * kind.values
    first = [depth + (1 - depth) * i / asked for i in range(asked)]
    return (*first, *(d / 1000 for d in draws.integers(0, 1001, facts - asked).tolist()))


@dataclass(frozen=True)
class _Parts:
    """tails: (question, beginning of the answer) of each question about the text."""

    head: str
    needles: tuple[str, ...]
    depths: tuple[float, ...]
    tails: list[tuple[str, str]]

    def text(self, piece: Piece) -> tuple[str, list[float]]:
        """The message up to the question, and the true depth of each needle, by characters."""
        places = [piece.border_at(depth) for depth in self.depths]
        text = piece.text
        for at, needle in sorted(zip(places, self.needles), key=lambda pair: pair[0], reverse=True):
            before, after = text[:at], text[at:]
            text = f"{before}{'' if not before or before[-1].isspace() else ' '}{needle}{' ' if after else ''}{after}"
        return f"{self.head}{text}", [place / max(1, len(piece.text)) for place in places]


@dataclass(frozen=True)
class _Fitted:
    """text: the message up to the question. tokens: of each question's prompt. depths: true ones, of all needles."""

    text: str
    tokens: list[int]
    depths: list[float]
    repeated: bool


def _fit(job: Job, hay: Haystack, start: int, parts: _Parts, length: int, new_tokens: int) -> _Fitted:
    """A text that takes 98% to 100% of the length together with the longest question and the answer's room."""
    limit = length - new_tokens
    bare, (ask, prefix) = max((job.prompts.count(parts.text(Piece("", ()))[0] + t[0], t[1]), t) for t in parts.tails)
    budget = limit - bare
    if budget < 16:
        raise LengthenError(
            f"needle: {size_text(length)} tokens are too few: question and answer alone take {bare + new_tokens}.",
            fix="ask for a greater length, fewer questions over one text, or a smaller max_new_tokens",
        )
    for _ in range(8):
        # Cutting back to the end of a sentence may cost one percent of the length; else the cut is between words.
        piece = hay.piece(start, budget).trimmed(most=int(length / 100 * len(hay.text) / hay.tokens))
        text, depths = parts.text(piece)
        tokens = job.prompts.count(text + ask, prefix)
        if tokens <= limit and tokens + new_tokens >= LEAST_SHARE * length:
            counts = [job.prompts.count(text + ask, prefix) for ask, prefix in parts.tails]
            if max(counts) <= limit:
                return _Fitted(text, counts, depths, piece.repeated)
            tokens = max(counts)
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
    if job.options.questions > 1 and job.settings.same_haystack:
        raise LengthenError(
            f"needle: same_haystack and questions: {job.options.questions} exclude each other.",
            why="each text of several questions has its needles at several depths already, and is read once",
            fix="leave same_haystack out, or ask one question a text",
        )
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
    options=NeedleOptions,
    parameters=parameters,
)

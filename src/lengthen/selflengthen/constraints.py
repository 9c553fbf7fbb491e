"""Length demands in the final data: a band that holds the text, words for it, the demand woven into the instruction.

The original's demands are partly false (Chinese strings swapped, numbers rounded out of their own band). Here a demand
is made so that LonGen's band for it holds the text, and checked again with LonGen's scorer and counter at the end. What
a model wove in must say the same of the same number, and no older length may stay beside it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lengthen.common.seeds import named_random
from lengthen.common.words import count_longen, count_words, longen_band, longen_length_score
from lengthen.recipe.stages.self_lengthen import Constraints
from lengthen.selflengthen.checks import Verdict, failure
from lengthen.selflengthen.distinct import lcs_length, words_of
from lengthen.selflengthen.lengths import chinese_numeral, names_length, numbers_in, said_of
from lengthen.selflengthen.pipeline import Task
from lengthen.selflengthen.store import Key
from lengthen.selflengthen.wording import Wording
from lengthen.selflengthen.work import Work, user

ROLE = "constraint"


@dataclass(frozen=True)
class Demand:
    """kind, low (and high for a range): as `longen_band` takes them. text: the demand in words."""

    kind: str
    low: int
    high: int | None
    text: str

    @property
    def band(self) -> tuple[float, float]:
        return longen_band(self.kind, self.low, self.high)

    @property
    def numbers(self) -> tuple[int, ...]:
        return (self.low,) if self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Scale:
    """Lengths that may be asked for: multiples of `step` from `low` to `high` words. finer: where no multiple fits a
    text, smaller steps may be taken (step: auto)."""

    low: int
    high: int
    step: int
    finer: bool = False

    def held(self, lengths: Sequence[int]) -> int:
        """How many of these lengths lie on the scale."""
        return sum(self.low <= words <= self.high for words in lengths)


def scale_for(lengths: Sequence[int], settings: Constraints) -> Scale:
    """The settings' numbers; `auto` takes a round step, about a sixth of what the middle 80% of the texts spread over,
    and the shortest and the longest text (2,000-8,000 words, the paper's band, give a small model no rows at all)."""
    ordered = sorted(lengths) or [settings.low if settings.low != "auto" else 1000]
    tenth, ninetieth = ordered[len(ordered) // 10], ordered[(9 * (len(ordered) - 1) + 9) // 10]
    step, finer = settings.step, settings.step == "auto"
    if step == "auto":
        step = _round_number(max(1.0, (ninetieth - tenth) / 6, tenth / 10))
    low, high = settings.low, settings.high
    if low == "auto":
        low = max(1, _floor(ordered[0], step) or (_floor(ordered[0], _finer(ordered[0])) if finer else step))
    if high == "auto":
        high = max(low + step, -(-ordered[-1] // step) * step)
    return Scale(low, high, step, finer)


def too_narrow(lengths: Sequence[int], scale: Scale, settings: Constraints) -> str:
    """A sentence about a given band that holds under half of the texts, or ""."""
    held = scale.held(lengths)
    if settings.low == settings.high == "auto" or 2 * held >= len(lengths):
        return ""
    rest = "keep their bare instructions" if settings.without_band == "bare" else "are dropped"
    return (
        f"constraints: {held:,} of {len(lengths):,} texts have {scale.low:,} to {scale.high:,} words; the others get "
        f"no length demand and {rest}. Low, high and step `auto` follow the texts"
    )


def _round_number(value: float) -> int:
    """The nearest of 1, 2, 5 times a power of ten, at least 10."""
    power = 10 ** math.floor(math.log10(value))
    return max(10, int(min((1, 2, 5, 10), key=lambda m: abs(m * power - value)) * power))


def _floor(value: int, step: int) -> int:
    return value // step * step


def _finer(words: int) -> int:
    """A round step of at most a quarter of a text's words (1, 2, 5 times a power of ten): with it every kind of demand
    has a number whose band holds the text."""
    power = 10 ** math.floor(math.log10(max(1.0, words / 4)))
    return max(m * power for m in (1, 2, 5) if m == 1 or 4 * m * power <= words)


def demand_for(words: int, scale: Scale, settings: Constraints, wording: Wording, seed: int) -> Demand | None:
    """A demand whose band holds a text of so many words (LonGen's counter), or None.

    The kind is drawn by its weight; a kind that has no number on the scale for this text gives way to the next.
    """
    if not scale.low <= words <= scale.high:
        return None
    draws = named_random(seed, "demand")
    weights = dict(settings.kinds)
    coarse = scale.step * (2 if draws.random() < settings.double_step else 1)
    steps = dict.fromkeys((coarse, scale.step, min(scale.step, _finer(words)) if scale.finer else scale.step))
    while weights:
        kind = draws.choices(list(weights), list(weights.values()))[0]
        for step in steps:
            numbers = _numbers(kind, words, step, scale)
            if numbers is not None:
                return _worded(kind, numbers, settings, wording, draws)
        del weights[kind]
        if not any(weights.values()):
            break
    return None


def _numbers(kind: str, words: int, step: int, scale: Scale) -> tuple[int, int | None] | None:
    floor = min(max(_floor(words, step), scale.low), scale.high)
    ceiling = min(max(-(-words // step) * step, scale.low), scale.high)
    if kind == "range":
        if floor == ceiling and ceiling + step <= scale.high:
            ceiling += step
        elif floor == ceiling and floor - step >= scale.low:
            floor -= step
        numbers: tuple[int, int | None] = (floor, ceiling)
        fits = floor < ceiling and floor <= words <= ceiling
    else:
        value = {"about": min((floor, ceiling), key=lambda x: abs(x - words)), "above": floor, "below": ceiling}[kind]
        numbers = (value, None)
        low, high = longen_band(kind, value)
        fits = low <= words <= high
    return numbers if fits else None


def _worded(
    kind: str, numbers: tuple[int, int | None], settings: Constraints, wording: Wording, draws: random.Random
) -> Demand:
    low, high = numbers
    chinese = wording.language == "zh"
    numerals = chinese and draws.random() < settings.chinese_numerals and max(low, high or 0) < 100_000
    show = chinese_numeral if numerals else str if chinese else "{:,}".format
    pattern = draws.choice(wording.phrases["demands"][kind])
    text = pattern.replace("{x}", show(low)).replace("{y}", show(low if high is None else high))
    return Demand(kind, low, high, text)


def holds(demand: Demand, text: str) -> bool:
    """The text keeps its demand, by the scorer that will judge it."""
    return longen_length_score(count_longen(text), *demand.band) == 1.0


# --------------------------------------------------------------------------------------------------------- weaving
def appended(instruction: str, demand: Demand, wording: Wording, seed: int) -> str:
    """The demand as a sentence at the instruction's end."""
    sentence = named_random(seed, "append").choice(wording.phrases["append"]).replace("{d}", demand.text)
    return instruction.rstrip() + ("" if wording.language == "zh" else " ") + sentence


def weave(work: Work, iteration: int, item: str, sample: int, language: str, instruction: str, text: str,
          scale: Scale) -> Task:  # fmt: skip
    """Give an instruction a length demand that its text keeps; the end is an outcome of the role `constraint`.

    Its text is the woven instruction, or None when no demand fits (`info` names the rule). A model that loses the
    numbers, turns the demand or rewrites the instruction is asked again; after `constraints.tries` the demand is
    appended as a sentence, which `info` says. Nothing is appended to an instruction that names a length itself.
    """
    settings, wording = work.settings.constraints, work.wordings[language]
    if work.store.outcome(iteration, ROLE, item, sample) is not None:
        return
    key = Key(iteration, ROLE, item, sample)
    seed = named_random(work.seed, "constraint", iteration, item, sample).getrandbits(62)
    words = count_longen(text)
    demand = demand_for(words, scale, settings, wording, seed)
    if demand is None or not holds(demand, text):
        # A bare row whose instruction asks for a length of its own would be a demand that nobody checked.
        rule, length = "no_band", names_length(instruction, wording)
        detail = f"{words} words on {scale.low}-{scale.high}"
        if length:
            rule, detail = "has_length", f"{length}: {instruction[:160]} ({detail})"
        work.finish(key, None, work.judge(key, Verdict(rule, detail, words)), None, {"rule": rule})
        return
    info = {"kind": demand.kind, "low": demand.low, "high": demand.high, "demand": demand.text, "how": "model"}
    woven = (yield from _woven(work, key, wording, instruction, demand)) if settings.weave == "model" else None
    if woven is None:
        if length := names_length(instruction, wording):
            verdict = Verdict("has_length", f"{length}: {instruction[:160]}", words)
            key = Key(*key.fields[:5], step="append")
            work.finish(key, None, work.judge(key, verdict), None, {"rule": "has_length"})
            return
        woven, info["how"] = appended(instruction, demand, wording, seed), "append"
    work.finish(key, woven, Verdict("", "", words), None, info)


def _woven(work: Work, key: Key, wording: Wording, instruction: str, demand: Demand) -> Iterator:
    messages = user(instruction, wording.render("constraint", {"demand": demand.text}))
    for attempt in range(1, work.settings.constraints.tries + 1):
        key = Key(*key.fields[:4], attempt)
        room = min(work.room(messages), 4 * work.count_tokens(instruction) + 128)
        if room < 32:
            work.judge(key, Verdict("no_room", f"{room} tokens left"))
            return None
        answer = yield work.ask(key, "base", messages, work.settings.sampling, room)
        text = answer.text.strip().strip('"“”').strip()
        if (failed := failure(answer)) is not None:
            verdict = failed
        elif answer.finish_reason == "length":
            verdict = Verdict("cut_by_limit", text[:120], count_words(text))
        else:
            verdict = woven_verdict(instruction, text, demand, wording)
        if work.judge(key, verdict).accepted:
            return text
        if verdict.rule == "no_room":  # the server's word, and the same in every try
            return None
    return None


def woven_verdict(instruction: str, text: str, demand: Demand, wording: Wording) -> Verdict:
    """The woven instruction names every number of the demand, keeps most of the original and is no answer to it, says
    of the number what the demand says and nothing else ("more than 5,000" is not "at most 5,000"), and names no other
    length."""
    words = count_words(text)
    if not numbers_in(text, wording.language).issuperset(demand.numbers):
        return Verdict("demand_missing", f"{demand.text}: {text[:160]}", words)
    original, new = words_of(instruction), words_of(text)
    if lcs_length(original, new) < 0.6 * len(original) or len(new) > len(original) + 40:
        return Verdict("demand_changed", text[:160], words)
    said = {(one.kind, one.numbers) for one in said_of(text, wording) if set(one.numbers) & set(demand.numbers)}
    if said != {(demand.kind, demand.numbers)}:
        kinds = " and ".join(sorted({kind for kind, _ in said})) or "bare"
        return Verdict("demand_kind", f"{demand.text}, not {kinds}: {text[:160]}", words)
    if length := names_length(text, wording, demand.numbers):
        return Verdict("has_length", f"{length} beside {demand.text}: {text[:160]}", words)
    return Verdict("", "", words)

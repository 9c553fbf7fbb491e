"""Length demands in the final data: a band that holds the text, words for it, the demand woven into the instruction.

The original's demands are partly false (Chinese strings swapped, numbers rounded out of their own band). Here a demand
is made so that LonGen's band for it holds the text, and checked again with LonGen's scorer and counter at the end.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lengthen.common.seeds import named_random
from lengthen.common.words import count_longen, count_words, longen_band, longen_length_score
from lengthen.recipe.stages.self_lengthen import Constraints
from lengthen.selflengthen.checks import Verdict
from lengthen.selflengthen.distinct import lcs_length, words_of
from lengthen.selflengthen.pipeline import Task
from lengthen.selflengthen.store import Key
from lengthen.selflengthen.wording import Wording
from lengthen.selflengthen.work import Work, user

ROLE = "constraint"
_DIGITS = "零一二三四五六七八九"


@dataclass(frozen=True)
class Demand:
    """kind, low (and high for a range): as `longen_band` takes them. text: the demand in words. numbers: each number
    as it may stand in an instruction."""

    kind: str
    low: int
    high: int | None
    text: str
    numbers: tuple[tuple[str, ...], ...]

    @property
    def band(self) -> tuple[float, float]:
        return longen_band(self.kind, self.low, self.high)


@dataclass(frozen=True)
class Scale:
    """Lengths that may be asked for: multiples of `step` from `low` to `high` words."""

    low: int
    high: int
    step: int


def scale_for(lengths: Sequence[int], settings: Constraints) -> Scale:
    """The settings' numbers; `auto` takes the 10th and 90th percentile of what the model writes, in about six steps
    of a round size (2,000-8,000 words, the paper's band, give a small model no rows at all)."""
    ordered = sorted(lengths) or [settings.low if settings.low != "auto" else 1000]
    tenth, ninetieth = ordered[len(ordered) // 10], ordered[(9 * (len(ordered) - 1) + 9) // 10]
    step = settings.step
    if step == "auto":
        step = _round_number(max(1.0, (ninetieth - tenth) / 6, tenth / 10))
    low = settings.low if settings.low != "auto" else max(step, tenth // step * step)
    high = settings.high if settings.high != "auto" else max(low + step, -(-ninetieth // step) * step)
    return Scale(low, high, step)


def _round_number(value: float) -> int:
    """The nearest of 1, 2, 5 times a power of ten, at least 10."""
    power = 10 ** math.floor(math.log10(value))
    return max(10, int(min((1, 2, 5, 10), key=lambda m: abs(m * power - value)) * power))


def demand_for(words: int, scale: Scale, settings: Constraints, wording: Wording, seed: int) -> Demand | None:
    """A demand whose band holds a text of so many words (LonGen's counter), or None.

    The kind is drawn by its weight; a kind that has no number on the scale for this text gives way to the next.
    """
    if not scale.low <= words <= scale.high:
        return None
    draws = named_random(seed, "demand")
    weights = dict(settings.kinds)
    coarse = scale.step * (2 if draws.random() < settings.double_step else 1)
    while weights:
        kind = draws.choices(list(weights), list(weights.values()))[0]
        for step in dict.fromkeys((coarse, scale.step)):
            numbers = _numbers(kind, words, step, scale)
            if numbers is not None:
                return _worded(kind, numbers, settings, wording, draws)
        del weights[kind]
        if not any(weights.values()):
            break
    return None


def _numbers(kind: str, words: int, step: int, scale: Scale) -> tuple[int, int | None] | None:
    floor = min(max(words // step * step, scale.low), scale.high)
    ceiling = min(max(-(-words // step) * step, scale.low), scale.high)
    if kind == "range":
        if floor == ceiling and ceiling + step <= scale.high:
            ceiling += step
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
    numerals = chinese and draws.random() < settings.chinese_numerals
    forms = [spellings(n, wording.language) for n in (low, high) if n is not None]
    shown = [form[-1] if numerals else form[0] for form in forms]
    pattern = draws.choice(wording.phrases["demands"][kind])
    text = pattern.replace("{x}", shown[0]).replace("{y}", shown[-1])
    return Demand(kind, low, high, text, tuple(forms))


def spellings(number: int, language: str) -> tuple[str, ...]:
    """How a number may stand in an instruction: with a comma or plain; in Chinese plain, or in numerals."""
    if language == "zh":
        return (str(number), f"{number:,}", chinese_numeral(number))
    return (f"{number:,}", str(number))


def chinese_numeral(number: int) -> str:
    """Chinese numeral of 1 to 99,999: 4000 -> 四千, 1050 -> 一千零五十, 12000 -> 一万二千."""
    if not 0 < number < 100_000:
        raise ValueError(f"{number} is outside of 1 to 99,999")
    text, zero = "", False
    for power, sign in ((10_000, "万"), (1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = number // power % 10
        if digit == 0:
            zero = bool(text)
            continue
        text += ("零" if zero else "") + _DIGITS[digit] + sign
        zero = False
    return text[1:] if text.startswith("一十") else text


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

    Its text is the woven instruction, or None when no demand fits. A model that loses the numbers or rewrites the
    instruction is asked again; after `constraints.tries` the demand is appended as a sentence, which `info` says.
    """
    settings, wording = work.settings.constraints, work.wordings[language]
    if work.store.outcome(iteration, ROLE, item, sample) is not None:
        return
    key = Key(iteration, ROLE, item, sample)
    seed = named_random(work.seed, "constraint", iteration, item, sample).getrandbits(62)
    words = count_longen(text)
    demand = demand_for(words, scale, settings, wording, seed)
    if demand is None or not holds(demand, text):
        verdict = work.judge(key, Verdict("no_band", f"{words} words on {scale.low}-{scale.high}", words))
        work.finish(key, None, verdict, None, {"rule": "no_band"})
        return
    info = {"kind": demand.kind, "low": demand.low, "high": demand.high, "demand": demand.text, "how": "append"}
    woven = appended(instruction, demand, wording, seed)
    if settings.weave == "model":
        said = yield from _woven(work, key, wording, instruction, demand)
        if said is not None:
            woven, info["how"] = said, "model"
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
        if answer.finish_reason == "error":
            verdict = Verdict("endpoint_error", (answer.error or "")[:300])
        elif answer.finish_reason == "length":
            verdict = Verdict("cut_by_limit", text[:120], count_words(text))
        else:
            verdict = woven_verdict(instruction, text, demand)
        if work.judge(key, verdict).accepted:
            return text
    return None


def woven_verdict(instruction: str, text: str, demand: Demand) -> Verdict:
    """The woven instruction names every number of the demand, keeps most of the original, and is no answer to it."""
    words = count_words(text)
    for forms in demand.numbers:
        if not any(re.search(rf"(?<!\d){re.escape(form)}(?!\d)", text) for form in forms):
            return Verdict("demand_missing", f"{demand.text}: {text[:160]}", words)
    original, new = words_of(instruction), words_of(text)
    if lcs_length(original, new) < 0.6 * len(original) or len(new) > len(original) + 40:
        return Verdict("demand_changed", text[:160], words)
    return Verdict("", "", words)

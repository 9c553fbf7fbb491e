"""Lengths that an instruction names: numbers, what is said of them (at least, at most, about, between), and whether a
length is named at all. The words for them stand in phrases.LANGUAGE.json."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache

from lengthen.selflengthen.wording import Wording

KINDS = ("about", "range", "above", "below")
LEAST = 50
"""Smaller numbers of words are no length of a text ("a list of 20 words", 十字路口)."""
_DIGITS = "零一二三四五六七八九"
_UNITS = {"十": 10, "百": 100, "千": 1000, "万": 10_000}
_SIGNS = "零〇一二两三四五六七八九十百千万亿"
# The whole number is taken, so that 四千 is never found inside 四千五百, nor 4,000 inside 14,000.
_NUMBERS = {
    "en": r"(?<![\w$€£])(?<!\d[.,])(?:\d{1,3}(?:,\d{3})+|\d+)(?![^\W_]|[.,]\d|%)",
    "zh": rf"(?<![\d{_SIGNS}])(?<!\d[.,])(?:(?:\d{{1,3}}(?:,\d{{3}})+|\d+(?:\.\d+)?)[百千万]?|[{_SIGNS[:-1]}]+)"
    rf"(?![\d{_SIGNS}]|[.,]\d|%)",
}


@dataclass(frozen=True)
class Said:
    """One thing said of a number, or of two for a range: `at least 4,000`. span: where it stands."""

    kind: str
    numbers: tuple[int, ...]
    span: tuple[int, int]


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


def number_of(text: str) -> int:
    """The value of a number in digits, in Chinese numerals or in both: 4,000, 四千五百, 两千, 1.5万."""
    total = section = digit = 0.0
    for token in re.findall(r"\d+(?:\.\d+)?|.", text.replace(",", "")):
        if token in _UNITS:
            unit = _UNITS[token]
            if unit == 10_000:
                total, section = total + (section + digit or 1) * unit, 0
            else:
                section += (digit or 1) * unit
            digit = 0
        else:
            digit = float(token) if token[0].isascii() else _DIGITS.index(token.replace("两", "二").replace("〇", "零"))
    return round(total + section + digit)


def numbers_in(text: str, language: str) -> set[int]:
    return {number_of(match[0]) for match in re.finditer(_NUMBERS[language], _plain(text))}


def said_of(text: str, wording: Wording) -> list[Said]:
    """What a text says of its numbers. A phrase that stands inside a longer one does not count: "no more than 5,000"
    is no "more than 5,000"."""
    text = _plain(text)
    found = [
        Said(kind, tuple(number_of(match[name]) for name in ("x", "y") if name in pattern.groupindex), match.span())
        for kind in KINDS
        for pattern in _compiled(wording.language, tuple(wording.phrases["markers"][kind]))
        for match in pattern.finditer(text)
    ]
    return [one for one in found if not any(_inside(one.span, other.span) for other in found)]


def names_length(text: str, wording: Wording, apart: Collection[int] = ()) -> str:
    """The length that an instruction names, such as `500-word`, or "". apart: numbers that do not count."""
    for match, number in _lengths(_plain(text), wording):
        if number is None or (number >= LEAST and number not in apart):
            return match
    return ""


def _lengths(text: str, wording: Wording) -> Iterator[tuple[str, int | None]]:
    for pattern in _compiled(wording.language, tuple(wording.phrases["lengths"])):
        for match in pattern.finditer(text):
            yield match[0], number_of(match["x"]) if "x" in pattern.groupindex else None


def _plain(text: str) -> str:
    """Without emphasis, with one space for each stretch of white space."""
    return " ".join(text.replace("*", "").split())


def _inside(span: tuple[int, int], other: tuple[int, int]) -> bool:
    return span != other and other[0] <= span[0] and span[1] <= other[1]


@lru_cache(maxsize=32)
def _compiled(language: str, patterns: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    number = _NUMBERS[language]
    filled = (p.replace("{x}", f"(?P<x>{number})").replace("{y}", f"(?P<y>{number})") for p in patterns)
    return tuple(re.compile(pattern, re.IGNORECASE) for pattern in filled)

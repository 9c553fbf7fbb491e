"""Scores answers about tables and planted facts: exact match after spaces, case and number format are made alike."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

_SEPARATOR = re.compile(r"\s*(?:[;、]|,(?!\d{3}(?!\d))|\band\b|和)\s*")
_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
_EDGES = " \t\"'`*_.。!！:：|()[]（）"
_SAME = {"是": "yes", "否": "no", "不是": "no", "表中没有": "not in the table", "absent": "not in the table"}


def final_line(output: str) -> str:
    """The last line with anything in it, where a worked answer puts the bare one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def normal(value: str) -> str:
    """One value in one form: full-width characters narrow, lower case, single spaces, no quotes or marks around it,
    numbers without thousands separators, plus sign or trailing zeros (`1,250.50` and `1250.5` are the same)."""
    text = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", value)).strip(_EDGES).lower()
    if _NUMBER.fullmatch(text):
        try:
            number = Decimal(text.replace(",", ""))
        except InvalidOperation:
            return text
        return format(number.normalize(), "f") if number else "0"
    return _SAME.get(text, text)


def split_list(text: str) -> list[str]:
    """Values of a list answer. A comma inside `1,250` is no separator, unless the values say otherwise."""
    return [part for part in _SEPARATOR.split(unicodedata.normalize("NFKC", text)) if part.strip(_EDGES)]


def score(output: str, answer: Sequence[str], *, ordered: bool = True) -> float:
    """1.0 where the final line of `output` is the answer, else 0.0.

    Args:
        output: what the model wrote; all lines but the last are its steps.
        answer: the bare values (`meta.turns[i].answer` of a conversation).
        ordered: False compares list answers as sets (with repetitions counted).
    """
    line = final_line(output)
    if len(answer) == 1:
        return float(normal(line) == normal(answer[0]))
    wanted = [normal(value) for value in answer]
    # `1,250` can be one number or two values; either reading may be the one that was meant.
    for parts in (split_list(line), re.split(r"[,;、]", unicodedata.normalize("NFKC", line))):
        said = [normal(part) for part in parts]
        if said == wanted or (not ordered and Counter(said) == Counter(wanted)):
            return 1.0
    return 0.0


def score_sentence(output: str, answer: Sequence[str]) -> float:
    """For one-sentence answers: 1.0 where every value occurs, whole, in the output (the rule of needle tests)."""
    text = unicodedata.normalize("NFKC", output).lower()
    # Not \b: Chinese characters beside a number are letters too, and no part of it.
    whole = r"(?<![a-z0-9-])(?<!\d[.,]){}(?![a-z0-9-]|[.,]\d)"
    return float(all(re.search(whole.format(re.escape(value.lower())), text) for value in answer))

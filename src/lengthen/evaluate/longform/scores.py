"""Measures of one written text that need no judge, and their means over prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from lengthen.common.words import (
    count_longen,
    count_longwriter,
    count_words,
    ends_sentence,
    longbench_write_length_score,
    longen_length_score,
    repetition,
)
from lengthen.evaluate.longform.prompts import WritingPrompt


@dataclass(frozen=True)
class TextMeasures:
    """What a written text is like.

    words: by our counter. clean_words: up to the first repeated span. counted: by the benchmark's own counter.
    length_score: LonGen's S_L or LongBench-Write's S_l / 100; None for prompts without a demand.
    clean_length_score: the same of the text up to its first repeated span, so that a loop earns nothing.
    repeated: share of 10-grams seen before. longest_copy: words of the longest copied stretch.
    finished: the text ends where a text may end, and the model stopped by itself.
    """

    words: int
    clean_words: int
    counted: int
    length_score: float | None
    clean_length_score: float | None
    repeated: float
    longest_copy: int
    finished: bool
    empty: bool


def measure_text(prompt: WritingPrompt, text: str, finish_reason: str = "stop") -> TextMeasures:
    """All judge-free measures of one answer."""
    found = repetition(text)
    clean = text[: found.clean_chars]
    return TextMeasures(
        words=found.words,
        clean_words=found.clean_words,
        counted=_count(prompt, text),
        length_score=length_score(prompt, text),
        clean_length_score=length_score(prompt, clean),
        repeated=found.share,
        longest_copy=found.longest_copy,
        finished=finish_reason == "stop" and ends_sentence(text),
        empty=not text.strip(),
    )


def length_score(prompt: WritingPrompt, text: str) -> float | None:
    """0..1 by the prompt's family, each with its own word counter; None without a length demand."""
    if prompt.family == "longen":
        return longen_length_score(count_longen(text), prompt.low, prompt.high)
    if prompt.family == "longbench-write":
        return longbench_write_length_score(prompt.high, count_longwriter(text)) / 100
    return None


def _count(prompt: WritingPrompt, text: str) -> int:
    counters = {"longen": count_longen, "longbench-write": count_longwriter, "open": count_words}
    return counters[prompt.family](text)


def as_meta(measures: TextMeasures) -> Mapping[str, float | int | bool | None]:
    """For a prediction's row."""
    return asdict(measures)

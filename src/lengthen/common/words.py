"""Lengths of texts: word counters by name, repetition, sentence ends, and the two published length scores.

Counters differ by 10-20% on the same text, so a score names its counter and scores of different counters are never
mixed: LonGen's (arXiv 2410.23933), LongWriter's (arXiv 2408.07055), and ours, which the loop and its report use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from lengthen.common.errors import LengthenError, nearest

_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# Scripts that are written without spaces and of which one sign is about one word or syllable.
_SINGLE = _IDEOGRAPHS + "\u3041-\u3096\u30a1-\u30fa"
_LONGEN = re.compile(r"[\u4e00-\u9fff\u3000-\u303f\uff00-\uffef]")
_LONGWRITER_CJK = re.compile(r"[\u4e00-\u9fff]")
_LONGWRITER_LATIN = re.compile(r"\b[a-zA-Z]+\b")
_SIGN = re.compile(rf"[{_SINGLE}]")
# A unit: one sign of a script without spaces, or a run without spaces, dashes, slashes, bars and CJK punctuation.
_UNIT = re.compile(rf"[{_SINGLE}]|[^\s{_SINGLE}\u2010-\u2015…/|\\\u3000-\u303f\uff00-\uff0f\uff1a-\uff1f]+")


def count_longen(text: str) -> int:
    """LonGen's counter: each ideograph and each CJK or full-width sign is 1, the rest is split at whitespace."""
    return len(_LONGEN.findall(text)) + len(_LONGEN.sub(" ", text).split())


def count_longwriter(text: str) -> int:
    """LongWriter's counter: ideographs and runs of Latin letters; no punctuation, no numbers ("don't" is 2)."""
    return len(_LONGWRITER_CJK.findall(text)) + len(_LONGWRITER_LATIN.findall(text))


def count_words(text: str) -> int:
    """Our counter: ideographs and kana one by one, every other run that holds a letter or digit; a Markdown rule, a
    bullet or a table's bars count nothing."""
    return sum(map(_is_word, _UNIT.findall(text)))


def _is_word(run: str) -> bool:
    """Whether a run holds a letter or digit; nearly all begin with one."""
    return run[0].isalnum() or any(map(str.isalnum, run))


COUNTERS: dict[str, Callable[[str], int]] = {
    "lengthen": count_words,
    "longen": count_longen,
    "longwriter": count_longwriter,
}


def word_counter(name: str) -> Callable[[str], int]:
    """A counter by name: `lengthen`, `longen` or `longwriter`."""
    if name not in COUNTERS:
        raise LengthenError(f"There is no word counter '{name}'.", fix=nearest(name, COUNTERS))
    return COUNTERS[name]


def units(text: str) -> Iterator[tuple[int, str]]:
    """(character offset, lower-case word) of each word that `count_words` counts, in order."""
    for match in _UNIT.finditer(text):
        run = match[0]
        if _is_word(run):
            yield match.start(), run.strip(_PUNCTUATION).lower() or run.lower()


_PUNCTUATION = "!\"#$%&'()*+,-.:;<=>?@[]^_`{}~‘’“”«»‹›„‚·•¡¿،؛؟।॥。、，！？：；（）「」『』《》〈〉【】〔〕"


def is_cjk(text: str) -> bool:
    """True when most words of a text are single signs of a script without spaces."""
    found = [unit for _, unit in units(text[:4000])]
    return bool(found) and 2 * sum(1 for u in found if len(u) == 1 and _SIGN.match(u)) > len(found)


# ---------------------------------------------------------------------------------------------------- repetition
@dataclass(frozen=True)
class Repetition:
    """How much of a text was there before.

    words: all words (our counter).
    share: share of the n-grams that occurred earlier in the text, 0..1.
    longest_copy: words of the longest stretch that copies an earlier one (a loop counts with all its rounds but the
        first); 0 without a repeated n-gram.
    clean_words: words before the first repeated span: an n-gram seen before, or a sentence said before.
    clean_chars: the same as a character offset, so that `text[:clean_chars]` is the clean part.
    cause: what the first repeated span is: "n-gram", "sentence" or "" for none.
    """

    words: int
    share: float
    longest_copy: int
    clean_words: int
    clean_chars: int
    cause: Literal["", "n-gram", "sentence"]


def repetition(text: str, n: int = 10, min_sentence: int = 5) -> Repetition:
    """Repetition of n-grams of words; O(words).

    Args:
        n: words (or signs) of an n-gram. The original rejects at 10 words or at 13 signs.
        min_sentence: shorter sentences may recur ("Yes, of course.").
    """
    found = list(units(text))
    words = [unit for _, unit in found]
    seen: dict[tuple[str, ...], int] = {}
    repeated, longest, run, source, first = 0, 0, 0, -2, -1
    for i in range(len(words) - n + 1):
        gram = tuple(words[i : i + n])
        before = seen.get(gram)
        seen[gram] = i
        if before is None:
            run, source = 0, -2
            continue
        repeated += 1
        first = i if first < 0 else first
        # The latest earlier place moves on by one word at a time while one stretch is being copied.
        run = run + 1 if source >= 0 and before == source + 1 else n
        source, longest = before, max(longest, run)
    cause: Literal["", "n-gram", "sentence"] = "n-gram" if first >= 0 else ""
    sentence = _first_repeated_sentence(text, found, min_sentence)
    if sentence is not None and (first < 0 or sentence < first):
        first, cause = sentence, "sentence"
    grams = max(0, len(words) - n + 1)
    clean = first if first >= 0 else len(words)
    return Repetition(
        words=len(words),
        share=repeated / grams if grams else 0.0,
        longest_copy=longest,
        clean_words=clean,
        clean_chars=found[first][0] if first >= 0 else len(text),
        cause=cause,
    )


def clean_length(text: str, n: int = 10) -> int:
    """Words up to the first repeated span."""
    return repetition(text, n).clean_words


def _first_repeated_sentence(text: str, found: list[tuple[int, str]], minimum: int) -> int | None:
    seen: set[tuple[str, ...]] = set()
    index = 0
    for _, stop in sentence_spans(text):
        begin = index
        while index < len(found) and found[index][0] < stop:
            index += 1
        words = tuple(unit for _, unit in found[begin:index])
        if len(words) < minimum:
            continue
        if words in seen:
            return begin
        seen.add(words)
    return None


# ------------------------------------------------------------------------------------------------- sentence ends
# Unicode's Sentence_Terminal marks that are in living use, with the ellipses.
TERMINAL = ".!?。！？｡．…‥‼⁇⁈⁉։؝؞؟۔܀߹।॥၊။።፧፨᙮᠃᠉᥄᥅᪨᭚᭛᭞᱾᱿꓿꘎꘏꛳꛷꡶꡷꣎꣏꤯꧈꧉꩝꩟꫰꯫។៕᰻᰼⸮⸼﹒﹖﹗"
CLOSERS = "\"'’”»›)]}）］｝」』】〕〉》〗〙*_~`＂＇〞"
_SENTENCE = re.compile(rf"[{re.escape(TERMINAL)}]+[{re.escape(CLOSERS)}]*(?=\s|$|[{_SINGLE}])|\n+")
_ABBREVIATION = re.compile(r"(?:^|[\s(\"'“])(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|e\.g|i\.e|cf|No|Fig|[A-Z])\.$")
_NOTE = re.compile(r"(?:\s*(?:\[\d+\]|[\u00b9\u00b2\u00b3\u2070-\u2079]))+$")
_LIST_ITEM = re.compile(r"^\s*(?:[-*+•‣◦▪–]|\(?\d{1,3}[.)、．]|[a-zA-Z][.)]|[一二三四五六七八九十]+、)\s+\S")
_FENCE = re.compile(r"^\s*(?:`{3,}|~{3,})", re.MULTILINE)
_FINISHED = re.compile(r"^\W*(?:the end|fin|ende|finis|（?全文完）?|（?完）?|剧终|终)\W*$", re.IGNORECASE)
_UNFINISHED = re.compile(r"(?:[,;:，；：、\-–—(（\[{/&+=]|\b(?:and|or|but|the|a|an|of|to|with|for|in|on|by|和|与|或))$")
# Thai and Lao end a sentence with a space, so any letter may be the last one.
_NO_MARKS = re.compile(r"[\u0e01-\u0eff]$")


def sentence_spans(text: str) -> Iterator[tuple[int, int]]:
    """(begin, end) offsets of the sentences; a line break ends one too. The spans join to the whole text."""
    begin = 0
    for match in _SENTENCE.finditer(text):
        piece = text[begin : match.end()]
        if not piece.endswith("\n") and _ABBREVIATION.search(piece):
            continue
        if not piece.endswith("\n") and _LIST_ITEM.match(piece + " x") and not any(c.isalpha() for c in piece):
            continue  # "12." of a list item
        yield begin, match.end()
        begin = match.end()
    if begin < len(text):
        yield begin, len(text)


def ends_sentence(text: str) -> bool:
    """True when a text ends where a text may end, in any script.

    A terminal mark, with closing quotes, brackets, emphasis, note numbers or pictographs after it; a closed code
    fence; a table row; a list item that breaks off nowhere; the name below a letter; "The End". A comma, a colon, a
    dash, a heading and an open code fence are no ends.
    """
    text = text.rstrip()
    if not text:
        return False
    lines = [line for line in text.splitlines() if line.strip()]
    last = lines[-1].strip()
    if len(_FENCE.findall(text)) % 2:
        return False
    if _FENCE.match(last) or (last.startswith("|") and last.endswith("|")) or _FINISHED.match(last):
        return True
    if re.match(r"#{1,6}\s", last):
        return False
    core = _strip_closers(last)
    if core and (core[-1] in TERMINAL or _NO_MARKS.search(core)):
        return True
    if _UNFINISHED.search(last.rstrip(CLOSERS)):
        return False
    return bool(_LIST_ITEM.match(lines[-1])) or _is_signature(lines)


def _strip_closers(line: str) -> str:
    """Without what may stand after the terminal mark: closers, note numbers, emoji (which end a friendly post)."""
    while line:
        shorter = _NOTE.sub("", line).rstrip().rstrip(CLOSERS)
        if shorter and (
            ord(shorter[-1]) >= 0x1F000 or 0x2600 <= ord(shorter[-1]) <= 0x27BF or shorter[-1] in "\ufe0f\u200d"
        ):
            shorter = shorter[:-1]
        if shorter == line:
            return line
        line = shorter
    return line


def _is_signature(lines: list[str]) -> bool:
    """The name below a letter: at most five words, within three lines after a short line that ends in a comma."""
    closing = [
        i for i, line in enumerate(lines[-4:-1]) if line.strip().endswith((",", "，")) and count_words(line) <= 5
    ]
    return bool(closing) and all(count_words(line) <= 6 for line in lines[-4:][closing[-1] + 1 :])


# ------------------------------------------------------------------------------------------------- length scores
def longen_band(kind: str, low: float, high: float | None = None) -> tuple[float, float]:
    """Band [a, b] of words that a length demand of LonGen accepts (arXiv 2410.23933, evaluation code).

    Args:
        kind: about x -> [0.8x, 1.2x]; range -> [low, high]; above x -> [x, 1.5x]; below x -> [0.5x, x].
    """
    if kind == "about":
        return 0.8 * low, 1.2 * low
    if kind == "above":
        return low, 1.5 * low
    if kind == "below":
        return 0.5 * low, low
    if kind == "range" and high is not None:
        return low, high
    raise LengthenError(
        f"A length demand of kind '{kind}' has no band.", fix=nearest(kind, ("about", "range", "above", "below"))
    )


def longen_demand(kind: str, constraint: str) -> tuple[float, float]:
    """Band of a LonGen row's `constraint`, such as "about 4,000 words": its first number, or two for a range."""
    numbers = [float(n) for n in re.findall(r"\d+", re.sub(r"(?<=\d),(?=\d{3})", "", constraint))]
    if len(numbers) < (2 if kind == "range" else 1):
        raise LengthenError(f"The length demand '{constraint}' of kind '{kind}' holds too few numbers.")
    return longen_band(kind, numbers[0], numbers[1] if kind == "range" else None)


def longen_length_score(words: float, low: float, high: float) -> float:
    """S_L of LonGen, 0..1: 1 inside [low, high], falling to 0 at low/2 and at 1.5 high. Words by `count_longen`."""
    if words < low:
        return max(2 * words / low - 1, 0.0)
    if words > high:
        return max(3 - 2 * words / high, 0.0)
    return 1.0


def longbench_write_length_score(asked: float, delivered: float) -> float:
    """S_l of LongBench-Write, 0..100 (arXiv 2408.07055, section 2.2): zero at four times and at a third of what was
    asked. Words by `count_longwriter`."""
    if asked <= 0:
        raise LengthenError(f"A length of {asked} words cannot be asked for.")
    if delivered <= 0:
        return 0.0
    if delivered > asked:
        return 100 * max(0.0, 1 - (delivered / asked - 1) / 3)
    return 100 * max(0.0, 1 - (asked / delivered - 1) / 2)
